"""A wrong value of a request, in the words of the option that was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.cli.requests import make
from amnesia_bench.config.train_schema import Optimizer
from amnesia_bench.errors import UserError
from amnesia_bench.requests.checkpoints import ConvertRequest, VerifyRequest
from amnesia_bench.requests.engines import EngineChoice
from amnesia_bench.requests.recall import BuildPromptsRequest, CheckRequest, RankLayersRequest

PROMPTS = {
    "tokenizer": Path("tokenizer"),
    "tasks": ("niah_single_1",),
    "lengths": (1024,),
    "samples": 5,
    "haystack": None,
}

OPTIMIZER = {
    "kind": "adamw",
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "warmup_steps": 1,
    "betas": (0.9, 0.95),
    "weight_decay": 0.0,
    "clip_norm": 1.0,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "--samples 0: must be at least 1"),
        ({"lengths": (0, -5)}, "--lengths 0: must be at least 1"),
        ({"tasks": ()}, "--tasks: expected at least one"),
        ({"tokenizer": None}, "--tokenizer is missing"),
        ({"samples": 0, "tasks": ()}, "--tasks: expected at least one\n--samples 0: must be at "),
    ],
)
def test_each_wrong_value_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(BuildPromptsRequest, **PROMPTS | changes)
    assert error.value.what.startswith(message)


def test_limits_and_choices_are_said_as_people_say_them() -> None:
    with pytest.raises(UserError, match=r"^--margin -0\.1: must be at least 0$"):
        make(CheckRequest, pre=Path("pre"), post=Path("post"), margin=-0.1)
    with pytest.raises(UserError, match=r"^--max-context-tokens 0: must be at least 1$"):
        make(EngineChoice, max_context_tokens=0)
    with pytest.raises(UserError, match=r"--stage 3: must be 1 or 2"):
        make(ConvertRequest, teacher=Path("qwen"), model=None, stage=3)


def test_a_limit_of_a_real_number_stays_what_it_is() -> None:
    with pytest.raises(UserError, match=r"^--eps 0: must be above 0$"):
        make(Optimizer, **OPTIMIZER | {"eps": 0})


def test_a_field_that_is_typed_otherwise_has_that_name() -> None:
    with pytest.raises(UserError, match=r"^DIR is missing$"):
        make(VerifyRequest, {"folder": "DIR"}, folder=None)


def test_right_values_make_the_request() -> None:
    request = make(RankLayersRequest, checkpoint=Path("model"), samples=3)
    assert request == RankLayersRequest(checkpoint=Path("model"), samples=3)
