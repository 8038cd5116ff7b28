"""The front door `rank_heads`: rank attention heads by how much of the answer they copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amnesia_bench.analysis.models import open_model
from amnesia_bench.analysis.retrieval_heads import AnsweredPrompt, CopiedTokens, copied_tokens
from amnesia_bench.errors import UserError
from amnesia_bench.heads.measured_prompts import ranking_file
from amnesia_bench.heads.overlap import drift_overlap
from amnesia_bench.inference.candidates import open_candidate
from amnesia_bench.inference.protocol import silent
from amnesia_bench.recall.measure import PromptSetChoice, open_single_needle_sets
from amnesia_bench.recall.niah.prompt_sets import NiahPromptSet
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.head_ranking import HeadRanking, HeadScore
from amnesia_bench.records.roles import Role
from amnesia_bench.requests.recall import RankHeadsRequest
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.surgery.head_drift import head_drift
from amnesia_bench.tokenizers.tokenizer import with_leading_special_tokens
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.identity import parent_by_contents

_Drift = Mapping[tuple[Role, int, int], float | None]


def rank_heads(
    request: RankHeadsRequest,
    out: Path | None = None,
    *,
    progress: Callable[[str], None] = silent,
    count: Callable[[int, int], None] = silent,
) -> HeadRanking:
    """Rank the heads of all softmax layers by the share of the answer that they copy from a needle.

    The model reads each prompt once, followed by its correct answer. With `out`, finished prompts
    are stored in a file next to it, from which an interrupted ranking resumes.

    Args:
        request: the checkpoint, the prompts, and a fine-tune whose drift to compare.
        out: the JSON file to write; None writes nothing.
        progress: called with one line of text before the model is loaded and before it is run.
        count: called with the number of finished prompts and the total number.

    Raises:
        UserError: an input is wrong, the attention of the model cannot be measured (see
            `open_model`), or `out` exists.
        BusyError: another process is writing `out`.
        StageFailedError: a checkpoint changed during the ranking, or the disk is full; finished
            prompts are kept.
    """
    if out is not None and out.exists():
        raise UserError(f"{out}: already exists", hint="Choose another file.")
    checkpoint = open_checkpoint(request.checkpoint)
    prompts = _open_prompts(request)
    # It is fast, so that checkpoints that do not match are refused before the long part.
    drift, post = _drift_to(request.post, request.checkpoint)
    progress(f"loading {request.checkpoint}")
    model, parent = open_model(request.checkpoint, "checkpoint")
    plan = HeadRanking(
        checkpoint=parent,
        post=post,
        prompts=prompts.parent,
        n=len(prompts),
        tokens=prompts.shortest_and_longest(),
        recalled=0,
        heads=(),
        overlaps=(),
        settings=model.settings,
    )

    def measure(i: int) -> CopiedTokens:
        count(i, len(prompts))
        return copied_tokens(model, prompts[i])

    progress(f"{len(prompts)} prompts of {plan.tokens[0]:,} to {plan.tokens[1]:,} tokens")
    with ranking_file(out, plan) as (measured, finish):
        copied = [measured.of(i, measure) for i in range(len(prompts))]
        count(len(prompts), len(prompts))
        checkpoint.held.check()
        ranking = _ranked(plan, copied, checkpoint, drift)
        finish(ranking)
    return ranking


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """The chosen prompts of all prompt sets; each is built when it is needed.

    `places` has the prompt set and the index in it of each prompt.
    """

    places: Sequence[tuple[NiahPromptSet, int]]
    tokenizer: Any
    parent: Parent

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> AnsweredPrompt:
        prompt_set, index = self.places[i]
        tokens, answer = prompt_set.answered_tokens(index)
        whole = with_leading_special_tokens(self.tokenizer, tokens)
        added = len(whole) - len(tokens)
        first, end = prompt_set.needle_span(index)
        return AnsweredPrompt(whole, (first + added, end + added), answer + added)

    def shortest_and_longest(self) -> tuple[int, int]:
        lengths = [prompt_set.prompt_tokens(index) for prompt_set, index in self.places]
        return min(lengths), max(lengths)


def _open_prompts(request: RankHeadsRequest) -> _Prompts:
    choice = PromptSetChoice(tasks=request.tasks, lengths=request.lengths, samples=request.samples)
    candidate = open_candidate(request.checkpoint, method="")
    prompt_sets = open_single_needle_sets(request.prompts, [candidate], choice)
    identity = "+".join(f"{prompt_set.name}:{prompt_set.sha256}" for prompt_set in prompt_sets)
    return _Prompts(
        places=[
            (prompt_set, index)
            for prompt_set in prompt_sets
            for index in range(request.samples or len(prompt_set))
        ],
        tokenizer=candidate.tokenizer,
        parent=Parent(role="prompts", location=str(request.prompts), identity=identity),
    )


def _drift_to(post: Path | None, pre: Path) -> tuple[_Drift, Parent | None]:
    if post is None:
        return {}, None
    drift = head_drift(pre, post)
    if not any(drift.values()):
        raise UserError(
            f"{post}: its W_Q and W_K are those of {pre}, so no head has drifted",
            hint="Give as --post a fine-tune of --checkpoint, or leave it out.",
        )
    return drift, parent_by_contents("post", open_checkpoint(post))


def _ranked(
    plan: HeadRanking, copied: Sequence[CopiedTokens], checkpoint: Checkpoint, drift: _Drift
) -> HeadRanking:
    attention = attention_map(checkpoint.config, checkpoint.shapes)
    group = attention.num_query_heads // attention.num_kv_heads
    heads = []
    for layer in copied[0].by_layer:
        shares = np.sum([prompt.by_layer[layer] / prompt.copyable for prompt in copied], axis=0)
        for head, total in enumerate(shares):
            # Rounding preserves ties: sums of equal shares may differ in the last bits.
            total = round(float(total), 12)
            heads.append(
                HeadScore(
                    layer=layer,
                    head=head,
                    kv_head=head // group,
                    score=total / plan.n,
                    interval=wilson(total, plan.n),
                    drift_q=drift.get((Role.Q, layer, head)),
                    drift_k=drift.get((Role.K, layer, head // group)),
                )
            )
    overlaps = (drift_overlap(heads, "q"), drift_overlap(heads, "k"))
    return replace(
        plan,
        recalled=sum(prompt.recalled for prompt in copied),
        heads=tuple(sorted(heads, key=lambda entry: (-entry.score, entry.layer, entry.head))),
        overlaps=tuple(overlap for overlap in overlaps if overlap is not None),
    )
