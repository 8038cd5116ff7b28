from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.recall.niah.haystack import read_haystack
from amnesia_bench.requests.recall import HubEssays


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.json", json.dumps({"text": "One two.\n\n Three"})),
        ("a.json", json.dumps([{"text": "One  two."}, {"text": "Three"}])),
        ("a.json", json.dumps(["One two.", "Three"])),
        ("a.jsonl", '{"text": "One two."}\n\n{"text": "Three"}\n'),
        ("a.jsonl", '{"text": "One\u2028two."}\n{"text": "Three"}\n'),  # no end of a line
        ("a.txt", "One two.\tThree"),
        ("a.md", "One\ntwo. Three"),
    ],
)
def test_every_format_gives_the_same_words(name: str, contents: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(contents)
    haystack = read_haystack(tmp_path / name)
    assert haystack.words == ("One", "two.", "Three")
    assert haystack.copies == 1
    assert haystack.source == str(tmp_path / name)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Three")
    (tmp_path / "a.md").write_text("One two.")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    assert read_haystack(tmp_path).words == ("One", "two.", "Three")


def test_space_at_the_ends_is_kept_as_lm_eval_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" One two.\n")
    haystack = read_haystack(tmp_path / "a.txt")
    assert haystack.words == ("", "One", "two.", "")
    assert haystack.repeated(2).words == ("", "One", "two.", "One", "two.", "")


def test_copies_are_recorded_and_hashed_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One two.")
    haystack = read_haystack(tmp_path / "a.txt")
    repeated = haystack.repeated(3)
    assert (repeated.copies, len(repeated.words)) == (3, 6)
    assert repeated.sha256 == haystack.sha256


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.txt", b"", "holds no words"),
        ("a.txt", b" \n\t ", "holds no words"),
        ("a.txt", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("a.txt", b"a\0b", "NUL"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b'{"body": "x"}', "row 1 has no text"),
        ("a.jsonl", b'{"text": "x"}\n3\n', "row 2 has no text"),
        ("a.jsonl", b'{"text": "x"}\n{\n', r"a\.jsonl:2: not JSON"),
        ("a.json", b'{"text": "\\ud800"}', "lone surrogate"),
        ("a.csv", b"a,b", "unknown kind of text"),
    ],
)
def test_what_is_no_text_is_refused(
    name: str, contents: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=message):
        read_haystack(tmp_path / name)


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.txt or \.md file"):
        read_haystack(tmp_path)


def test_a_folder_with_a_binary_text_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8"):
        read_haystack(tmp_path)


def test_a_missing_haystack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such haystack"):
        read_haystack(tmp_path / "none.txt")


def test_the_hub_is_read_at_the_revision_that_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load(name: str, *, split: str, revision: str) -> dict[str, list[str]]:
        asked.append((name, split, revision))
        return {"text": ["One two.", "Three"]}

    class Api:
        def dataset_info(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(sha="newest")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert read_haystack(HubEssays()).source == "hub:baber/paul_graham_essays@newest"
    assert read_haystack(HubEssays(revision="abc")).source == "hub:baber/paul_graham_essays@abc"
    assert [revision for _, _, revision in asked] == ["newest", "abc"]


def test_a_hub_out_of_reach_is_the_environment_and_says_what_else_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Api:
        def dataset_info(self, name: str) -> SimpleNamespace:
            raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(MissingEnvironmentError, match=r"no route to host[\s\S]*--haystack PATH"):
        read_haystack(HubEssays())
