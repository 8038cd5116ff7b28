"""Activation checkpointing recomputes what its policy says, and changes no gradient."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amnesia_bench.config.load import load_training
from amnesia_bench.config.train_schema import Recomputation
from amnesia_bench.errors import UserError
from amnesia_bench.training.blocks import recompute_activations
from tests.support.tiny_models import tiny_model

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
PRODUCTS = (aten.mm.default, aten.addmm.default)
POLICIES: tuple[Recomputation, ...] = ("selective", "full")


class Count(TorchDispatchMode):
    """Counts the calls of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[object, int] = {}

    @property
    def products(self) -> int:
        return sum(self.calls.get(operation, 0) for operation in PRODUCTS)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls[func] = self.calls.get(func, 0) + 1
        return func(*args, **kwargs or {})


def counted_backward(family: str, policy: Recomputation) -> tuple[torch.nn.Module, Count]:
    model = tiny_model(family).train()
    recompute_activations(model.base_model.layers, policy)
    ids = torch.arange(1, 65)[None]
    loss = model(ids, labels=ids, use_cache=False).loss
    with Count() as count:
        loss.backward()
    return model, count


@pytest.mark.parametrize("family", ["hypenet", "qwen2", "mistral_sliding"])
def test_recomputation_follows_its_policy_and_changes_no_gradient(family: str) -> None:
    plain, without = counted_backward(family, "none")
    layers = len(plain.base_model.layers)
    products = {}
    for policy in POLICIES:
        model, count = counted_backward(family, policy)
        products[policy] = count.products - without.products
        assert bool(count.calls.get(ATTENTION, 0)) is (policy == "full")
        for ours, reference in zip(model.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-6, atol=1e-6)
    # Per layer at least q, k, v, o, gate and up are computed again, never down.
    assert products["full"] >= 6 * layers
    assert products["selective"] <= products["full"] / 2


def test_the_value_of_earlier_configs_gets_the_value_to_write() -> None:
    with pytest.raises(UserError, match="selective or full; write full for true"):
        load_training("sft_miromind_2b", ["train.activation_checkpointing=true"])
