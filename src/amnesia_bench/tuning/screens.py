"""Free screens: measures without answers that say which layers are worth trying first.

They order candidates and weight random changes (`space.prior_of`), and drop none.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.records.tuning import Screen
from amnesia_bench.store.files import read_json
from amnesia_bench.surgery.edits import measure_drift
from amnesia_bench.surgery.layer_values import Pair
from amnesia_bench.surgery.plan import LayerPlan
from amnesia_bench.surgery.ranked_heads import read_head_ranking
from amnesia_bench.surgery.ranked_layers import read_ranking
from amnesia_bench.tokenizers.tokenizer import with_leading_special_tokens
from amnesia_bench.tuning.questions import Needles
from amnesia_bench.tuning.space import Mix
from amnesia_bench.tuning.swapping import SwappedModel
from amnesia_bench.weights.attention_map import ROUTING

_KL_PROMPTS = 8


def drift_screen(pair: Pair, plans: Sequence[LayerPlan]) -> Screen:
    """Return the relative drift of each layer's tuned tensors.

    Raises:
        UserError: no tuned tensor differs between pre and post, or one contains NaN or infinity.
    """
    drift = measure_drift(pair, tuple(plans))
    if diverged := [layer for layer, value in drift.items() if not math.isfinite(value)]:
        raise UserError(
            f"the attention weights of layer {diverged[0]} contain NaN or infinity, or are all 0 "
            f"in {pair.pre.folder}",
            hint="See which tensors diverged: amnesia diff PRE POST",
        )
    if not any(drift.values()):
        raise UserError(
            f"nothing to tune: the softmax layers of {pair.pre.folder} and {pair.post.folder} have "
            "the same weights",
            hint="Check --pre and --post.",
        )
    return Screen(name="drift", by_layer={str(layer): value for layer, value in drift.items()})


def ranking_screen(file: Path, layers: Sequence[int]) -> Screen:
    """Return the importance of each layer from a file that `rank_layers` or `rank_heads` wrote.

    In a ranking of heads, it is the sum of the retrieval scores of the layer's heads.

    Raises:
        UserError: the file is not a ranking, or it is of a model with other softmax layers.
    """
    importance: dict[int, float] = {}
    content = read_json(file)
    if isinstance(content, dict) and "heads" in content:
        for head in read_head_ranking(file).heads:
            importance[head.layer] = importance.get(head.layer, 0.0) + head.score
    else:
        importance = {entry.layer: entry.importance for entry in read_ranking(file).layers}
    if missing := sorted(set(layers) - set(importance)):
        raise UserError(
            f"{file}: does not rank layer {missing[0]}, a softmax layer of this model",
            hint="Rank the layers or the heads of PRE or POST: amnesia rank-layers, or amnesia "
            "rank-heads --checkpoint PRE ...",
        )
    return Screen(
        name=f"ranking {file.name}", by_layer={str(layer): importance[layer] for layer in layers}
    )


def prediction_logits(
    checkpoint: Path, options: EngineOptions, prompts: Needles, tokenizer: object
) -> Tensor:
    """Load a checkpoint, and return the logits [prompts, E] that predict the first new tokens."""
    engine = TransformersEngine.load(checkpoint, options)
    logits = _first_logits(engine, prompts, tokenizer)
    del engine
    gc.collect()
    return logits


def kl_screen(
    model: SwappedModel,
    pre_logits: Tensor,
    prompts: Needles,
    tokenizer: object,
    progress: Callable[[str], None],
) -> Screen:
    """Return how much nearer to pre the predictions get when W_Q and W_K of one layer are pre's.

    The measure is KL(pre || model), in nats at the first new token of a needle prompt, averaged
    over prompts. The value of a layer is that of post minus that of post with this layer restored.

    Args:
        model: the model of all mixes.
        pre_logits: the logits of pre for the prompts [prompts, E].
        prompts: a few prompts; their answers are not used.
        tokenizer: the tokenizer of post.
        progress: called with one line of text.

    Raises:
        UserError: logits are not finite.
    """
    distances: dict[int | None, float] = {}
    for layer in (None, *sorted({layer for layer, _ in model.places})):
        places = (place for place in model.places if place[0] == layer and place[1] in ROUTING)
        routing = dict.fromkeys(places, 1.0)
        model.become(Mix.of(routing))
        logits = _first_logits(model.engine, prompts, tokenizer)
        distances[layer] = _kl(pre_logits, logits)
    if not all(map(math.isfinite, distances.values())):
        raise UserError(
            "the logits of pre or post for a needle prompt are NaN or infinite",
            hint="Has the training of one of the two diverged? Compare them: amnesia diff PRE POST",
        )
    progress(f"KL(pre || post) on {len(prompts)} needle prompts: {distances[None]:.4f} nats")
    gains: Mapping[str, float] = {
        str(layer): distances[None] - value
        for layer, value in distances.items()
        if layer is not None
    }
    return Screen(name="KL to pre", by_layer=gains)


def screen_prompts(needles: Needles) -> Needles:
    """Return the few prompts of the search on which predictions are compared."""
    return needles[:_KL_PROMPTS]


def _first_logits(engine: TransformersEngine, prompts: Needles, tokenizer: object) -> Tensor:
    rows = []
    for needle in prompts:
        tokens = with_leading_special_tokens(tokenizer, needle.prompt_set.tokens(needle.doc))
        rows.append(engine.first_logits(tokens).cpu())
    return torch.stack(rows)


def _kl(first: Tensor, second: Tensor) -> float:
    # A fine-tune may have added tokens; predictions are compared on those that both have.
    size = min(first.shape[-1], second.shape[-1])
    a, b = (torch.log_softmax(logits[:, :size].double(), -1) for logits in (first, second))
    return float((a.exp() * (a - b)).sum(-1).mean())
