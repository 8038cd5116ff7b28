"""`amnesia adopt`: one's own checkpoint in place of a stage's, and nothing upstream of it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import BusyError, StageFailedError, UserError
from amnesia_bench.pipeline import run as run_module
from amnesia_bench.pipeline.adopted import adoption_notes, needed_stages
from amnesia_bench.pipeline.adoption import Adopted
from amnesia_bench.pipeline.bookkeeping import StageState, write_inputs
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.run import RunOptions, run_graph
from amnesia_bench.pipeline.scheduler import SchedulerResult
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import holding_lease
from tests.support.pipelines import finished

TABLE4 = ("experiment=table4", "profile=smoke")
HYBRID = "tiny_stage3-s0"


@pytest.fixture(scope="module")
def hypenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HypeNet that no stage made."""
    work = tmp_path_factory.mktemp("elsewhere")
    ab.synthesize_tokenizer(ab.SynthesizeTokenizerRequest(seed=0), work / "tokenizer")
    model = ab.load_model("hypenet_laptop")
    request = ab.InitializeRequest(model=model, tokenizer=work / "tokenizer", seed=5)
    ab.initialize(request, work / "hypenet")
    return work / "hypenet"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def adopt(store: Path, checkpoint: Path, stage: str = HYBRID, *overrides: str) -> Adopted:
    request = ab.AdoptRequest(
        stage=stage, checkpoint=checkpoint, overrides=overrides or TABLE4, store=store
    )
    return ab.adopt(request)


def stages() -> tuple[Stage, ...]:
    return stages_of(graphs_of(TABLE4))


