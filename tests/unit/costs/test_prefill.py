"""The formula for shared prefixes against the prefix tree of real needle prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amnesia_bench.costs.model_shape import ModelShape, named_shape
from amnesia_bench.costs.prefill import prefill_of, shared_cost
from amnesia_bench.inference.prefix_tree import (
    PrefixNode,
    PromptDigest,
    leaves_of,
    plan_prefixes,
    prefill_tokens,
)
from amnesia_bench.recall.niah import build_prompts, open_prompt_sets
from amnesia_bench.recall.niah.tasks import SINGLE_TASKS
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import train_byte_level

SAMPLES, CHUNK = 60, 64
SHAPE = named_shape("hypenet_2b")


@pytest.fixture(scope="module")
def prompt_sets(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Any]:
    folder: Path = tmp_path_factory.mktemp("prompts")
    essay = made_up_essay(300)
    train_byte_level(folder / "tokenizer", essay)
    (folder / "essay.txt").write_text(essay)
    request = BuildPromptsRequest(
        tokenizer=folder / "tokenizer",
        lengths=(4096,),
        tasks=tuple(SINGLE_TASKS),
        haystack=folder / "essay.txt",
        samples=SAMPLES,
    )
    build_prompts(request, folder / "out")
    return open_prompt_sets(folder / "out", load_tokenizer(folder / "tokenizer"))


def flops(shape: ModelShape, tokens: int) -> float:
    return tokens * (2 * shape.body + shape.mixing_flops(tokens)) if tokens else 0.0


def tree_flops(prompts: Sequence[PromptDigest], nodes: Sequence[PrefixNode]) -> float:
    """Return the FLOPs of a walk through the tree, without the head."""
    total = 0.0
    for node in nodes:
        start = 0 if node.parent is None else nodes[node.parent].cut
        total += flops(SHAPE, node.cut) - flops(SHAPE, start)
        ends = (prompts[i].num_tokens for i in node.leaves)
        total += sum(flops(SHAPE, end) - flops(SHAPE, node.cut) for end in ends)
    return total


@pytest.mark.parametrize("task", SINGLE_TASKS)
def test_the_formula_gives_the_tokens_of_the_real_tree(
    prompt_sets: Sequence[Any], task: str
) -> None:
    (prompt_set,) = (each for each in prompt_sets if each.name.startswith(task))
    tokens = [np.asarray(prompt_set.tokens(i), np.int32) for i in range(SAMPLES)]
    digests = [PromptDigest.of(prompt, CHUNK) for prompt in tokens]
    nodes = plan_prefixes(digests, CHUNK, share=True)
    leaves = leaves_of(nodes, digests, [128] * SAMPLES, share=True)
    computed = prefill_tokens(nodes, leaves)
    mean = round(sum(map(len, tokens)) / SAMPLES)
    formula = prefill_of(SHAPE, mean, SAMPLES, SAMPLES, CHUNK)
    # The depths are random, so the real number varies by 1 / sqrt(12 x 60) of a prompt set.
    assert computed == pytest.approx(formula.computed_tokens, rel=0.1)
    assert 0.45 < computed / sum(map(len, tokens)) < 0.65
    head = SAMPLES * 2 * SHAPE.embedding
    assert tree_flops(digests, nodes) + head == pytest.approx(formula.flops, rel=0.1)


def test_two_thirds_of_attention_and_half_of_the_tokens_remain() -> None:
    full = 500 * 262_144
    tokens = shared_cost(float, 262_144, 500, 2048)
    assert tokens / full == pytest.approx(0.506, abs=0.002)
    squares = shared_cost(lambda n: float(n) ** 2, 262_144, 500, 2048)
    assert squares / (500 * 262_144.0**2) == pytest.approx(0.668, abs=0.005)
    # One prompt shares nothing; nor do prompts that are shorter than a chunk.
    assert shared_cost(float, 1000, 1, 64) == 1000
    assert shared_cost(float, 1000, 7, 2048) == 7000


def test_prompts_without_a_common_haystack_are_prefilled_completely() -> None:
    alone = prefill_of(SHAPE, 5000, 6, None, 64)
    assert alone.prompt_tokens == alone.computed_tokens == 30_000
    assert alone.flops == pytest.approx(6 * (flops(SHAPE, 5000) + 2 * SHAPE.embedding))
