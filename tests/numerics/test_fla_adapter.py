"""What the adapter hands to fla, without a GPU: stand-ins with the signatures of fla 0.6.0."""

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import Tensor

from amnesia_bench.modeling import PackedRows, alibi_log_decay
from amnesia_bench.modeling.lightning_fla import fla_lightning
from amnesia_bench.modeling.lightning_torch import torch_lightning
from tests.numerics.reference import recurrence


def _simple_gla(q, k, v, g_gamma, scale, initial_state, cu_seqlens) -> tuple[Tensor, Tensor]:
    """The rules both kernels state in their docstrings, by the recurrence."""
    if cu_seqlens is None:
        return recurrence(q, k, v, g_gamma, scale, initial_state)
    assert cu_seqlens.dtype in (torch.int32, torch.int64)
    assert q.shape[0] == 1
    outputs, states = [], []
    for n, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        state = None if initial_state is None else initial_state[n : n + 1]
        document = (x[:, start:stop] for x in (q, k, v))
        output, state = recurrence(*document, g_gamma, scale, state)
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs, dim=1), torch.cat(states)


@pytest.fixture
def called(monkeypatch):
    """Names of the kernels that were called."""
    names = []

    # Parameters of fla/ops/simple_gla/{chunk,fused_recurrent}.py of 0.6.0. Both swallow unknown
    # names with **kwargs, so a misspelled one would be lost in silence; not so here.
    def chunk_simple_gla(
        q,
        k,
        v,
        g=None,
        g_gamma=None,
        scale=None,
        initial_state=None,
        output_final_state=False,
        state_v_first=False,
        cu_seqlens=None,
        cu_seqlens_cpu=None,
    ):
        names.append("chunk")
        assert g is None
        assert output_final_state
        assert not state_v_first
        if cu_seqlens is not None:
            assert cu_seqlens_cpu.device.type == "cpu"
            assert torch.equal(cu_seqlens_cpu, cu_seqlens.cpu())
        return _simple_gla(q, k, v, g_gamma, scale, initial_state, cu_seqlens)

    def fused_recurrent_simple_gla(
        q,
        k,
        v,
        g=None,
        g_gamma=None,
        scale=None,
        initial_state=None,
        output_final_state=False,
        reverse=False,
        state_v_first=False,
        cu_seqlens=None,
    ):
        names.append("recurrent")
        assert g is None
        assert output_final_state
        assert not reverse
        assert not state_v_first
        return _simple_gla(q, k, v, g_gamma, scale, initial_state, cu_seqlens)

    module = ModuleType("fla.ops.simple_gla")
    module.chunk_simple_gla = chunk_simple_gla
    module.fused_recurrent_simple_gla = fused_recurrent_simple_gla
    monkeypatch.setitem(sys.modules, "fla", ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", ModuleType("fla.ops"))
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", module)
    return names


@pytest.mark.parametrize(
    ("bounds", "kernel"),
    [
        ([0, 1], "recurrent"),
        ([0, 63], "recurrent"),
        ([0, 64], "chunk"),
        ([0, 60, 100], "recurrent"),
        ([0, 5, 90, 100], "chunk"),
    ],
)
@pytest.mark.parametrize("with_state", [True, False])
def test_both_kernels_get_what_they_ask_for(called, bounds, kernel, with_state):
    generator = torch.Generator().manual_seed(0)
    shape = (1, bounds[-1], 3, 8)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    documents = len(bounds) - 1
    state = torch.randn((documents, 3, 8, 8), generator=generator, dtype=torch.float64)
    packed = None
    if documents > 1:
        packed = PackedRows.from_cu_seqlens(bounds, bounds[-1], q.device)
    operands = (alibi_log_decay(3).double(), 0.3, state if with_state else None, packed)
    ours = fla_lightning((q, k, v), *operands)
    theirs = torch_lightning((q, k, v), *operands)
    assert called == [kernel]
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)
