"""Write the tensors of a checkpoint one by one into safetensors shards with an index."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

SHARD_BYTES = 5 * 1000**3


class ShardWriter:
    """Writes tensors in the given order into shards with an index, or into one file if they fit.

    Args:
        folder: an existing folder.
        shard_bytes: maximum size of a shard; a larger tensor is written to a separate shard.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._total_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Add the next tensor; if the current shard is full, it is first written to disk."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += size
        self._total_bytes += size

    def close(self) -> None:
        """Write the remaining tensors and the index; use the file names transformers expects."""
        self._flush()
        if len(self._shards) == 1:
            self._shards[0][0].rename(self._folder / SAFE_WEIGHTS_NAME)
            return
        weight_map: dict[str, str] = {}
        for n, (path, names) in enumerate(self._shards):
            final = f"model-{n + 1:05d}-of-{len(self._shards):05d}.safetensors"
            path.rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self._folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2))

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._folder / f"shard-{len(self._shards)}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        self._shards.append((path, list(self._pending)))
        self._pending, self._pending_bytes = {}, 0