def changed(folder: Path, out: Path, **values: Any) -> Path:
    """A copy of a checkpoint whose config.json differs."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | values))
    return out


def test_an_adopted_checkpoint_is_done_and_nothing_upstream_is_left(
    store: Path, hypenet: Path
) -> None:
    adopted = adopt(store, hypenet)
    (hybrid,) = (stage for stage in stages() if stage.id == adopted.stage)
    assert adopted.folder == hybrid.folder(store)
    assert verify_manifest(adopted.folder) == []
    manifest = read_manifest(adopted.folder)
    (parent,) = manifest.parents
    assert (manifest.kind, parent.location) == ("adopted", str(hypenet))
    assert parent.identity == adopted.identity
    assert all(entry.sha256 is not None for entry in manifest.files)
    assert (adopted.folder / "model.safetensors").stat().st_ino == (
        (hypenet / "model.safetensors").stat().st_ino
    )
    assert adopted.linked_bytes == (hypenet / "model.safetensors").stat().st_size
    plan = ab.plan(ab.PlanRequest(overrides=TABLE4, store=store))
    states = {planned.stage.name: planned.state for planned in plan.stages}
    assert states[HYBRID] is StageState.CACHED
    upstream = ("tiny_copy-s0", "tiny_pretrain-s0", "tiny_stage1-s0", "tiny_stage2-s0",
                "hypenet_laptop-stage2-s0")  # fmt: skip
    assert not {*upstream} & states.keys()
    assert {*upstream} <= {stage.name for stage in stages()}
    assert {"tiny_sft_cot-s0", "tiny_cot", "generated-s0"} <= states.keys()
    (note,) = adoption_notes(store, needed_stages(store, stages()))
    assert note.startswith(f"{adopted.stage} was adopted, not computed: {hypenet} (sha256:")


def test_why_says_that_what_is_upstream_is_not_needed(
    store: Path, hypenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adopt(store, hypenet)
    command = ["plan", *TABLE4, "--store", str(store), "--why", "tiny_stage1-s0"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("trained.tiny_stage1-s0-")
    assert said.endswith(" is not needed: only adopted artifacts depend on it.\n")


def test_clean_keeps_an_adopted_checkpoint_unless_it_is_named(
    store: Path, hypenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adopted = adopt(store, hypenet)
    stages_of_store = store / "stages"
    (stages_of_store / next(s.id for s in stages() if s.name == "tiny_copy-s0")).mkdir()
    command = ["clean", *TABLE4, f"--store={store}"]
    for words in ([], ["--yes"]):
        assert main([*command, *words]) == 0
        printed = capsys.readouterr()
        assert "1 stage, 0 B" in printed.out
        assert f"note: {adopted.stage} was adopted, so it is kept; --adopted" in printed.err
    assert verify_manifest(adopted.folder) == []
    assert [path.name for path in stages_of_store.iterdir()] == [adopted.stage]
    assert main([*command, "--adopted"]) == 0
    assert adopted.stage in capsys.readouterr().out
    assert adopted.folder.exists()
    assert main([*command, "--adopted", "--yes"]) == 0
    assert not adopted.folder.exists()
    assert (hypenet / "model.safetensors").is_file()


def test_what_another_attempt_left_does_not_make_it_stale(store: Path, hypenet: Path) -> None:
    (hybrid,) = (stage for stage in stages() if stage.name == HYBRID)
    write_inputs(store, hybrid.id, {"trained/gone": "sha256:0"})
    adopt(store, hypenet)
    plan = ab.plan(ab.PlanRequest(overrides=TABLE4, store=store))
    assert plan.stages[0].state in (StageState.CACHED, StageState.WAITING)
    assert not any(planned.state is StageState.STALE for planned in plan.stages)


def test_a_finished_or_running_stage_is_never_overwritten(store: Path, hypenet: Path) -> None:
    adopted = adopt(store, hypenet)
    before = finished(store)
    with pytest.raises(UserError, match="is done already") as refused:
        adopt(store, hypenet)
    assert f"rm -r {adopted.folder}" in str(refused.value.hint)
    assert finished(store) == before
    (sft,) = (stage for stage in stages() if stage.name == "tiny_sft_cot-s0")
    (store / "stages").mkdir(exist_ok=True)
    with holding_lease(stage_path(store, sft.id)), pytest.raises(BusyError):
        adopt(store, hypenet, sft.name)
    assert finished(store) == before


def test_a_stage_is_found_by_name_or_id_and_others_are_named(
    store: Path, hypenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sft,) = (stage for stage in stages() if stage.name == "tiny_sft_cot-s0")
    command = ["adopt", "--as", sft.id, str(hypenet), *TABLE4, "--store", str(store)]
    assert main(command) == 0
    assert f"{sft.id}: adopted {hypenet} (sha256:" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such stage") as refused:
        adopt(store, hypenet, "tiny_stage4-s0")
    assert "Did you mean tiny_stage" in str(refused.value.hint)
    with pytest.raises(UserError, match="tiny_cot: no such stage that makes a checkpoint"):
        adopt(store, hypenet, "tiny_cot")  # data
    several = ("experiment=table4", "profile=smoke,tiny")
    with pytest.raises(UserError, match="2 stages have this name") as refused:
        adopt(store, hypenet, HYBRID, *several)
    assert str(refused.value.hint).count(f"trained.{HYBRID}-") == 2


def test_a_checkpoint_of_another_shape_is_refused(
    store: Path, tmp_path: Path, hypenet: Path
) -> None:
    with pytest.raises(UserError, match=r"model_type is hypenet, but qwen3 in .*qwen3_laptop"):
        adopt(store, hypenet, "tiny_pretrain-s0")
    kinds = json.loads((hypenet / "config.json").read_text())["mixer_types"]
    with pytest.raises(UserError, match="mixer_types is"):
        adopt(store, changed(hypenet, tmp_path / "order", mixer_types=kinds[::-1]))
    with pytest.raises(UserError, match="mlp is 400, but 384 in configs/model/hypenet_laptop"):
        adopt(store, changed(hypenet, tmp_path / "wider", intermediate_size=400))
    # What config.json says is right, and what the headers say is not.
    tensors = load_file(hypenet / "model.safetensors")
    query = next(name for name in tensors if name.endswith("q_proj.weight"))
    short = changed(hypenet, tmp_path / "short")
    (short / "model.safetensors").unlink()
    save_file({**tensors, query: tensors[query][:-32].copy()}, short / "model.safetensors")
    with pytest.raises(UserError, match=r"parameters|should have shape"):
        adopt(store, short)
    (short / "model.safetensors").unlink()
    extra = {**tensors, "value_head.weight": np.zeros((1, 128), np.float32)}
    save_file(extra, short / "model.safetensors")
    with pytest.raises(UserError, match=r"has 1,.* parameters"):
        adopt(store, short)
    (short / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError):
        adopt(store, short)
    assert finished(store) == {}


def test_a_hybrid_may_have_other_layers_if_they_are_selected(store: Path, tmp_path: Path) -> None:
    ab.synthesize_tokenizer(ab.SynthesizeTokenizerRequest(seed=0), tmp_path / "tokenizer")
    model, selected = (
        ab.load_model("hypenet_pico"),
        ("experiment=table1", "profile=smoke_selection"),
    )
    for name, mixers in (
        ("other", ["attn", "attn", "lightning-attn", "lightning-attn"]),
        ("more", ["attn", "attn", "attn", "lightning-attn"]),
    ):
        changes = {"values": {**model.values, "mixer_types": mixers}}
        shape = model.model_copy(update=changes)
        request = ab.InitializeRequest(model=shape, tokenizer=tmp_path / "tokenizer")
        ab.initialize(request, tmp_path / name)
    with pytest.raises(UserError, match="mixer_types is"):
        adopt(store, tmp_path / "more", HYBRID, *selected)
    adopt(store, tmp_path / "other", HYBRID, *selected)
    left = {stage.kind for stage in needed_stages(store, stages_of(graphs_of(selected)))}
    assert not left & {"layer_scores", "selection", "converted"}


def test_another_tokenizer_is_refused(store: Path, tmp_path: Path, hypenet: Path) -> None:
    (tokenizer,) = (stage for stage in stages() if stage.kind == "tokenizer")
    ab.synthesize_tokenizer(tokenizer.request, tokenizer.folder(store))
    ab.synthesize_tokenizer(ab.SynthesizeTokenizerRequest(seed=1), tmp_path / "other")
    copy = changed(hypenet, tmp_path / "copy")
    shutil.copy(tmp_path / "other" / "tokenizer.json", copy)
    with pytest.raises(UserError, match="its tokenizer differs from that of"):
        adopt(store, copy)
    assert adopt(store, hypenet).tokenizer_of == tokenizer.folder(store)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        adopt(store, copy, "tiny_sft_cot-s0")


_KILLED = """\
import os, signal, sys
from pathlib import Path
import amnesia_bench as ab
from amnesia_bench.pipeline import adoption
def copyfile(source, target):
    os.kill(os.getpid(), signal.SIGKILL)
