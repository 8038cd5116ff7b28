"""The promises of a restore, held against bytes on disk."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from amnesia_bench.config.load import load_variant
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.surgery import shards
from amnesia_bench.surgery.edits import Edits
from tests.support.checkpoints import (
    SOFTMAX_LAYERS,
    drifted,
    random_model,
    save,
    tensor_bytes,
    tree_bytes,
)
from tests.support.surgery import restore, verify

PLANNED = {
    f"model.layers.{i}.self_attn.{p}_proj.weight" for i in SOFTMAX_LAYERS for p in ("q", "k")
}


@pytest.fixture
def pre(tmp_path: Path) -> Path:
    return save(tmp_path / "pre", random_model(0), shards=3)


@pytest.fixture
def post(tmp_path: Path) -> Path:
    return save(tmp_path / "post", drifted(random_model(0), 1), shards=8)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


@pytest.mark.parametrize("pre_shards", [1, 3])
@pytest.mark.parametrize("post_shards", [1, 5])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_planned_tensors_are_pres_bytes_and_all_else_is_posts(
    pre_shards: int, post_shards: int, dtype: str, tmp_path: Path
) -> None:
    pre = save(tmp_path / "pre", random_model(0), shards=pre_shards, dtype=dtype)
    post = save(tmp_path / "post", drifted(random_model(0), 1), shards=post_shards, dtype=dtype)
    inputs = tree_bytes(pre), tree_bytes(post)
    restore(pre, post, tmp_path / "out")
    assert (tree_bytes(pre), tree_bytes(post)) == inputs
    from_pre, from_post, found = (tensor_bytes(f) for f in (pre, post, tmp_path / "out"))
    assert found == {n: (from_pre if n in PLANNED else from_post)[n] for n in from_post}


def test_layout_and_every_unplanned_byte_of_each_file_are_posts(
    pre: Path, post: Path, out: Path
) -> None:
    record = restore(pre, post, out)
    ranges: dict[str, list[tuple[int, int]]] = {}
    for tensor in record.tensors:
        blob = (post / tensor.shard).read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        begin, end = json.loads(blob[8:start])[tensor.name]["data_offsets"]
        ranges.setdefault(tensor.shard, []).append((start + begin, start + end))
    for path in post.glob("*.safetensors"):
        ours, theirs = (out / path.name).read_bytes(), path.read_bytes()
        assert len(ours) == len(theirs)
        differing = np.flatnonzero(np.frombuffer(ours, np.uint8) != np.frombuffer(theirs, np.uint8))
        inside = [
            any(begin <= byte < end for begin, end in ranges.get(path.name, []))
            for byte in differing.tolist()
        ]
        assert all(inside)


def test_untouched_shards_are_links_and_edited_ones_are_not(
    pre: Path, post: Path, out: Path
) -> None:
    record = restore(pre, post, out)
    assert record.proof is not None
    edited = {tensor.shard for tensor in record.tensors}
    assert set(record.proof.compared_files) == edited
    assert record.proof.linked_files
    for path in post.glob("*.safetensors"):
        assert (out / path.name).samefile(path) == (path.name not in edited)


def test_a_hardlinked_post_is_never_written_through(pre: Path, post: Path, out: Path) -> None:
    twin = post.parent / "twin"
    twin.mkdir()
    for path in post.iterdir():
        os.link(path, twin / path.name)
    before = tree_bytes(twin)
    restore(pre, post, out)
    assert tree_bytes(twin) == before


def test_a_shard_that_is_a_link_becomes_a_file(pre: Path, post: Path, out: Path) -> None:
    (post / "blobs").mkdir()
    for path in sorted(post.glob("*.safetensors")):
        path.rename(post / "blobs" / path.name)
        path.symlink_to(Path("blobs") / path.name)
    record = restore(pre, post, out)
    assert record.proof is not None
    assert record.proof.linked_files
    shutil.rmtree(post)
    assert not any(path.is_symlink() for path in out.iterdir())
    assert not verify(out).findings


def test_across_devices_everything_is_copied(pre: Path, post: Path, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at hand")
    out = memory / f"amnesia-test-{os.getpid()}"
    weights = sum(path.stat().st_size for path in post.glob("*.safetensors"))
    try:
        record = restore(pre, post, out)
        edits = Edits(spool=out, patches={}, tensors=())
        assert shards.bytes_to_copy(post.glob("*.safetensors"), edits, out) == weights
        assert record.proof is not None
        assert not record.proof.linked_files
        assert tensor_bytes(out).keys() == tensor_bytes(post).keys()
        assert not verify(out).findings
    finally:
        if out.exists():
            for path in out.iterdir():
                path.unlink()
            out.rmdir()


def test_config_tokenizer_and_code_come_from_post(pre: Path, post: Path, out: Path) -> None:
    (post / "modeling_hypenet.py").write_text("# code")
    (post / "original").mkdir()
    (post / "original" / "params.json").write_text("{}")
    for stale in ("pytorch_model.bin", "consolidated.safetensors", ".cache"):
        (post / stale).write_text("stale")
    record = restore(pre, post, out)
    for name in ("config.json", "tokenizer.json", "modeling_hypenet.py", "original/params.json"):
        assert (out / name).read_bytes() == (post / name).read_bytes()
    assert set(record.left_out) == {"pytorch_model.bin", "consolidated.safetensors", ".cache"}


def test_the_record_on_disk_is_true(pre: Path, post: Path, out: Path) -> None:
    restore(pre, post, out)
    record = json.loads((out / "restoration.json").read_text())
    assert record["variant"]["name"] == "qk"
    assert record["restored_layers"] == list(SOFTMAX_LAYERS)
    assert record["pre"]["config_sha256"] == (
        hashlib.sha256((pre / "config.json").read_bytes()).hexdigest()
    )
    assert {tensor["name"] for tensor in record["tensors"]} == PLANNED
    sources = tensor_bytes(pre), tensor_bytes(post), tensor_bytes(out)
    for tensor in record["tensors"]:
        hashes = [hashlib.sha256(source[tensor["name"]]).hexdigest() for source in sources]
        assert [tensor[f"sha256_{side}"] for side in ("pre", "post", "restored")] == hashes
        a, b = (
            np.frombuffer(s[tensor["name"]], ml_dtypes.bfloat16).astype(float) for s in sources[:2]
        )
        assert tensor["norm_post_minus_pre"] == pytest.approx(np.linalg.norm(b - a))
        assert tensor["norm_pre"] == pytest.approx(np.linalg.norm(a))
    manifest = json.loads((out / "manifest.json").read_text())
    assert {f["path"] for f in manifest["files"]} == set(tree_bytes(out)) - {"manifest.json"}
    for file in manifest["files"]:
        if file["sha256"] is not None:
            assert file["sha256"] == hashlib.sha256((out / file["path"]).read_bytes()).hexdigest()
    assert [parent["role"] for parent in manifest["parents"]] == ["pre", "post"]


def test_restoring_twice_gives_the_same_bytes(pre: Path, post: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        restore(pre, post, tmp_path / name, "qk_pro")
    assert tensor_bytes(tmp_path / "a") == tensor_bytes(tmp_path / "b")


def test_a_restored_folder_can_be_the_post_of_another(
    pre: Path, post: Path, tmp_path: Path
) -> None:
    restore(pre, post, tmp_path / "q", "q")
    restore(pre, tmp_path / "q", tmp_path / "qk", "k")
    restore(pre, post, tmp_path / "both", "qk")
    assert tensor_bytes(tmp_path / "qk") == tensor_bytes(tmp_path / "both")
    assert not verify(tmp_path / "qk").findings


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        (["restore.select.layers=[3]"], {3}),
        (["restore.select.layers=[4,1]"], {1, 4}),
        (["restore.select.layers={top_drift: 1}"], {4}),
        (["restore.select.layers={top_drift: 2}"], {1, 4}),
    ],
)
def test_layers_are_chosen_by_list_or_by_drift(
    overrides: list[str], layers: set[int], tmp_path: Path
) -> None:
    model = random_model(0)
    moved = drifted(model, 1)
    for layer, factor in ((1, 2.0), (3, 0.5), (4, 3.0)):
        for p in "qk":
            name = f"model.layers.{layer}.self_attn.{p}_proj.weight"
            moved[name] = model[name] + factor * (moved[name] - model[name])
    pre, post = save(tmp_path / "pre", model), save(tmp_path / "post", moved)
    record = restore(pre, post, tmp_path / "out", load_variant("qk", overrides))
    assert set(record.restored_layers) == layers
    assert {tensor.layer for tensor in record.tensors} == layers


def test_python_takes_layers_directly(pre: Path, post: Path, out: Path) -> None:
    assert restore(pre, post, out, "q", layers=[3]).restored_layers == (3,)


def test_cast_rounds_pre_to_posts_dtype(tmp_path: Path) -> None:
    model = random_model(0)
    pre = save(tmp_path / "pre", model, dtype="F32")
    post = save(tmp_path / "post", drifted(model, 1), dtype="BF16")
    with pytest.raises(UserError, match="dtypes of") as refused:
        restore(pre, post, tmp_path / "out")
    assert refused.value.hint is not None
    assert "--cast" in refused.value.hint
    restore(pre, post, tmp_path / "out", cast=True)
    for name in PLANNED:
        expected = model[name].astype(np.float32).astype(ml_dtypes.bfloat16)
        assert tensor_bytes(tmp_path / "out")[name] == expected.tobytes()


def test_a_dry_run_tells_the_same_and_writes_nothing(pre: Path, post: Path, out: Path) -> None:
    before = tree_bytes(pre.parent)
    planned = restore(pre, post, None)
    assert tree_bytes(pre.parent) == before
    assert planned.tensors == restore(pre, post, out).tensors
    assert planned.proof is None


def test_a_write_that_went_wrong_is_found_and_nothing_is_published(
    pre: Path, post: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = shards._write

    def flips_a_bit(descriptor: int, data: memoryview, start: int) -> None:
        honest(descriptor, data, start)
        os.pwrite(descriptor, bytes([data[2000] ^ 1]), start + 2000)

    monkeypatch.setattr(shards, "_write", flips_a_bit)
    with pytest.raises(StageFailedError, match="byte 2,000 reads back different"):
        restore(pre, post, out)
    assert list(out.parent.iterdir()) == []


def test_what_happens_after_the_comparison_is_found_too(
    pre: Path, post: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = shards._write_shard

    def spoils(job: Any, *arguments: Any) -> shards.WrittenShard:
        written = honest(job, *arguments)
        if job.patches:
            with job.target.open("r+b") as file:
                file.seek(job.patches[0].start)
                file.write(b"\0\0")
        return written

    monkeypatch.setattr(shards, "_write_shard", spoils)
    with pytest.raises(StageFailedError, match="differs from the computed one"):
        restore(pre, post, out)
    assert list(out.parent.iterdir()) == []


def test_shards_larger_than_one_piece_are_spliced_across_its_borders(
    pre: Path, post: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore(pre, post, tmp_path / "whole", "qk")
    monkeypatch.setattr(shards, "PIECE_BYTES", 97)
    restore(pre, post, tmp_path / "pieces", "qk")
    assert tensor_bytes(tmp_path / "pieces") == tensor_bytes(tmp_path / "whole")
    assert not verify(tmp_path / "pieces").findings


def test_of_a_cloned_shard_only_the_edited_pieces_are_written(
    pre: Path, post: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    honest = shards._write

    def cloned(files: Any) -> bool:
        honest(files.target, memoryview(Path(f"/proc/self/fd/{files.source}").read_bytes()), 0)
        return True

    def counted(descriptor: int, data: memoryview, start: int) -> None:
        written.append(len(data))
        honest(descriptor, data, start)

    monkeypatch.setattr(shards, "_clone_extents", cloned)
    monkeypatch.setattr(shards, "_write", counted)
    monkeypatch.setattr(shards, "PIECE_BYTES", 97)
    record = restore(pre, post, tmp_path / "out")
    assert record.proof is not None
    assert record.proof.planned_bytes <= sum(written) < record.proof.compared_bytes
    sources = tensor_bytes(pre), tensor_bytes(post)
    assert tensor_bytes(tmp_path / "out") == {
        name: sources[name not in PLANNED][name] for name in sources[1]
    }


def test_shared_extents_are_used_where_the_filesystem_has_them(
    pre: Path, post: Path, tmp_path: Path
) -> None:
    image, mount = tmp_path / "disk", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    try:
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no XFS with reflinks can be mounted here")
    try:
        shutil.copytree(post, mount / "post")
        record = restore(pre, mount / "post", mount / "out")
        shard = record.tensors[0].shard
        extents = subprocess.run(
            ["filefrag", "-v", mount / "out" / shard], capture_output=True, text=True, check=True
        ).stdout
        assert "shared" in extents
        assert tensor_bytes(mount / "post") == tensor_bytes(post)
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model-00002-of-00008.safetensors", "flip"),
        ("model-00002-of-00008.safetensors", "truncate"),
        ("config.json", "flip"),
        ("tokenizer.json", "delete"),
        ("restoration.json", "flip"),
        ("model.safetensors.index.json", "delete"),
    ],
)
def test_verify_finds_each_kind_of_damage(
    file: str, damage: str, pre: Path, post: Path, out: Path
) -> None:
    restore(pre, post, out)
    assert not verify(out).findings
    path = out / file
    blob = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(blob[:-9] + bytes([blob[-9] ^ 1]) + blob[-8:])
    elif damage == "truncate":
        path.write_bytes(blob[:-9])
    assert any(file in finding for finding in verify(out).findings)


def test_verify_names_the_restored_tensor_that_was_changed(
    pre: Path, post: Path, out: Path
) -> None:
    record = restore(pre, post, out)
    tensor = record.tensors[0]
    path = out / tensor.shard
    blob = bytearray(path.read_bytes())
    position = blob.find(tensor_bytes(pre)[tensor.name])
    blob[position] ^= 1
    path.write_bytes(blob)
    assert any(finding.startswith(tensor.name) for finding in verify(out).findings)


def test_verify_finds_a_changed_header_of_a_hardlinked_shard(
    pre: Path, post: Path, out: Path
) -> None:
    record = restore(pre, post, out)
    assert record.proof is not None
    path = out / record.proof.linked_files[0]
    times = path.stat()
    blob = path.read_bytes()
    path.write_bytes(blob.replace(b'"format": "pt"', b'"format": "tp"', 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # nothing else gives it away
    assert verify(out).findings == (f"{path.name}: its header differs from post's",)


def test_the_parents_of_two_restores_differ_when_their_weights_do(tmp_path: Path) -> None:
    identities = set()
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        pre = save(folder / "pre", random_model(seed))
        restore(pre, save(folder / "post", drifted(random_model(seed), 1)), folder / "out")
        manifest = json.loads((folder / "out" / "manifest.json").read_text())
        identities |= {parent["identity"] for parent in manifest["parents"]}
    assert len(identities) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_layer_that_diverged_has_drifted_most(value: float, tmp_path: Path) -> None:
    model = random_model(0)
    moved = drifted(model, 1)
    moved["model.layers.3.self_attn.q_proj.weight"][0, 0] = value
    pre, post = save(tmp_path / "pre", model), save(tmp_path / "post", moved)
    variant = load_variant("qk", ["restore.select.layers={top_drift: 1}"])
    assert restore(pre, post, tmp_path / "out", variant).restored_layers == (3,)


def test_verify_says_which_restored_tensor_is_gone(tmp_path: Path) -> None:
    pre = save(tmp_path / "pre", random_model(0))
    post = save(tmp_path / "post", drifted(random_model(0), 1))
    name = restore(pre, post, tmp_path / "out").tensors[0].name
    path = tmp_path / "out" / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(name.encode(), name.upper().encode(), 1))
    assert f"{name}: is missing" in verify(tmp_path / "out").findings


def test_verify_refuses_what_was_not_written_by_us(pre: Path) -> None:
    with pytest.raises(UserError, match="manifest"):
        verify(pre)
