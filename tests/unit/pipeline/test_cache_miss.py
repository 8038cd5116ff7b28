"""Why a stage is not a cache hit: the setting that differs, through all inputs to the cause."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.pipeline import stage as stage_module
from amnesia_bench.pipeline.bookkeeping import FAILURE
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.specs import write_specs
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.layout import MANIFEST, stage_path

OVERRIDES = ("experiment=table1", "profile=smoke")
POST = "tiny_sft_cot-s0"
SLOWER = "profile.models.tiny.finetunes.tiny_cot.overrides=['train.optimizer.learning_rate=0.5']"


def stages(*overrides: str) -> Mapping[str, Stage]:
    graphs = [build(job) for job in load_jobs([*OVERRIDES, *overrides])]
    return {f"{stage.kind}.{stage.name}": stage for stage in stages_of(graphs)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store in which all stages for seed 0 are finished, up to their contents."""
    for stage in stages().values():
        finish(tmp_path, stage)
    return tmp_path


def finish(store: Path, stage: Stage) -> None:
    stage.folder(store).mkdir(parents=True)
    (stage.folder(store) / MANIFEST).write_text("{}")
    spec = StageSpec(
        id=stage.id,
        kind=stage.kind,
        front_door=stage.request.front_door,
        request=stage.request.model_dump(mode="json"),
        command=(),
        inputs={read.id: read.kind for read in stage.inputs},
        threads=1,
        gpus=0,
    )
    write_specs(store, [spec])


def why(
    capsys: pytest.CaptureFixture[str], store: Path, stage: str, *overrides: str, code: int = 0
) -> str:
    command = ["plan", *OVERRIDES, *overrides, "--store", str(store), "--why", stage]
    assert main(command) == code
    printed = capsys.readouterr()
    return printed.err if code else printed.out


def test_a_setting_far_upstream_is_found(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = why(capsys, store, f"scores.{POST}-qk.gsm8k", SLOWER)
    old, new = stages(), stages(SLOWER)
    chain = ("answers." + f"{POST}-qk.gsm8k", f"restored.{POST}-qk", f"trained.{POST}")
    lines = text.splitlines()
    assert lines[0] == f"{new[f'scores.{POST}-qk.gsm8k'].id} has not been run."
    assert lines[1] == f"The nearest finished stage is {old[f'scores.{POST}-qk.gsm8k'].id}."
    for line, name in zip(lines[2:], chain, strict=False):
        assert f"Its input is now {new[name].id} and was {old[name].id}, which" in line
    rate = old[f"trained.{POST}"].request.run.train.optimizer.learning_rate
    assert lines[5].strip() == "1 setting of the stage itself:"
    said = f"run.train.optimizer.learning_rate: {rate} in the finished stage, 0.5 now"
    assert lines[6].strip() == said
    assert len(lines) == 7  # nothing else differs


def test_the_nearest_stage_has_the_fewest_differences(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for overrides in (("profile.seeds=[7]", SLOWER), (SLOWER,)):
        finish(store, stages(*overrides)[f"trained.tiny_sft_cot-s{7 if overrides[1:] else 0}"])
    decay = SLOWER.replace("]", ",'train.optimizer.weight_decay=0.125']")
    text = why(capsys, store, f"trained.{POST}", decay)
    assert f"The nearest finished stage is {stages(SLOWER)[f'trained.{POST}'].id}." in text
    assert re.search(r"  run.train.optimizer.weight_decay: \S+ in the finished stage, 0.125", text)
    assert "learning_rate" not in text


def test_a_new_version_of_a_kind_is_named(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {**stage_module.VERSIONS, "prompts": 99}
    monkeypatch.setattr(stage_module, "VERSIONS", versions)
    text = why(capsys, store, "niah-haystack-s0")
    assert "Their requests are equal. The version of this kind of stage has changed" in text


def test_other_states_are_explained(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    post = stages()[f"trained.{POST}"]
    assert f"{post.id} is finished, so it is a cache hit." in why(capsys, store, post.id)
    (stage_path(store, post.id) / "inputs.json").write_text("{}")
    (post.folder(store) / MANIFEST).unlink()
    failure = {"exit_code": 1, "ended": "2026-01-01T00:00:00+00:00", "said": "out of memory"}
    (stage_path(store, post.id) / FAILURE).write_text(json.dumps(failure))
    text = why(capsys, store, POST)
    assert f"{post.id} failed in its last attempt:\nout of memory" in text
    assert why(capsys, store / "empty", POST).splitlines()[1] == (
        "The store has no finished stage of the kind trained."
    )
    assert not (store / "empty").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("trained.tiny_sft_cott-s0", "Did you mean\n  trained.tiny_sft_cot-s0-"),
        (f"{POST}.gsm8k-000000000000", f"Did you mean\n  answers.{POST}.gsm8k-"),
        ("xyzzy", "--stages lists their stages."),
    ],
)
def test_a_misspelt_stage_names_the_nearest(
    store: Path, capsys: pytest.CaptureFixture[str], typed: str, said: str
) -> None:
    text = why(capsys, store, typed, code=2)
    assert f"{typed}: these experiments have no such stage" in text
    assert said in text


def test_a_name_of_several_stages_is_that_of_the_first_of_them(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The training, its recall and its scores have names that begin with it; this one is exact.
    assert f"trained.{POST}-" in why(capsys, store, POST)
    answers = closure([stages()[f"scores.{POST}.gsm8k"]])[-2]
    assert answers.id in why(capsys, store, f"{POST}.gsm8k")
    assert "cannot be combined with --json" in why(capsys, store, POST, "--json", code=2)
