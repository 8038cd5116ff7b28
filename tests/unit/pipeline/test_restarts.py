"""A batch job may be restarted as often as it saves more of its work in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from amnesia_bench.errors import StageFailedError
from amnesia_bench.pipeline.restarts import RESTARTS, count_restart
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.layout import artifact_path, resumable_path, stage_path, training_path

SPEC = StageSpec(
    id="trained.mine-s0-0123456789ab", kind="trained", front_door="train", request={}, command=(),
    inputs={}, threads=1, gpus=0,
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    stage_path(tmp_path, SPEC.id).mkdir(parents=True)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_restarts_without_progress_are_limited(store: Path) -> None:
    for _ in range(3):  # the first start and two restarts
        count_restart(store, SPEC, 2)
    with pytest.raises(StageFailedError, match="max_restarts=2 times in a row without") as error:
        count_restart(store, SPEC, 2)
    assert "cluster.save_seconds" in str(error.value.hint)


@pytest.mark.parametrize("kind", ["training", "answers", "parts"])
def test_a_job_that_saves_more_each_time_is_never_ended(store: Path, kind: str) -> None:
    folder = artifact_path(store, SPEC.kind, SPEC.id)
    for step in range(1, 9):
        count_restart(store, SPEC, 0)
        if kind == "training":
            write(
                training_path(folder) / "checkpoints" / f"step-{step:08d}" / "complete.json", "{}"
            )
        elif kind == "answers":
            write(folder / "answers.jsonl", "an answer\n" * step)
        else:
            write(resumable_path(folder) / f"part-{step}", "rows")
    count_restart(store, SPEC, 0)
    with pytest.raises(StageFailedError):
        count_restart(store, SPEC, 0)


def test_records_from_which_a_training_does_not_resume_are_no_progress(store: Path) -> None:
    folder = training_path(artifact_path(store, SPEC.kind, SPEC.id))
    count_restart(store, SPEC, 0)
    write(folder / "metrics.jsonl", "{}\n")
    write(folder / "checkpoints" / ".step-00000007.tmp" / "__0_0.distcp", "half")
    with pytest.raises(StageFailedError):
        count_restart(store, SPEC, 0)


def test_a_damaged_record_counts_from_zero(store: Path) -> None:
    (stage_path(store, SPEC.id) / RESTARTS).write_text('{"count": "many"}')
    count_restart(store, SPEC, 0)
    with pytest.raises(StageFailedError):
        count_restart(store, SPEC, 0)
