"""A tokenizer that was loaded before: the same tokens and identity, without transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from amnesia_bench.tokenizers.known import open_known_tokenizer
from amnesia_bench.tokenizers.tokenizer import (
    load_tokenizer,
    tokenizer_identity,
    tokenizer_parts,
)
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import train_byte_level, train_metaspace

TEXT = made_up_essay(20, seed=3)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AMNESIA_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def kept(store: Path) -> list[Path]:
    return sorted((store / "tokenizers").iterdir())


def test_it_is_the_loaded_one_each_time(store: Path, tmp_path: Path) -> None:
    folder = train_metaspace(tmp_path / "tokenizer", made_up_essay(100))
    loaded = load_tokenizer(folder)
    for _ in range(2):
        known = open_known_tokenizer(folder)
        assert known.identity == tokenizer_identity(loaded)
        assert known.parts == tokenizer_parts(loaded)
        assert known(TEXT).input_ids == loaded(TEXT).input_ids
        assert known(TEXT, add_special_tokens=False).input_ids == loaded.encode(
            TEXT, add_special_tokens=False
        )
    assert len(kept(store)) == 1


def test_the_second_process_imports_neither_transformers_nor_torch(
    store: Path, tmp_path: Path
) -> None:
    folder = train_byte_level(tmp_path / "tokenizer", made_up_essay(100))
    open_known_tokenizer(folder)
    code = (
        "import sys; from pathlib import Path; "
        "from amnesia_bench.tokenizers.known import open_known_tokenizer; "
        f"known = open_known_tokenizer(Path({str(folder)!r})); "
        "print(known.identity, *sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    second = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert second.stdout.split() == [tokenizer_identity(load_tokenizer(folder))]


def test_a_changed_file_is_another_tokenizer(store: Path, tmp_path: Path) -> None:
    folder = train_byte_level(tmp_path / "tokenizer", made_up_essay(100))
    first = open_known_tokenizer(folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["merges"] = data["model"]["merges"][:50]
    path.write_text(json.dumps(data))
    second = open_known_tokenizer(folder)
    assert first.identity != second.identity
    assert len(second(TEXT).input_ids) > len(first(TEXT).input_ids)
    assert len(kept(store)) == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "identity.json"])
def test_a_damaged_copy_is_made_again(store: Path, tmp_path: Path, name: str) -> None:
    folder = train_byte_level(tmp_path / "tokenizer", made_up_essay(100))
    expected = open_known_tokenizer(folder)(TEXT).input_ids
    (entry,) = kept(store)
    (entry / name).write_bytes((entry / name).read_bytes()[:-40])
    assert open_known_tokenizer(folder)(TEXT).input_ids == expected
    (entry,) = kept(store)
    json.loads((entry / name).read_text())


def test_a_store_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AMNESIA_STORE", str(tmp_path / "file" / "store"))
    folder = train_byte_level(tmp_path / "tokenizer", made_up_essay(100))
    assert open_known_tokenizer(folder)(TEXT).input_ids
