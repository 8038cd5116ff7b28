"""OUT.training: a user's own files stay, damage is named, and nothing in it can run code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import AmnesiaError, UserError
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.tracking.metrics_file import read_metrics
from tests.support.checkpoints import tensor_bytes
from tests.support.deadly_training import Deadly, run_and_die
from tests.support.mutations import mutated
from tests.support.training_runs import TinyJob, train_here, training_run, write_data, write_hypenet

STEPS, SAVED = 8, "checkpoints/step-00000006"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is whole, and the folder of one that died in its eighth step."""
    place = tmp_path_factory.mktemp("folders")
    write_hypenet(place / "init")
    write_data(place / "data")
    assert train_here(job(place, "whole")) == 0
    assert run_and_die(job(place, "half"), Deadly("step", 7), 1)
    return place


def job(place: Path, out: str, train: dict[str, Any] | None = None) -> TinyJob:
    run = training_run({"steps": STEPS} | (train or {}))
    return TinyJob(run=run, init=place / "init", data={"sft": place / "data"}, out=place / out)


@pytest.fixture
def half(place: Path, request: pytest.FixtureRequest) -> tuple[TinyJob, Path]:
    """Return a job, and the half-done folder that it goes on from, a copy of its own."""
    name = "h" + hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    folder = place / f"{name}.training"
    shutil.copytree(place / "half.training", folder)
    return job(place, name), folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same_as_whole(place: Path, out: Path) -> None:
    assert tensor_bytes(out) == tensor_bytes(place / "whole")
    assert (out / "metrics.jsonl").read_bytes() == (place / "whole/metrics.jsonl").read_bytes()
    assert verify_manifest(out) == []


