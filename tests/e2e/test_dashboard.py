"""Workspaces of W&B, and the sweep file, without W&B's servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.config.files import options
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.tracked.rows import rows_of_experiments
from tests.support.tracked_stores import OVERRIDES

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
STORE = Path("/store")  # the ids of runs depend on it


@pytest.fixture
def library() -> Any:
    """The package's own models of a workspace."""
    pytest.importorskip("wandb_workspaces", reason="the wandb extra is not installed")
    from wandb_workspaces.workspaces import interface, internal

    return interface, internal


def test_a_workspace_is_the_golden_one_and_valid(library: Any, tmp_path: Path) -> None:
    interface, internal = library
    request = ab.DashboardRequest(overrides=OVERRIDES, store=STORE)
    (made,) = ab.dashboard(request, tmp_path)
    written = json.loads(Path(made.location).read_text())
    assert written == made.spec
    assert written == json.loads((GOLDEN / "dashboard.json").read_text())
    # W&B's own reader accepts it, and finds in it what it was made of.
    read = interface.Workspace._from_model(internal.View.model_validate(written))
    runs = read.runset_settings
    rows = {row.method: row for row in rows_of_experiments(graphs_of(OVERRIDES))}
    assert runs.baseline_run == rows["post"].run_id(STORE)
    assert "summary:delta/niah_single_3/2048" in runs.pinned_columns
    assert "summary:gsm8k/avg_4/strict" in runs.pinned_columns
    for part in ("row", "table1", "tiny"):
        assert part in str(runs.filters)
    sections = {section.name: section.panels for section in read.sections}
    by_length = sections["Recall against length"]
    assert [panel.x.name for panel in by_length] == ["context_tokens"] * 3
    (trade_off,) = sections["Trade-off"]
    assert (trade_off.x.name, trade_off.y.name) == ("niah_single_3/2048", "gsm8k/avg_4/strict")


def test_there_is_a_workspace_for_each_experiment_and_model(library: Any, tmp_path: Path) -> None:
    overrides = ("experiment=table1,table4", "profile=paper")
    made = ab.dashboard(ab.DashboardRequest(overrides=overrides, store=STORE), tmp_path)
    names = [workspace.name for workspace in made]
    assert len(set(names)) == len(names) == len(list(tmp_path.iterdir()))
    # Both experiments have the same checkpoints before and after SFT, and rows of their own.
    assert len({workspace.spec["name"] for workspace in made}) == len(made)
    assert {"table1, HypeNet-2B (paper)", "table4, HypeNet-2B (paper)"} <= set(names)
    assert "table1, Jet-Nemotron-2B (paper)" in names
    (nine,) = (w.spec for w in made if w.name == "table1, HypeNet-9B (paper)")
    text = json.dumps(nine)
    assert "summary:niah_single_3/262144" in text
    assert "summary:math500/avg_16/strict" in text


def test_a_push_replaces_the_workspace_of_an_earlier_push(
    library: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interface, internal = library
    saved: dict[str, Any] = {}

    def execute(api: Any, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            view = saved.setdefault(variables["name"], {"id": f"view{len(saved)}"})
            assert variables.get("id", view["id"]) == view["id"]
            view |= {"spec": variables["spec"], "displayName": variables["displayName"]}
            view["writes"] = view.get("writes", 0) + 1
            return {"upsertView": {"view": {"name": variables["name"], "id": view["id"]}}}
        known = saved.get(variables["viewName"])
        edges = [] if known is None else [{"node": known}]
        return {"project": {"allViews": {"edges": edges}}}

    monkeypatch.setattr(internal, "execute_graphql", execute)
    for module in (internal, interface):
        monkeypatch.setattr(module.wandb, "Api", lambda **_: None)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
    command = ["dashboard", *OVERRIDES, "tracking.entity=team", f"--store={STORE}", "--push"]
    for _ in range(2):
        assert main(command) == 0
        assert "https://wandb.example/team/amnesia?nw=" in capsys.readouterr().out
    (view,) = saved.values()
    assert view["writes"] == 2
    assert '"baselineRunId"' in view["spec"]


def test_a_push_without_an_account_says_so(
    library: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["dashboard", *OVERRIDES, "--push"]) == 6
    assert "WANDB_API_KEY" in capsys.readouterr().err


def test_out_that_is_a_file_is_refused(
    library: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    assert main(["dashboard", *OVERRIDES, f"--out={file}"]) == 2
    assert str(file) in capsys.readouterr().err
    assert file.read_text() == "kept"


def test_the_sweep_file_is_valid_and_runs_a_command_for_each_variant() -> None:
    sweep = yaml.safe_load((ROOT / "docs/examples/restore-sweep.yaml").read_text())
    schema = json.loads((GOLDEN / "schemas" / "wandb_sweep.json").read_text())
    jsonschema.validate(sweep, schema)
    assert sweep["command"] == ["amnesia", "run", "${args_no_hyphens}"]
    variants = sweep["parameters"]["restore"]["values"]
    assert set(variants) <= set(options("restore"))
    for variant in variants:
        # As `${args_no_hyphens}` expands.
        words = [
            f"{name}={variant if name == 'restore' else given['value']}"
            for name, given in sweep["parameters"].items()
        ]
        (job,) = load_jobs(words)
        assert job.config.restore.name == variant
        assert job.config.tracking.service == "wandb"
