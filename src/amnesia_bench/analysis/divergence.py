"""How far a fine-tune moved: KL(pre || post) on texts, and the norms of the changes of weights.

Shapes: T tokens of a text, P trained positions of it, M hidden size, V vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from amnesia_bench.analysis.decay import bootstrap_value, draw_weights
from amnesia_bench.analysis.models import MeasuredModel, logits_of
from amnesia_bench.analysis.texts import Text, Texts
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.attention import FinetuneDivergence
from amnesia_bench.records.difference import TensorDifference
from amnesia_bench.requests.checkpoints import DiffRequest
from amnesia_bench.surgery.diff import diff
from amnesia_bench.weights.attention_map import ROUTING

# Number of positions whose logits are in memory at once: 64 x 151,936 doubles are 78 MB per model.
_POSITIONS = 64


@dataclass(frozen=True, kw_only=True)
class WeightChanges:
    """The relative change |post - pre| / |pre| of the weights that a fine-tune changed.

    `all` is that of all changed tensors together, `routing` that of W_Q and W_K of the softmax
    layers.
    """

    all: float
    routing: float


def weight_changes(pre: Path, post: Path) -> WeightChanges:
    """Return the relative changes of the weights between two checkpoints.

    Raises:
        UserError: a folder is not a checkpoint, or they have no changed weights in common.
    """
    changed = diff(DiffRequest(a=pre, b=post)).different
    routing = [tensor for tensor in changed if tensor.role in {role.value for role in ROUTING}]
    everything = _relative_change(changed)
    if everything is None:
        raise UserError(
            f"{pre} and {post}: no weights differ, so there is no fine-tune to measure",
            hint="Compare a checkpoint with its fine-tune.",
        )
    return WeightChanges(all=everything, routing=_relative_change(routing) or 0.0)


def _relative_change(tensors: Iterable[TensorDifference]) -> float | None:
    norms = [
        (tensor.norm_a, tensor.norm_b_minus_a)
        for tensor in tensors
        if tensor.norm_a is not None and tensor.norm_b_minus_a is not None
    ]
    total = sum(norm**2 for norm, _ in norms)
    return math.sqrt(sum(change**2 for _, change in norms) / total) if total else None


def divergence_on(
    models: tuple[MeasuredModel, MeasuredModel],
    texts: Texts,
    changes: WeightChanges,
    parents: tuple[Parent, Parent, Parent],
    rng: np.random.Generator,
    report: Callable[[int, int], None] | None = None,
) -> FinetuneDivergence:
    """Measure the mean of KL(pre || post) over the predictions of trained tokens.

    Args:
        models: the models before and after the fine-tune; both are in memory.
        texts: the texts, with trained tokens.
        changes: the changes of the weights, for the record.
        parents: pre, post and the data, as parents of the record.
        rng: the random generator that draws the resamplings of the texts.
        report: called with the number of finished texts and the total number of texts.

    Raises:
        StageFailedError: a prediction of a model is not finite.
    """
    sums, counts = [], []
    for i, text in enumerate(texts.taken):
        if report is not None:
            report(i, len(texts.taken))
        sums.append(_divergence(models, text))
        counts.append(int(text.trained.sum()))
    total, number = np.array(sums), np.array(counts, dtype=np.float64)
    if not np.isfinite(total).all():
        raise StageFailedError(
            f"{texts.source}: the predictions of a model are NaN or infinite",
            hint="Has the training of one of the two diverged? Compare them: amnesia diff PRE POST",
        )
    weights = draw_weights(len(sums), rng)
    resampled = (weights @ total) / (weights @ number)
    return FinetuneDivergence(
        source=texts.source,
        pre=parents[0],
        post=parents[1],
        data=parents[2],
        n=len(sums),
        tokens=int(number.sum()),
        divergence=bootstrap_value(float(total.sum() / number.sum()), resampled),
        weight_change=changes.all,
        routing_change=changes.routing,
        settings=models[0].settings,
    )


@torch.no_grad()
def _divergence(models: tuple[MeasuredModel, MeasuredModel], text: Text) -> float:
    """Return the sum of KL(pre || post) over the predictions of a text's trained tokens."""
    at = text.trained.nonzero()[0] - 1
    # A fine-tune may have added tokens; predictions are compared on those that both have.
    size = min(len(model.module.get_output_embeddings().weight) for model in models)
    predictions = [_predictions(model, text, size) for model in models]
    total = 0.0
    for start in range(0, len(at), _POSITIONS):
        chunk = torch.from_numpy(at[start : start + _POSITIONS])
        pre, post = (logits(chunk) for logits in predictions)
        total += float(kl_div(post, pre, log_target=True, reduction="none").sum())
    return total


def _predictions(model: MeasuredModel, text: Text, size: int) -> Callable[[Tensor], Tensor]:
    """Return a function that returns the log probabilities [P, V] after given positions [P].

    V is `size`: the predictions are of the first tokens of the vocabulary.
    """
    ids = torch.from_numpy(text.tokens.astype(np.int64))[None].to(model.device)
    if model.head_only:
        hidden = model.module.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    else:
        hidden = model.module(input_ids=ids, use_cache=False).logits[0]

    def log_probabilities(positions: Tensor) -> Tensor:
        chosen = hidden[positions.to(hidden.device)]
        logits = logits_of(model, chosen) if model.head_only else chosen
        return logits[:, :size].double().log_softmax(dim=-1)

    return log_probabilities
