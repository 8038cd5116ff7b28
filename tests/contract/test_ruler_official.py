"""Our prompts of RULER's other tasks are lm-eval's: every field, every random number drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amnesia_bench.recall.niah import TASKS, build_prompts, open_prompt_sets
from amnesia_bench.recall.niah.tasks import SINGLE_TASKS
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import (
    train_byte_level,
    train_chunks_of_5,
    train_chunks_of_3000,
    train_metaspace,
)
from tests.support.ruler_official import numpy_state, official_prompts, recorded_streams
from tests.support.ruler_questions import write_hotpot, write_squad
from tests.support.shared import shared_path

OTHER_TASKS = tuple(name for name in TASKS if name not in SINGLE_TASKS)
TRAINED = [train_metaspace, train_byte_level, train_chunks_of_5, train_chunks_of_3000]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Prompt sets of one tokenizer, to be made by lm-eval and by us."""

    tokenizer: Path
    haystack: Path
    folder: Path
    samples: int
    loaded: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loaded", load_tokenizer(self.tokenizer))

    def compare(self, task: str, length: int, questions: Path | None) -> None:
        out = self.folder / f"{task}@{length}"
        request = BuildPromptsRequest(
            tokenizer=self.tokenizer,
            lengths=(length,),
            tasks=(task,),
            haystack=self.haystack if TASKS[task].essays else None,
            samples=self.samples,
            squad=questions if "squad" in task else None,
            hotpot=questions if "hotpot" in task else None,
        )
        with recorded_streams() as streams:
            build_prompts(request, out)
        texts = [json.loads(self.haystack.read_text())["text"]]
        theirs = official_prompts(self.tokenizer, task, length, self.samples, texts, questions)
        (ours,) = open_prompt_sets(out, self.loaded)
        assert [ours.document(i) for i in range(len(ours))] == list(theirs.documents)
        assert streams[-1].python.getstate() == theirs.python
        assert numpy_state(streams[-1].numpy) == theirs.numpy
        assert theirs.words is None or streams[-1].words.getstate() == theirs.words
        for i in range(0, len(ours), max(1, len(ours) // 3)):
            self._compare_tokens(ours, i)

    def _compare_tokens(self, ours: Any, i: int) -> None:
        prompt = ours.prompt(i)
        assert ours.prompt_sha256(i) == hashlib.sha256(prompt.encode()).hexdigest()
        tokens = self.loaded(prompt, add_special_tokens=False).input_ids
        assert np.array_equal(ours.tokens(i), tokens)
        assert ours.prompt_tokens(i) == len(tokens)
        assert (ours.depth_percent(i) is None) == (ours.needle_span(i) == ())
        if span := ours.needle_span(i):
            assert ours.values(i)[0] in self.loaded.decode(tokens[slice(*span)])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "essay.json").write_text(json.dumps({"text": f" {made_up_essay(1500)}"}))
    write_squad(folder / "squad.json")
    write_hotpot(folder / "hotpot.json")
    return folder


def questions_of(task: str, folder: Path) -> Path | None:
    return folder / f"{task.rpartition('_')[2]}.json" if "_qa_" in task else None


@pytest.mark.parametrize("train", TRAINED)
def test_prompts_are_those_of_lm_eval_with_any_tokenizer(
    train: Callable[[Path, str], Path],
    texts: Path,
    tmp_path: Path,
) -> None:
    tokenizer = train(tmp_path / "tokenizer", made_up_essay(500))
    haystack = texts / "essay.json"
    comparison = Comparison(tokenizer=tokenizer, haystack=haystack, folder=tmp_path, samples=4)
    # With such short tokens, the example of ruler_vt exceeds 500 tokens (lm-eval then draws for
    # ever), and the shortest list of ruler_cwe exceeds the length.
    for task in OTHER_TASKS:
        if task in ("ruler_vt", "ruler_cwe"):
            continue
        comparison.compare(task, 4200, questions_of(task, texts))


def _compare_qwen(
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: int,
    texts: Path,
    tmp_path: Path,
) -> None:
    comparison = Comparison(
        tokenizer=shared_path("data", "qwen2_tokenizer"),
        haystack=shared_path("data", "pg_essays_ruler.json"),
        folder=tmp_path,
        samples=samples,
    )
    for task in tasks:
        for length in lengths:
            comparison.compare(task, length, questions_of(task, texts))


def test_prompts_of_the_tasks_without_essays_are_those_of_lm_eval(
    texts: Path, tmp_path: Path
) -> None:
    tasks = [name for name in OTHER_TASKS if not TASKS[name].essays]
    _compare_qwen(tasks, (1500,), 3, texts, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", OTHER_TASKS)
def test_prompts_are_those_of_lm_eval(task: str, texts: Path, tmp_path: Path) -> None:
    _compare_qwen((task,), (1500, 4096), 4, texts, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("task", OTHER_TASKS)
def test_long_prompts_are_those_of_lm_eval(task: str, texts: Path, tmp_path: Path) -> None:
    _compare_qwen((task,), (32768,), 25, texts, tmp_path)


def test_all_texts_of_the_questions_are_shuffled_further_in_each_prompt(
    texts: Path, tmp_path: Path
) -> None:
    """lm-eval shuffles its list of texts in place once all of them fit: later texts are others."""
    tokenizer = train_byte_level(tmp_path / "tokenizer", made_up_essay(500))
    haystack = texts / "essay.json"
    comparison = Comparison(tokenizer=tokenizer, haystack=haystack, folder=tmp_path, samples=12)
    comparison.compare("ruler_qa_squad", 60_000, texts / "squad.json")
