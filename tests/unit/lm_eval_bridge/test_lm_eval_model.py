"""The model `amnesia` as lm-eval meets it: requests, repeats, templates, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM, sampling_of
from amnesia_bench.lm_eval_bridge.niah_task import evaluate_one, prompt_set_task, task_config
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING, SINGLE_TASKS
from amnesia_bench.records.evaluation import Generation, SampleKey, Sampling
from amnesia_bench.tokenizers.tokenizer import with_special_tokens
from tests.support.byte_checkpoints import byte_tokenizer
from tests.support.fake_engine import FakeEngine


class Recording:
    """An engine that keeps what it was asked."""

    settings: Mapping[str, str] = {"engine": "recording"}

    def __init__(self) -> None:
        self.asked: list[PromptRequest] = []

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        self.asked += [requests[i] for i in range(len(requests))]
        engine = FakeEngine(lambda request: f"{request.key.doc}.{request.key.repeat}")
        # An engine answers in any order.
        yield from reversed(list(engine.generate(requests)))


class Questions:
    """A data set of two."""

    features = {"question": None, "answer": None}  # noqa: RUF012

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"question": f"question {i}?", "answer": "1.2"}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([self[0], self[1]])


def task(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "task": "questions",
        "dataset_path": "",
        "custom_dataset": lambda **_: {"test": Questions()},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "process_results": lambda document, answers: {"right": document["answer"] in answers[0]},
        "metric_list": [{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"do_sample": True, "temperature": 0.6, "until": []},
    }
    return given | changes


def test_each_repeat_of_a_document_is_a_sample_with_a_seed_of_its_own() -> None:
    engine, again = Recording(), Recording()
    keep_all = [{"name": "all", "filter": [{"function": "take_first_k", "k": 3}]}]
    repeated = task(repeats=3, filter_list=keep_all)
    results = evaluate_one(AmnesiaLM(engine, byte_tokenizer()), repeated, 2)
    # The answers of document 1 are 1.0, 1.1 and 1.2, in this order.
    assert results["results"]["questions"]["right,all"] == 0.5
    keys = [(request.key.doc, request.key.repeat) for request in engine.asked]
    assert keys == [(doc, repeat) for doc in range(2) for repeat in range(3)]
    seeds = [request.seed for request in engine.asked]
    assert len(set(seeds)) == 6
    evaluate_one(AmnesiaLM(again, byte_tokenizer()), task(repeats=1), 1)
    assert [request.seed for request in again.asked] == seeds[:1]


def test_a_greedy_request_has_no_seed() -> None:
    engine = Recording()
    greedy = task(generation_kwargs={"do_sample": False, "until": ["\n"]})
    evaluate_one(AmnesiaLM(engine, byte_tokenizer()), greedy, 2)
    assert [request.seed for request in engine.asked] == [None, None]
    assert {request.sampling.stop for request in engine.asked} == {("\n",)}


class OnePrompt:
    """One prompt, said to have 262,144 tokens."""

    task, context_tokens, name, sha256 = "niah_single_2", 262144, "niah_single_2@262144", "0" * 64

    def __len__(self) -> int:
        return 1

    def document(self, i: int) -> dict[str, Any]:
        return {
            "index": i,
            "input": "The number is 7654321. Which?",
            "outputs": ["7654321"],
            "length": 40,
            "max_length": self.context_tokens,
            "gen_prefix": "It is",
        }

    def prompt(self, i: int) -> str:
        return "The number is 7654321. Which? It is"

    def tokens(self, i: int) -> NDArray[np.int32]:
        ids = byte_tokenizer()(self.prompt(i), add_special_tokens=False).input_ids
        return np.array(ids, np.int32)

    def value(self, i: int) -> str:
        return "7654321"

    def depth_percent(self, i: int) -> float:
        return 50.0

    def needle_span(self, i: int) -> tuple[int, int]:
        return 14, 21


def test_the_longest_length_is_aggregated_and_no_column_of_minus_one_is_left() -> None:
    lm = AmnesiaLM(FakeEngine(lambda _: "7654321"), byte_tokenizer(), OnePrompt())
    results = evaluate_one(lm, prompt_set_task(OnePrompt()).specification, 1)["results"]
    metrics = results["niah_single_2@262144"]
    assert metrics["262144,none"] == 1.0
    assert not [name for name in metrics if name.startswith("4096")]


@pytest.mark.parametrize("bos", [True, False])
def test_tokens_of_a_prompt_set_are_those_that_lm_eval_would_make_of_its_prompt(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    lm = AmnesiaLM(FakeEngine(lambda _: ""), tokenizer, OnePrompt())
    whole = lm.tok_encode(OnePrompt().prompt(0))
    assert list(with_special_tokens(tokenizer, OnePrompt().tokens(0))) == whole
    assert (whole[0] == tokenizer.bos_token_id) is bos


def test_a_prompt_that_lm_eval_changed_is_not_answered_from_the_prompt_set() -> None:
    lm = AmnesiaLM(FakeEngine(lambda _: ""), byte_tokenizer(), OnePrompt())
    with pytest.raises(UserError, match="document 0: lm-eval changed the prompt"):
        evaluate_one(
            lm, {**prompt_set_task(OnePrompt()).specification, "description": "Be brief. "}, 1
        )


def test_a_template_puts_one_bos_only_and_continues_a_begun_answer() -> None:
    lm = AmnesiaLM(FakeEngine(lambda _: ""), byte_tokenizer())
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It"}]
    continued = lm.apply_chat_template(begun, add_generation_prompt=False)
    assert continued == "<user>hi<end><assistant>It"
    assert lm.apply_chat_template(begun[:1]) == "<user>hi<end><assistant>"
    assert lm.chat_template(True) == byte_tokenizer().chat_template
    assert lm.tok_encode("<s>hi").count(256) == lm.tok_encode("hi").count(256) == 1


def test_tasks_that_score_text_are_refused() -> None:
    lm = AmnesiaLM(FakeEngine(lambda _: ""), byte_tokenizer())
    scoring = task(output_type="loglikelihood", generation_kwargs=None, process_results=None)
    scoring["metric_list"] = [{"metric": "acc"}]
    with pytest.raises(UserError, match="runs tasks with output_type generate_until"):
        evaluate_one(lm, scoring, 2)
    with pytest.raises(UserError, match="runs tasks with output_type generate_until"):
        lm.loglikelihood_rolling([])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "no checkpoint"),
        ({"pretrained": "m", "batch": 4}, "unknown --model_args batch"),
        ({"pretrained": "m", "dtype": "int3"}, "dtype=int3"),
        ({"pretrained": "m", "engine": "vlm"}, "unknown engine vlm"),
        ({"pretrained": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_wrong_model_args_are_named(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        AmnesiaLM.create_from_arg_obj(arguments, {"batch_size": 1, "device": "cuda:0"})


@pytest.mark.parametrize("name", SINGLE_TASKS)
def test_what_lm_evals_tasks_ask_for_is_our_sampling(name: str) -> None:
    asked = task_config(name)["generation_kwargs"]
    assert sampling_of(asked, name) == (NIAH_SAMPLING, 0)


def test_a_sample_is_named_by_task_document_and_repeat() -> None:
    engine = Recording()
    evaluate_one(AmnesiaLM(engine, byte_tokenizer()), task(), 1)
    assert engine.asked[0].key == SampleKey(task="questions", doc=0, repeat=0)


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
        (
            {"num_beams": 4, "repetition_penalty": 1.1},
            "does not support the generation kwargs num_beams, repetition_penalty",
        ),
        ({"do_sample": True}, "do_sample=true needs a temperature above 0"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=true needs a temperature above 0"),
        ({"temperature": 0.6, "top_p": 1.5}, "top_p=1.5"),
        ({"max_gen_toks": 0}, "max_new_tokens=0"),
    ],
)
def test_what_no_engine_can_do_is_refused(gen_kwargs: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=f"^niah: .*{problem}"):
        sampling_of(gen_kwargs, "niah")
