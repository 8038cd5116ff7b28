"""lm-eval's generation kwargs mean what lm-eval says they mean, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.lm_eval_bridge.gen_kwargs import sampling_of
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING
from amnesia_bench.records.evaluation import Sampling

GREEDY = Sampling(max_new_tokens=256, temperature=0.0, top_p=1.0, top_k=None, stop=())


def sampled(**values: Any) -> Sampling:
    given = {"max_new_tokens": 256, "temperature": 0.6, "top_p": 1.0, "top_k": None, "stop": ()}
    return Sampling(**(given | values))


@pytest.mark.parametrize(
    ("gen_kwargs", "sampling"),
    [
        ({"do_sample": False, "temperature": 0.0, "max_gen_toks": 128, "until": []}, NIAH_SAMPLING),
        ({}, GREEDY),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 20}, GREEDY),
        ({"temperature": 0.6}, sampled()),
        ({"do_sample": True, "temperature": 0.6, "top_k": 0}, sampled()),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
            sampled(top_p=0.95, top_k=20),
        ),
        ({"temperature": 0.6, "max_new_tokens": 7}, sampled(max_new_tokens=7)),
        (
            {"temperature": 0.6, "max_gen_toks": 48, "until": ["\n", "", "\n", "Q:"]},
            sampled(max_new_tokens=48, stop=("\n", "Q:")),
        ),
        ({"temperature": 0.6, "until": "\n"}, sampled(stop=("\n",))),
        ({"temperature": 0.6, "until": None}, sampled()),
    ],
)
def test_kwargs_become_the_sampling_that_lm_eval_means(
    gen_kwargs: dict[str, Any], sampling: Sampling
) -> None:
    assert sampling_of(gen_kwargs, "task") == (sampling, 0)


def test_a_seed_is_the_base_of_seeds() -> None:
    assert sampling_of({"temperature": 0.6, "seed": 5}, "task") == (sampled(), 5)


@pytest.mark.parametrize(
    ("gen_kwargs", "problem"),
    [
        ({"num_beams": 4, "repetition_penalty": 1.1}, "num_beams, repetition_penalty: not known"),
        ({"do_sample": True}, "do_sample=true with a temperature of 0"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=true with a temperature of 0"),
        ({"temperature": 0.6, "top_p": 1.5}, "top_p=1.5"),
        ({"max_gen_toks": 0}, "max_new_tokens=0"),
    ],
)
def test_what_no_engine_can_do_is_refused(gen_kwargs: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=f"^niah: .*{problem}"):
        sampling_of(gen_kwargs, "niah")
