"""A GPU is lent to one stage at a time, and its command sees no other."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.pipeline import devices
from amnesia_bench.pipeline.devices import gpus_of_job, holding_gpus, visible_gpus
from amnesia_bench.pipeline.stage_process import StageLauncher, run_spec
from amnesia_bench.records.stages import StageSpec


def test_stages_at_once_get_gpus_of_their_own(tmp_path: Path) -> None:
    with ExitStack() as running:
        held = [
            running.enter_context(holding_gpus(count, ("0", "1", "GPU-f"), tmp_path))
            for count in (1, 2)
        ]
        assert held == [("0",), ("1", "GPU-f")]
    with holding_gpus(3, ("0", "1", "GPU-f"), tmp_path) as all_of_them:
        assert len(all_of_them) == 3


def test_a_stage_waits_until_enough_are_free_and_holds_none_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_WAIT_SECONDS", 1e-3)
    got = []

    def wait_for_both() -> None:
        with holding_gpus(2, ("0", "1"), tmp_path) as both:
            got.append(both)

    waiting = threading.Thread(target=wait_for_both)
    with holding_gpus(1, ("1",), tmp_path):
        waiting.start()
        with holding_gpus(1, ("0",), tmp_path):
            assert got == []
    waiting.join(timeout=60)
    assert got == [("0", "1")]


def test_more_than_there_are_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(MissingEnvironmentError, match="needs 8 GPUs; visible here: 1"),
        holding_gpus(8, ("0",), tmp_path),
    ):
        pass


@pytest.mark.parametrize(("visible", "number"), [("", 0), ("3", 1), ("-1", 0)])
def test_a_job_on_a_node_with_too_few_gpus_is_named(
    visible: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(MissingEnvironmentError, match=f"needs 2 GPUs on .*sees {number}") as error:
        gpus_of_job(2)
    assert "cluster.partition=NAME" in str(error.value.hint)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,1")
    assert gpus_of_job(2) == ("4", "7")


def test_what_the_driver_may_see_is_all_there_is() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-a"}) == ("3", "GPU-a")


@pytest.mark.parametrize("names", ["", "-1", "-1,0"])
def test_hidden_gpus_are_not_lent(names: str) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": names}) == ()


def test_mig_devices_whose_names_contain_slashes_are_lent_one_by_one(tmp_path: Path) -> None:
    names = ("MIG-GPU-8f6d/1/0", "MIG-GPU-8f6d/2/0")
    with holding_gpus(1, names, tmp_path) as first, holding_gpus(1, names, tmp_path) as second:
        assert (*first, *second) == names


@pytest.mark.parametrize(("gpus", "seen"), [(("2", "5"), "2,5"), ((), "")])
def test_a_command_sees_its_gpus_only(
    gpus: tuple[str, ...], seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    (tmp_path / "seen.py").write_text(
        "import os; print('sees', os.environ.get('CUDA_VISIBLE_DEVICES'), 'on', "
        "os.environ['OMP_NUM_THREADS'], os.environ['GLIBC_TUNABLES'])"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=0")
    monkeypatch.setattr("amnesia_bench.pipeline.stage_process._EXECUTE", "seen")
    spec = StageSpec(
        id="x", kind="scores", front_door="score", request={}, command=("score",), inputs={},
        threads=1, gpus=len(gpus),
    )  # fmt: skip
    assert run_spec(tmp_path, spec, tmp_path / "log", gpus, StageLauncher()) == 0
    said = (tmp_path / "log").read_text()
    assert f"sees {seen} on 1 glibc.malloc." in said
    assert said.endswith(":glibc.malloc.perturb=0\n")  # of the user, behind ours
