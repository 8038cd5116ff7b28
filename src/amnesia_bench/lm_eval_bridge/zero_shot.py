"""Zero-shot tasks of lm-eval with their documents, and the accuracy of a model on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval

from amnesia_bench.errors import StageFailedError
from amnesia_bench.records.layer_ranking import RankingTask


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask:
    """A zero-shot lm-eval task with its documents.

    `metrics` maps lm-eval's metric names to ours; the first one is the metric of rankings. `source`
    is the origin of the documents, and `sha256` is their hash.
    """

    name: str
    version: str
    metrics: Mapping[str, str]
    source: str
    sha256: str
    num_documents: int
    task: Any

    def evaluated_documents(self, samples: int | None) -> int:
        """Return the number of documents to evaluate: at most `samples`, or all if it is None."""
        return self.num_documents if samples is None else min(samples, self.num_documents)

    def record(self, samples: int | None) -> RankingTask:
        """Return the entry for this task in the record of a ranking or of scores."""
        return RankingTask(
            name=self.name,
            version=self.version,
            metric=next(iter(self.metrics)),
            n=self.evaluated_documents(samples),
            source=self.source,
            sha256=self.sha256,
        )


def accuracies(lm: Any, tasks: Sequence[ZeroShotTask], samples: int | None) -> dict[str, float]:
    """Evaluate a model on tasks; return its accuracy by metric name, for all metrics of all tasks.

    Args:
        lm: an lm-eval model.
        tasks: the tasks to evaluate.
        samples: maximum number of documents per task, starting with the first; None for all.

    Raises:
        StageFailedError: lm-eval scored fewer documents than requested.
    """
    accuracy = {}
    for task in tasks:
        n = task.evaluated_documents(samples)
        # `evaluate_one` explains why `simple_evaluate` is not used.
        results = lm_eval.evaluate(
            lm, {"tasks": {task.name: task.task}}, limit=n, bootstrap_iters=0, log_samples=False
        )
        if (scored := results["n-samples"][task.name]["effective"]) != n:
            raise StageFailedError(f"{task.name}: lm-eval scored {scored} of {n} documents")
        for lm_eval_name, name in task.metrics.items():
            accuracy[name] = float(results["results"][task.name][f"{lm_eval_name},none"])
    return accuracy


def sha256_of_documents(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the sha256, in hex, of the documents of a task."""
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
