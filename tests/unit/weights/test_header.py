"""Every way in which a safetensors file can lie about itself is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.weights.header import read_header
from tests.support.checkpoints import write_raw

FLOATS = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
MORE = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def test_offsets_are_absolute_and_rows_have_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, {"__metadata__": {"format": "pt"}, "b": MORE, "a": FLOATS}, bytes(range(32)))
    header = read_header(path)
    assert list(header.tensors) == ["a", "b"]
    entry = header.tensors["b"]
    assert path.read_bytes()[entry.start : entry.end] == bytes(range(24, 32))
    assert (entry.num_rows, entry.row_bytes) == (4, 2)
    assert (header.tensors["a"].num_rows, header.tensors["a"].row_bytes) == (2, 12)


def test_the_safetensors_library_agrees(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {
        "x": torch.arange(6.0).reshape(2, 3),
        "empty": torch.zeros(0, 4),
        "n": torch.ones(()),
    }
    save_file(tensors, tmp_path / "t.safetensors")
    header = read_header(tmp_path / "t.safetensors")
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    entry = header.tensors["x"]
    assert (tmp_path / "t.safetensors").read_bytes()[entry.start : entry.end] == (
        tensors["x"].numpy().tobytes()
    )


def test_an_empty_tensor_may_share_its_offset_with_the_next(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}
    write_raw(tmp_path / "t.safetensors", {"a": FLOATS, "empty": empty}, bytes(24))
    tensors = read_header(tmp_path / "t.safetensors").tensors
    assert list(tensors) == ["empty", "a"]
    assert tensors["empty"].row_bytes == 0


BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "truncated data": ({"a": FLOATS}, bytes(20), "is truncated: the tensors need"),
    "bytes after": ({"a": FLOATS}, bytes(25), "1 bytes after its last tensor"),
    "overlap": ({"a": FLOATS, "b": MORE | {"data_offsets": [20, 28]}}, bytes(28), "'b' overlaps"),
    "gap": ({"a": FLOATS, "b": MORE | {"data_offsets": [28, 36]}}, bytes(36), "'b' follows a gap"),
    "size": ({"a": FLOATS | {"shape": [2, 4]}}, bytes(24), "gives tensor 'a' 24 bytes"),
    "dtype": ({"a": FLOATS | {"dtype": "F31"}}, bytes(24), "unknown dtype 'F31'"),
    "bool": ({"a": FLOATS | {"shape": [True, 6]}}, bytes(24), "malformed entry for tensor 'a'"),
    "dtype list": ({"a": FLOATS | {"dtype": []}}, bytes(24), "unknown dtype []"),
    "utf-16": (json.dumps({"a": FLOATS}).encode("utf-16-le"), bytes(24), "not valid JSON"),
    "negative": ({"a": FLOATS | {"data_offsets": [-24, 0]}}, b"", "malformed entry for tensor 'a'"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4), "malformed entry"),
    "list": ([FLOATS], b"", "not a JSON object"),
    "long name": ({"a" * 5000: FLOATS}, bytes(24), "a tensor whose name has 5,000 characters"),
    "many dimensions": (
        {"a": FLOATS | {"shape": [1 << 60] * 200_000}},
        bytes(24),
        "malformed entry",
    ),
    "long numbers": (
        {"a": FLOATS | {"shape": [10**4000] * 2}},
        bytes(24),
        "malformed entry for tensor 'a'",
    ),
    "long field": (
        {"a": FLOATS | {"shape": ["x"] * 10**6}},
        bytes(24),
        "malformed entry for tensor 'a'",
    ),
    "long dtype": ({"a": FLOATS | {"dtype": "F" * 10**6}}, bytes(24), "unknown dtype 'FFF"),
    "long key": (b'{"' + b"a" * 10**6 + b'":{},"' + b"a" * 10**6 + b'":{}}', b"", "occurs twice"),
    "half a character": ({"a\ud800": FLOATS}, bytes(24), "not valid Unicode, 'a\\ud800'"),
    "no json": (b"{]", b"", "not valid JSON"),
    "twice": (b'{"a":' + json.dumps(FLOATS).encode() * 1 + b',"a":{}}', bytes(24), "occurs twice"),
    "not utf-8": (b'{"\xff": 1}', b"", "not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    header, data, message = BROKEN[case]
    write_raw(tmp_path / "model.safetensors", header, data)
    with pytest.raises(UserError, match=r"model\.safetensors") as refused:
        read_header(tmp_path / "model.safetensors")
    assert message in refused.value.what
    assert len(refused.value.what) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes long, too short"),
        (b"1234567", "7 bytes long, too short"),
        ((1000).to_bytes(8, "little") + b"{}", "declares a header of 1,000 bytes, but has only 10"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "declares a header"),
    ],
)
def test_a_header_longer_than_the_file_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_header(tmp_path / "model.safetensors")
    assert message in refused.value.what
