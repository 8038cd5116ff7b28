"""The official NIAH tasks: lm-eval's task configuration with stored prompts as the data set.

There are three differences from lm-eval. Each length is evaluated in a separate call (otherwise,
documents depend on the order of the lengths). There is no metric for length 4096 with the
placeholder value -1. The aggregation includes length 262144.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lm_eval
import numpy as np
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.ruler.common_utils import (
    aggregate_metrics,
    process_results,
    process_results_part,
)

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.recall.measure import PromptSet
from amnesia_bench.recall.niah.catalogue import find_task
from amnesia_bench.recall.niah.frequencies import COMMON_WORDS_TASK
from amnesia_bench.recall.niah.streams import NUMPY_SEED
from amnesia_bench.recall.niah.tasks import SEED
from amnesia_bench.store.files import read_json
from amnesia_bench.tokenizers.sentences import install_sentence_model

# lm-eval's scoring functions, by the names of their metrics.
_SCORING = {
    "string_match_all": process_results,
    "string_match_part": process_results_part,
}


class DocumentPromptSet(PromptSet, Protocol):
    """Prompts of one task at one length that are available as lm-eval's documents."""

    def document(self, i: int) -> dict[str, Any]: ...

    def prompt(self, i: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """One answer as scored by lm-eval: its score from 0 to 1, and the values to find."""

    score: float
    values: tuple[str, ...]


class DocumentDataset:
    """The data set of a task, whose documents are built on access from a prompt set."""

    def __init__(self, prompt_set: DocumentPromptSet) -> None:
        self._prompt_set = prompt_set

    @property
    def features(self) -> Mapping[str, Any]:
        """A mapping whose keys are a document's field names, as in `datasets.Dataset.features`."""
        return dict.fromkeys(self._prompt_set.document(0))

    def __len__(self) -> int:
        return len(self._prompt_set)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._prompt_set.document(i)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class LmEvalNiahTask:
    """One task at one length; its `specification` is an argument for `evaluate_one`.

    Args:
        name: the prompt set's name, such as niah_single_2@262144.
        context_tokens: lm-eval's max_seq_length.
        config: the contents of lm-eval's task file.
    """

    def __init__(self, name: str, context_tokens: int, config: Mapping[str, Any]) -> None:
        self.name = name
        self._scored: list[ScoredAnswer] = []
        self._metric = str(context_tokens)
        scoring = _SCORING[find_task(name.partition("@")[0]).scorer]

        # Not a bound method, since lm-eval makes a deep copy of the specification.
        def score_document(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
            score = scoring(document, answers)[self._metric]
            values = tuple(document["outputs"])
            self._scored.append(ScoredAnswer(score=score, values=values))
            return {self._metric: score}

        self.specification: Mapping[str, Any] = {
            **config,
            "task": name,
            "process_results": score_document,
            "metric_list": [
                {
                    "metric": self._metric,
                    "aggregation": aggregate_metrics,
                    "higher_is_better": True,
                }
            ],
            # Without this, every task keeps a second copy of its documents for few-shot examples.
            "fewshot_config": {"samples": []},
        }

    def run(self, lm: Any, samples: int, max_new_tokens: int) -> Sequence[ScoredAnswer]:
        """Evaluate a model on the first `samples` prompts, and return the scored answers.

        Raises:
            StageFailedError: lm-eval scored fewer prompts; it may skip some with only a warning.
        """
        self._scored.clear()
        gen_kwargs = {**self.specification["generation_kwargs"], "max_gen_toks": max_new_tokens}
        specification = {**self.specification, "generation_kwargs": gen_kwargs}
        results = evaluate_one(lm, specification, samples)
        scores = [answer.score for answer in self._scored]
        if len(scores) != samples or results["n-samples"][self.name]["effective"] != samples:
            raise StageFailedError(
                f"{self.name}: lm-eval scored {len(scores)} of the {samples} requested samples"
            )
        mean = results["results"][self.name][f"{self._metric},none"]
        if mean != sum(scores) / samples:
            raise RuntimeError(f"{self.name}: lm-eval reports {mean} for {scores}")
        return tuple(self._scored)


def evaluate_one(lm: Any, task: Mapping[str, Any], samples: int) -> Mapping[str, Any]:
    """Run one task with `lm_eval.evaluate`, with the same documents as lm-eval's command line.

    `simple_evaluate` is not used: on every call, it also collects a description of the machine with
    pip and git, which takes seconds. Its other additions are for options that we do not use.

    Args:
        lm: an lm-eval model.
        task: the specification of the task.
        samples: number of documents to evaluate, starting with the first.
    """
    state, numpy_state = random.getstate(), np.random.get_state()
    # The constructor of a task builds its documents, with the global random generators.
    random.seed(SEED)
    np.random.set_state(np.random.RandomState(NUMPY_SEED).get_state())
    try:
        built = build_task(task)
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
    results: Mapping[str, Any] = lm_eval.evaluate(
        lm, {"tasks": {task["task"]: built}}, limit=samples, bootstrap_iters=0, log_samples=False
    )
    return results


def build_task(config: Mapping[str, Any]) -> Any:
    """Build an lm-eval task whose documents are returned by `custom_dataset` in its config."""

    class CustomDatasetTask(ConfigurableTask):  # type: ignore[misc]
        def download(self, *_: Any, **__: Any) -> None:
            # The same as in lm-eval, but without its warning about command-line options.
            self.dataset = self.config.custom_dataset(**(self.config.metadata or {}))

    return CustomDatasetTask(config=dict(config))


def prompt_set_task(prompt_set: DocumentPromptSet) -> LmEvalNiahTask:
    """Return a task with the documents of a prompt set."""

    def documents(**_: Any) -> dict[str, DocumentDataset]:
        return {"test": DocumentDataset(prompt_set)}

    # Left unresolved, since importing the generator in the task file builds six million keys.
    config = task_config(prompt_set.task)
    return LmEvalNiahTask(
        prompt_set.name, prompt_set.context_tokens, {**config, "custom_dataset": documents}
    )


def official_task(task: str, context_tokens: int, tokenizer: Path) -> LmEvalNiahTask:
    """Return a task with documents from lm-eval's own generator and the essays on the hub.

    Args:
        task: the name of the task.
        context_tokens: lm-eval's max_seq_length.
        tokenizer: the folder of the tokenizer with which the generator counts tokens.

    Raises:
        UserError: the tokenizer folder refers to code.
        MissingEnvironmentError: raised when the task runs, if the essays are not available.
    """
    _refuse_code(tokenizer)
    install_sentence_model()  # makes the generator's sentence model available to nltk
    if task == COMMON_WORDS_TASK.name:
        # Its module has a random generator of its own, which must be in its first state.
        sys.modules.pop("lm_eval.tasks.ruler.cwe_utils", None)
    config = task_config(task, resolve=True)
    generator = config["custom_dataset"]

    def documents(**arguments: Any) -> Any:
        try:
            return generator(**arguments)
        except OSError as error:
            raise MissingEnvironmentError(
                f"{task}: lm-eval cannot download its data ({str(error).partition(chr(10))[0]})",
                hint="Build the same prompts of a local file (amnesia niah build); use --prompts.",
            ) from error

    arguments = {"tokenizer": str(tokenizer), "max_seq_lengths": [context_tokens]}
    changes = {"custom_dataset": documents, "metadata": {**config["metadata"], **arguments}}
    return LmEvalNiahTask(f"{task}@{context_tokens}", context_tokens, {**config, **changes})


def _refuse_code(tokenizer: Path) -> None:
    # lm-eval always loads the tokenizer with trust_remote_code=True.
    for file in (tokenizer / "tokenizer_config.json", tokenizer / "config.json"):
        if file.exists() and "auto_map" in read_json(file):
            raise UserError(
                f"{file}: refers to code (auto_map), which lm-eval's generator would run",
                hint="Build the same prompts without it (amnesia niah build); use --prompts.",
            )


def task_config(file: str, *, resolve: bool = False) -> dict[str, Any]:
    """Return the contents of one of lm-eval's RULER task files.

    Args:
        file: the name of the task file, without .yaml.
        resolve: whether to import the functions to which the file refers; otherwise, they stay
            unresolved.
    """
    # lm-eval's files have the names of its tasks, but for this prefix.
    name = f"{file.removeprefix('ruler_')}.yaml"
    path = Path(lm_eval.__file__).parent / "tasks" / "ruler" / name
    config: dict[str, Any] = load_yaml(path, resolve_func=resolve)
    # `tag` is a label for lm-eval's task index, not a field of a task.
    config.pop("tag", None)
    return config
