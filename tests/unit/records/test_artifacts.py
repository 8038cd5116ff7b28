import dataclasses
import json

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import FileEntry, Hardware, Manifest, Parent, Provenance

MANIFEST = Manifest(
    kind="restored",
    parents=(Parent(role="pre", location="runs/pre", identity="sha256:ab"),),
    files=(
        FileEntry(
            path="model.safetensors", bytes=7, sha256="cd", mtime_ns=1_700_000_000_123_456_789
        ),
        FileEntry(path="sub/link.bin", bytes=0, sha256=None, mtime_ns=1),
    ),
    provenance=Provenance(
        tool_version="0.1.0",
        commit=None,
        dirty=None,
        dirty_diff_sha256=None,
        python="3.11.7",
        packages={"numpy": "2.4.6"},
        hardware=Hardware(
            platform="Linux",
            cpu="x",
            cpu_cores=2,
            memory_bytes=1 << 40,
            gpus=("a", "a"),
            gpu_driver=None,
        ),
        seeds={"data": 0},
        started="2026-01-01T00:00:00+00:00",
        ended=None,
        command=("amnesia", "restore"),
    ),
)


def test_a_manifest_survives_the_way_through_text() -> None:
    assert Manifest.from_json(json.loads(json.dumps(MANIFEST.to_json())), "m") == MANIFEST


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MANIFEST.kind = "other"  # type: ignore[misc]


@pytest.mark.parametrize("path", ["../x", "/x", "a/../b", "a//b", ".", "", "./a", "a/"])
def test_a_file_entry_never_leaves_its_folder(path: str) -> None:
    data = MANIFEST.to_json()
    data["files"][0]["path"] = path
    with pytest.raises(UserError, match=r"^m\.json: files\[0\]: "):
        Manifest.from_json(data, "m.json")


def test_a_file_is_listed_once() -> None:
    data = MANIFEST.to_json()
    data["files"].append(data["files"][0])
    with pytest.raises(UserError, match=r"listed twice: model\.safetensors"):
        Manifest.from_json(data, "m.json")


def test_a_manifest_of_a_later_schema_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"m\.json: manifest of schema 3"):
        Manifest.from_json(MANIFEST.to_json() | {"schema_version": 3, "new": 1}, "m.json")


def test_a_manifest_of_the_first_schema_is_read() -> None:
    data = MANIFEST.to_json() | {"schema_version": 1}
    del data["provenance"]["training_seconds"]
    manifest = Manifest.from_json(data, "m.json")
    assert manifest.provenance == MANIFEST.provenance
    assert Manifest.from_json(manifest.to_json(), "m.json") == manifest
