from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.recall.niah.splicing import (
    NotSpliceableError,
    Span,
    SplicedText,
    WholeText,
    joined,
    tokenize,
)
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.niah_texts import made_up_essay
from tests.support.niah_tokenizers import (
    train_byte_level,
    train_chunks_of_5,
    train_chunks_of_3000,
    train_metaspace,
)

TEXT = made_up_essay(300)


@pytest.fixture(scope="module", params=[train_byte_level, train_metaspace])
def spliced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = load_tokenizer(request.param(tmp_path_factory.mktemp("t") / "t", TEXT))
    return SplicedText(tokenizer, TEXT), tokenizer


INSERTED = st.text(alphabet=" 0123456789abcé▁\n", max_size=40)


@settings(deadline=None, max_examples=150)
@given(
    cuts=st.tuples(st.integers(0, len(TEXT)), st.integers(0, len(TEXT))),
    inserted=st.tuples(INSERTED, INSERTED, INSERTED),
)
def test_spliced_tokens_are_the_tokenizers_own(
    spliced: tuple[SplicedText, Any], cuts: tuple[int, int], inserted: tuple[str, str, str]
) -> None:
    text, tokenizer = spliced
    cut, end = sorted(cuts)
    pieces = [inserted[0], Span(0, cut), inserted[1], Span(cut, end), inserted[2]]
    whole = tokenize(tokenizer, joined(TEXT, pieces))
    composed = text.compose(pieces)
    assert np.array_equal(composed.ids(), whole.ids)
    assert len(composed) == len(whole.ids)
    # The needle is wherever the tokenizer says that its characters are.
    start = len(inserted[0]) + cut
    stop = start + len(inserted[1])
    assert composed.span(start, stop) == WholeText(tokenizer, TEXT).compose(pieces).span(
        start, stop
    )


def test_a_span_is_all_tokens_that_reach_into_it(spliced: tuple[SplicedText, Any]) -> None:
    text, tokenizer = spliced
    pieces = [Span(0, 6000), " the number is 7654321. ", Span(6000, 12000)]
    first, stop = text.compose(pieces).span(6000 + 15, 6000 + 22)
    ids = text.compose(pieces).ids()
    assert "7654321" in tokenizer.decode(ids[first:stop])
    assert "7654321" not in tokenizer.decode(ids[first + 1 : stop])
    assert "7654321" not in tokenizer.decode(ids[first : stop - 1])


def test_a_tokenizer_that_looks_at_words_lets_its_text_move(
    spliced: tuple[SplicedText, Any],
) -> None:
    assert spliced[0].moves_freely


def test_a_tokenizer_that_counts_from_the_beginning_is_found_out(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(train_chunks_of_3000(tmp_path / "t", TEXT))
    text = SplicedText(tokenizer, TEXT)
    pieces = ["7654321", Span(0, len(TEXT))]
    whole = tokenize(tokenizer, joined(TEXT, pieces))
    assert not np.array_equal(text.compose(pieces).ids(), whole.ids)  # no seam shows it
    assert not text.moves_freely


def test_a_tokenizer_that_cuts_by_position_is_not_spliced(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(train_chunks_of_5(tmp_path / "t", TEXT))
    pieces = [Span(0, 6000), "7654321", Span(6000, 12000)]
    with pytest.raises(NotSpliceableError):
        SplicedText(tokenizer, TEXT).compose(pieces)
    whole = tokenizer(joined(TEXT, pieces), add_special_tokens=False).input_ids
    assert WholeText(tokenizer, TEXT).compose(pieces).ids().tolist() == whole
