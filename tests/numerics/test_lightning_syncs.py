"""Packed rows cause no look at a value on the device: neither the launches nor the boundaries."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from amnesia_bench.modeling import PackedRows, alibi_log_decay, lightning_fla
from amnesia_bench.modeling.lightning_fla import DocumentTables, fla_backward, fla_forward

LOOKS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_to_copy", "unique", "item")


class _Looks(TorchDispatchMode):
    """Collects operators that wait for the device: they return values, or their size is a value."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if any(look in name for look in LOOKS):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


class _Kernel:
    """Stands for a kernel: takes the place of the launch, which is asynchronous on a GPU."""

    launched: list[str] = []  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: tuple[int, ...]):
        assert all(isinstance(size, int) for size in grid)
        return lambda **arguments: self.launched.append(self.name)


def test_the_counter_sees_what_fla_itself_does():
    """fla 0.6.0, chunk_h.py: `NS = split_offsets[-1].item()`."""
    with _Looks() as looks:
        torch.tensor([0, 2, 5])[-1].item()
    assert looks.names == ["aten._local_scalar_dense.default"]


@pytest.mark.parametrize("with_state", [True, False])
def test_a_packed_row_forward_and_backward_never_waits(monkeypatch, with_state):
    monkeypatch.setattr(lightning_fla, "_kernel", _Kernel)
    monkeypatch.setattr(_Kernel, "launched", [])
    bounds = (0, 5, 90, 200)
    packed = PackedRows.from_bounds(bounds, torch.device("cpu"))
    documents = DocumentTables(packed.cu_seqlens, packed.chunks)
    q, k, v = (torch.randn(1, 200, 2, 16) for _ in range(3))
    state: Tensor | None = torch.randn(3, 2, 16, 16) if with_state else None
    with _Looks() as looks:
        output, end = fla_forward((q, k, v), alibi_log_decay(2), 0.25, state, documents)
        operands = (q, k, v), alibi_log_decay(2), 0.25, state, documents
        gradients = fla_backward((output, end if with_state else None), *operands)
    assert looks.names == []
    assert [x.shape for x in gradients[:3]] == [x.shape for x in (q, k, v)]
    assert [name.split(".")[1] for name in _Kernel.launched] == [
        "chunk_fwd_kernel_h",
        "chunk_fwd_kernel_o",
        "chunk_fwd_kernel_h",
        "chunk_bwd_kernel_dh",
        "chunk_bwd_kernel_dqkwg",
        "chunk_bwd_kernel_dv",
    ]


def test_chunks_of_packed_documents():
    packed = PackedRows.from_bounds((0, 5, 90, 154, 300), torch.device("cpu"))
    index = [[0, 0], [1, 0], [1, 1], [2, 0], [3, 0], [3, 1], [3, 2]]
    assert packed.chunks.index.tolist() == index
    assert packed.chunks.offsets.tolist() == [0, 1, 3, 4, 7]
    assert packed.chunks.index.dtype == packed.chunks.offsets.dtype == torch.int32