MISTAKES = {
    "none": {},
    "freeze": {"freeze": {"roles": ["q"], "layers": [77]}},
    "later": {"freeze": {"roles": ["gate", "q"], "layers": [0]}},
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("held", ["notes.txt", "checkpoints/keep.bin", "metrics.jsonl", ".hidden"])
def test_a_folder_of_the_users_own_is_refused_and_untouched(
    place: Path, held: str, mistake: str
) -> None:
    mine = job(place, f"own_{held.replace('/', '_')}_{mistake}", MISTAKES[mistake])
    folder = mine.out.with_name(f"{mine.out.name}.training")
    (folder / held).parent.mkdir(parents=True)
    (folder / held).write_text("two weeks of work")
    (folder / "sub").mkdir()
    (folder / "sub/data.bin").write_text("more")
    before = contents(folder)
    with pytest.raises(UserError, match=r"but no training.json, so it is not the folder"):
        train_here(mine)
    assert contents(folder) == before
    (folder / "training.json").write_text('{"epochs": 3}')  # and one of another program
    with pytest.raises(UserError, match=r"training.json: unknown key 'epochs'"):
        train_here(mine)
    assert contents(folder) == before | {"training.json": b'{"epochs": 3}'}


def test_notes_in_the_folder_of_a_run_outlive_it(
    place: Path, half: tuple[TinyJob, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mine, folder = half
    saves = {"every_steps": 1, "keep": 1, "asynchronous": False}  # the older ones are removed
    mine = replace(mine, run=training_run({"steps": STEPS, "checkpoints": saves}))
    own = {"notes.txt": b"mine", "checkpoints/step-00000003/best.txt": b"this one"}
    own |= {"checkpoints/last.txt": b"6", f"{SAVED}/a/b.bin": b"\0"}
    for name, content in own.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    assert train_here(mine) == 0
    assert_same_as_whole(place, mine.out)
    assert contents(folder) == own
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "last.txt",
        "step-00000003",
        "step-00000006",
    ]
    assert "kept, since this run did not write checkpoints, notes.txt" in (capsys.readouterr().err)


def test_a_mistake_on_a_second_start_takes_nothing_of_the_first(place: Path) -> None:
    mine = job(place, "early")
    assert run_and_die(mine, Deadly("step", 2), 1)  # before its first save
    folder = place / "early.training"
    before = contents(folder)
    assert len(read_metrics(folder / "metrics.jsonl")) == 2
    wrong = replace(mine, run=training_run({"steps": STEPS, **MISTAKES["freeze"]}))
    with pytest.raises(UserError, match="names layer 77"):
        train_here(wrong)
    assert contents(folder).keys() == before.keys()
    assert contents(folder)["metrics.jsonl"] == before["metrics.jsonl"]


def edit_json(path: Path, edit: Callable[[Any], Any]) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps(edit(data) or data))


def vouch(folder: Path, content: bytes) -> None:
    """Put a file of metadata into the last save, as one who knows how hashes are checked."""
    (folder / SAVED / ".metadata").write_bytes(content)

    def edit(saved: Any) -> None:
        for entry in saved["files"]:
            if entry["path"] == ".metadata":
                entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    edit_json(folder / SAVED / "complete.json", edit)


def renamed(key: str) -> Callable[[Any], Any]:
    return lambda data: {("x" + k if k == key else k): v for k, v in data.items()}


COMPLETE = f"{SAVED}/complete.json"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "complete gone": (
        lambda f: (f / COMPLETE).unlink(),
        r"complete.json: no such file\nRemove",
    ),
    "another step": (
        lambda f: edit_json(f / COMPLETE, lambda d: d | {"step": 3}),
        r"complete.json: damaged since it was saved: belongs to step 3\nRemove .*step-00000006",
    ),
    "renamed folder": (
        lambda f: (f / SAVED).rename(f / "checkpoints/step-00000007"),
        r"belongs to step 6\nRemove .*step-00000007",
    ),
    "no files": (
        lambda f: edit_json(f / COMPLETE, lambda d: d | {"files": []}),
        r"complete.json: .*does not list .metadata",
    ),
    "files elsewhere": (
        lambda f: edit_json(
            f / COMPLETE, lambda d: d | {"files": [d["files"][0] | {"path": "../x"}]}
        ),
        r"is not a path inside",
    ),
    "complete a list": (
        lambda f: edit_json(f / COMPLETE, lambda _: [1]),
        "expected an object, got",
    ),
    "tensors gone": (lambda f: (f / SAVED / "__0_0.distcp").unlink(), "__0_0.distcp: .*missing"),
    "settings gone": (lambda f: (f / "training.json").unlink(), r"but no training.json"),
    "settings a list": (
        lambda f: (f / "training.json").write_text("[[]]"),
        r"training.json: expected an object, got",
    ),
    "settings without parents": (
        lambda f: edit_json(f / "training.json", renamed("parents")),
        r"training.json: unknown key 'xparents'",
    ),
    "settings without train": (
        lambda f: edit_json(f / "training.json", lambda d: d | {"run": renamed("train")(d["run"])}),
        r"training.json: not the settings of a training run",
    ),
    "a record that is not named": (
        lambda f: edit_json(f / COMPLETE, lambda d: d | {"records": {}}),
        r"the checkpoint of step 6 has no record of metrics.jsonl",
    ),
    "a record of less than nothing": (
        lambda f: edit_json(
            f / COMPLETE, lambda d: d | {"records": {"metrics.jsonl": {"bytes": -1, "sha256": ""}}}
        ),
        r"complete.json: records.metrics.jsonl: a file cannot have -1 bytes",
    ),
    "deep settings": (
        lambda f: (f / "training.json").write_text("[" * 100_000),
        r"training.json: not JSON",
    ),
    "metrics gone": (lambda f: (f / "metrics.jsonl").unlink(), r"metrics.jsonl: .*is missing"),
    "metrics emptied": (
        lambda f: (f / "metrics.jsonl").write_text(""),
        r"metrics.jsonl: .*now has 0 bytes",
    ),
    "a hole in the metrics": (
        lambda f: (f / "metrics.jsonl").write_bytes(
            b"".join((f / "metrics.jsonl").read_bytes().splitlines(True)[i] for i in (0, 1, 3, 4))
        ),
        r"metrics.jsonl: was changed since the last checkpoint",
    ),
    "a digit of a loss": (
        lambda f: (f / "metrics.jsonl").write_bytes(
            (f / "metrics.jsonl").read_bytes().replace(b'"loss": 4', b'"loss": 1', 1)
        ),
        r"metrics.jsonl: .*has other contents",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_is_published(half: tuple[TinyJob, Path], damage: str) -> None:
    mine, folder = half
    spoil, said = DAMAGE[damage]
    spoil(folder)
    before = contents(folder)
    with pytest.raises(UserError, match=said):
        train_here(mine)
    assert contents(folder) == before
    assert not mine.out.exists()


def test_of_a_damaged_record_an_earlier_save_may_still_hold(
    place: Path, half: tuple[TinyJob, Path]
) -> None:
    mine, folder = half
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"null\n", *lines[5:]]))
    with pytest.raises(UserError, match="remove the newest folder in checkpoints/"):
        train_here(mine)
    shutil.rmtree(folder / SAVED)
    assert train_here(mine) == 0
    assert_same_as_whole(place, mine.out)


def test_a_torn_last_line_is_cut(place: Path, half: tuple[TinyJob, Path]) -> None:
    mine, folder = half
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 8, "lo')
    assert train_here(mine) == 0
    assert_same_as_whole(place, mine.out)
    assert [line["step"] for line in read_metrics(mine.out / "metrics.jsonl")] == [*range(1, 9)]


def test_the_manifest_counts_the_seconds_of_all_steps_also_before_a_kill(
    half: tuple[TinyJob, Path],
) -> None:
    mine, folder = half
    path = folder / "speed.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    before = sum(line["compute_seconds"] + line["other_seconds"] for line in lines[:6])
    assert before > 0
    start = time.monotonic()
    assert train_here(mine) == 0
    provenance = read_manifest(mine.out).provenance
    assert provenance.training_seconds == provenance.seconds is not None
    assert before < provenance.seconds < before + time.monotonic() - start


