"""`amnesia compare` on samples that lm-eval and inspect_ai really logged, and on bad input.

The logs in tests/golden/sample_logs are described in tests/support/sample_logs.py.
"""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.comparison import Change, ComparisonReport, MetricComparison
from amnesia_bench.store.files import read_json
from tests.support.report_cells import forgetful, write_recall
from tests.support.sample_logs import SAMPLE_LOGS

LM_EVAL, INSPECT = SAMPLE_LOGS / "lm_eval", SAMPLE_LOGS / "inspect"
Row = dict[str, Any]


def compare(a: Path, b: Path, **options: bool) -> ComparisonReport:
    return ab.compare(ab.CompareRequest(a=a, b=b, **options))


def by_metric(report: ComparisonReport) -> dict[str, MetricComparison]:
    return {row.metric: row for row in report.rows}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A copy of lm-eval's logs of models a and b."""
    return shutil.copytree(LM_EVAL, tmp_path / "logs")


def edit(folder: Path, task: str, change: Callable[[list[Row]], list[Row]]) -> Path:
    """Change the logged samples of a task; return their file."""
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    rows = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def write_log(folder: Path, scores: list[Any], task: str = "words") -> Path:
    """Write samples as lm-eval logs them, with the metric `acc`."""
    folder.mkdir(parents=True)
    rows = (
        {"doc_id": i, "doc": {"i": i}, "doc_hash": f"d{i}", "prompt_hash": f"p{i}",
         "target_hash": f"t{i}", "filter": "none", "metrics": ["acc"], "acc": score}
        for i, score in enumerate(scores)
    )  # fmt: skip
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / f"samples_{task}_2026-01-01T00-00-00.000001.jsonl").write_text(text)
    return folder


# -- lm-eval ---------------------------------------------------------------------------------


def test_two_runs_of_lm_eval_are_compared_like_scipy_does() -> None:
    rows = by_metric(compare(LM_EVAL / "a", LM_EVAL / "b"))
    assert set(rows) == {"acc", "acc_norm", "letters", "any_letter"}
    for name, folder in (("a", LM_EVAL / "a"), ("b", LM_EVAL / "b")):
        (results,) = (read_json(path)["results"] for path in folder.glob("results_*.json"))
        for metric, row in rows.items():
            assert getattr(row, name) == pytest.approx(results[row.task][f"{metric},none"])
    for metric in ("acc", "acc_norm", "any_letter"):
        lost, won = discordant(metric)
        row = rows[metric]
        assert (row.n, row.tied, row.method) == (40, 40 - lost - won, "mcnemar_exact")
        assert row.p_value == pytest.approx(stats.binomtest(lost, lost + won).pvalue)
        assert row.difference == pytest.approx((won - lost) / 40)
        assert row.interval.low < row.difference < row.interval.high
    # All 2^3 signs of the three samples that differ, as scipy enumerates them.
    letters = np.array(scores(LM_EVAL / "a", "letters")) - scores(LM_EVAL / "b", "letters")
    letters = letters[letters != 0]
    exact = stats.permutation_test(
        (letters, -letters), lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples", n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    assert rows["letters"].method == "sign_flip_exact"
    assert rows["letters"].p_value == pytest.approx(exact.pvalue)


def scores(folder: Path, metric: str) -> list[float]:
    """Return the scores in the order of the documents, read without the code under test."""
    task = "choose_word" if metric.startswith("acc") else "write_word"
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row[metric] for row in sorted(rows, key=lambda row: row["doc_id"])]


def discordant(metric: str) -> tuple[int, int]:
    pairs = list(zip(*(scores(LM_EVAL / name, metric) for name in "ab"), strict=True))
    return sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)


def test_the_order_of_lines_has_no_effect(logs: Path) -> None:
    before = compare(logs / "a", logs / "b").rows
    edit(logs / "b", "write_word", lambda rows: rows[::-1])
    edit(logs / "b", "choose_word", lambda rows: rows[7:] + rows[:7])
    assert compare(logs / "a", logs / "b").rows == before


