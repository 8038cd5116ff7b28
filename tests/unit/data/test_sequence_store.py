"""Data stores: what was written is read back, and what is not whole is refused."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.data import open_store, sequence_store
from amnesia_bench.data.sequence_store import SequenceWriter
from amnesia_bench.errors import UserError
from tests.support.small_data import cot_row, data_config, prepare, save_tokenizer, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("store")
    rows = write_rows(base / "rows.jsonl", [cot_row(i) for i in range(60)])
    prepare(data_config(), save_tokenizer(base / "tokenizer"), base / "out", [rows])
    return base / "out"


@given(
    documents=st.lists(
        st.lists(st.integers(1, 13), min_size=1, max_size=3), min_size=1, max_size=9
    ),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_sequences_come_back_as_they_were_written(
    documents: list[list[int]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng, width = np.random.default_rng(seed), 41  # not a multiple of 8
    folder = tmp_path_factory.mktemp("shards")
    writer = SequenceWriter(folder, width, 4, pad=7)
    writer.sequences_per_shard = 2
    written = []
    for lengths in documents:
        pieces = [
            (rng.integers(0, 2**18, n).astype(np.uint32), rng.random(n) < 0.5) for n in lengths
        ]
        writer.add(iter(pieces))
        written.append(pieces)
    writer.close()
    store = opened(folder, writer)
    assert store.num_sequences == len(written)
    for i in reversed(range(len(written))):
        tokens, mask = (np.concatenate(column) for column in zip(*written[i], strict=True))
        read = store.sequence(i)
        assert read.tokens.dtype == np.int32
        assert read.loss_mask.dtype == np.bool_
        assert read.tokens.shape == read.loss_mask.shape == (width,)
        assert read.padding == width - len(tokens)
        assert read.tokens.tolist() == tokens.tolist() + [7] * read.padding
        assert read.loss_mask.tolist() == mask.tolist() + [False] * read.padding
        assert list(read.document_lengths) == documents[i] + [read.padding] * (read.padding > 0)


def opened(folder: Path, writer: SequenceWriter) -> sequence_store.SequenceStore:
    counts = sequence_store.DataDescription.__dataclass_fields__
    values = dict.fromkeys(counts, 0) | {
        "token_bytes": 4,
        "sequence_tokens": writer.sequence_tokens,
        "num_sequences": writer.num_sequences,
        "sequences_per_shard": writer.sequences_per_shard,
    }
    return sequence_store.SequenceStore(
        folder,
        sequence_store.DataDescription(**values),
        "sha",  # type: ignore[arg-type]
    )


def test_a_store_says_what_it_is(folder: Path) -> None:
    store = open_store(folder)
    counts = store.description.counts
    assert (store.sequence_tokens, store.isolate_documents) == (256, True)
    assert counts.rows == counts.documents == 60
    sequences = [store.sequence(i) for i in range(store.num_sequences)]
    assert sum(int(s.loss_mask.sum()) for s in sequences) == counts.trained_tokens
    assert sum(s.padding for s in sequences) == counts.padding_tokens
    assert sum(map(len, (s.tokens for s in sequences))) == counts.tokens
    with pytest.raises(IndexError):
        store.sequence(store.num_sequences)
    with pytest.raises(IndexError):
        store.sequence(-1)


def test_tokens_of_a_small_vocabulary_take_two_bytes(folder: Path) -> None:
    store = open_store(folder)
    assert store.description.token_bytes == 2
    size = (folder / "tokens-00000.bin").stat().st_size
    assert size == store.num_sequences * store.sequence_tokens * 2


@pytest.fixture
def spoiled(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    open_store(copy)  # a plain copy is as good
    return copy


def test_a_store_that_is_not_finished_or_was_changed_is_refused(spoiled: Path) -> None:
    shard = spoiled / "tokens-00000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"changed since .* tokens-00000.bin has \d+ bytes"):
        open_store(spoiled)
    shard.write_bytes(whole)
    description = spoiled / "data.json"
    text = description.read_text()
    description.write_text(text.replace('"isolate_documents": true', '"isolate_documents":  null'))
    with pytest.raises(UserError, match=r"data.json has"):
        open_store(spoiled)
    description.write_text(text)
    (spoiled / "mask-00000.bin").unlink()
    with pytest.raises(UserError, match=r"mask-00000.bin is missing"):
        open_store(spoiled)
    (spoiled / "manifest.json").unlink()
    with pytest.raises(UserError, match="not a finished artifact"):
        open_store(spoiled)


def test_another_artifact_is_no_data_store(spoiled: Path) -> None:
    manifest = spoiled / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind": "data"', '"kind": "restored"'))
    with pytest.raises(UserError, match="contains restored, not training data"):
        open_store(spoiled)


def test_a_store_is_named_by_its_contents(folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "other.jsonl", [cot_row(i) for i in range(60)])
    hashes = []
    for seed in (0, 1):
        out = tmp_path / f"out{seed}"
        prepare(data_config(seed=seed), save_tokenizer(tmp_path / "tokenizer"), out, [rows])
        hashes.append(open_store(out).sha256)
    assert hashes[0] == open_store(folder).sha256  # another place and time, the same data
    assert hashes[1] != hashes[0]
    assert dataclasses.asdict(open_store(out).description)["config"]["seed"] == 1