adoption.shutil.copyfile = copyfile
ab.adopt(ab.AdoptRequest(stage=sys.argv[1], checkpoint=sys.argv[2], store=Path(sys.argv[3]),
                         overrides=("experiment=table4", "profile=smoke")))
"""


def test_a_restored_checkpoint_needs_its_record(store: Path, hypenet: Path) -> None:
    with pytest.raises(UserError, match=r"has no restoration.json[\s\S]*amnesia restore"):
        adopt(store, hypenet, "tiny_sft_cot-s0-qk")


def test_a_damaged_adoption_is_named_and_never_removed(
    store: Path, hypenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adopt(store, hypenet).folder
    (folder / "config.json").write_text("{}")
    for repair in (False, True):  # no stage could make it again
        with pytest.raises(StageFailedError, match=r"was adopted[\s\S]*config.json[\s\S]*rm -r"):
            run_graph(store, stages(), RunOptions(repair=repair))
    assert (folder / "model.safetensors").exists()
    shutil.rmtree(folder)
    ran: list[Stage] = []

    def run_stages(_: Path, todo: list[Stage], *__: object) -> SchedulerResult:
        ran.extend(todo)
        return SchedulerResult(done=frozenset(), failed="stopped")

    monkeypatch.setattr(run_module, "run_stages", run_stages)
    monkeypatch.setattr(run_module, "fork_server", lambda _: nullcontext())
    with pytest.raises(StageFailedError, match="stopped"):
        run_graph(store, stages())
    assert {stage.id for stage in ran} == {stage.id for stage in stages()}


def test_a_killed_adoption_leaves_nothing_adopted(store: Path, hypenet: Path) -> None:
    command = [sys.executable, "-c", _KILLED, HYBRID, str(hypenet), str(store)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert finished(store) == {}
    adopt(store, hypenet)
    assert [path.name for path in (store / "trained").iterdir()] == [*finished(store)]


def test_weights_are_copied_where_they_cannot_be_linked(
    store: Path, hypenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    adopted = adopt(store, hypenet)
    assert adopted.linked_bytes == 0
    assert verify_manifest(adopted.folder) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_table_4_runs_from_an_adopted_checkpoint(
    store: Path, tmp_path: Path, hypenet: Path
) -> None:
    adopted = adopt(store, hypenet)
    result = ab.run(ab.RunRequest(overrides=TABLE4, store=store, results=tmp_path / "results"))
    ran = {id.rpartition("-")[0] for id in finished(store)}
    assert result.outcome.done == len(ran) - 1
    assert not any("pretrain" in name or "stage1" in name or "stage2" in name for name in ran)
    assert {"trained.tiny_sft_cot-s0", f"trained.{HYBRID}"} <= ran
    (page,) = result.pages
    text = "\n".join(path.read_text() for path in page.files if path.suffix in (".md", ".html"))
    assert f"{adopted.stage} was adopted, not computed" in text
    again = ab.run(ab.RunRequest(overrides=TABLE4, store=store, results=tmp_path / "results"))
    assert again.outcome.done == 0
