"""`amnesia track` with the real wandb and trackio, and with servers that refuse."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.tracked.rows import TrackedRow, rows_of_experiments
from amnesia_bench.store.hashing import read_manifest
from amnesia_bench.tracking.tracked_run import run_id_of
from tests.support.browser import visit
from tests.support.report_cells import write_recall
from tests.support.tracked_stores import OVERRIDES, STEPS, VARIANTS, plant, report_on

# For W&B, two rows with two evaluations each, the training of a checkpoint, and a report. For
# trackio, a row for each variant in addition.
ONE_VARIANT = ("experiment=table1", "profile=tiny")
METHODS = ("post", "restored")
RUNS, RUNS_OF_VARIANTS = 8, 13
COMMAND = """\
import sys
from amnesia_bench.cli.main import main
from amnesia_bench.tracking import wandb_client
wandb_client.INIT_SECONDS = 3.0
sys.exit(main(sys.argv[1:]))
"""
Records = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of finished rows, and the report on one variant."""
    root = tmp_path_factory.mktemp("planted")
    plant(root / "store", *OVERRIDES, methods=METHODS)
    report_on(root, *ONE_VARIANT)
    return root


@pytest.fixture(scope="module")
def rows() -> dict[str, TrackedRow]:
    return {row.method: row for row in rows_of_experiments(graphs_of(OVERRIDES))}


def environment(home: Path, **variables: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": ":".join(sys.path),
        "HF_HUB_OFFLINE": "1",
        "TRACKIO_DIR": str(home / "trackio"),
        **variables,
    }


