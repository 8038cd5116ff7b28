"""How far back the loss of a text pulls on attention: |dL/ds| by distance (Figure 3, right).

Shapes: N texts, W resamplings, T tokens of a text, M hidden size, H query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from amnesia_bench.analysis.consumers import DistanceHistogram
from amnesia_bench.analysis.decay import (
    MIN_DISTANCES,
    Floats,
    Resampled,
    describe_tail,
    draw_weights,
    fit_decay,
    reach_of,
    resample_ratio,
)
from amnesia_bench.analysis.models import MeasuredModel, logits_of
from amnesia_bench.analysis.probe import probing
from amnesia_bench.analysis.texts import Text, Texts
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.attention import GradientsByDistance, LayerGradients, Reach

# Logits of this many positions at a time: 256 x 151,936 floats are 156 MB.
_LOSS_POSITIONS = 256
Report = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Histograms:
    """Sums of |dL/ds| and numbers of pairs by distance.

    `sums` has layer -> [N, T] over its heads, `head_sums` layer -> [H, T] over the texts, `pairs`
    layer -> [T] of one head of one text.
    """

    sums: dict[int, Floats]
    head_sums: dict[int, Floats]
    pairs: dict[int, Floats]


def check_distance(tokens: int, max_distance: int) -> None:
    """Check the largest distance of a fit.

    Raises:
        UserError: texts of so many tokens do not reach that far, or it leaves nothing to fit.
    """
    if max_distance >= tokens:
        raise UserError(
            f"--max-distance {max_distance}: texts of {tokens} tokens are too short for it",
            hint=f"The largest distance between two of their tokens is {tokens - 1}.",
        )
    if max_distance < 2 * MIN_DISTANCES:
        raise UserError(
            f"--max-distance {max_distance}: too few distances for a fit and its tail",
            hint=f"Give at least {2 * MIN_DISTANCES}.",
        )


def histograms_of(model: MeasuredModel, texts: Texts, report: Report | None = None) -> Histograms:
    """Run every text forward and backward through a model."""
    by_text: list[dict[int, Floats]] = []
    head_sums: dict[int, Floats] = {}
    pairs: dict[int, Floats] = {}
    with _lean_backward(model.module):
        for i, text in enumerate(texts.taken):
            if report is not None:
                report(i, len(texts.taken))
            seen = DistanceHistogram(model.num_heads, len(text.tokens))
            with probing(model.module, gradients=seen):
                _backward(model, text)
            found = {layer: each.cpu().numpy() for layer, each in seen.sums.items()}
            by_text.append({layer: each.sum(axis=0) for layer, each in found.items()})
            for layer, of_heads in found.items():
                head_sums[layer] = head_sums.get(layer, 0.0) + of_heads
                pairs[layer] = seen.pairs[layer].cpu().numpy()
    sums = {layer: np.stack([each[layer] for each in by_text]) for layer in model.softmax_layers}
    return Histograms(sums, head_sums, pairs)


def gradients_by_distance(
    model: MeasuredModel,
    texts: Texts,
    max_distance: int,
    parents: tuple[Parent, Parent],
    rng: np.random.Generator,
    report: Report | None = None,
) -> GradientsByDistance:
    """Measure |dL/ds| by distance on texts of equal length, and how fast it decays.

    Args:
        model: the model.
        texts: of equal length.
        max_distance: the largest distance of the curve and of its fit, in tokens.
        parents: of the checkpoint and of the data.
        rng: draws the resamplings of texts.
        report: is called with how many texts are done, and of how many.

    Raises:
        UserError: texts are shorter than the largest distance, or no gradient comes from there.
        StageFailedError: gradients are not finite.
    """
    assert texts.tokens is not None
    check_distance(texts.tokens, max_distance)
    found = histograms_of(model, texts, report)
    pooled = model.full_layers or model.softmax_layers
    weights = draw_weights(len(texts.taken), rng)
    sums = np.sum([found.sums[layer] for layer in pooled], axis=0)
    pairs = model.num_heads * np.sum([found.pairs[layer] for layer in pooled], axis=0)
    # A window lets no pair beyond it be seen: where no layer is without one, the curve ends there.
    curve = slice(0, min(max_distance + 1, int(np.count_nonzero(pairs))))
    if curve.stop <= 2 * MIN_DISTANCES:
        raise UserError(
            f"{model.name}: every softmax layer has a window, of {curve.stop} tokens at most: too "
            "few distances for a fit and its tail"
        )
    counts = np.broadcast_to(pairs[curve], sums[:, curve].shape)
    means = resample_ratio(sums[:, curve], counts, weights)
    decaying = means.part(1, means.last)
    _check_everywhere(decaying, texts.source)
    return GradientsByDistance(
        source=texts.source,
        checkpoint=parents[0],
        data=parents[1],
        n=len(texts.taken),
        tokens=texts.tokens,
        too_short=texts.too_short,
        untrained=texts.untrained,
        curve=means.curve(),
        fit=fit_decay(decaying),
        tail=describe_tail(decaying),
        reach=_reach(sums, weights),
        layers=_by_layer(model, found, weights, curve),
        settings={**model.settings, "loss": "sum over trained tokens, nats"},
    )


def _check_everywhere(curve: Resampled, source: str) -> None:
    """Refuse a curve without a logarithm: the fit would be NaN."""
    if not np.isfinite(curve.values).all():
        raise StageFailedError(f"{source}: the gradients of the model are not finite numbers")
    nothing = np.flatnonzero(curve.values <= 0)
    if len(nothing):
        distance = curve.first + int(nothing[0])
        raise UserError(
            f"{source}: no gradient comes from a distance of {distance} tokens: what is trained "
            "lies too near the beginning of the texts",
            hint=f"--max-distance {distance - 1}, or other data.",
        )


def _by_layer(
    model: MeasuredModel, found: Histograms, weights: Floats, curve: slice
) -> tuple[LayerGradients, ...]:
    layers = []
    for layer in model.softmax_layers:
        texts = len(found.sums[layer])
        pairs = np.maximum(found.pairs[layer][curve] * texts * model.num_heads, 1)
        layers.append(
            LayerGradients(
                layer=layer,
                mean=tuple((found.sums[layer].sum(axis=0)[curve] / pairs).tolist()),
                reach=_reach(found.sums[layer], weights),
                head_half_reach=tuple(
                    int(reach_of(sums[None], np.zeros((0, 1)), 0.5).value)
                    for sums in found.head_sums[layer]
                ),
            )
        )
    return tuple(layers)


def _reach(sums: Floats, weights: Floats) -> Reach:
    return Reach(half=reach_of(sums, weights, 0.5), nine_tenths=reach_of(sums, weights, 0.9))


def _backward(model: MeasuredModel, text: Text) -> None:
    """Compute the gradient of the summed loss of a text, for the probe to see."""
    ids = torch.from_numpy(text.tokens.astype(np.int64)).to(model.device)
    targets_at = torch.from_numpy(text.trained.nonzero()[0]).to(model.device)
    # What comes behind the last target has no gradient, but its pairs are counted with the others.
    embedded = model.module.get_input_embeddings()(ids[None]).detach().requires_grad_()
    if model.head_only:
        output = model.module.base_model(inputs_embeds=embedded, use_cache=False)
        chosen = output.last_hidden_state[0, targets_at - 1]
        upstream = _loss_gradient(model, chosen.detach(), ids[targets_at])
    else:
        chosen = model.module(inputs_embeds=embedded, use_cache=False).logits[0, targets_at - 1]
        logits = chosen.detach().requires_grad_()
        loss = cross_entropy(logits, ids[targets_at], reduction="sum")
        (upstream,) = torch.autograd.grad(loss, logits)
    torch.autograd.grad(chosen, embedded, upstream)


def _loss_gradient(model: MeasuredModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient [N, M] of the summed cross-entropy, few logits at a time."""
    gradients: list[Tensor] = []
    for start in range(0, len(targets), _LOSS_POSITIONS):
        chunk = slice(start, start + _LOSS_POSITIONS)
        part = hidden[chunk].requires_grad_()
        logits = logits_of(model, part)
        precise = logits if logits.dtype == torch.float64 else logits.float()
        loss = cross_entropy(precise, targets[chunk], reduction="sum")
        gradients += torch.autograd.grad(loss, part)
    return torch.cat(gradients)


@contextmanager
def _lean_backward(module: Any) -> Iterator[None]:
    """Freeze the parameters, and keep the activations of one layer at a time.

    A layer is checkpointed where it says that it is in training. Only it does: its parts stay in
    evaluation, without dropout.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    layers = [each for each in module.modules() if isinstance(each, GradientCheckpointingLayer)]
    before = [dict(vars(layer)) for layer in layers]
    again = partial(checkpoint, use_reentrant=False)
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for layer in layers:
            vars(layer).update(
                gradient_checkpointing=True, _gradient_checkpointing_func=again, training=True
            )
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for layer, variables in zip(layers, before, strict=True):
            vars(layer).clear()
            vars(layer).update(variables)
