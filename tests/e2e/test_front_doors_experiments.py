"""`plan` and `run` from Python do what the commands do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import StageFailedError
from amnesia_bench.pipeline import experiments

# The softmax model of Table 10 before its fine-tune: two short trainings and its recall.
EXPERIMENT = """\
extends: table10
methods: [pre]
scopes: {tiny: {reasoning: []}}
"""


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    path = tmp_path_factory.mktemp("configs") / "mine.yaml"
    path.write_text(EXPERIMENT)
    return (f"experiment={path}", "profile=smoke")


def test_plan(
    overrides: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ab.plan(ab.PlanRequest(overrides=overrides, store=tmp_path))
    assert main(["plan", *overrides, f"--store={tmp_path}", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["states"] == plan.states
    for planned, shown in zip(plan.stages, printed["stages"], strict=True):
        assert shown["id"] == planned.stage.id
        assert shown["cost"]["trained_tokens"] == planned.cost.trained_tokens


@pytest.mark.parametrize("option", ["--detach", "--dry-run"])
def test_only_a_cluster_takes_jobs(
    option: str, overrides: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert main(["run", *overrides, f"--store={store}", option]) == 2
    assert "cluster=local runs stages itself" in capsys.readouterr().err
    assert not store.exists()


def test_a_dry_run_prints_the_notes_of_a_submission(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "experiment=table4", "cluster=slurm", f"--store={tmp_path}", "--dry-run"]
    monkeypatch.setenv("PATH", str(tmp_path))  # without SLURM
    assert main([*command, "cluster.time_limit_hours=2"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"note: trained.stage2_2b-s0-\w+: estimated at [\d.]+ h, times", printed.err)
    assert "#SBATCH --time=120\n" in printed.out
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'gpu* 1:00:00'\n")
    (tmp_path / "sinfo").chmod(0o755)
    assert main([*command, "cluster.time_limit_hours=2"]) == 2
    assert "the partition that is the default allows 1 h" in capsys.readouterr().err


def test_run(
    overrides: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = tmp_path / "store"
    request = ab.RunRequest(overrides=overrides, store=store, results=tmp_path / "python")
    first = ab.run(request)
    assert (first.outcome.cached, first.outcome.by_others) == (0, 0)
    (page,) = first.pages
    assert page.report is not None
    again = ab.run(request)
    assert (again.outcome.cached, again.outcome.done) == (first.outcome.done, 0)
    assert again.pages[0].report is None

    typed = tmp_path / "typed"
    assert main(["run", *overrides, f"--store={store}", f"--out={typed}"]) == 0
    assert f"{first.outcome.done} cached, 0 run now" in capsys.readouterr().out
    for file in page.files:
        same = typed / file.relative_to(request.results)
        if file.suffix in (".csv", ".svg"):  # the others say by which command they were made
            assert same.read_bytes() == file.read_bytes(), file.name
        assert same.is_file()

    # A stage fails: the report shows what was measured before, and says so.
    def fail(*_: object) -> None:
        raise StageFailedError("trained.x: no", hint="Run it again.")

    monkeypatch.setattr(experiments, "run_graph", fail)
    partial = request.model_copy(update={"results": tmp_path / "partial"})
    with pytest.raises(StageFailedError, match=r"trained\.x: no") as failure:
        ab.run(partial)
    (written,) = partial.results.rglob("report.html")
    assert f"The report of the finished evaluations: {written}" in str(failure.value.hint)
    assert "The run failed: trained.x: no" in written.read_text()
    shutil.rmtree(store / "recall")
    with pytest.raises(StageFailedError, match=r"trained\.x: no") as failure:
        ab.run(partial.model_copy(update={"results": tmp_path / "nothing"}))
    assert failure.value.hint == "Run it again."
    assert not (tmp_path / "nothing").exists()
