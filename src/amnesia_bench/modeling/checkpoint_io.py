"""Read a checkpoint tensor by tensor, and write one in shards: safetensors only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amnesia_bench.errors import UserError

SHARD_BYTES = 5 * 1000**3  # what transformers writes by default is of this order
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.distcp")


class CheckpointReader:
    """The tensors of a Hugging Face checkpoint folder, read one at a time.

    Raises:
        UserError: the folder has no readable safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        files = sorted(self._folder.glob("*.safetensors"))
        if not files:
            pickled = [file.name for kind in _PICKLES for file in self._folder.rglob(kind)]
            hint = "Pass a folder with model.safetensors."
            if pickled:
                hint = (
                    f"It holds {pickled[0]}, which is pickle and is not read: export the "
                    "checkpoint to safetensors first."
                )
            raise UserError(f"{folder} has no *.safetensors", hint=hint)
        self._file_of: dict[str, Path] = {}
        for file in files:
            try:
                with safe_open(file, "pt") as opened:
                    self._file_of |= dict.fromkeys(opened.keys(), file)
            except SafetensorError as error:
                raise UserError(f"{file} is damaged: {error}") from error

    @property
    def names(self) -> Mapping[str, Path]:
        """Tensor names, with the file each one is in."""
        return self._file_of

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings, which stands for the checkpoint's."""
        return self.read("model.embed_tokens.weight").dtype

    def read(self, name: str) -> Tensor:
        """Return one tensor.

        Raises:
            UserError: the checkpoint does not have it.
        """
        if name not in self._file_of:
            raise UserError(f"{self._folder} has no tensor {name}")
        with safe_open(self._file_of[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


class ShardWriter:
    """Write tensors as they come into shards with an index, or into one file if they fit.

    Args:
        folder: an existing folder.
        shard_bytes: a shard is closed before it would grow beyond this.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._total_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take the next tensor."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += size
        self._total_bytes += size

    def close(self) -> None:
        """Write what is left, and name the files the way transformers looks for them."""
        self._flush()
        if len(self._shards) == 1:
            self._shards[0][0].rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for n, (path, names) in enumerate(self._shards):
            final = f"model-{n + 1:05d}-of-{len(self._shards):05d}.safetensors"
            path.rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._folder / f"shard-{len(self._shards)}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        self._shards.append((path, list(self._pending)))
        self._pending, self._pending_bytes = {}, 0
