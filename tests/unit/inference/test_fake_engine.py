"""The engine without a model keeps to the same rules as the others."""

import numpy as np

from amnesia_bench.inference.protocol import Engine, PromptRequest
from amnesia_bench.records.evaluation import FinishReason, SampleKey, Sampling
from tests.support.fake_engine import FakeEngine


def request(new=100, stop=()):
    return PromptRequest(
        key=SampleKey(task="t", doc=0, repeat=0),
        tokens=np.arange(5, dtype=np.int32),
        sampling=Sampling(max_new_tokens=new, temperature=0, top_p=1, top_k=None, stop=stop),
        seed=None,
    )


def answer(text, **how):
    engine: Engine = FakeEngine(lambda _: text)
    [generation] = engine.generate([request(**how)])
    return generation


def test_an_answer_is_its_bytes_and_ends_by_itself():
    generation = answer("né")
    assert (generation.text, generation.tokens) == ("né", (110, 195, 169))
    assert generation.finish_reason is FinishReason.EOS
    assert generation.prompt_tokens == 5


def test_the_function_sees_the_request():
    engine = FakeEngine(lambda each: f"document {each.key.doc}")
    assert [each.text for each in engine.generate([request()])] == ["document 0"]
    assert engine.settings == {"engine": "fake"}


def test_the_earliest_stop_string_ends_an_answer_before_it():
    generation = answer("one two three", stop=("three", "two"))
    assert (generation.text, generation.finish_reason) == ("one ", FinishReason.STOP)


def test_the_limit_of_new_tokens_holds():
    generation = answer("né", new=2)
    assert (generation.text, len(generation.tokens)) == ("n", 2)
    assert generation.finish_reason is FinishReason.LENGTH


def test_an_empty_answer_is_one():
    generation = answer("")
    assert (generation.text, generation.tokens) == ("", ())
    assert generation.finish_reason is FinishReason.EOS
