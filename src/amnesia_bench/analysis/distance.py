"""Measure the mean attention distance of each head (Eq. 17), and its shift by fine-tuning.

Shapes: N prompts, H heads of all measured layers together, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from amnesia_bench.analysis.consumers import HeadStatistics, PooledMaps
from amnesia_bench.analysis.decay import Floats, bootstrap_value, draw_weights
from amnesia_bench.analysis.models import MeasuredModel
from amnesia_bench.analysis.probe import probing
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.attention import (
    DistanceShift,
    HeadDistances,
    HeadReading,
    HeadShift,
    LayerShift,
    PooledAttention,
)


@dataclass(frozen=True, eq=False)
class Prompt:
    """The token ids of a prompt and the position of its needle.

    `tokens` is int32 [T]. `needle` is the index of the needle's first token and one past its last,
    or None without a needle.
    """

    tokens: NDArray[np.int32]
    needle: tuple[int, int] | None

    def __post_init__(self) -> None:
        if self.needle is not None and not 0 <= self.needle[0] < self.needle[1] <= len(self.tokens):
            raise UserError(
                f"the needle at tokens {self.needle[0]} to {self.needle[1]} is outside of its "
                f"prompt of {len(self.tokens)} tokens"
            )


@dataclass(frozen=True, eq=False)
class MeasuredHeads:
    """The record of one checkpoint, and the mean distance of each head on each prompt [N, H]."""

    record: HeadDistances
    distances: Floats


def head_distances(
    model: MeasuredModel,
    prompts: Sequence[Prompt],
    role: str,
    parents: tuple[Parent, Parent],
    report: Callable[[int, int], None] | None = None,
) -> MeasuredHeads:
    """Measure the distance, entropy and needle mass of every head of every softmax layer.

    Args:
        model: the model.
        prompts: the prompts to average over; at least one.
        role: the checkpoint's role: pre, post or restored.
        parents: the checkpoint and the prompts, as parents of the record.
        report: called with the number of finished prompts and the total number of prompts.
    """
    readings: list[Floats] = []  # [3, layers * heads] per prompt
    for i, prompt in enumerate(prompts):
        if report is not None:
            report(i, len(prompts))
        statistics = HeadStatistics(model.num_heads, len(prompt.tokens), prompt.needle)
        with torch.no_grad(), probing(model.module, weights=statistics):
            _forward(model, prompt)
        by_layer = [torch.stack(statistics.means(layer)) for layer in model.softmax_layers]
        readings.append(torch.cat(by_layer, dim=1).numpy())
    values = np.stack(readings)  # [N, 3, H]
    distance, entropy, mass = values.mean(axis=0)
    needles = all(prompt.needle is not None for prompt in prompts)
    lengths = [len(prompt.tokens) for prompt in prompts]
    record = HeadDistances(
        role=role,
        checkpoint=parents[0],
        inputs=parents[1],
        n=len(prompts),
        tokens=(min(lengths), max(lengths)),
        heads=tuple(
            HeadReading(
                layer=layer,
                head=head,
                distance=float(distance[i]),
                entropy=float(entropy[i]),
                needle_mass=float(mass[i]) if needles else None,
            )
            for i, (layer, head) in enumerate(_heads(model))
        ),
        settings=model.settings,
    )
    return MeasuredHeads(record, values[:, 0])


def distance_shift(
    first: MeasuredHeads,
    second: MeasuredHeads,
    drift: Mapping[tuple[int, int], float],
    rng: np.random.Generator,
) -> DistanceShift:
    """Return the shift of each head's mean distance between two checkpoints on the same prompts.

    Args:
        first: the heads of one checkpoint.
        second: the heads of the other checkpoint, measured on the same prompts.
        drift: the relative change of W_Q and W_K of each head, by layer and head; heads may be
            missing.
        rng: the random generator that draws the resamplings of the prompts.

    Raises:
        UserError: the checkpoints have different heads.
    """
    one, other = first.record, second.record
    heads = [(reading.layer, reading.head) for reading in one.heads]
    if heads != [(reading.layer, reading.head) for reading in other.heads]:
        raise UserError(
            f"{one.checkpoint.location} and {other.checkpoint.location} have different softmax "
            "layers or heads",
            hint="Compare checkpoints of the same architecture.",
        )
    shifts = second.distances - first.distances  # [N, H]
    weights = draw_weights(one.n, rng)
    resampled = weights @ shifts / one.n
    by_head = tuple(
        HeadShift(
            layer=layer,
            head=head,
            shift=bootstrap_value(shifts[:, i].mean(), resampled[:, i]),
            drift=drift.get((layer, head)),
        )
        for i, (layer, head) in enumerate(heads)
    )
    return DistanceShift(
        first=one.role, second=other.role, n=one.n, layers=_ranked(by_head), heads=by_head
    )


def _ranked(heads: Sequence[HeadShift]) -> tuple[LayerShift, ...]:
    layers: dict[int, list[float]] = {}
    for head in heads:
        layers.setdefault(head.layer, []).append(head.shift.value)
    shifts_by_layer = [
        LayerShift(
            layer=layer,
            shortened=sum(shift < 0 for shift in shifts),
            heads=len(shifts),
            mean_shift=sum(shifts) / len(shifts),
        )
        for layer, shifts in layers.items()
    ]
    return tuple(
        sorted(shifts_by_layer, key=lambda row: (-row.shortened, row.mean_shift, row.layer))
    )


def attention_maps(
    model: MeasuredModel,
    prompt: Prompt,
    heads: Sequence[tuple[int, int]],
    size: int,
    role: str,
    parents: tuple[Parent, Parent],
) -> tuple[PooledAttention, ...]:
    """Return the max-pooled attention maps of chosen heads on one prompt (Figure 4).

    Args:
        model: the model.
        prompt: a prompt with a needle.
        heads: the chosen heads, as pairs of layer and head indices.
        size: maximum number of rows and columns of a map.
        role: the checkpoint's role.
        parents: the checkpoint and the prompts, as parents of the records.

    Raises:
        UserError: the prompt has no needle, or the model has no head with one of these indices.
    """
    if prompt.needle is None:
        raise UserError(
            "the prompt has no needle, which an attention map needs",
            hint="Build prompts with needles: amnesia niah build",
        )
    model_heads = _heads(model)
    for layer, head in heads:
        if (layer, head) not in model_heads:
            raise UserError(
                f"{model.name}: no softmax head {layer}.{head}",
                hint=f"The softmax layers are {list(model.softmax_layers)}, with {model.num_heads} "
                "heads each.",
            )
    pooled_maps = PooledMaps(heads, len(prompt.tokens), size)
    with torch.no_grad(), probing(model.module, weights=pooled_maps):
        _forward(model, prompt)
    return tuple(
        PooledAttention(
            role=role,
            checkpoint=parents[0],
            inputs=parents[1],
            layer=layer,
            head=head,
            tokens=len(prompt.tokens),
            needle=prompt.needle,
            rows=tuple(
                tuple(float(f"{value:.4g}") for value in row[: i + 1])
                for i, row in enumerate(pooled.tolist())
            ),
            settings=model.settings,
        )
        for (layer, head), pooled in pooled_maps.maps.items()
    )


def _heads(model: MeasuredModel) -> list[tuple[int, int]]:
    return [(layer, head) for layer in model.softmax_layers for head in range(model.num_heads)]


def _forward(model: MeasuredModel, prompt: Prompt) -> None:
    ids = torch.from_numpy(prompt.tokens.astype(np.int64))[None].to(model.device)
    model.module.base_model(input_ids=ids, use_cache=False)
