"""Each column, row and label of a report is made by an experiment that names the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

from amnesia_bench.config.experiment_schema import Job, load_jobs
from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_option
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.graph import Graph, build
from amnesia_bench.records.ids import REASONING_TASKS, RECALL_METRIC, reasoning_metrics
from amnesia_bench.reporting.published import read_published
from amnesia_bench.reporting.table_layout import full_name, rows_of, table_columns
from amnesia_bench.requests.reasoning import GenerateRequest
from amnesia_bench.requests.recall import EvaluateRequest
from tests.support.experiments import is_defined

# A column: task, metric, scorer and length.
Produced = tuple[str, str, str | None, int | None]


def jobs() -> Iterator[Job]:
    """Every experiment under every profile that it is for."""
    for profile in options("profile"):
        for experiment in options("experiment"):
            # test_configs.py holds that nothing else is refused.
            if is_defined(experiment, profile):
                yield from load_jobs([f"experiment={experiment}", f"profile={profile}"])


def produced_columns(graph: Graph) -> set[Produced]:
    """What the stages of a graph will write cells of, read from what they are told to do."""
    columns: set[Produced] = set()
    for stage in (stage for row in graph.rows for stage in row.measured):
        if isinstance(stage.request, EvaluateRequest):
            for task in stage.request.tasks or ():
                columns |= {(task, RECALL_METRIC, None, n) for n in stage.request.lengths or ()}
        else:
            asked = stage.inputs[0].request
            assert isinstance(asked, GenerateRequest)
            # `amnesia score` without --scorer takes a task's first.
            scorer = REASONING_TASKS[asked.task].scorers[0]
            names = reasoning_metrics(asked.task, asked.config.repeats)
            columns |= {(asked.task, name, scorer, None) for name in names}
    return columns


def missing(graph: Graph, table: TableConfig) -> list[str]:
    """Return what of a table an experiment does not produce."""
    produced = produced_columns(graph)
    found = [
        column.key
        for column in table_columns(table)
        if (column.task, column.metric, column.scorer, column.context_tokens) not in produced
    ]
    labels = {row.model for row in graph.rows}
    found += [f"model {model}" for model in table.models if model not in labels]
    named = {full_name(row.method, row.finetune) for row in graph.rows}
    rows = [row.name for row in rows_of(table)]
    return found + [f"row {row}" for row in rows if full_name(row, table.sft) not in named]


CASES: defaultdict[tuple[str, str], list[Job]] = defaultdict(list)
for each in jobs():
    for name in each.config.scope.reports:
        CASES[name, each.config.profile.name].append(each)


@pytest.mark.parametrize(("report", "profile"), sorted(CASES))
def test_a_report_is_filled_by_an_experiment_that_names_it(report: str, profile: str) -> None:
    lacking = {}
    for job in CASES[report, profile]:
        overrides = job.config.profile.report_overrides
        table = load_option("report", report, overrides, TableConfig)
        lacking[job.config.experiment.name] = missing(build(job), table)
    assert [] in lacking.values(), lacking


def test_every_report_is_named_by_an_experiment() -> None:
    assert {report for report, _ in CASES} == set(options("report"))


@pytest.mark.parametrize("report", options("report"))
def test_the_papers_numbers_stand_under_the_columns_of_a_report(report: str) -> None:
    table = load_option("report", report, [], TableConfig)
    columns = {column.key for column in table_columns(table)}
    if table.published:
        assert columns == {column for _, _, column in read_published(table.published[0])}


def test_table_3_takes_the_cells_of_livecodebench() -> None:
    table = load_option("report", "table3", [], TableConfig)
    (score,) = table.scores
    assert (score.task, score.metric) == ("livecodebench", "avg@8")


def with_score(task: str, metric: str, scorer: str = "null") -> TableConfig:
    score = f"{{task: {task}, metric: {metric}, scorer: {scorer}, label: x}}"
    overrides = [f"report.scores=[{score}]", "report.claims={}"]
    return load_option("report", "tiny_table1", overrides, TableConfig)


@pytest.mark.parametrize(
    ("score", "message", "hint"),
    [
        (("lcb_v5", "avg@8"), r"scores\[0\]: task=lcb_v5", "Known: aime24"),
        (("gsm8k", "average@4"), r"scores\[0\]: metric=average@4", "avg@4"),
        (("gsm8k", "avg@0"), r"scores\[0\]: metric=avg@0", "avg@1"),
        (("gsm8k", f"avg@{'9' * 5000}"), r"scores\[0\]: metric=avg@9", "avg@1"),
        (("livecodebench", "maj@8"), r"scores\[0\]: metric=maj@8", "avg@8"),
        (("gsm8k", "avg@4", "lenient"), r"scores\[0\]: scorer=lenient", "flexible"),
    ],
)
def test_a_column_that_no_evaluation_fills_is_refused(
    score: tuple[str, ...], message: str, hint: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        with_score(*score)
    assert hint in str(caught.value)


def test_recall_of_a_task_that_there_is_not_is_refused() -> None:
    override = "report.recall.tasks=[niah_single_1, niah_single_4]"
    with pytest.raises(UserError, match=r"recall: tasks=niah_single_4: unknown"):
        load_option("report", "table1", [override], TableConfig)


@pytest.mark.parametrize("metric", ["pass@8", "maj_expected@4", "extraction_rate", "avg@1"])
def test_every_metric_that_is_written_can_be_a_column(metric: str) -> None:
    assert with_score("gsm8k", metric, "flexible").scores[0].metric == metric