def test_the_command_is_a_gate_and_writes_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_log(tmp_path / "a", [1.0] * 90 + [0.0] * 10)
    b = write_log(tmp_path / "b", [1.0] * 70 + [0.0] * 30)
    words = ["compare", str(a), str(b), "--out", str(tmp_path / "report")]
    assert main(words) == 3
    printed = capsys.readouterr().out
    assert "B is worse than A in 1 of 1 row" in printed
    assert "-20.0" in printed
    record = codec.from_json(ComparisonReport, read_json(tmp_path / "report/comparison.json"), "")
    assert record == compare(a, b)
    text = (tmp_path / "report" / "comparison.md").read_text()
    assert "| words | acc | 90.0 | 70.0 | -20.0 |" in text
    assert main(["verify", str(tmp_path / "report")]) == 0
    assert main(words) == 2  # an existing report is not overwritten
    assert main(["compare", str(b), str(a)]) == 0
    (row,) = compare(b, a).rows
    assert row.change is Change.BETTER


def test_lower_is_better_where_lm_eval_says_so(tmp_path: Path) -> None:
    a = write_log(tmp_path / "a", [0.1] * 50)
    b = write_log(tmp_path / "b", [0.3] * 50)
    for folder in (a, b):
        results = folder / "results_2026-01-01T00-00-00.000001.json"
        results.write_text(json.dumps({"higher_is_better": {"words": {"acc": False}}}))
    (row,) = compare(a, b).rows
    assert (row.change, row.difference > 0) == (Change.WORSE, True)


@pytest.mark.parametrize("known", ["a", "b"])
def test_one_log_that_says_that_lower_is_better_is_enough(tmp_path: Path, known: str) -> None:
    a = write_log(tmp_path / "a", [0.1] * 50)
    b = write_log(tmp_path / "b", [0.3] * 50)
    write_results(tmp_path / known, "words", higher_is_better={"acc": False})
    assert compare(a, b).worse


def write_results(folder: Path, task: str, **parts: object) -> None:
    content = {name: {task: value} for name, value in parts.items()}
    (folder / "results_2026-01-01T00-00-00.000001.json").write_text(json.dumps(content))


@pytest.mark.parametrize("aggregation", ["perplexity", "mean"])
def test_the_logged_samples_of_a_perplexity_are_log_likelihoods(
    aggregation: str, tmp_path: Path
) -> None:
    """lm-eval says that lower is better, which is true of the perplexity of all samples."""

    def renamed(rows: list[Row]) -> list[Row]:
        return [row | {"metrics": ["perplexity"], "perplexity": row["acc"]} for row in rows]

    metrics = [{"metric": "perplexity", "aggregation": aggregation, "higher_is_better": False}]
    for name, score in (("a", -1.0), ("b", -3.0)):
        folder = write_log(tmp_path / name, [score + i / 10 for i in range(12)], "lambada")
        edit(folder, "lambada", renamed)
        write_results(
            folder,
            "lambada",
            versions=1,
            higher_is_better={"perplexity": False},
            configs={"metric_list": metrics},
        )
    (row,) = compare(tmp_path / "a", tmp_path / "b").rows
    logged = ("log_likelihood", Change.WORSE)
    own = ("perplexity", Change.BETTER)
    assert (row.metric, row.change) == (logged if aggregation == "perplexity" else own)


def test_an_unknown_version_of_lm_eval_is_no_other_version(logs: Path) -> None:
    next((logs / "a").glob("results_*.json")).unlink()
    assert not any("None" in warning for warning in compare(logs / "a", logs / "b").warnings)


def test_logs_without_their_results_are_compared_with_a_warning(tmp_path: Path) -> None:
    a, b = (write_log(tmp_path / name, [1.0, 0.0, 1.0]) for name in "ab")
    write_results(b, "words", versions=1)
    (warning, _) = compare(a, b).warnings
    assert "a/samples_words" in warning
    assert "higher scores are taken as better" in warning


