"""The official NIAH tasks: lm-eval's own configuration, with our prompts as its data set.

What lm-eval does by itself and this does not: all lengths in one call (documents would depend on
their order), a column of -1 for 4096, and an aggregation that 262144 is missing from.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.ruler.common_utils import aggregate_metrics, process_results

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.recall.measure import PromptSet
from amnesia_bench.recall.niah.tasks import SEED
from amnesia_bench.store.files import read_json
from amnesia_bench.tokenizers.sentences import sentence_splitter


class DocumentPromptSet(PromptSet, Protocol):
    """Prompts of one task at one length that can be had as lm-eval's documents."""

    def document(self, i: int) -> dict[str, Any]: ...

    def prompt(self, i: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """What lm-eval made of one answer: its score (0 or 1), and the value that was to be found."""

    score: float
    value: str


class DocumentDataset:
    """A prompt set as the data set of a task: each document is made when it is asked for."""

    def __init__(self, prompt_set: DocumentPromptSet) -> None:
        self._prompt_set = prompt_set

    @property
    def features(self) -> Mapping[str, Any]:
        """The names of a document's fields, as `datasets.Dataset.features` has them."""
        return dict.fromkeys(self._prompt_set.document(0))

    def __len__(self) -> int:
        return len(self._prompt_set)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._prompt_set.document(i)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class LmEvalNiahTask:
    """One task at one length, as a specification for `evaluate_one`.

    Args:
        name: of the prompt set, such as niah_single_2@262144.
        context_tokens: lm-eval's max_seq_length.
        config: of lm-eval's task file.
    """

    def __init__(self, name: str, context_tokens: int, config: Mapping[str, Any]) -> None:
        self.name = name
        self._judged: list[ScoredAnswer] = []
        self._metric = str(context_tokens)

        # A function and no bound method: lm-eval copies a specification with all that it holds.
        def judge(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
            score = process_results(document, answers)[self._metric]
            (value,) = document["outputs"]
            self._judged.append(ScoredAnswer(score=score, value=value))
            return {self._metric: score}

        self.specification: Mapping[str, Any] = {
            **config,
            "task": name,
            "process_results": judge,
            "metric_list": [
                {
                    "metric": self._metric,
                    "aggregation": aggregate_metrics,
                    "higher_is_better": True,
                }
            ],
            # Else every task keeps all its documents a second time, to take examples from.
            "fewshot_config": {"samples": []},
        }

    def run(self, lm: Any, samples: int, max_new_tokens: int) -> Sequence[ScoredAnswer]:
        """Let lm-eval put the first `samples` prompts to a model; return what it made of each.

        Raises:
            StageFailedError: lm-eval scored fewer: it skips what it cannot make, and only warns.
        """
        self._judged.clear()
        asked = {**self.specification["generation_kwargs"], "max_gen_toks": max_new_tokens}
        changed = {**self.specification, "generation_kwargs": asked}
        results = evaluate_one(lm, changed, samples)
        scores = [judged.score for judged in self._judged]
        if len(scores) != samples or results["n-samples"][self.name]["effective"] != samples:
            raise StageFailedError(
                f"{self.name}: lm-eval scored {len(scores)} of the {samples} samples asked for"
            )
        found = results["results"][self.name][f"{self._metric},none"]
        if found != sum(scores) / samples:
            raise RuntimeError(f"{self.name}: lm-eval reports {found} for {scores}")
        return tuple(self._judged)


def evaluate_one(lm: Any, task: Mapping[str, Any], samples: int) -> Mapping[str, Any]:
    """Run one task by `lm_eval.evaluate`, its documents made as lm-eval's command line makes them.

    Not by `simple_evaluate`, which besides describes the machine in every call: seconds of pip and
    git. What else it does is for options that are not used here.

    Args:
        lm: a model of lm-eval.
        task: its specification.
        samples: how many of its documents, from the first.
    """
    state = random.getstate()
    # A task makes its documents when it is built, from Python's own generator.
    random.seed(SEED)
    try:
        built = given_task(task)
    finally:
        random.setstate(state)
    results: Mapping[str, Any] = lm_eval.evaluate(
        lm, {"tasks": {task["task"]: built}}, limit=samples, bootstrap_iters=0, log_samples=False
    )
    return results


def given_task(config: Mapping[str, Any]) -> Any:
    """Build a task of lm-eval whose documents are those of its `custom_dataset`."""

    class GivenTask(ConfigurableTask):  # type: ignore[misc]
        def download(self, *_: Any, **__: Any) -> None:
            # As lm-eval does, without its advice on options of its command line.
            self.dataset = self.config.custom_dataset(**(self.config.metadata or {}))

    return GivenTask(config=dict(config))


def prompt_set_task(prompt_set: DocumentPromptSet) -> LmEvalNiahTask:
    """Return a task whose documents are those of a prompt set."""

    def documents(**_: Any) -> dict[str, DocumentDataset]:
        return {"test": DocumentDataset(prompt_set)}

    # Unresolved, since the generator that it names makes six million words when it is imported.
    config = task_config(prompt_set.task)
    return LmEvalNiahTask(
        prompt_set.name, prompt_set.context_tokens, {**config, "custom_dataset": documents}
    )


def official_task(task: str, context_tokens: int, tokenizer: Path) -> LmEvalNiahTask:
    """Return a task whose documents lm-eval's own generator makes, from essays of the hub.

    Args:
        task: niah_single_1, _2 or _3.
        context_tokens: lm-eval's max_seq_length.
        tokenizer: the folder of the tokenizer that counts.

    Raises:
        UserError: the folder holds code.
        MissingEnvironmentError: when the task is run, and there are no essays to be had.
    """
    _refuse_code(tokenizer)
    sentence_splitter()  # puts the data that the generator splits sentences with on nltk's path
    config = task_config(task, resolve=True)
    generator = config["custom_dataset"]

    def documents(**asked: Any) -> Any:
        try:
            return generator(**asked)
        except OSError as error:
            raise MissingEnvironmentError(
                f"{task}: lm-eval cannot fetch the essays ({str(error).partition(chr(10))[0]})",
                hint="amnesia niah build makes the same prompts of a local file, for --prompts.",
            ) from error

    asked = {"tokenizer": str(tokenizer), "max_seq_lengths": [context_tokens]}
    changes = {"custom_dataset": documents, "metadata": {**config["metadata"], **asked}}
    return LmEvalNiahTask(f"{task}@{context_tokens}", context_tokens, {**config, **changes})


def _refuse_code(tokenizer: Path) -> None:
    # lm-eval loads it with trust_remote_code=True, and offers no way to say otherwise.
    for file in (tokenizer / "tokenizer_config.json", tokenizer / "config.json"):
        if file.exists() and "auto_map" in read_json(file):
            raise UserError(
                f"{file}: names code (auto_map), which lm-eval's generator would run",
                hint="amnesia niah build makes the same prompts and runs none, for --prompts.",
            )


def task_config(file: str, *, resolve: bool = False) -> dict[str, Any]:
    """Return one of lm-eval's task files of RULER.

    Args:
        file: its name without .yaml.
        resolve: import the functions that it names; else their places are given.
    """
    path = Path(lm_eval.__file__).parent / "tasks" / "ruler" / f"{file}.yaml"
    config: dict[str, Any] = load_yaml(path, resolve_func=resolve)
    # A label for lm-eval's index of tasks, and no part of a task.
    config.pop("tag", None)
    return config
