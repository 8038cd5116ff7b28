"""The log of a stage is found by its name, though what was made of it is called after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.bookkeeping import LOG
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.specs import write_specs
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.pipeline.status import logs_of
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.layout import stage_path


@pytest.fixture(scope="module")
def stages() -> tuple[Stage, ...]:
    return stages_of(build(job) for job in load_jobs(["experiment=table1"]))


@pytest.fixture(scope="module")
def store(stages: tuple[Stage, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every stage of Table 1 at full scale has a log."""
    store = tmp_path_factory.mktemp("store")
    specs = [
        StageSpec(
            id=stage.id,
            kind=stage.kind,
            front_door=stage.request.front_door,
            request={},
            command=(),
            inputs={each.id: each.kind for each in stage.inputs},
            threads=1,
            gpus=0,
        )
        for stage in stages
    ]
    write_specs(store, specs)
    for stage in stages:
        (stage_path(store, stage.id) / LOG).write_text(f"$ amnesia {stage.kind}\nlog\n")
    return store


def test_the_readmes_own_command_prints_the_logs_of_the_training(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["logs", "sft_miromind_9b-s0", f"--store={store}"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "$ amnesia trained\nlog\n"
    assert printed.err.startswith("trained.sft_miromind_9b-s0-")


def test_every_stage_is_found_by_its_id_with_its_kind_or_without(
    store: Path, stages: tuple[Stage, ...]
) -> None:
    for stage in stages[::7]:
        for name in (stage.id, stage.id.partition(".")[2], stage.id[:-1]):
            assert logs_of(store, name)[0].id == stage.id


def test_of_several_each_is_named_so_that_it_can_be_copied(store: Path) -> None:
    for name in ("recall.sft_miromind_9b-s0", "recall/sft_miromind_9b-s0"):
        with pytest.raises(UserError, match="12 stages have names that begin with this") as caught:
            logs_of(store, name)
        lines = [line.strip() for line in str(caught.value.hint).splitlines()[1:]]
        lengths = ["131072", "262144", "262144.part1of2", "262144.part2of2", "32768", "65536"]
        visible = [line.rpartition("-")[0] for line in lines]
        assert visible == sorted(
            f"recall.sft_miromind_9b-s0{variant}.{length}"
            for variant in ("", "-qk")
            for length in lengths
        )
        for line in (*lines, *visible):
            assert logs_of(store, line)[0].id.startswith(line)


def test_a_name_that_there_is_not_is_answered_with_those_that_are_close(store: Path) -> None:
    with pytest.raises(UserError, match="no stage with a log") as caught:
        logs_of(store, "sft_mirmind_9b-s0")
    assert "trained.sft_miromind_9b-s0-" in str(caught.value.hint)
    with pytest.raises(UserError) as caught:
        logs_of(store, "*")
    assert "--stages" in str(caught.value.hint)


def test_the_output_of_a_stages_jobs_is_printed_before_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = StageSpec(
        id="trained.mine-s0-0123456789ab", kind="trained", front_door="train", request={},
        command=(), inputs={}, threads=1, gpus=0,
    )  # fmt: skip
    write_specs(tmp_path, [spec])
    folder = stage_path(tmp_path, spec.id)
    (folder / "slurm-7.out").write_text("module: command not found\n")
    (folder / "slurm-8.out").touch()
    assert main(["logs", "mine-s0", f"--store={tmp_path}"]) == 0  # the stage never began
    assert capsys.readouterr().out == "module: command not found\n"
    (folder / LOG).write_text("$ amnesia train\n")
    assert main(["logs", "mine-s0", f"--store={tmp_path}"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "module: command not found\n$ amnesia train\n"
    assert f"==> {folder / 'slurm-7.out'} <==\n==> {folder / LOG} <==\n" in printed.err