class Hostile:
    """Pickles to a call."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call[0], self._call[1:]


@pytest.mark.parametrize("way", ["system", "eval", "inside", "getattr", "bytes"])
def test_a_save_from_elsewhere_runs_no_code(half: tuple[TinyJob, Path], way: str) -> None:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    mine, folder = half
    ran = folder.parent / f"ran_{way}"
    honest = pickle.loads((folder / SAVED / ".metadata").read_bytes())
    hostile: Any = Hostile(os.system, f"touch {ran}")
    if way == "eval":
        hostile = Hostile(eval, f"open({str(ran)!r}, 'w')")
    elif way == "inside":
        honest.planner_data = {"x": hostile}
        hostile = honest
    elif way == "getattr":
        hostile = Hostile(getattr, "x", "upper")
    elif way == "bytes":  # PyTorch reads what is no tensor by a pickle without bounds
        for name in honest.state_dict_metadata:
            honest.state_dict_metadata[name] = BytesStorageMetadata()
        (folder / SAVED / "__0_0.distcp").write_bytes(pickle.dumps(hostile))
        hostile = honest
    vouch(folder, pickle.dumps(hostile))
    with pytest.raises(UserError, match=r"metadata|damaged since it was saved"):
        train_here(mine)
    assert not ran.exists()
    assert not mine.out.exists()


def test_metadata_that_name_files_elsewhere_are_refused(half: tuple[TinyJob, Path]) -> None:
    mine, folder = half
    metadata = pickle.loads((folder / SAVED / ".metadata").read_bytes())
    for stored in metadata.storage_data.values():
        stored.relative_path = "../step-00000003/__0_0.distcp"
    vouch(folder, pickle.dumps(metadata))
    with pytest.raises(UserError, match=r"it names the file \.\./step-00000003"):
        train_here(mine)


def test_metadata_of_other_tensors_are_named(half: tuple[TinyJob, Path]) -> None:
    mine, folder = half
    metadata = pickle.loads((folder / SAVED / ".metadata").read_bytes())
    metadata.state_dict_metadata.pop(next(iter(metadata.state_dict_metadata)))
    vouch(folder, pickle.dumps(metadata))
    with pytest.raises(UserError, match="its tensors do not match those of this run"):
        train_here(mine)


Look = Callable[[], object]


@pytest.fixture
def look(half: tuple[TinyJob, Path]) -> Iterator[Look]:
    """Return what a start of the run makes of its folder, before it loads anything."""
    from amnesia_bench.training.checkpoints import CheckpointFolder
    from amnesia_bench.training.folder import RunIdentity, check_run_folder, read_run_identity
    from amnesia_bench.training.processes import joined_processes
    from amnesia_bench.training.recorder import Recorder

    mine, folder = half
    began = read_run_identity(folder / "training.json")
    with joined_processes() as processes:

        def start() -> object:
            check_run_folder(folder)
            now = RunIdentity(run=mine.run, parents=began.parents)
            if differences := read_run_identity(folder / "training.json").differences(now):
                raise UserError("; ".join(differences))
            settings = mine.run.train.checkpoints
            saves = CheckpointFolder(folder / "checkpoints", settings, processes, lambda _: {})
            saved = saves.newest()
            assert saved is not None
            recorder = Recorder(mine.run, folder, first=True, check_lease=lambda: None)
            with recorder.open(saved.step, saved.records):
                pass
            # What any number depends on.
            hashes = {file.path: file.sha256 for file in saved.files}
            return saved.step, hashes, (folder / "metrics.jsonl").read_bytes()

        yield start


@pytest.mark.parametrize("name", [COMPLETE, "training.json"])
def test_records_with_anything_in_them_are_refused_or_change_nothing(
    half: tuple[TinyJob, Path], look: Look, name: str
) -> None:
    _, folder = half
    path, rng = folder / name, random.Random(0)
    right, honest = look(), json.loads(path.read_text())
    refused = 0
    for _ in range(400):
        path.write_text(json.dumps(mutated(honest, rng)))
        try:
            found = look()
        except AmnesiaError:
            refused += 1
            continue
        assert found == right
    assert refused > 200


def test_flipped_bits_of_a_half_done_run_are_refused_or_change_no_number(
    half: tuple[TinyJob, Path], look: Look
) -> None:
    _, folder = half
    rng, right = random.Random(1), look()
    outcomes: Counter[str] = Counter()
    names = ["training.json", "metrics.jsonl", COMPLETE, f"{SAVED}/.metadata"]
    for name in [*names, f"{SAVED}/__0_0.distcp"] * 100:
        path = folder / name
        honest = path.read_bytes()
        flipped = bytearray(honest)
        flipped[rng.randrange(len(honest))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert look() == right
            outcomes["without effect"] += 1
        except AmnesiaError:
            outcomes["refused"] += 1
        path.write_bytes(honest)
    # The rest are names, places and settings that affect no result. How many depends on the paths
    # and times in the records.
    assert outcomes.total() == 500
    assert outcomes["refused"] >= 480, outcomes
