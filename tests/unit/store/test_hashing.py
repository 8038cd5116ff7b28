import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import MissingEnvironmentError, NewerVersionError, UserError
from amnesia_bench.records.artifacts import Manifest
from amnesia_bench.store.files import write_json
from amnesia_bench.store.hashing import (
    compare_changed,
    content_sha256,
    file_entry,
    hashed_entries,
    read_manifest,
    sha256_of,
    verify_manifest,
)
from amnesia_bench.store.provenance import collect_provenance

FILES = {"model.safetensors": b"weights" * 1000, "config.json": b"{}", "sub/empty": b""}
LINKED = "linked.safetensors"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A finished artifact with a hardlinked input that was never read."""
    folder = tmp_path / "artifact"
    (folder / "sub").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (tmp_path / "input").write_bytes(b"input")
    (folder / LINKED).hardlink_to(tmp_path / "input")
    entries = [file_entry(folder, name, sha256=sha256_of(folder / name)) for name in FILES]
    entries.append(file_entry(folder, LINKED, sha256=None))
    manifest = Manifest(
        kind="test", parents=(), files=tuple(entries), provenance=collect_provenance([], {})
    )
    write_json(folder / "manifest.json", manifest.to_json())
    return folder


def found(folder: Path) -> list[tuple[str, str]]:
    return [(finding.path, finding.problem) for finding in verify_manifest(folder)]


def test_hashes_are_those_of_hashlib_over_many_reads(tmp_path: Path) -> None:
    data = os.urandom((4 << 20) * 2 + 12345)
    (tmp_path / "f").write_bytes(data)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data).hexdigest()
    (tmp_path / "f").write_bytes(b"")
    assert sha256_of(tmp_path / "f") == hashlib.sha256().hexdigest()


def test_an_intact_artifact_has_no_findings(artifact: Path) -> None:
    assert found(artifact) == []
    renamed = artifact.rename(artifact.with_name("renamed"))
    assert found(renamed) == []


def test_one_flipped_bit_is_found(artifact: Path) -> None:
    path = artifact / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert found(artifact) == [("model.safetensors", "has other contents (sha256 differs)")]


def test_truncated_missing_extra_and_changed_are_each_named(artifact: Path) -> None:
    os.truncate(artifact / "model.safetensors", 6999)
    (artifact / "config.json").unlink()
    (artifact / "sub" / "extra.bin").touch()
    (artifact / LINKED).write_bytes(b"INPUT")
    os.utime(artifact / LINKED, ns=(1, 1))
    assert found(artifact) == [
        ("config.json", "is missing"),
        (LINKED, "was changed or copied since (its mtime differs, and it has no sha256)"),
        ("model.safetensors", "has 6999 bytes, not the 7000 in the manifest"),
        ("sub/extra.bin", "is not in the manifest"),
    ]


def test_a_hardlinked_input_of_another_size_is_found(artifact: Path) -> None:
    (artifact.parent / "input").write_bytes(b"longer input")
    assert found(artifact) == [(LINKED, "has 12 bytes, not the 5 in the manifest")]


def test_links_are_not_followed(artifact: Path) -> None:
    outside = artifact.parent / "outside"
    outside.mkdir()
    (artifact / "config.json").rename(outside / "config.json")
    (artifact / "config.json").symlink_to(outside / "config.json")
    (artifact / "folder").symlink_to(outside)
    assert found(artifact) == [
        ("config.json", "is not a regular file"),
        ("folder", "is not in the manifest"),
    ]


def test_a_file_that_cannot_be_read_is_a_finding(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("amnesia_bench.store.hashing.sha256_of", fail)
    assert ("config.json", "cannot be read (Input/output error)") in found(artifact)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"schema_version": 1}'])
def test_a_folder_without_a_whole_manifest_is_not_an_artifact(
    artifact: Path, text: str | None
) -> None:
    (artifact / "manifest.json").unlink()
    if text is not None:
        (artifact / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_manifest(artifact)
    with pytest.raises(UserError, match=r"manifest\.json"):
        verify_manifest(artifact)


def test_a_small_file_that_was_edited_is_found_whatever_its_time_says(artifact: Path) -> None:
    path = artifact / "config.json"
    stat = path.stat()
    path.write_bytes(b"[]")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = compare_changed(artifact, read_manifest(artifact))
    assert [(each.path, each.unreadable) for each in changed] == [("config.json", False)]


@pytest.mark.parametrize("hidden", ["sub", "."])
def test_what_lies_in_a_folder_that_cannot_be_read_is_not_missing(
    artifact: Path, hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.walk

    def walk(top: Path, onerror: Callable[[OSError], None]) -> Iterator[Any]:
        for parent, folders, names in real(top):
            if Path(parent) == artifact / hidden:
                onerror(PermissionError(13, "Permission denied", parent))
                folders.clear()
            else:
                yield parent, folders, names

    manifest = read_manifest(artifact)
    monkeypatch.setattr(os, "walk", walk)
    for findings in (compare_changed(artifact, manifest), verify_manifest(artifact)):
        assert [(each.path, each.unreadable) for each in findings] == [(hidden, True)]
    with pytest.raises(MissingEnvironmentError, match="cannot be read"):
        hashed_entries(artifact)


def test_a_manifest_of_a_newer_version_is_told_from_a_damaged_one(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    with pytest.raises(NewerVersionError, match="schema 99") as caught:
        read_manifest(artifact)
    assert "newer version of amnesia-bench" in str(caught.value.hint)


def test_the_content_of_an_artifact_is_its_files_and_not_its_making(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    content = content_sha256(manifest)
    later = [replace(each, mtime_ns=each.mtime_ns + 1) for each in manifest.files if each.sha256]
    linked = [each for each in manifest.files if each.sha256 is None]
    remade = replace(manifest, kind="other", files=(*linked, *reversed(later)))
    assert content_sha256(remade) == content
    for change in ({"sha256": "0" * 64}, {"path": "renamed"}, {"bytes": 1}):
        other = replace(manifest, files=(replace(manifest.files[0], **change), *manifest.files[1:]))
        assert content_sha256(other) != content


def test_a_manifest_that_was_being_written_when_its_process_was_killed_is_no_file_of_the_artifact(
    tmp_path: Path,
) -> None:
    (tmp_path / "scores.json").write_text("{}")
    (tmp_path / ".manifest.json.new").write_text('{"kind"')
    assert [entry.path for entry in hashed_entries(tmp_path)] == ["scores.json"]
