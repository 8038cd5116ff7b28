"""Read a checkpoint of PyTorch's distributed checkpoint format without running code from it.

The file `.metadata` is a pickle, which could call any function. This reader only unpickles the
record classes that such metadata consist of. It only accepts entries that are tensors in files of
the same folder, since PyTorch loads tensors with `weights_only` but unpickles any other entry.
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
    "torch.serialization": ("_get_layout",),  # a harmless function: looks up a layout by name
    "torch": ("Size",),
    "pathlib": ("PosixPath",),
}


class _Records(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


class TensorReader(FileSystemReader):
    """Reads the tensors of a training checkpoint."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the metadata of the checkpoint, which contain the location of each tensor.

        Raises:
            UserError: the file is not the metadata of a checkpoint that contains only tensors.
        """
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_metadata(folder: Path) -> Metadata:
    """Return the metadata of a training checkpoint.

    Raises:
        UserError: the file is not the metadata of a checkpoint that contains only tensors.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            metadata = _Records(file).load()
        _check(metadata)
    except Exception as error:  # unpickling can raise any exception
        raise UserError(
            f"{path}: not the metadata of a checkpoint of tensors ({error})",
            hint=f"No code in it was run. Remove {folder} to resume from the previous checkpoint.",
        ) from error
    assert isinstance(metadata, Metadata)
    return metadata


def _check(metadata: object) -> None:
    if not isinstance(metadata, Metadata):
        raise TypeError(f"it contains a {type(metadata).__name__}")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise TypeError(f"{name} is not a tensor")
    for stored in metadata.storage_data.values():
        if Path(stored.relative_path).name != stored.relative_path:
            raise ValueError(f"it names the file {stored.relative_path}")
        if stored.transform_descriptors:
            raise ValueError(f"it names the transforms {stored.transform_descriptors}")
