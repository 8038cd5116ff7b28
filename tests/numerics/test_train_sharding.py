"""Sharding over a fake process group, in which collectives are counted but move no data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from amnesia_bench.training.processes import device_mesh, joined_processes
from amnesia_bench.training.sharding import clip_gradients, shard, sum_between_nodes

BLOCKS = 3


class Operations(TorchDispatchMode):
    """Count the operations that PyTorch runs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def sharded(per_node: int) -> nn.Sequential:
    mesh = device_mesh("cpu", 4, per_node)
    processes: Any = SimpleNamespace(device=torch.device("cpu"), size=4, mesh=mesh)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(BLOCKS)))
    shard(model, list(model), processes, "fp32")
    return model


@pytest.mark.parametrize(("per_node", "sums"), [(4, 0), (2, BLOCKS), (1, 0)])
def test_a_step_of_several_micro_batches_sums_between_nodes_once(
    group: None, per_node: int, sums: int
) -> None:
    model, micro_batches = sharded(per_node), 3
    with Operations() as counted:
        for number in range(1, micro_batches + 1):
            sum_between_nodes(model, number == micro_batches)
            model(torch.ones(2, 8)).sum().backward()
    assert counted.counts["c10d::_reduce_scatter_base_"] == micro_batches * BLOCKS
    assert counted.counts["c10d::allreduce_"] == sums


def test_clipping_gives_the_bits_of_pytorch_in_few_operations() -> None:
    operations = []
    for count in (2, 50):
        torch.manual_seed(0)
        reference = nn.ParameterList(torch.randn(5, 3) for _ in range(count))
        torch.manual_seed(0)
        model = nn.ParameterList(torch.randn(5, 3) for _ in range(count))
        with joined_processes() as processes:
            shard(model, (), processes, "fp32")
            for module in (reference, model):
                for parameter in module.parameters():
                    parameter.grad = parameter.detach() * 7
            expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.5)
            with Operations() as counted:
                norm = clip_gradients(model.parameters(), 1.5, processes)
            operations.append(counted.counts)
            assert torch.equal(norm, expected)
            for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
                gradient: Any = ours.grad
                assert theirs.grad is not None
                assert torch.equal(gradient.full_tensor(), theirs.grad)
    # With more gradients there are more views of their local data, but no more kernels.
    few, many = operations
    assert set(many - few) <= {"aten::view", "aten::detach", "aten::unbind"}, many - few


def test_a_model_without_memory_is_sharded() -> None:
    with joined_processes() as processes, FakeTensorMode():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        shard(model, list(model), processes, "bf16")
        assert model(torch.ones(1, 4)).shape == (1, 4)
