"""prepare and the generators from Python: the same bytes as the commands write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.records.codec import to_json
from amnesia_bench.requests.data import (
    PrepareRequest,
    SynthesizeRowsRequest,
    SynthesizeTokenizerRequest,
)
from amnesia_bench.store.layout import MANIFEST
from tests.support.checkpoints import tree_bytes
from tests.support.small_data import cot_row, save_tokenizer, write_rows


def contents(folder: Path) -> dict[str, bytes]:
    """The files but for the manifest, which holds the time."""
    return {name: data for name, data in tree_bytes(folder).items() if name != MANIFEST}


def test_prepare_writes_what_the_command_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    rows = write_rows(tmp_path / "rows.jsonl", [cot_row(i) for i in range(30)])
    changes = ["data.sequence_tokens=512", "data.sample_rows=1.0"]
    request = PrepareRequest(
        config=ab.load_data("miromind", changes), tokenizer=tokenizer, inputs=(rows,)
    )
    steps: list[str] = []
    description = ab.prepare(request, tmp_path / "ours", progress=lambda p: steps.append(p.step))
    assert steps[-1] == "packing"
    command = ["data", "prepare", "miromind", "--tokenizer", str(tokenizer), "--input", str(rows),
               "--out", str(tmp_path / "theirs"), changes[0], "--json"]  # fmt: skip
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == to_json(description)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


def test_generated_rows_and_their_tokenizer_are_those_of_the_command(tmp_path: Path) -> None:
    source = SyntheticSource(generator="prose", rows=4, words=50, seed=3)
    ab.synthesize_rows(SynthesizeRowsRequest(source=source), tmp_path / "rows")
    words = ["data", "synthesize", "prose", "--rows", "4", "--words", "50", "--seed", "3"]
    assert main([*words, "--out", str(tmp_path / "other_rows")]) == 0
    assert contents(tmp_path / "rows") == contents(tmp_path / "other_rows")

    ab.synthesize_tokenizer(SynthesizeTokenizerRequest(seed=1), tmp_path / "tokenizer")
    command = ["data", "synthesize", "tokenizer", "--seed", "1", "--out", str(tmp_path / "other")]
    assert main(command) == 0
    assert contents(tmp_path / "tokenizer") == contents(tmp_path / "other")