def track(root: Path, home: Path, *words: str, **variables: str) -> str:
    """Run `amnesia track`, which must succeed, and return its output."""
    folders = [f"--store={root / 'store'}", f"--out={root / 'results'}"]
    command = [sys.executable, "-c", COMMAND, "track", *words, *folders]
    done = subprocess.run(
        command, env=environment(home, **variables), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def read_back(store: Path, run_id: str, home: Path) -> Records:
    """Return the records of an offline run by type, as W&B's own reader shows them."""
    (file,) = store.glob(f"tracking/wandb/wandb/offline-run-*/run-{run_id}.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    shown = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, check=True
    )
    records: Records = {}
    for record in map(json.loads, shown.stdout.splitlines()):
        records.setdefault(record["type"], []).append(record.get(record["type"], {}))
    return records


def summary_of(records: Records) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for update in records["summary"]:
        merged |= update["update"]
    return merged


def _value(folder: Path) -> float:
    """Return the recall of the hardest needle at 2,048 tokens."""
    cells = json.loads((folder / "cells.json").read_text())
    key = ("niah_single_3", 2048)
    return next(cell["value"] for cell in cells if (cell["task"], cell["context_tokens"]) == key)


@pytest.fixture(scope="module")
def offline(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of a process that has published the store offline."""
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    home = tmp_path_factory.mktemp("home")
    output = track(planted, home, *ONE_VARIANT, "tracking=wandb", WANDB_MODE="offline")
    assert output.startswith(f"{RUNS} runs published to {planted}"), output
    return home


def test_a_row_on_wandb_has_its_values_and_their_differences_from_sft(
    planted: Path, offline: Path, rows: dict[str, TrackedRow]
) -> None:
    store = planted / "store"
    row = read_back(store, rows["restored-qk"].run_id(store), offline)
    (run,) = row["run"]
    assert run["display_name"] == "tiny restored-qk@tiny_cot seed 0 (table1, tiny)"
    assert (run["run_group"], run["job_type"]) == ("tiny", "row")
    assert run["tags"] == ["table1", "seed 0"]
    assert run["config"]["update"]["method"] == "restored-qk"
    assert "git" not in run  # the commit of the process that publishes is not that of the result
    lines = [record["item"] for record in row["history"]]
    assert [line["context_tokens"] for line in lines] == [1024, 2048]
    values = summary_of(row)
    hardest = values["niah_single_3/2048"]
    assert lines[1]["recall_by_length/niah_single_3"] == hardest
    before = hardest - values["delta/niah_single_3/2048"]
    assert before == pytest.approx(_value(rows["post"].measured[0].folder(store)))
    assert values["low/niah_single_3/2048"] < hardest < values["high/niah_single_3/2048"]
    assert values["n/niah_single_3/2048"] == 20
    assert values["gsm8k/avg_4/strict"] > 0.5


def test_a_training_on_wandb_has_its_request_metrics_and_references_to_its_files(
    planted: Path, offline: Path, rows: dict[str, TrackedRow]
) -> None:
    store, stage = planted / "store", rows["post"].checkpoint
    folder = stage.folder(store)
    records = read_back(store, run_id_of(folder), offline)
    (run,) = records["run"]
    assert (run["display_name"], run["job_type"]) == (stage.id, "trained")
    config = run["config"]["update"]
    assert config["request"]["run"]["train"]["name"] == "tiny_sft_cot"
    assert config["inputs"] == [read.id for read in stage.inputs]
    assert config["provenance"]["commit"] == "0" * 40
    lines = [record["item"] for record in records["history"]]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[2]["loss"] == 1.0
    (artifact,) = records["artifact"]
    found = {entry["path"]: entry for entry in artifact["manifest"]["contents"]}
    for entry in read_manifest(folder).files:
        assert found[entry.path]["digest"] == entry.sha256
        assert found[entry.path]["ref"] == (folder / entry.path).as_uri()
    assert artifact["type"] == "trained"
    # References, no copies.
    assert not list(store.glob("tracking/**/model.safetensors"))


def test_a_report_on_wandb_has_its_cells_and_claims_as_tables(planted: Path, offline: Path) -> None:
    page = planted / "results/tiny/table1"
    records = read_back(planted / "store", run_id_of(page), offline)
    assert records["run"][0]["job_type"] == "report"
    values = summary_of(records)
    claims = json.loads((page / "tiny_table1.json").read_text())["claims"]
    verdicts = [value for name, value in values.items() if name.startswith("verdicts/")]
    assert sum(verdicts) == len(claims) > 0
    assert values["claims/tiny_table1.nrows"] >= len(claims)
    (folder,) = (planted / "store").glob(f"tracking/wandb/wandb/offline-run-*{run_id_of(page)}")
    (cells,) = folder.glob("files/media/table/cells/*.table.json")
    table = json.loads(cells.read_text())
    shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    key = ("restored", "niah_single_3@2048")
    hardest = next(cell for cell in shown if (cell["method"], cell["column"]) == key)
    assert hardest["n"] == 20
    assert hardest["low"] <= hardest["value"] <= hardest["high"]


@pytest.mark.slow
def test_a_row_that_has_changed_replaces_its_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    store, words = tmp_path / "store", (*ONE_VARIANT, "tracking=wandb")
    plant(store, *ONE_VARIANT, methods=("pre",))
    track(tmp_path, tmp_path, *words, WANDB_MODE="offline")
    (row,) = (r for r in rows_of_experiments(graphs_of(ONE_VARIANT)) if r.method == "pre")
    run_id = row.run_id(store)
    before = read_back(store, run_id, tmp_path)["history"]
    assert [line["item"]["context_tokens"] for line in before] == [1024, 2048]
    recall = next(stage for stage in row.measured if stage.kind == "recall")
    shutil.rmtree(recall.folder(store))
    write_recall(
        recall.folder(store),
        "pre",
        lambda task, tokens: 0.5,
        samples=20,
        lengths=recall.request.lengths,
    )
    output = track(tmp_path, tmp_path, *words, WANDB_MODE="offline")
    assert output.startswith("2 runs published to "), output  # the recall and the row
    assert not list(store.glob(f"tracking/wandb/wandb/offline-run-*-{run_id}"))
    after = [line["item"] for line in read_back(store, f"{run_id}-2", tmp_path)["history"]]
    assert [line["context_tokens"] for line in after] == [1024, 2048]
    hardest = after[1]["recall_by_length/niah_single_3"]
    assert (
        hardest
        == _value(recall.folder(store))
        < before[1]["item"]["recall_by_length/niah_single_3"]
    )


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers as W&B does to an expired key."""

    def do_GET(self) -> None:
        body = b'{"errors": [{"message": "user is not logged in"}], "data": null}'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(answers: bool) -> Iterator[str]:
    """A server that refuses every key, or a port at which nobody answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as listening:
        url = f"http://127.0.0.1:{listening.server_address[1]}"
        if answers:
            threading.Thread(target=listening.serve_forever, daemon=True).start()
            yield url
            listening.shutdown()
    if not answers:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("answers", [True, False], ids=["expired key", "dead server"])
def test_a_server_that_refuses_is_tried_once_and_all_runs_are_offline(
    answers: bool, tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    plant(tmp_path / "store", *ONE_VARIANT, methods=("pre",))
    with server(answers) as url:
        account = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": url}
        output = track(tmp_path, tmp_path, *ONE_VARIANT, "tracking=wandb", **account)
    assert output.count("W&B (online) did not start") == 1, output
    assert output.startswith("4 runs published to "), output
    assert len(list(tmp_path.glob("store/tracking/wandb/wandb/offline-run-*"))) == 4


def trackio(home: Path, *words: str) -> Any:
    command = [sys.executable, "-m", "trackio.cli", *words, "--project", "amnesia", "--json"]
    done = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def in_trackio(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of a process that has published the store to trackio."""
    pytest.importorskip("trackio", reason="the trackio extra is not installed")
    home = tmp_path_factory.mktemp("home")
    output = track(planted, home, *OVERRIDES, "tracking=trackio")
    assert output.startswith(f"{RUNS_OF_VARIANTS} runs published to project amnesia"), output
    return home


def test_trackio_has_the_same_runs(
    planted: Path, in_trackio: Path, rows: dict[str, TrackedRow]
) -> None:
    runs = trackio(in_trackio, "list", "runs")["runs"]
    assert len(runs) == RUNS_OF_VARIANTS
    done = [row for method, row in rows.items() if method != "pre"]
    names = [row.name for row in done]
    measured = [stage.id for row in done for stage in row.measured]
    assert {*names, *measured} <= set(runs)
    row = rows["restored-qk"]
    values = trackio(
        in_trackio, "get", "metric", "--run", row.name, "--metric", "recall_by_length/niah_single_3"
    )["values"]
    assert [value["step"] for value in values] == [1024, 2048]


@pytest.mark.chromium
def test_the_dashboard_of_trackio_compares_three_variants(
    in_trackio: Path, rows: dict[str, TrackedRow], tmp_path: Path
) -> None:
    names = tuple(rows[f"restored-{variant}"].name for variant in VARIANTS)
    show = [sys.executable, "-u", "-m", "trackio.cli", "show", "--project", "amnesia"]
    with subprocess.Popen(
        show, env=environment(in_trackio, BROWSER="true"), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = next(
                line.partition("http://")[2].partition("?")[0].partition("\x1b")[0].strip()
                for line in process.stdout
                if "launched at" in line
            )
            page = f"http://{url}?project=amnesia&smoothing=0&metric_filter=recall_by_length"
            seen = visit(
                page, tmp_path / "profile", until=(*names, "recall_by_length"), height=1000
            )
        finally:
            process.terminate()
    # All that the page loads is on this machine.
    assert all("127.0.0.1" in request for request in seen.requests), seen.requests
    (tmp_path / "page.png").write_bytes(seen.png)
    assert len(seen.png) > 10_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tracking=none"], "tracking=none publishes nothing"),
        (["tracking=mlflow"], "tracking=mlflow: no such option"),
        (["tracking=wandb,trackio"], "several services or projects"),
        (["tracking=wandb", "tracking.project=a/b"], "tracking.project"),
    ],
)
def test_mistakes_are_named(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["track", "experiment=table1", "profile=tiny", *words, f"--store={tmp_path / 's'}"]
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_missing_package_is_named_before_a_run_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amnesia_bench.pipeline.tracked.service.find_spec", lambda name: None)
    command = ["run", "experiment=table1", "profile=tiny", "tracking=trackio"]
    assert main([*command, f"--store={tmp_path / 's'}", f"--out={tmp_path / 'r'}"]) == 6
    assert "amnesia-bench[trackio]" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_tracking_changes_no_stage() -> None:
    ids = [stage.id for stage in stages_of(graphs_of(OVERRIDES))]
    tracked = [*OVERRIDES, "tracking=wandb", "tracking.project=other", "tracking.entity=team"]
    assert [stage.id for stage in stages_of(graphs_of(tracked))] == ids
