"""lm-eval's own generators of RULER's other tasks, on texts of ours: the reference."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from amnesia_bench.recall.niah.streams import NUMPY_SEED, RandomStreams
from tests.support.niah_official import official_documents

# The module of a task, the function that it makes its data set with, and the one whose number of
# samples is changed.
_MODULES = {
    "ruler_vt": ("vt_utils", "get_vt_dataset", "sys_vartrack_w_noise_random"),
    "ruler_cwe": ("cwe_utils", "get_cw_dataset", "sys_word_pair_random"),
    "ruler_fwe": ("fwe_utils", "fwe_download", "sys_kwext"),
    "ruler_qa_squad": ("qa_utils", "get_squad", "generate_samples"),
    "ruler_qa_hotpot": ("qa_utils", "get_hotpotqa", "generate_samples"),
}


@dataclass(frozen=True)
class OfficialPrompts:
    """lm-eval's documents, and the states in which it leaves the generators."""

    documents: Any
    python: object
    numpy: object
    words: object


def official_prompts(
    tokenizer: Path,
    task: str,
    context_tokens: int,
    samples: int,
    essays: list[str],
    questions: Path | None = None,
) -> OfficialPrompts:
    """Return lm-eval's documents of a task, made as in a new process."""
    before = np.random.get_state()
    np.random.set_state(np.random.RandomState(NUMPY_SEED).get_state())
    words: object = None
    try:
        if task.startswith("niah_"):
            documents, python = official_documents(tokenizer, task, context_tokens, samples, essays)
        else:
            documents, python, words = _documents(
                tokenizer, task, context_tokens, samples, questions
            )
        return OfficialPrompts(documents, python, _plain(np.random.get_state()), words)
    finally:
        np.random.set_state(before)


def _documents(
    tokenizer: Path, task: str, context_tokens: int, samples: int, questions: Path | None
) -> tuple[Any, object, object]:
    name, get, counted = _MODULES[task]
    module = importlib.import_module(f"lm_eval.tasks.ruler.{name}")
    # Anew: ruler_cwe has a generator of its own, and the texts of the questions are shuffled.
    module = importlib.reload(module)
    state = random.getstate()
    try:
        random.seed(0)
        with _samples(module, counted, samples), _downloaded(module, questions):
            data = getattr(module, get)(tokenizer=str(tokenizer), max_seq_lengths=[context_tokens])
        words = module.RNG.getstate() if task == "ruler_cwe" else None
        return data["test"], random.getstate(), words
    finally:
        random.setstate(state)
        # Without the questions of this test, and without what lm-eval cached of them.
        importlib.reload(module)


@contextmanager
def _samples(module: ModuleType, function: str, samples: int) -> Iterator[None]:
    made: Callable[..., Any] = getattr(module, function)

    def fewer(*args: Any, **settings: Any) -> Any:
        # ruler_vt also makes one example, and must go on doing so.
        return made(
            *args, **{**settings, "num_samples": min(samples, settings.get("num_samples", 500))}
        )

    setattr(module, function, fewer)
    try:
        yield
    finally:
        setattr(module, function, made)


@contextmanager
def _downloaded(module: ModuleType, questions: Path | None) -> Iterator[None]:
    if questions is None:
        yield
        return
    content = json.loads(questions.read_text())
    module.download_json = lambda _: content  # type: ignore[attr-defined]
    yield


def _plain(state: Any) -> object:
    return (state[0], state[1].tolist(), *state[2:])


def numpy_state(generator: np.random.RandomState) -> object:
    """Return the state of a generator in a form that can be compared."""
    return _plain(generator.get_state())


@contextmanager
def recorded_streams() -> Iterator[list[RandomStreams]]:
    """Provide the generators with which our prompt sets are built meanwhile, in order."""
    streams: list[RandomStreams] = []
    of_seed = RandomStreams.of_seed

    def recorded(seed: int) -> RandomStreams:
        streams.append(of_seed(seed))
        return streams[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RandomStreams, "of_seed", recorded)
        yield streams
