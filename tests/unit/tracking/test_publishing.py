"""What is sent to services that fail, and what is sent again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.errors import StageFailedError
from amnesia_bench.pipeline import experiments
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.tracked import background, publishing
from amnesia_bench.pipeline.tracked.service import tracking_of
from amnesia_bench.pipeline.tracked.stages import stage_runs
from amnesia_bench.pipeline.tracked.stamps import wandb_id
from amnesia_bench.requests.training import TrainRequest
from amnesia_bench.store.layout import training_path
from amnesia_bench.tracking.tracked_run import RunHeader, TrackedRun
from amnesia_bench.tracking.trackio_sink import publish_to_trackio
from amnesia_bench.tracking.wandb_client import WandbClient
from amnesia_bench.tracking.wandb_sink import publish_to_wandb
from amnesia_bench.training import recorder
from tests.support.tracked_stores import STEPS, plant

ONE_VARIANT = ("experiment=table1", "profile=tiny")
RUN = TrackedRun(
    header=RunHeader(
        project="amnesia", run_id="0", name="row", group="tiny", job_type="row", config={}
    ),
    summary={"recall": 0.5},
    history=((1024, {"recall_by_length": 0.5}),),
    step_name="context_tokens",
)


class Service(SimpleNamespace):
    """A stand-in for wandb that fails in one call."""

    def __init__(self, fail: str) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.known: set[str] = set()  # the ids of runs on the server
        self.fail = fail
        self.Settings = lambda **kwargs: kwargs
        self.teardown = lambda: None

    def call(self, name: str, value: Any = None) -> None:
        self.calls.append((name, value))
        if name == self.fail:
            raise RuntimeError("down")

    def init(self, **kwargs: Any) -> Any:
        self.call("init", kwargs["mode"])
        self.call("id", kwargs["id"])
        resumed = kwargs["mode"] == "online" and kwargs["id"] in self.known
        self.known.add(kwargs["id"])
        return SimpleNamespace(
            resumed=resumed,
            log=lambda line: self.call("log", line),
            summary=SimpleNamespace(update=lambda values: self.call("summary", values)),
            finish=lambda exit_code: self.call("finish", exit_code),
        )


@pytest.mark.parametrize("fail", ["", "init", "log", "summary", "finish"])
def test_a_failure_of_wandb_is_reported_and_never_raised(fail: str, tmp_path: Path) -> None:
    module = Service(fail)
    client = WandbClient(tmp_path, module)
    assert publish_to_wandb(RUN, client) is (not fail)
    if not fail:
        assert ("log", {"context_tokens": 1024, "recall_by_length": 0.5}) in module.calls


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_lines_that_wandb_has_are_not_appended_again(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    module = Service("")
    client = WandbClient(tmp_path, module)
    files = tmp_path / "wandb" / "offline-run-20260101_000000-0"
    for again in (False, True):
        module.calls.clear()
        assert publish_to_wandb(RUN, client, lines_sent=again)
        assert ("log" in dict(module.calls)) is not again
        assert ("summary", {"recall": 0.5}) in module.calls
        if mode == "offline":
            files.mkdir(parents=True, exist_ok=True)
    # A run of which W&B has nothing, although it was sent before: all of it is sent.
    other = replace(RUN, header=replace(RUN.header, run_id="other"))
    module.calls.clear()
    assert publish_to_wandb(other, client, lines_sent=True)
    assert "log" in dict(module.calls)


def test_a_run_with_other_lines_gets_a_new_id_and_the_earlier_one_is_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    module = Service("")
    runs: dict[str, Any] = {}

    def run_at(path: str) -> Any:
        return runs.setdefault(path, SimpleNamespace(tags=["table1"], update=lambda: None))

    module.Api = lambda: SimpleNamespace(run=run_at)
    monkeypatch.setattr(publishing, "WandbClient", lambda folder: WandbClient(folder, module))
    tracking = tracking_of(graphs_of([*ONE_VARIANT, "tracking=wandb"]))

    def publish(run: TrackedRun) -> tuple[list[str], bool]:
        module.calls.clear()
        publishing._publish(iter([run]), tmp_path / "tracking" / "wandb", tracking)
        ids = [value for name, value in module.calls if name == "id"]
        return ids, "log" in dict(module.calls)

    assert publish(RUN) == (["0"], True)
    assert publish(RUN) == ([], False)
    tagged = replace(RUN, header=replace(RUN.header, tags=("table4",)))
    assert publish(tagged) == (["0"], False)  # the tag, and no second curve
    assert publish(replace(tagged, summary={"recall": 0.6})) == (["0"], False)
    changed = replace(tagged, history=((1024, {"recall_by_length": 0.6}),))
    assert publish(changed) == (["0-2"], True)
    assert {path: run.tags for path, run in runs.items()} == {"amnesia/0": ["replaced"]}
    assert publish(changed) == ([], False)
    assert wandb_id(tmp_path, "amnesia", "0") == "0-2"
    # An attempt that fails may have sent some of the lines.
    again = replace(tagged, history=((1024, {"recall_by_length": 0.7}),))
    module.fail = "log"
    publish(again)
    module.fail = ""
    assert publish(again) == (["0-4"], True)
    assert {path: run.tags for path, run in runs.items()} == {
        f"amnesia/{id}": ["replaced"] for id in ("0", "0-2", "0-3")
    }


def test_after_three_failures_nothing_more_is_tried(tmp_path: Path) -> None:
    module = Service("log")
    client = WandbClient(tmp_path, module)
    for number in range(9):
        publish_to_wandb(replace(RUN, header=replace(RUN.header, run_id=str(number))), client)
    assert [name for name, _ in module.calls].count("log") == 3


def test_a_failure_of_trackio_is_reported_and_never_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def init(**_: Any) -> None:
        raise OSError("database is locked")

    api = lambda: SimpleNamespace(runs=lambda project: [])  # noqa: E731
    assert not publish_to_trackio(RUN, SimpleNamespace(init=init, Api=api))
    assert "row was not sent (database is locked)" in caplog.text


def test_only_what_has_changed_is_published_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[TrackedRun] = []
    works = True
    monkeypatch.setattr(publishing, "check_installed", lambda tracking: None)
    monkeypatch.setattr(publishing, "publish_to_trackio", lambda run: sent.append(run) or works)
    command = ["track", *ONE_VARIANT, "tracking=trackio", f"--store={tmp_path}", "--out=none"]

    def published() -> tuple[str, list[str]]:
        sent.clear()
        code = main(command)
        line, view = capsys.readouterr().out.splitlines()
        assert "trackio show --project amnesia" in view
        assert code == (0 if line.endswith(" 0 failed.") else 6)
        return line, [run.header.job_type for run in sent]

    plant(tmp_path, *ONE_VARIANT, methods=("post",))
    line, kinds = published()
    assert line == "4 runs published to project amnesia, 0 unchanged, 0 failed."
    assert sorted(kinds) == ["recall", "row", "scores", "trained"]
    assert published()[0] == "0 runs published to project amnesia, 4 unchanged, 0 failed."
    # The stages and the row of another method. The failures are tried again later.
    plant(tmp_path, *ONE_VARIANT, methods=("post", "restored"))
    works = False
    assert published()[0] == "0 runs published to project amnesia, 4 unchanged, 3 failed."
    works = True
    line, kinds = published()
    assert line == "3 runs published to project amnesia, 4 unchanged, 0 failed."
    (row,) = (run for run in sent if run.header.job_type == "row")
    assert row.summary["delta/niah_single_3/2048"] > 0


def test_experiments_that_share_stages_do_not_replace_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, TrackedRun] = {}
    monkeypatch.setattr(publishing, "check_installed", lambda tracking: None)
    monkeypatch.setattr(
        publishing,
        "publish_to_trackio",
        lambda run: sent.update({run.header.name: run}) or True,
    )

    def track(experiment: str) -> None:
        words = (f"experiment={experiment}", "profile=tiny")
        plant(tmp_path, *words, methods=("post",))
        assert main(["track", *words, "tracking=trackio", f"--store={tmp_path}", "--out=no"]) == 0

    track("table1")
    first = {name: run for name, run in sent.items() if run.header.job_type == "row"}
    track("table4")
    rows = [run for run in sent.values() if run.header.job_type == "row"]
    assert sorted(run.header.tags[0] for run in rows) == ["table1", "table4"]
    assert all(sent[name] == run for name, run in first.items())
    (training,) = (run for run in sent.values() if run.header.job_type == "trained")
    assert training.header.tags == ("table1", "seed 0", "table4")
    sent.clear()
    track("table1")
    assert sent == {}


def test_without_a_finished_stage_there_is_nothing_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "check_installed", lambda tracking: None)
    command = ["track", *ONE_VARIANT, "tracking=trackio", f"--store={tmp_path}", "--out=none"]
    assert main(command) == 0
    assert "no finished stage of these experiments yet" in capsys.readouterr().out


PUBLISHER = "import sys, time; print('sent'); sys.stdout.flush(); time.sleep({})"


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace `amnesia track` by a program that sleeps; return the commands that were started."""
    started: list[list[str]] = []
    real = background.subprocess.Popen

    def start(words: list[str], **options: Any) -> Any:
        started.append(words[4:])
        return real([sys.executable, "-c", PUBLISHER.format(words[-1])], **options)

    monkeypatch.setattr(background.subprocess, "Popen", start)
    return started