def test_several_tasks_share_the_error_rate(tmp_path: Path) -> None:
    # One-sided p-value of 6 losses to none: 1.6 %, which one row shows and two do not.
    lost, same = [0.0] * 6 + [1.0] * 94, [1.0] * 100
    a, b = write_log(tmp_path / "a", same), write_log(tmp_path / "b", lost)
    assert compare(a, b).worse
    for folder in (a, b):
        shutil.move(write_log(tmp_path / f"{folder.name}2", same, "other"), folder / "more")
    report = compare(a, b)
    assert not report.worse
    assert max(row.p_value for row in report.rows) == 1.0
    assert min(row.worse_p_value for row in report.rows) == pytest.approx(2 * 0.5**6)


def test_answers_to_the_same_document_are_averaged(logs: Path) -> None:
    def twice(rows: list[Row]) -> list[Row]:
        return rows + [row | {"acc": 1 - row["acc"]} for row in rows]

    for name in "ab":
        edit(logs / name, "choose_word", twice)
    row = by_metric(compare(logs / "a", logs / "b"))["acc"]
    assert (row.n, row.a, row.b, row.tied) == (40, 0.5, 0.5, 40)


def test_a_document_that_a_data_set_contains_twice_is_two_samples(tmp_path: Path) -> None:
    a, b = (write_log(tmp_path / name, [1.0, 0.0, 1.0]) for name in "ab")
    for folder in (a, b):
        edit(folder, "words", lambda rows: [row | {"doc_hash": "same"} for row in rows])
    (row,) = compare(a, b).rows
    assert (row.n, row.tied) == (3, 3)


def test_metrics_without_a_score_per_sample_are_named(logs: Path) -> None:
    for name in "ab":
        edit(
            logs / name,
            "choose_word",
            lambda rows: [r | {"mcc": [1, 0], "metrics": [*r["metrics"], "mcc"]} for r in rows],
        )
    report = compare(logs / "a", logs / "b")
    assert report.skipped == ("choose_word mcc: is a list and not a score per sample",)
    assert len(report.rows) == 4


def test_a_length_that_ruler_did_not_measure_is_no_score(tmp_path: Path) -> None:
    a, b = (write_log(tmp_path / name, [1.0, 0.0, 1.0, 1.0]) for name in "ab")

    def lengths(rows: list[Row]) -> list[Row]:
        scores = [{"4096": 1.0, "8192": -1.0}, {"4096": -1.0, "8192": 0.0}]
        return [row | scores[i % 2] | {"metrics": ["4096", "8192"]} for i, row in enumerate(rows)]

    for folder in (a, b):
        edit(folder, "words", lengths)
    assert [(r.metric, r.n, r.a) for r in compare(a, b).rows] == [
        ("4096", 2, 1.0),
        ("8192", 2, 0.0),
    ]


# -- inspect_ai and our own ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_two_logs_of_inspect_ai_are_compared(kind: str) -> None:
    rows = by_metric(compare(INSPECT / "a" / kind, INSPECT / "b" / kind))
    for name in "ab":
        (log,) = (INSPECT / name / "json").glob("*.json")
        for score in read_json(log)["results"]["scores"]:
            (metric,) = (m for key, m in score["metrics"].items() if key != "stderr")
            assert getattr(rows[score["name"]], name) == pytest.approx(metric["value"])
    assert {row.n for row in rows.values()} == {12}  # two epochs of each sample are one score


