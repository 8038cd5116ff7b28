"""The official NIAH tasks: lm-eval's own configuration, with our prompts as its data set.

What lm-eval does by itself and this does not: all lengths in one call (documents would depend on
their order), a column of -1 for 4096, and an aggregation that 262144 is missing from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from amnesia_bench.errors import StageFailedError
from amnesia_bench.evals.niah.tasks import SEED
from amnesia_bench.evals.recall import PromptCell


class DocumentCell(PromptCell, Protocol):
    """Prompts of one task at one length that can be had as lm-eval's documents."""

    def document(self, i: int) -> dict[str, Any]: ...

    def prompt(self, i: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What lm-eval made of one answer: its score (0 or 1), and the value that was to be found."""

    score: float
    value: str


class Documents:
    """A cell as the data set of a task: each document is made when it is asked for."""

    def __init__(self, cell: DocumentCell) -> None:
        self._cell = cell

    @property
    def features(self) -> Mapping[str, Any]:
        """The names of a document's fields, as `datasets.Dataset.features` has them."""
        return dict.fromkeys(self._cell.document(0))

    def __len__(self) -> int:
        return len(self._cell)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._cell.document(i)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class NiahTask:
    """One task at one length, as a specification for `simple_evaluate`.

    Args:
        name: of the cell, such as niah_single_2@262144.
        context_tokens: lm-eval's max_seq_length.
        config: of lm-eval's task file.
    """

    def __init__(self, name: str, context_tokens: int, config: Mapping[str, Any]) -> None:
        from lm_eval.tasks.ruler.common_utils import aggregate_metrics, process_results

        self.name = name
        self.judged: dict[int, Judged] = {}
        self._metric = str(context_tokens)

        # A function and no bound method: lm-eval copies a specification with all that it holds.
        def judge(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
            score = process_results(document, answers)[self._metric]
            (value,) = document["outputs"]
            self.judged[document["index"]] = Judged(score=score, value=value)
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

    def run(self, lm: Any, samples: int) -> Mapping[int, Judged]:
        """Let lm-eval put the first `samples` prompts to a model and score its answers.

        Raises:
            StageFailedError: lm-eval scored fewer: it skips what it cannot make, and only warns.
        """
        results = evaluate_one(lm, self.specification, samples)
        found = results["results"][self.name][f"{self._metric},none"]
        scores = [judged.score for judged in self.judged.values()]
        effective = results["n-samples"][self.name]["effective"]
        if len(scores) != samples or effective != samples:
            raise StageFailedError(
                f"{self.name}: lm-eval scored {len(scores)} of the {samples} samples asked for"
            )
        if found != sum(scores) / samples:
            raise RuntimeError(f"{self.name}: lm-eval reports {found} for {scores}")
        return self.judged


def evaluate_one(lm: Any, task: Any, samples: int) -> Mapping[str, Any]:
    """Run one task by `lm_eval.simple_evaluate`, seeded as its command line seeds by default.

    Args:
        lm: a model of lm-eval.
        task: a specification, or lm-eval's own `Task`.
        samples: how many of its documents, from the first.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    results: Mapping[str, Any] = simple_evaluate(
        model=lm,
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        limit=samples,
        bootstrap_iters=0,
        log_samples=False,
        random_seed=SEED,
    )
    return results


def cell_task(cell: DocumentCell) -> NiahTask:
    """Return a task whose documents are those of a cell."""

    def documents(**_: Any) -> dict[str, Documents]:
        return {"test": Documents(cell)}

    # Unresolved, since the generator that it names makes six million words when it is imported.
    config = _config(cell.task, resolve=False)
    return NiahTask(cell.name, cell.context_tokens, {**config, "custom_dataset": documents})


def official_task(task: str, context_tokens: int, tokenizer: Path) -> NiahTask:
    """Return a task whose documents lm-eval's own generator makes, from essays of the hub.

    Args:
        task: niah_single_1, _2 or _3.
        context_tokens: lm-eval's max_seq_length.
        tokenizer: the folder of the tokenizer that counts.
    """
    config = _config(task, resolve=True)
    asked = {"tokenizer": str(tokenizer), "max_seq_lengths": [context_tokens]}
    metadata = {**config["metadata"], **asked}
    name = f"{task}@{context_tokens}"
    return NiahTask(name, context_tokens, {**config, "metadata": metadata})


def _config(task: str, *, resolve: bool) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / "ruler" / f"{task}.yaml"
    load: Callable[..., dict[str, Any]] = load_yaml
    return load(path, resolve_func=resolve)