def test_the_end_of_a_run_is_published_also_if_a_stage_failed(
    publisher: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(StageFailedError),
        background.publishing_stages(["0"], tmp_path, ()),
    ):
        raise StageFailedError("a stage")
    assert publisher == [["track", "0"]]
    assert "tracking: sent" in capsys.readouterr().err


def test_a_service_that_hangs_is_ended(
    publisher: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_LIMIT_SECONDS", 0.5)
    with background.publishing_stages(["3600"], tmp_path, ()):
        pass
    assert publisher == [["track", "3600"]]  # and this test did not take an hour


def test_an_interrupted_run_does_not_wait_for_a_service(
    publisher: list[list[str]], tmp_path: Path
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        background.publishing_stages(["3600"], tmp_path, ()),
    ):
        raise KeyboardInterrupt
    assert publisher == []


@pytest.mark.parametrize(("project", "lines"), [("amnesia", 0), ("other", STEPS)])
def test_metrics_that_a_training_sent_itself_are_not_sent_again(
    project: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (
        *ONE_VARIANT,
        "tracking=wandb",
        f"profile.training_overrides=['train.wandb_project={project}']",
    )
    plant(tmp_path, *overrides, methods=("post",))
    graphs = graphs_of(overrides)
    runs = stage_runs(graphs, tmp_path, tracking_of(graphs))
    (training,) = (run for run in runs if run.header.job_type == "trained")
    assert len(training.history) == lines
    # The training sent them under the same id.
    (stage,) = (s for s in stages_of(graphs) if s.id == training.header.name)
    assert isinstance(stage.request, TrainRequest)
    started: list[RunHeader] = []
    monkeypatch.setattr(recorder, "WandbSink", lambda header, folder: started.append(header))
    folder = training_path(stage.folder(tmp_path))
    folder.mkdir()
    with recorder.Recorder(stage.request.run, folder, True, lambda: None).open(0, {}):
        pass
    assert [header.run_id for header in started] == [training.header.run_id]
    assert started[0].project == project


def test_a_run_publishes_its_own_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    @contextmanager
    def publishing_stages(command: list[str], store: Path, stages: object) -> Iterator[None]:
        commands.append(command)
        yield

    def fail(*_: object) -> None:
        raise StageFailedError("a stage")

    for module in (experiments, publishing):
        monkeypatch.setattr(module, "check_installed", lambda tracking: None)
    monkeypatch.setattr(experiments, "publishing_stages", publishing_stages)
    monkeypatch.setattr(experiments, "run_graph", fail)
    folders = [f"--store={tmp_path / 'store'}", f"--out={tmp_path / 'results'}"]
    assert main(["run", *ONE_VARIANT, *folders]) == 4
    assert commands == []
    assert main(["run", *ONE_VARIANT, "tracking=trackio", *folders]) == 4
    (command,) = commands
    assert main(["track", *command]) == 0
    assert capsys.readouterr().out.startswith("0 runs published to project amnesia")
