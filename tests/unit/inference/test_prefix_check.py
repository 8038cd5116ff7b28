"""Answers computed a second time: equal tokens, ties to within rounding, and real differences."""

import dataclasses
import logging

import pytest
import torch

from amnesia_bench.errors import StageFailedError
from amnesia_bench.inference.language_model import prepare_model
from amnesia_bench.inference.prefix_check import PrefixCheck
from amnesia_bench.records.evaluation import FinishReason, Generation
from tests.support.tiny_models import EOS, needle_prompts, requests_of, tiny_model

CHUNK = 64


@pytest.fixture
def model():
    """A model whose head is not its embedding, so that two tokens can be made equally likely."""
    made = tiny_model("qwen2")
    made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.clone())
    return made


@pytest.fixture
def request_():
    return requests_of(needle_prompts(1, 200, depths=1), new=3)[0]


def checked(model, request):
    """Return a check that knows the answer in full, and that answer."""
    check = PrefixCheck(prepare_model(model), CHUNK, (frozenset({EOS}), str))
    check.prepare([request], [0], 1)
    tokens = check._expected[request.key].tokens
    return check, Generation(
        key=request.key,
        text="",
        tokens=tokens,
        prompt_tokens=len(request.tokens),
        finish_reason=FinishReason.LENGTH,
        seed=None,
    )


def test_the_same_tokens_pass_without_a_word(model, request_, caplog):
    check, answer = checked(model, request_)
    with caplog.at_level(logging.WARNING):
        check.compare(answer)
    assert not caplog.records


def test_a_tie_broken_the_other_way_is_accepted_and_reported(model, request_, caplog):
    check, answer = checked(model, request_)
    best = answer.tokens[1]
    twin = next(i for i in range(EOS) if i not in answer.tokens)
    with torch.no_grad():
        model.lm_head.weight[twin] = model.lm_head.weight[best]
    other = dataclasses.replace(answer, tokens=(answer.tokens[0], twin))
    with caplog.at_level(logging.WARNING):
        check.compare(other)
    assert "token 1 of the answer: another token, in a tie within rounding" in caplog.text


def test_another_token_fails_and_says_where(model, request_):
    check, answer = checked(model, request_)
    wrong = next(i for i in range(EOS) if i not in answer.tokens)
    other = dataclasses.replace(answer, tokens=(*answer.tokens[:2], wrong))
    with pytest.raises(StageFailedError, match="needles document 0, token 2 of the answer"):
        check.compare(other)


def test_an_answer_that_ends_too_early_fails(model, request_):
    check, answer = checked(model, request_)
    other = dataclasses.replace(answer, tokens=answer.tokens[:1])
    with pytest.raises(StageFailedError, match="token 1 of the answer"):
        check.compare(other)


def test_answers_that_were_not_chosen_are_not_compared(model, request_):
    check, answer = checked(model, request_)
    key = dataclasses.replace(answer.key, doc=7)
    check.compare(dataclasses.replace(answer, key=key, tokens=(0,)))
