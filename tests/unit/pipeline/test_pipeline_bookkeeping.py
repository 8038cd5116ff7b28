"""What a store knows of its stages survives what is half written; what is removed goes whole."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from amnesia_bench.errors import BusyError, StageFailedError, UserError
from amnesia_bench.pipeline import stages
from amnesia_bench.pipeline.bookkeeping import (
    FAILURE,
    StageState,
    _independent_of_store,
    bytes_of,
    check_intact,
    read_failure,
    removable,
    remove,
    state_of,
)
from amnesia_bench.pipeline.specs import (
    SPEC,
    known_specs,
    older_stages,
    read_spec,
    request_of,
    write_specs,
)
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.records.artifacts import FileEntry
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.layout import (
    MANIFEST,
    leftover_paths,
    new_working_path,
    stage_path,
    training_path,
)
from amnesia_bench.store.lease import holding_lease

TOKENIZER = stages.tokenizer(0)
DATA = stages.data("tiny_cot", (), TOKENIZER)
OTHER = stages.data("tiny_programs", (), TOKENIZER)
GRAPH = (TOKENIZER, DATA, OTHER)


def spec(stage: Stage) -> StageSpec:
    return StageSpec(
        id=stage.id,
        kind=stage.kind,
        front_door=stage.request.front_door,
        request=stage.request.model_dump(mode="json"),
        command=("x",),
        inputs={each.id: each.kind for each in stage.inputs},
        threads=1,
        gpus=0,
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store in which the folders of three stages lie, without a manifest."""
    write_specs(tmp_path, [spec(stage) for stage in GRAPH])
    for stage in GRAPH:
        stage.folder(tmp_path).mkdir(parents=True)
        (stage.folder(tmp_path) / "file").write_text("x")
    return tmp_path


def test_a_spec_that_is_half_written_is_written_again(store: Path) -> None:
    path = stage_path(store, DATA.id) / SPEC
    path.write_text(path.read_text()[:30])
    assert [each.id for each in known_specs(store)] == sorted([TOKENIZER.id, OTHER.id])
    write_specs(store, [spec(DATA)])
    assert read_spec(store, DATA.id) == spec(DATA)
    assert len(known_specs(store)) == 3


def test_a_spec_holds_the_request_with_its_config(store: Path) -> None:
    assert request_of(read_spec(store, DATA.id)) == DATA.request


def test_a_spec_whose_request_is_damaged_is_refused(store: Path) -> None:
    path = stage_path(store, DATA.id) / SPEC
    path.write_text(path.read_text().replace('"tokenizer"', '"tokeniser"'))
    with pytest.raises(UserError, match="its request is damaged"):
        request_of(read_spec(store, DATA.id))


def test_stages_of_earlier_versions_are_known_by_their_ids(store: Path) -> None:
    assert older_stages(store) == []
    old = store / "stages" / "tiny_cot-0123456789ab"
    old.mkdir()
    (old / SPEC).write_text('{"id": "tiny_cot-0123456789ab", "kind": "data", "settings": {}}')
    made = store / "data" / old.name
    made.mkdir()
    (made / "file").write_text("xyz")
    (stage,) = older_stages(store)
    assert (stage.kind, stage.id) == ("data", old.name)
    assert len(known_specs(store)) == 3
    assert bytes_of(store, stage) > 3
    remove(store, stage)
    assert older_stages(store) == []
    assert not made.exists()


def test_a_running_stage_of_an_earlier_version_is_kept_with_its_inputs(store: Path) -> None:
    record = '{"id": "%s", "kind": "%s", "inputs": %s}'
    data, trained = "tiny_cot-0123456789ab", "sft-0123456789cd"
    for stage_id, kind, inputs in (
        (data, "data", "{}"),
        (trained, "trained", f'{{"{data}": "data"}}'),
    ):
        folder = store / "stages" / stage_id
        folder.mkdir()
        (folder / SPEC).write_text(record % (stage_id, kind, inputs))
    assert [stage.id for stage in older_stages(store)] == [trained, data]
    with holding_lease(stage_path(store, trained)):
        assert older_stages(store) == []


def test_a_failure_that_is_half_written_is_a_failure(store: Path) -> None:
    (stage_path(store, DATA.id) / FAILURE).write_text('{"exit_')
    assert state_of(store, DATA.kind, DATA.id) is StageState.FAILED
    failure = read_failure(store, DATA.id)
    assert failure is not None
    assert "not JSON" in failure.said


def test_a_manifest_that_is_half_written_is_damage(store: Path) -> None:
    (DATA.folder(store) / MANIFEST).write_text('{"kind": "da')
    with pytest.raises(StageFailedError, match=r"manifest.json is damaged") as caught:
        check_intact(store, DATA.kind, DATA.id)
    assert "--repair" in str(caught.value.hint)


def test_what_attempts_left_goes_with_the_artifact(store: Path) -> None:
    folder = DATA.folder(store)
    new_working_path(folder).mkdir()
    training_path(folder).mkdir()
    remove(store, DATA)
    assert [path.name for path in folder.parent.iterdir()] == [OTHER.id]
    assert not stage_path(store, DATA.id).exists()
    assert removable(store, GRAPH) == [TOKENIZER, OTHER]
    remove(store, DATA)


def test_a_removal_that_was_killed_leaves_nothing_in_the_way(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: None)
    remove(store, DATA)
    assert not DATA.folder(store).exists()
    # The next attempt at it clears these.
    (left,) = leftover_paths(DATA.folder(store))
    assert (left / "file").is_file()


def test_what_runs_and_what_it_reads_is_not_removed(store: Path) -> None:
    with holding_lease(stage_path(store, DATA.id)):
        assert removable(store, GRAPH) == [OTHER]
        with pytest.raises(BusyError):
            remove(store, DATA)
    assert (DATA.folder(store) / "file").is_file()
    assert removable(store, GRAPH) == list(GRAPH)


def test_a_record_is_the_same_in_every_store_and_quotes_in_it_take_no_time(tmp_path: Path) -> None:
    entry = FileEntry(path="record.json", bytes=1, sha256="0" * 64, mtime_ns=0)
    found = []
    for store in ("/a", '/b/with \\"quotes\\"'):
        text = f'{{"model": "{store}/trained/sft-s0-0123456789ab/x", "note": "a/b"}}'
        (tmp_path / "record.json").write_text(text)
        found.append(_independent_of_store(tmp_path, entry))
    assert found[0] == found[1]
    (tmp_path / "record.json").write_text('{"template": "' + '\\"' * 400_000)
    began = time.process_time()
    _independent_of_store(tmp_path, entry)
    assert time.process_time() - began < 5  # every quote was a start once: hours
