"""Activation checkpointing is switched on under each name that transformers has given it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amnesia_bench.training.models import checkpoint_activations
from tests.support.tiny_models import tiny_model

NOT_REENTRANT = {"use_reentrant": False}


class BeforeRenaming:
    """A model of transformers before 5.23."""

    received: Any = None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any) -> None:
        self.received = gradient_checkpointing_kwargs


def test_a_model_of_an_earlier_transformers_is_asked_by_the_earlier_name() -> None:
    checkpoint_activations(model := BeforeRenaming())
    assert model.received == NOT_REENTRANT


@pytest.mark.parametrize("family", ["hypenet", "mistral_sliding"])
def test_every_layer_is_recomputed_and_the_gradients_are_the_same(family: str) -> None:
    plain, recomputed = tiny_model(family).train(), tiny_model(family).train()
    checkpoint_activations(recomputed)
    ids = torch.arange(1, 33)[None]
    forward_passes = 0

    def count(*_: object) -> None:
        nonlocal forward_passes
        forward_passes += 1

    for layer in recomputed.base_model.layers:
        layer.input_layernorm.register_forward_hook(count)
    for model in (plain, recomputed):
        model(ids, labels=ids).loss.backward()
    assert forward_passes == 2 * len(recomputed.base_model.layers)
    for ours, reference in zip(recomputed.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, reference.grad)
