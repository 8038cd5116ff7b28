"""What was made of something else is made again; what cannot be known is never removed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.errors import MissingEnvironmentError, NewerVersionError
from amnesia_bench.pipeline.bookkeeping import (
    INPUTS,
    StageState,
    changed_inputs,
    contents_of,
    read_inputs,
    state_of,
)
from amnesia_bench.pipeline.run import RunOptions, StageCounts, run_graph
from amnesia_bench.pipeline.stage import unsettled
from amnesia_bench.pipeline.stage_process import StageLauncher
from amnesia_bench.pipeline.worker import run_stage
from amnesia_bench.store import hashing
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.store.layout import MANIFEST, stage_path
from tests.support.pipelines import finished, small_driver, small_graph, starts

pytestmark = pytest.mark.usefixtures("shared_server")
TOKENIZER, *DATA = small_graph()


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "store", copy_function=shutil.copy2))


def change(folder: Path, name: str) -> None:
    """Let an artifact hold something else, with a right manifest, as one made anew elsewhere."""
    path = folder / name
    path.write_text(path.read_text() + "\n")
    manifest = json.loads((folder / MANIFEST).read_text())
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry["bytes"], entry["mtime_ns"] = path.stat().st_size, path.stat().st_mtime_ns
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert verify_manifest(folder) == []


def states(store: Path) -> list[StageState]:
    return [state_of(store, stage.kind, stage.id) for stage in small_graph()]


def test_what_was_made_of_something_else_is_made_again_and_said(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(TOKENIZER.folder(store), "tokenizer.json")
    assert states(store) == [StageState.CACHED, StageState.STALE, StageState.STALE]
    name = f"tokenizer/{TOKENIZER.id}"
    assert changed_inputs(store, DATA[0].id) == [name]
    assert run_graph(store, small_graph()) == StageCounts(cached=1, done=2)
    assert [starts(store, stage) for stage in small_graph()] == [1, 2, 2]
    said = capfd.readouterr().err
    assert f"{DATA[0].id}: stale, its input {name} has changed" in said
    assert states(store) == [StageState.CACHED] * 3
    assert run_graph(store, small_graph()) == StageCounts(cached=3, done=0)


def test_what_was_made_again_to_the_same_bits_makes_nothing_stale(store: Path) -> None:
    before = finished(store)
    shutil.rmtree(TOKENIZER.folder(store))
    assert states(store)[1:] == [StageState.CACHED] * 2  # nothing is known yet
    assert run_graph(store, small_graph()) == StageCounts(cached=2, done=1)
    after = finished(store)
    assert {id for id in after if after[id] != before[id]} == {TOKENIZER.id}


def test_a_store_that_was_moved_is_not_stale_where_records_name_the_old_place(
    store: Path, tmp_path: Path
) -> None:
    record = TOKENIZER.folder(store) / "record.json"
    manifest = json.loads((TOKENIZER.folder(store) / MANIFEST).read_text())
    contents = []
    for place, value in (("/old/place", 1), ('/a \\"new\\" place', 1), ("/old/place", 2)):
        folder = f"{place}/data/tiny_cot-0123456789ab"
        record.write_text(f'{{"a": "{folder}", "b": "{folder}/x.json", "c": {value}}}')
        entry = {"path": "record.json", "bytes": record.stat().st_size, "mtime_ns": 1}
        entry["sha256"] = hashlib.sha256(record.read_bytes()).hexdigest()
        files = [*manifest["files"], entry]
        (TOKENIZER.folder(store) / MANIFEST).write_text(json.dumps(manifest | {"files": files}))
        contents += contents_of(store, {TOKENIZER.id: TOKENIZER.kind}).values()
    assert contents[0] == contents[1] != contents[2]


def test_what_comes_out_otherwise_makes_stale_what_follows_in_the_same_run(store: Path) -> None:
    # As if the tokenizer that the data were made of had held something else.
    for stage in DATA:
        path = stage_path(store, stage.id) / INPUTS
        path.write_text(json.dumps({f"tokenizer/{TOKENIZER.id}": "0" * 64}))
    shutil.rmtree(TOKENIZER.folder(store))
    assert run_graph(store, small_graph()) == StageCounts(cached=0, done=3)
    assert states(store) == [StageState.CACHED] * 3


def test_half_done_work_on_other_inputs_is_not_gone_on_with(store: Path) -> None:
    stage = DATA[0]
    shutil.rmtree(stage.folder(store))
    parts = stage.folder(store).with_name(f".{stage.id}.parts")
    parts.mkdir()
    (parts / "x").touch()
    (stage_path(store, stage.id) / INPUTS).write_text('{"tokenizer/x": "0"}')
    assert run_graph(store, small_graph()) == StageCounts(cached=2, done=1)
    assert not parts.exists()


def test_a_store_of_an_earlier_version_is_noted_and_not_made_again(store: Path) -> None:
    for stage in DATA:
        (stage_path(store, stage.id) / INPUTS).unlink()
    assert run_graph(store, small_graph()) == StageCounts(cached=3, done=0)
    assert read_inputs(store, DATA[0].id) is not None
    change(TOKENIZER.folder(store), "tokenizer.json")
    assert states(store)[1:] == [StageState.STALE] * 2


def test_what_follows_from_what_is_not_done_is_looked_at_too() -> None:
    whole, (first, second) = small_graph(), (stage.id for stage in DATA)

    def left(*cached: str) -> list[str]:
        return [stage.id for stage in unsettled(whole, set(cached))]

    assert left(first, second) == [TOKENIZER.id, first, second]
    assert left(TOKENIZER.id, first) == [second]
    assert left(TOKENIZER.id, first, second) == []


def as_newer(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 99'))


@pytest.mark.parametrize("repair", [False, True])
def test_what_a_newer_version_made_is_neither_damaged_nor_removed(
    store: Path, repair: bool
) -> None:
    as_newer(TOKENIZER.folder(store))
    before = finished(store)
    with pytest.raises(NewerVersionError, match="schema 99, this version reads 2") as caught:
        run_graph(store, small_graph(), RunOptions(repair=repair))
    assert "repair" not in str(caught.value)
    assert finished(store) == before


@pytest.mark.parametrize("repair", [False, True])
def test_what_a_newer_version_made_is_not_removed_as_stale_either(
    store: Path, repair: bool
) -> None:
    change(TOKENIZER.folder(store), "tokenizer.json")
    as_newer(DATA[0].folder(store))
    before = finished(store)
    with pytest.raises(NewerVersionError):
        run_graph(store, small_graph(), RunOptions(repair=repair))
    # A worker that another driver has sent leaves it too.
    with pytest.raises(NewerVersionError):
        run_stage(store, DATA[0].id, StageLauncher())
    assert finished(store) == before


def refuse_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(hashing, "sha256_of", refused)


def refuse_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.is_file

    def refused(self: Path) -> bool:
        if self.name == MANIFEST and self.parent.name == TOKENIZER.id:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "is_file", refused)


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("spoil", [refuse_contents, refuse_manifest])
def test_what_cannot_be_read_is_neither_damaged_nor_removed(
    store: Path,
    spoil: Callable[[pytest.MonkeyPatch], None],
    repair: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as spoiled:
        spoil(spoiled)
        with pytest.raises(MissingEnvironmentError, match="cannot be read"):
            run_graph(store, small_graph(), RunOptions(repair=repair))
    assert run_graph(store, small_graph()) == StageCounts(cached=3, done=0)
    assert [starts(store, stage) for stage in small_graph()] == [1, 1, 1]


def test_two_drivers_say_who_did_what(tmp_path: Path) -> None:
    store = tmp_path / "store"
    drivers = [small_driver(store) for _ in range(2)]
    outcomes = [driver.communicate(timeout=120)[0].splitlines()[-1] for driver in drivers]
    counts = [[int(part.partition(",")[0].rstrip(")")) for part in o.split("=")[1:4]]
              for o in outcomes]  # fmt: skip
    assert [sum(each) for each in counts] == [3, 3]
    assert sum(done for _, done, _ in counts) == 3
    for stage in small_graph():
        assert read_manifest(stage.folder(store)).provenance.ended is not None


def test_status_and_plan_say_what_is_stale(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(TOKENIZER.folder(store), "tokenizer.json")
    assert main(["status", f"--store={store}"]) == 0
    said = capsys.readouterr().out
    assert "3 stages: 1 cached, 2 stale." in said
    assert f"its input tokenizer/{TOKENIZER.id} has changed" in said
    monkeypatch.setattr("amnesia_bench.pipeline.graph.stages_of", lambda _: small_graph())
    monkeypatch.setattr("amnesia_bench.pipeline.plan.stages_of", lambda _: small_graph())
    monkeypatch.setattr("amnesia_bench.pipeline.plan._models", lambda _: dict.fromkeys(
        (stage.id for stage in small_graph()), "tiny"))  # fmt: skip
    assert main(["plan", "experiment=table1", "profile=tiny", f"--store={store}"]) == 0
    assert "3 stages: 1 cached, 2 stale." in capsys.readouterr().out
    shutil.rmtree(TOKENIZER.folder(store))
    assert main(["plan", "experiment=table1", "profile=tiny", f"--store={store}"]) == 0
    assert "2 finished stages depend on these" in capsys.readouterr().out
