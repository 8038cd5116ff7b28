"""What a plan shows is what the graph holds; nothing is started, and torch is not needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.pipeline.bookkeeping import FAILURE, StageState
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.plan import SHARED, Step, by_model, plan_graphs
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.layout import MANIFEST, stage_path
from amnesia_bench.store.lease import holding_lease

H100 = GPUS["h100"]
WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "vllm", "lm_eval", "datasets"}:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocked())
from amnesia_bench.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def tiny_stages() -> dict[str, list[Stage]]:
    jobs = load_jobs(["experiment=table1", "profile=tiny"])
    stages: dict[str, list[Stage]] = {}
    for stage in stages_of(build(job) for job in jobs):
        stages.setdefault(stage.kind, []).append(stage)
    return stages


def finish(store: Path, stage: Stage) -> None:
    stage.folder(store).mkdir(parents=True)
    (stage.folder(store) / MANIFEST).write_text("{}")


def test_hours_are_split_by_model_and_step(tmp_path: Path) -> None:
    graphs = [build(job) for job in load_jobs(["experiment=table1"])]
    found = plan_graphs(graphs, tmp_path, H100)
    models = by_model(found.pending)
    assert list(models) == ["Jet-Nemotron-2B", "HypeNet-2B", "HypeNet-5B", "HypeNet-9B"]
    hybrid = {*Step} - {Step.PRETRAINING, Step.SELECTION, Step.RANKING, Step.ANALYSIS}
    assert set(models["HypeNet-9B"]) == hybrid
    assert set(models["Jet-Nemotron-2B"]) == hybrid - {Step.STAGE_1, Step.STAGE_2, Step.STAGE_3}
    for steps in models.values():
        assert steps[Step.SFT].trained_tokens == 209_715_200
        assert steps[Step.RECALL].read_tokens == 3 * 737_280_000
        assert steps[Step.FILES].gpu_hours == 0
    assert [sum(cost.gpu_hours for cost in steps.values()) for steps in models.values()] == sorted(
        sum(cost.gpu_hours for cost in steps.values()) for steps in models.values()
    )


def test_a_stage_of_two_experiments_is_counted_once_and_one_of_two_models_is_shared(
    tmp_path: Path,
) -> None:
    graphs = [build(job) for job in load_jobs(["experiment=table1,table10", "profile=tiny"])]
    found = plan_graphs(graphs, tmp_path, H100)
    ids = [each.stage.id for each in found.stages]
    assert len(ids) == len(set(ids)) == len(stages_of(graphs))
    owner = {each.stage.name: each.model for each in found.stages if each.stage.kind == "trained"}
    assert owner["tiny_pretrain-s0"] == SHARED
    assert owner["tiny_stage3-s0"] == "tiny"
    models = list(by_model(found.pending))
    assert (models[0], len(models), models[-1]) == ("tiny", 3, SHARED)
    steps = {each.stage.name: each.step for each in found.stages if each.stage.kind == "trained"}
    assert steps["tiny_pretrain-s0"] is Step.PRETRAINING
    assert steps["tiny_stage3-s0"] is Step.STAGE_3
    assert steps["tiny_sft_cot-s0"] is Step.SFT


def test_ranking_of_layers_has_its_own_hours(tmp_path: Path) -> None:
    graphs = [build(job) for job in load_jobs(["experiment=table10"])]
    models = by_model(plan_graphs(graphs, tmp_path, H100).pending)
    assert all(steps[Step.RANKING].gpu_hours > 0 for steps in models.values())


def test_states_are_those_on_disk_and_what_is_done_is_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    stages = tiny_stages()
    command = ["plan", "experiment=table1", "profile=tiny", "--store", str(store), "--json"]
    assert main(command) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["states"] == {"to run": sum(map(len, stages.values()))}
    assert not store.exists()

    finish(store, stages["trained"][0])
    failed = stage_path(store, stages["trained"][1].id)
    failed.mkdir(parents=True)
    (failed / FAILURE).write_text("{}")
    running = stage_path(store, stages["trained"][2].id)
    running.mkdir(parents=True)
    with holding_lease(running):
        assert main(command) == 0
    after = json.loads(capsys.readouterr().out)
    states = {stage["id"]: stage["state"] for stage in after["stages"]}
    wanted = (StageState.CACHED, StageState.FAILED, StageState.RUNNING, StageState.WAITING)
    assert tuple(states[stage.id] for stage in stages["trained"][:4]) == wanted
    done = next(s for s in before["stages"] if s["id"] == stages["trained"][0].id)
    left = before["left"]["trained_tokens"] - done["cost"]["trained_tokens"]
    assert after["left"]["trained_tokens"] == left > 0


def test_when_all_is_done_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stages in tiny_stages().values():
        for stage in stages:
            finish(tmp_path, stage)
    assert main(["plan", "experiment=table1", "profile=tiny", "--store", str(tmp_path)]) == 0
    assert re.fullmatch(r"(\d+) stages: \1 cached\.\n", capsys.readouterr().out)


def test_stages_are_listed_behind_what_they_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "experiment=table4", "profile=tiny", "--store", str(tmp_path)]
    assert main([*command, "--stages"]) == 0
    text = capsys.readouterr().out
    assert "h100-hours" not in text  # a laptop has no GPUs
    assert "core-hours, " in text
    assert main([*command, "--json"]) == 0
    seen: set[str] = set()
    for stage in json.loads(capsys.readouterr().out)["stages"]:
        assert seen.issuperset(stage["inputs"])
        seen.add(stage["id"])
        assert stage["id"] in text
    assert text.index("trained.tiny_stage1-s0") < text.index("trained.tiny_stage2-s0")


def test_a_plan_at_full_scale_needs_no_torch(tmp_path: Path) -> None:
    command = ["plan", "experiment=table1", "--store", str(tmp_path / "store")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for model in ("HypeNet-2B", "HypeNet-5B", "HypeNet-9B", "Jet-Nemotron-2B"):
        assert model in done.stdout
    assert "h100-hours" in done.stdout
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["experiment=tabel1"], "Did you mean table1?"),
        (["experimnt=table1"], "no experiment selected"),
        (["experiment=table1", "+model.layer=3"], "model: unknown key"),
        (
            ["experiment=table1", "profile.gpus=7"],
            "cannot be divided among 7 processes with micro-batches of 1",
        ),
        (["experiment=controls"], "plan: experiment controls is not defined for profile=paper"),
    ],
)
def test_a_mistake_is_named(
    tmp_path: Path, typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *typed, "--store", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *([command, "experiment=table1"] for command in ("plan", "run", "fetch", "clean")),
        ["run", "experiment=table1", "cluster=slurm", "--dry-run"],
        ["adopt", "--as", "sft_miromind_2b-s0", "x", "experiment=table4"],
        ["track", "experiment=table1", "tracking=wandb"],
        ["status"],
        ["cancel"],
        ["logs", "x"],
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_a_store_that_is_a_file_is_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    for store in (tmp_path / "file", tmp_path / "file" / "store"):
        assert main([*words, "--store", str(store)]) == 2
        message = f"{tmp_path / 'file'}: is a file, but the store must be a folder"
        assert message in capsys.readouterr().err