def test_a_zip_of_any_compression_and_a_single_file_are_read(tmp_path: Path) -> None:
    expected = compare(INSPECT / "a" / "json", INSPECT / "b" / "json")
    for name in "ab":
        (log,) = (INSPECT / name / "json").glob("*.json")
        content = read_json(log)
        samples = content.pop("samples")
        with zipfile.ZipFile(tmp_path / f"{name}.eval", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", json.dumps(content))
            for i, sample in enumerate(samples):
                archive.writestr(f"samples/{i}.json", json.dumps(sample))
    assert compare(tmp_path / "a.eval", tmp_path / "b.eval").rows == expected.rows


def inspect_log(path: Path, values: list[object]) -> Path:
    """Write a log of inspect_ai with one score per sample."""
    samples = [
        {"id": i, "input": "q", "target": "t", "scores": {"graded": {"value": value}}}
        for i, value in enumerate(values)
    ]
    log = {"version": 2, "status": "success", "eval": {"task": "sums"}, "samples": samples}
    path.write_text(json.dumps(log))
    return path


def test_numbers_that_a_grader_wrote_as_text_are_scores_as_in_inspect(tmp_path: Path) -> None:
    a = inspect_log(tmp_path / "a.json", ["0.5", "C", "1", "no", 0.25])
    b = inspect_log(tmp_path / "b.json", [0.5, 1, 1, 0, 0.25])
    (row,) = compare(a, b).rows
    assert (row.n, row.tied, row.a) == (5, 5, pytest.approx(2.75 / 5))


def test_two_evaluations_of_recall_are_compared(tmp_path: Path) -> None:
    for method in ("pre", "post"):
        write_recall(tmp_path / method, method, forgetful(method), samples=40)
    report = compare(tmp_path / "pre", tmp_path / "post")
    cells = read_json(next((tmp_path / "post").rglob("cells.json")))
    values = {f"{cell['task']}@{cell['context_tokens']}": cell["value"] for cell in cells}
    assert {row.task: row.b for row in report.rows} == pytest.approx(values)
    assert report.worse
    with pytest.raises(UserError, match="two evaluations of niah"):
        compare(tmp_path, tmp_path / "post")


# -- bad input -------------------------------------------------------------------------------


def cut(logs: Path) -> None:
    (file,) = (logs / "b").glob("samples_write*.jsonl")
    file.write_bytes(file.read_bytes()[:-40])


def nan(logs: Path) -> None:
    edit(logs / "b", "choose_word", lambda rows: [*rows[:3], rows[3] | {"acc": float("nan")}])


def other_prompts(logs: Path) -> None:
    edit(logs / "b", "choose_word", lambda rows: [row | {"prompt_hash": "x"} for row in rows])
    (results,) = (logs / "b").glob("results_*.json")
    content = json.loads(results.read_text())
    content["n-shot"]["choose_word"] = 5
    results.write_text(json.dumps(content))


def other_version(logs: Path) -> None:
    for name, version in (("a", 2), ("b", 3)):
        (results,) = (logs / name).glob("results_*.json")
        content = json.loads(results.read_text())
        content["versions"]["choose_word"] = version
        results.write_text(json.dumps(content))


def version_zero(logs: Path) -> None:
    for name, version in (("a", 0.0), ("b", 1.0)):
        (results,) = (logs / name).glob("results_*.json")
        content = json.loads(results.read_text())
        content["versions"]["choose_word"] = version
        results.write_text(json.dumps(content))


def two_tasks_in_a_file(logs: Path) -> None:
    (other,) = (logs / "b").glob("samples_write_*.jsonl")
    more = [json.loads(line) for line in other.read_text().splitlines()]
    more = [row | {"doc_hash": f"other{row['doc_id']}"} for row in more]
    edit(logs / "b", "choose_word", lambda rows: rows + more)


def compressed(logs: Path) -> None:
    for name in "ab":
        (file,) = (logs / name).glob("samples_write_*.jsonl")
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def only_results(logs: Path) -> None:
    for file in (logs / "b").glob("samples_*"):
        file.unlink()


def fewer(logs: Path) -> None:
    edit(logs / "b", "choose_word", lambda rows: rows[:30])


def other_data(logs: Path) -> None:
    edit(logs / "b", "choose_word", lambda rows: [r | {"doc_hash": f"x{i}"}
                                                 for i, r in enumerate(rows)])  # fmt: skip


def other_tasks(logs: Path) -> None:
    for file in (logs / "b").glob("samples_*"):
        file.rename(file.with_name(file.name.replace("_word_", "_letter_")))


def rerun(logs: Path) -> None:
    (file,) = (logs / "b").glob("samples_write*.jsonl")
    shutil.copy(file, file.with_name("samples_write_word_2027-01-01T00-00-00.000000.jsonl"))


def empty_folder(logs: Path) -> None:
    shutil.rmtree(logs / "b")
    (logs / "b").mkdir()


def no_folder(logs: Path) -> None:
    shutil.rmtree(logs / "b")


def same_folder(logs: Path) -> None:
    shutil.rmtree(logs / "b")
    (logs / "b").symlink_to(logs / "a")


def another_tool(logs: Path) -> None:
    shutil.rmtree(logs / "b")
    shutil.copytree(INSPECT / "b" / "json", logs / "b")


def two_tools(logs: Path) -> None:
    shutil.copytree(INSPECT / "b" / "eval", logs / "b" / "inspect")


def not_a_log(logs: Path) -> None:
    edit(logs / "b", "write_word", lambda rows: [{"text": "training data"}])


def old_log(logs: Path) -> None:
    edit(logs / "b", "write_word", lambda rows: [{k: row[k] for k in ("doc", "doc_id", "letters")}
                                                for row in rows])  # fmt: skip


def no_scores(logs: Path) -> None:
    for task in ("choose_word", "write_word"):
        for name in "ab":
            edit(logs / name, task, lambda rows: [row | {"metrics": ["bypass"], "bypass": None}
                                                  for row in rows])  # fmt: skip


def no_lines(logs: Path) -> None:
    edit(logs / "b", "write_word", lambda rows: [])


BAD = {
    cut: (r"samples_write.*:40: not JSON", "cut off or was changed"),
    nan: (r"samples_choose.*:4: the score acc is nan", "Evaluate this sample again"),
    other_prompts: (r"40 of 40 samples.*n-shot is 0 in A and 5 in B", "--different-prompts"),
    other_version: (r"choose_word: A has version 2 of the task and B version 3", "same version"),
    version_zero: (r"choose_word: A has version 0.0 of the task and B version 1.0", "same version"),
    two_tasks_in_a_file: (
        r"samples_choose.*:41: doc_id 0 is another document",
        "file of their own",
    ),
    compressed: (r"samples_write.*jsonl.gz: is compressed", "gzip -dk"),
    only_results: (r"results_.*json: contains only the means", "--log_samples"),
    fewer: (r"only in A: .*10 of 40 samples are not in B: doc \d+, .* and 5 more", "--common-only"),
    other_data: (r"none of the 40 samples of A is among the 40 of B", "same data"),
    other_tasks: (r"no metric of a task in common\n +A: choose_word", "same tasks"),
    rerun: (r"two logs of the task write_word", "file of one run"),
    empty_folder: (r"b: contains no logs of samples", "--log_samples"),
    no_folder: (r"b: no such file or folder", None),
    same_folder: (r"A and B are the same files", "two evaluations"),
    another_tool: (r"A is a log of lm-eval and B of inspect_ai", "with the same tool"),
    two_tools: (r"evaluations of several tools", "one of them"),
    not_a_log: (r"samples_write.*:1: not a sample that lm-eval logged", "--log_samples"),
    old_log: (r":1: no list of metrics", "0.4.9 or later"),
    no_scores: (r"a: has no score per sample", "bypass: is a NoneType"),
    no_lines: (r"samples_write.*: has no samples", "--log_samples"),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_logs_that_cannot_be_compared_are_refused_with_what_to_type(
    spoil: Callable[[Path], None], logs: Path, tmp_path: Path
) -> None:
    spoil(logs)
    message, hint = BAD[spoil]
    with pytest.raises(UserError, match=message) as raised:
        ab.compare(ab.CompareRequest(a=logs / "a", b=logs / "b"), tmp_path / "out")
    assert hint is None or hint in str(raised.value.hint)
    assert not (tmp_path / "out").exists()


def test_what_only_one_log_contains_can_be_left_out_and_is_listed(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer(logs)
    next((logs / "a").glob("samples_write*")).unlink()
    report = compare(logs / "a", logs / "b", common_only=True)
    assert [(row.task, row.n) for row in report.rows] == [("choose_word", 30)] * 2
    assert len(report.only_in_a) == len(report.only_in_b) == 2
    assert main(["compare", str(logs / "a"), str(logs / "b"), "--common-only"]) == 0
    assert "Only in B: write_word letters (none): not in A." in capsys.readouterr().out


def test_different_prompts_can_be_accepted_with_a_warning(logs: Path) -> None:
    other_prompts(logs)
    report = compare(logs / "a", logs / "b", different_prompts=True)
    assert len(report.warnings) == 2
    assert all("effect of the prompts" in warning for warning in report.warnings)


def test_logs_in_which_all_is_tied_show_nothing_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (write_log(tmp_path / name, [1.0, 0.0, 0.5]) for name in "ab")
    (row,) = compare(a, b).rows
    assert (row.p_value, row.tied, row.smallest_detectable) == (1.0, 3, None)
    assert row.interval.low < 0 < row.interval.high  # three ties do not prove equality
    assert main(["compare", str(a), str(b)]) == 0
    printed = capsys.readouterr().out
    assert "every sample is tied" in printed
    assert "byte-identical" in printed


def spoil_archive(folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    (log,) = (INSPECT / "b" / "eval").glob("*.eval")
    target = folder / name
    target.write_bytes(change(log.read_bytes()))
    return target


def test_damaged_and_unfinished_logs_of_inspect_ai_are_refused(tmp_path: Path) -> None:
    a = INSPECT / "a" / "eval"
    torn = spoil_archive(tmp_path, "torn.eval", lambda data: data[: len(data) // 2])
    with pytest.raises(UserError, match="not a complete log"):
        compare(a, torn)
    (log,) = (INSPECT / "b" / "json").glob("*.json")
    content = read_json(log) | {"status": "started"}
    (tmp_path / "started.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="status 'started'") as raised:
        compare(INSPECT / "a" / "json", tmp_path / "started.json")
    assert "inspect eval-retry" in str(raised.value.hint)
    start = log_bytes_of_first_sample(next((INSPECT / "b" / "eval").glob("*.eval")))
    flipped = spoil_archive(
        tmp_path, "flipped.eval", lambda d: d[:start] + bytes([d[start] ^ 255]) + d[start + 1 :]
    )
    with pytest.raises(UserError, match=r"samples/.* is damaged"):
        compare(a, flipped)


def test_a_damaged_member_and_a_changed_form_are_refused(tmp_path: Path) -> None:
    content = json.loads(inspect_log(tmp_path / "whole.json", ["C"] * 3).read_text())
    samples = content.pop("samples")
    archive = tmp_path / "flipped.eval"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("header.json", json.dumps(content))
        zipped.writestr("samples/1.json", json.dumps(samples[0] | {"input": "word " * 999}))
        place = zipped.infolist()[1].header_offset + 30 + len("samples/1.json")
    data = bytearray(archive.read_bytes())
    data[place] |= 0b110  # a kind of block that deflate does not have
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"samples/1.json is damaged"):
        compare(tmp_path / "whole.json", archive)
    for change in ({"samples": {"1": samples[0]}}, {"samples": ["C"]},
                   {"samples": [samples[0] | {"scores": ["C"]}]}):  # fmt: skip
        (tmp_path / "changed.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=r"changed.json.*(samples|scores) are not"):
            compare(tmp_path / "whole.json", tmp_path / "changed.json")
    (tmp_path / "changed.json").write_text(json.dumps(content | {"eval": []}))
    with pytest.raises(UserError, match="not a log of samples"):
        compare(tmp_path / "whole.json", tmp_path / "changed.json")


def log_bytes_of_first_sample(log: Path) -> int:
    """Return the position of a byte in the middle of the compressed data of a sample."""
    with zipfile.ZipFile(log) as archive:
        info = next(i for i in archive.infolist() if i.filename.startswith("samples/"))
    return info.header_offset + 30 + len(info.filename) + info.compress_size // 2
