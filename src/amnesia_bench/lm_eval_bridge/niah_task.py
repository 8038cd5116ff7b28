"""The official NIAH tasks: lm-eval's configuration with our prompts as the data set.

Differences from lm-eval: each length is one call (otherwise documents depend on the order of
lengths), there is no column of -1 for 4096, and the aggregation includes 262144.
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
    """Prompts of one task at one length that are available as lm-eval's documents."""

    def document(self, i: int) -> dict[str, Any]: ...

    def prompt(self, i: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """lm-eval's result for one answer: its score (0 or 1), and the value in the needle."""

    score: float
    value: str


class DocumentDataset:
    """A prompt set as the data set of a task; each document is built on access."""

    def __init__(self, prompt_set: DocumentPromptSet) -> None:
        self._prompt_set = prompt_set

    @property
    def features(self) -> Mapping[str, Any]:
        """The field names of a document, like `datasets.Dataset.features`."""
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
        name: the prompt set's name, such as niah_single_2@262144.
        context_tokens: lm-eval's max_seq_length.
        config: the content of lm-eval's task file.
    """

    def __init__(self, name: str, context_tokens: int, config: Mapping[str, Any]) -> None:
        self.name = name
        self._scored: list[ScoredAnswer] = []
        self._metric = str(context_tokens)

        # A function and not a bound method: lm-eval makes a deep copy of the specification.
        def score_document(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
            score = process_results(document, answers)[self._metric]
            (value,) = document["outputs"]
            self._scored.append(ScoredAnswer(score=score, value=value))
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
            # Otherwise every task keeps a second copy of its documents for few-shot examples.
            "fewshot_config": {"samples": []},
        }

    def run(self, lm: Any, samples: int, max_new_tokens: int) -> Sequence[ScoredAnswer]:
        """Evaluate a model on the first `samples` prompts; return lm-eval's scores.

        Raises:
            StageFailedError: lm-eval scored fewer prompts: it skips some with only a warning.
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

    `simple_evaluate` is not used: it also describes the machine on every call, which takes seconds
    of pip and git, and its other additions are for options that are not used here.

    Args:
        lm: a model of lm-eval.
        task: the specification of the task.
        samples: number of documents, from the first.
    """
    state = random.getstate()
    # A task builds its documents in its constructor, with Python's global random generator.
    random.seed(SEED)
    try:
        built = build_task(task)
    finally:
        random.setstate(state)
    results: Mapping[str, Any] = lm_eval.evaluate(
        lm, {"tasks": {task["task"]: built}}, limit=samples, bootstrap_iters=0, log_samples=False
    )
    return results


def build_task(config: Mapping[str, Any]) -> Any:
    """Build a task of lm-eval with the documents of its `custom_dataset`."""

    class CustomDatasetTask(ConfigurableTask):  # type: ignore[misc]
        def download(self, *_: Any, **__: Any) -> None:
            # As in lm-eval, without its warning about command-line options.
            self.dataset = self.config.custom_dataset(**(self.config.metadata or {}))

    return CustomDatasetTask(config=dict(config))


def prompt_set_task(prompt_set: DocumentPromptSet) -> LmEvalNiahTask:
    """Return a task with the documents of a prompt set."""

    def documents(**_: Any) -> dict[str, DocumentDataset]:
        return {"test": DocumentDataset(prompt_set)}

    # Unresolved: importing the generator of the task file builds six million words.
    config = task_config(prompt_set.task)
    return LmEvalNiahTask(
        prompt_set.name, prompt_set.context_tokens, {**config, "custom_dataset": documents}
    )


def official_task(task: str, context_tokens: int, tokenizer: Path) -> LmEvalNiahTask:
    """Return a task with the documents of lm-eval's own generator, from the hub's essays.

    Args:
        task: niah_single_1, _2 or _3.
        context_tokens: lm-eval's max_seq_length.
        tokenizer: the folder of the tokenizer that counts tokens.

    Raises:
        UserError: the folder contains code.
        MissingEnvironmentError: raised when the task runs, if the essays are not available.
    """
    _refuse_code(tokenizer)
    sentence_splitter()  # puts the sentence model of the generator on nltk's path
    config = task_config(task, resolve=True)
    generator = config["custom_dataset"]

    def documents(**arguments: Any) -> Any:
        try:
            return generator(**arguments)
        except OSError as error:
            raise MissingEnvironmentError(
                f"{task}: lm-eval cannot download the essays ({str(error).partition(chr(10))[0]})",
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
    """Return the content of one of lm-eval's RULER task files.

    Args:
        file: its name without .yaml.
        resolve: import the functions that it refers to; otherwise they stay unresolved.
    """
    path = Path(lm_eval.__file__).parent / "tasks" / "ruler" / f"{file}.yaml"
    config: dict[str, Any] = load_yaml(path, resolve_func=resolve)
    # A label for lm-eval's task index, not a field of a task.
    config.pop("tag", None)
    return config
