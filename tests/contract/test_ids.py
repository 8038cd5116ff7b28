"""One id for one thing: evaluators, configs and tables agree on tasks, metrics and methods."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from amnesia_bench.config.experiment_schema import Experiment, Profile
from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_option
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.cells import metrics_of
from amnesia_bench.reasoning.tasks import TASKS
from amnesia_bench.recall.niah import TASKS as NEEDLE_TASKS
from amnesia_bench.records.ids import (
    AFTER_SFT,
    BEFORE_SFT,
    REASONING_TASKS,
    RECALL_TASKS,
    Method,
    compared_metrics,
    reasoning_metrics,
)
from amnesia_bench.reporting.table_layout import row_of, rows_of

METHODS = get_args(Method)


def test_there_is_an_evaluator_for_each_task_and_for_no_other() -> None:
    assert tuple(NEEDLE_TASKS) == RECALL_TASKS
    assert tuple(TASKS) == tuple(REASONING_TASKS)
    assert set(options("eval")) == {"check", "check_quick", "check_ruler", "niah", *REASONING_TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_the_scorers_of_its_ids(task: str) -> None:
    assert TASKS[task].name == task
    assert tuple(TASKS[task].scorers) == REASONING_TASKS[task].scorers


@pytest.mark.parametrize(
    ("task", "repeats", "names"),
    [
        ("ifeval", 1, "prompt_level_strict_accuracy"),
        ("ifeval", 2, "avg@2"),
        ("gsm8k", 1, "avg@1 maj@1 maj_expected@1 no_vote_rate"),
        ("math500", 5, "avg@5 maj@5 maj_expected@5 no_vote_rate pass@2 pass@4"),
        ("livecodebench", 8, "avg@8 pass@2 pass@4 pass@8"),
    ],
)
def test_the_metrics_of_a_task_in_their_order(task: str, repeats: int, names: str) -> None:
    metrics = (*names.split(), "extraction_rate", "length_cut_rate", "mean_new_tokens")
    assert reasoning_metrics(task, repeats) == metrics
    assert tuple(metrics_of(task, repeats)) == metrics
    assert set(compared_metrics(task, repeats)) <= set(metrics)


def test_methods_are_the_fine_tune_its_base_and_restore_variants() -> None:
    assert {BEFORE_SFT, AFTER_SFT} <= set(METHODS)
    variants = set(METHODS) - {BEFORE_SFT, AFTER_SFT, "restored", "qk_frozen"}
    assert variants <= set(options("restore"))


@pytest.mark.parametrize("report", options("report"))
def test_the_rows_of_a_report_are_methods(report: str) -> None:
    table = load_option("report", report, [], TableConfig)
    assert {row_of(row.name, table.sft).method for row in rows_of(table)} <= set(METHODS)


@pytest.mark.parametrize("name", options("experiment"))
def test_an_experiment_asks_for_tasks_that_there_are(name: str) -> None:
    for scope in load_option("experiment", name, [], Experiment).scopes.values():
        assert set(scope.tasks or ()) <= set(RECALL_TASKS)
        assert set(scope.reasoning) <= set(REASONING_TASKS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("profile.recall.tasks=[niah_single_9]", "profile.recall: tasks=niah_single_9: unknown"),
        ("+profile.reasoning.gsm9k={}", "profile: reasoning=gsm9k: unknown. Did you mean gsm8k"),
    ],
)
def test_a_profile_that_names_another_task_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_option("profile", "tiny", [override], Profile)
