r"""Does NIAH depend on the retrieval heads? Measure recall without them, and without random heads.

python scripts/mask_heads.py --checkpoint MODEL --ranking heads.json --top 4 --prompts PROMPTS \
    --tasks niah_single_2 --length 1024 --skip 5 --samples 15

The model answers the same prompts as it is, without the top heads of a ranking of
`amnesia rank-heads`, and without as many random heads, drawn from all others of the same kinds of
layers: of the top heads, as many are in layers with full attention. Recall is that of
`amnesia eval niah`, with 95 % intervals, and p is that of McNemar's exact test against the whole
model. The ranking should be of other prompts: --skip leaves out the first ones of each task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amnesia_bench.analysis.masking import without_heads
from amnesia_bench.cli.niah_options import split_list
from amnesia_bench.inference.candidates import open_candidate
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.recall.measure import PromptSetChoice, open_single_needle_sets, prompt_requests
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING, score_answer
from amnesia_bench.records.evaluation import Outcome
from amnesia_bench.records.roles import LayerKind
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.statistics.paired_tests import mcnemar_exact
from amnesia_bench.surgery.ranked_heads import read_head_ranking
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import open_checkpoint

Head = tuple[int, int]
Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--ranking", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--tasks", default="niah_single_2")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--top", type=int, required=True, help="number of heads to mask")
    parser.add_argument("--draws", type=int, default=3, help="number of random sets of heads")
    parser.add_argument("--skip", type=int, default=0, help="prompts to leave out of each task")
    parser.add_argument("--samples", type=int, required=True, help="prompts per task")
    parser.add_argument("--new-tokens", type=int, default=NIAH_SAMPLING.max_new_tokens)
    return parser.parse_args()


def random_heads(top: Sequence[Head], checkpoint: Path, draws: int) -> list[list[Head]]:
    """Draw sets of other heads, with as many in each kind of layer as among the top heads."""
    opened = open_checkpoint(checkpoint)
    attention = attention_map(opened.config, opened.shapes)
    sets: list[list[Head]] = [[] for _ in range(draws)]
    for kind in (LayerKind.FULL, LayerKind.SLIDING):
        layers = attention.layers(kind)
        count = sum(layer in layers for layer, _ in top)
        all_heads = [(layer, head) for layer in layers for head in range(attention.num_query_heads)]
        others = [head for head in all_heads if head not in top]
        for draw, heads in enumerate(sets):
            rng = np.random.default_rng([draw, len(layers)])
            heads += [others[i] for i in rng.choice(len(others), count, replace=False)]
    return sets


def conditions(args: argparse.Namespace) -> dict[str, list[Head]]:
    """Return the heads to mask in each condition, by its name."""
    ranking = read_head_ranking(args.ranking)
    top = [(entry.layer, entry.head) for entry in ranking.heads[: args.top]]
    masked = {"nothing masked": [], f"top {args.top} masked": top}
    for draw, heads in enumerate(random_heads(top, args.checkpoint, args.draws)):
        masked[f"random {args.top} masked, draw {draw}"] = heads
    return masked


def recalled(args: argparse.Namespace, masked: Mapping[str, Sequence[Head]]) -> Iterator[Row]:
    """Yield a row for each task and condition: which prompts the model recalls."""
    candidate = open_candidate(args.checkpoint, method="")
    choice = PromptSetChoice(tasks=split_list(args.tasks), lengths=(args.length,), samples=None)
    prompt_sets = open_single_needle_sets(args.prompts, [candidate], choice)
    # As in `rank_heads`; many CPUs are also much slower in bfloat16.
    dtype = "auto" if torch.cuda.is_available() else "float32"
    engine = TransformersEngine.load(args.checkpoint, EngineOptions(dtype=dtype))
    checkpoint = open_checkpoint(args.checkpoint)
    sampling = replace(NIAH_SAMPLING, max_new_tokens=args.new_tokens)
    for prompt_set in prompt_sets:
        requests = prompt_requests(
            prompt_set, args.skip + args.samples, sampling, candidate.tokenizer
        )
        for name, heads in masked.items():
            with without_heads(engine.module, checkpoint, heads):
                answers = list(engine.generate(requests[args.skip :]))
            outcomes = {
                answer.key.doc: score_answer(answer, prompt_set.values(answer.key.doc)).outcome
                for answer in answers
            }
            right = [outcomes[doc] is Outcome.CORRECT for doc in sorted(outcomes)]
            yield {
                "task": prompt_set.name,
                "condition": name,
                "heads": [f"{layer}.{head}" for layer, head in sorted(heads)],
                "right": right,
            }


def main() -> None:
    args = arguments()
    whole: dict[str, list[bool]] = {}
    for row in recalled(args, conditions(args)):
        right = row["right"]
        before = whole.setdefault(row["task"], right)  # the first condition masks nothing
        interval = wilson(sum(right), len(right))
        lost = sum(a and not b for a, b in zip(before, right, strict=True))
        won = sum(b and not a for a, b in zip(before, right, strict=True))
        row["correct"], row["n"] = sum(right), len(right)
        row["interval"] = [round(interval.low, 3), round(interval.high, 3)]
        row["p"] = mcnemar_exact(lost, won)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
