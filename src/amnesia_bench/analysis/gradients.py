"""Measure |dL/ds|, the gradients of the loss with respect to the attention logits, by distance.

The distance is that between query and key (Figure 3, right).

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

# Number of positions whose logits are in memory at once: 256 x 151,936 floats are 156 MB.
_LOSS_POSITIONS = 256
Report = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Histograms:
    """Sums of |dL/ds| and numbers of query-key pairs by distance; all fields map layers to arrays.

    `sums` contains [N, T], summed over heads. `head_sums` contains [H, T], summed over texts.
    `pairs` contains [T], the numbers for one head and one text.
    """

    sums: dict[int, Floats]
    head_sums: dict[int, Floats]
    pairs: dict[int, Floats]


def check_distance(tokens: int, max_distance: int) -> None:
    """Raise an error if `max_distance` is unsuitable for texts of `tokens` tokens.

    Raises:
        UserError: `max_distance` is too large for the texts, or too small for a fit.
    """
    if max_distance >= tokens:
        raise UserError(
            f"--max-distance {max_distance}: texts of {tokens} tokens are too short",
            hint=f"The largest distance between two of their tokens is {tokens - 1}.",
        )
    if max_distance < 2 * MIN_DISTANCES:
        raise UserError(
            f"--max-distance {max_distance}: too few distances for a fit and its tail",
            hint=f"Use at least {2 * MIN_DISTANCES}.",
        )


def histograms_of(model: MeasuredModel, texts: Texts, report: Report | None = None) -> Histograms:
    """Return histograms of |dL/ds| from a forward and backward pass over each text."""
    by_text: list[dict[int, Floats]] = []
    head_sums: dict[int, Floats] = {}
    pairs: dict[int, Floats] = {}
    with _lean_backward(model.module):
        for i, text in enumerate(texts.taken):
            if report is not None:
                report(i, len(texts.taken))
            histogram = DistanceHistogram(model.num_heads, len(text.tokens))
            with probing(model.module, gradients=histogram):
                _backward(model, text)
            text_sums = {layer: sums.cpu().numpy() for layer, sums in histogram.sums.items()}
            by_text.append({layer: sums.sum(axis=0) for layer, sums in text_sums.items()})
            for layer, by_head in text_sums.items():
                head_sums[layer] = head_sums.get(layer, 0.0) + by_head
                pairs[layer] = histogram.pairs[layer].cpu().numpy()
    sums = {layer: np.stack([row[layer] for row in by_text]) for layer in model.softmax_layers}
    return Histograms(sums, head_sums, pairs)


def gradients_by_distance(
    model: MeasuredModel,
    texts: Texts,
    max_distance: int,
    parents: tuple[Parent, Parent],
    rng: np.random.Generator,
    report: Report | None = None,
) -> GradientsByDistance:
    """Measure |dL/ds| by distance on texts, and fit its decay.

    Args:
        model: the model.
        texts: texts of equal length.
        max_distance: the largest distance of the curve and of its fit, in tokens.
        parents: the checkpoint and the data, as parents of the record.
        rng: the random generator that draws the resamplings of the texts.
        report: called with the number of finished texts and the total number of texts.

    Raises:
        UserError: the texts are too short for `max_distance`, there are too few distances for a
            fit, or the gradient at a distance is zero.
        StageFailedError: gradients are not finite.
    """
    assert texts.tokens is not None
    check_distance(texts.tokens, max_distance)
    histograms = histograms_of(model, texts, report)
    pooled = model.full_layers or model.softmax_layers
    weights = draw_weights(len(texts.taken), rng)
    sums = np.sum([histograms.sums[layer] for layer in pooled], axis=0)
    pairs = model.num_heads * np.sum([histograms.pairs[layer] for layer in pooled], axis=0)
    # Pairs beyond a sliding window are not visible. If all layers have one, the curve ends there.
    curve = slice(0, min(max_distance + 1, int(np.count_nonzero(pairs))))
    if curve.stop <= 2 * MIN_DISTANCES:
        raise UserError(
            f"{model.name}: every softmax layer has a window of at most {curve.stop} tokens: too "
            "few distances for a fit and its tail",
            hint="Use a model with full attention, or with a longer window, in some layer.",
        )
    counts = np.broadcast_to(pairs[curve], sums[:, curve].shape)
    means = resample_ratio(sums[:, curve], counts, weights)
    decaying = means.part(1, means.last)
    _check_positive(decaying, texts.source)
    return GradientsByDistance(
        source=texts.source,
        checkpoint=parents[0],
        data=parents[1],
        n=len(texts.taken),
        tokens=texts.tokens,
        too_short=texts.too_short,
        untrained=texts.untrained,
        targets_of=texts.targets_of,
        curve=means.curve(),
        fit=fit_decay(decaying),
        tail=describe_tail(decaying),
        reach=_reach(sums, weights),
        text_half_reach=tuple(_half_reach(text_sums) for text_sums in sums),
        layers=_by_layer(model, histograms, weights, curve),
        settings={**model.settings, "loss": "sum over trained tokens, nats"},
    )


def _check_positive(curve: Resampled, source: str) -> None:
    """Raise an error if a value has no finite logarithm, since the fit would then be NaN."""
    if not np.isfinite(curve.values).all():
        raise StageFailedError(
            f"{source}: the gradients of the model are NaN or infinite",
            hint="Has its training diverged? Compare it with its base: amnesia diff BASE MODEL",
        )
    zeros = np.flatnonzero(curve.values <= 0)
    if len(zeros):
        distance = curve.first + int(zeros[0])
        raise UserError(
            f"{source}: the gradient at a distance of {distance} tokens is zero: the trained "
            "tokens are too close to the beginning of the texts",
            hint=f"--max-distance {distance - 1}, or other data.",
        )


def _by_layer(
    model: MeasuredModel, histograms: Histograms, weights: Floats, curve: slice
) -> tuple[LayerGradients, ...]:
    layers = []
    for layer in model.softmax_layers:
        sums = histograms.sums[layer]
        pairs = np.maximum(histograms.pairs[layer][curve] * len(sums) * model.num_heads, 1)
        layers.append(
            LayerGradients(
                layer=layer,
                mean=tuple((sums.sum(axis=0)[curve] / pairs).tolist()),
                reach=_reach(sums, weights),
                head_half_reach=tuple(map(_half_reach, histograms.head_sums[layer])),
            )
        )
    return tuple(layers)


def _reach(sums: Floats, weights: Floats) -> Reach:
    return Reach(half=reach_of(sums, weights, 0.5), nine_tenths=reach_of(sums, weights, 0.9))


def _half_reach(sums: Floats) -> int:
    """Return the distance that covers half of the magnitudes [T]."""
    return int(reach_of(sums[None], np.zeros((0, 1)), 0.5).value)


def _backward(model: MeasuredModel, text: Text) -> None:
    """Backpropagate the summed loss of a text, so that the active probe receives the gradients."""
    ids = torch.from_numpy(text.tokens.astype(np.int64)).to(model.device)
    targets_at = torch.from_numpy(text.trained.nonzero()[0]).to(model.device)
    # Pairs whose query is after the last target have zero gradients, but they are counted.
    embedded = model.module.get_input_embeddings()(ids[None]).detach().requires_grad_()
    if model.head_only:
        output = model.module.base_model(inputs_embeds=embedded, use_cache=False)
        chosen = output.last_hidden_state[0, targets_at - 1]
        upstream = _loss_gradient(model, chosen.detach(), ids[targets_at])
    else:
        chosen = model.module(inputs_embeds=embedded, use_cache=False).logits[0, targets_at - 1]
        logits = chosen.detach().requires_grad_()
        (upstream,) = torch.autograd.grad(_summed_loss(logits, ids[targets_at]), logits)
    torch.autograd.grad(chosen, embedded, upstream)


def _loss_gradient(model: MeasuredModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient [targets, M] of the summed cross-entropy, computed in chunks."""
    gradients: list[Tensor] = []
    for start in range(0, len(targets), _LOSS_POSITIONS):
        chunk = slice(start, start + _LOSS_POSITIONS)
        part = hidden[chunk].requires_grad_()
        loss = _summed_loss(logits_of(model, part), targets[chunk])
        gradients += torch.autograd.grad(loss, part)
    return torch.cat(gradients)


def _summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy, in float32 at least: bfloat16 rounds it by some per cent."""
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return cross_entropy(precise, targets, reduction="sum")


@contextmanager
def _lean_backward(module: Any) -> Iterator[None]:
    """Freeze the parameters and enable gradient checkpointing for each layer inside the block.

    transformers applies checkpointing only to layers in training mode. Only the layers' own
    `training` flags are set; their submodules stay in evaluation mode, without dropout.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    layers = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    saved = [dict(vars(layer)) for layer in layers]
    recompute = partial(checkpoint, use_reentrant=False)
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for layer in layers:
            vars(layer).update(
                gradient_checkpointing=True,
                _gradient_checkpointing_func=recompute,
                training=True,
            )
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for layer, variables in zip(layers, saved, strict=True):
            vars(layer).clear()
            vars(layer).update(variables)
