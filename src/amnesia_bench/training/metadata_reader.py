"""Read a save of PyTorch's distributed checkpoint without running anything that is in it.

Its `.metadata` is a pickle, which by itself may call any function. Here it may build only the
plain records that such metadata consist of, and these may name tensors only, in files of the save:
PyTorch reads tensors with `weights_only`, but anything else by another pickle.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from amnesia_bench.errors import UserError

METADATA = ".metadata"
_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),  # a layout by its name
    "torch": ("Size",),
    "pathlib": ("PosixPath",),
}


class _Records(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


class TensorReader(FileSystemReader):
    """Reads the tensors of a save."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return what is where.

        Raises:
            UserError: the file is not what a save of tensors writes.
        """
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_metadata(folder: Path) -> Metadata:
    """Return the metadata of a save.

    Raises:
        UserError: the file is not what a save of tensors writes.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            metadata = _Records(file).load()
        _check(metadata)
    except Exception as error:  # of a pickle's instructions, which may go wrong in any way
        raise UserError(
            f"{path}: not the metadata of a save of tensors ({error})",
            hint=f"Nothing in it was run. Remove {folder} to go on from the save before it.",
        ) from error
    assert isinstance(metadata, Metadata)
    return metadata


def _check(metadata: object) -> None:
    if not isinstance(metadata, Metadata):
        raise TypeError(f"it holds a {type(metadata).__name__}")
    for name, kept in metadata.state_dict_metadata.items():
        if not isinstance(kept, TensorStorageMetadata):
            raise TypeError(f"{name} is no tensor")
    for stored in metadata.storage_data.values():
        if Path(stored.relative_path).name != stored.relative_path:
            raise ValueError(f"it names the file {stored.relative_path}")
        if stored.transform_descriptors:
            raise ValueError(f"it names the transforms {stored.transform_descriptors}")
