"""Generated rows: the same bytes everywhere, and of the schemas that they stand in for."""

import hashlib
from typing import get_args

import numpy as np
import pytest

from amnesia_bench.config.data_schema import Sized, SyntheticSource, Unsized
from amnesia_bench.config.load import validate_values
from amnesia_bench.data.row_forms import Columns
from amnesia_bench.data.sources import read_rows, source_files
from amnesia_bench.data.synthesize import ROWS, synthesize_rows
from amnesia_bench.data.synthetic.generators import SIZED, UNSIZED, lines, sha256_of_rows
from amnesia_bench.errors import UserError
from amnesia_bench.requests.data import SynthesizeRowsRequest
from tests.support.synthetic import rows_of, source_of

NAMES = (*SIZED, *UNSIZED)
# Changed knowingly only: every result of the tiny profile changes with them.
GOLDEN = {
    "prose": "509973cbaa271d5d",
    "haystack": "1de4c9c59251688c",
    "mathematics": "c10775fb0762eabe",
    "short_instructions": "fdd20da6bc454e84",
    "long_instructions": "cea4f3649741f9fd",
    "copies": "a36e235c95605a98",
    "varied_copies": "d9e366c708973689",
    "word_problems": "22a94e0a7008a90e",
    "conversations": "2bb0d487f04b6d43",
    "programs": "4d78f85cf2051426",
    "test_problems": "c6cb0d43b9b08d69",
    "facts": "731a69fe6d4e28a6",
    "choices": "911dba47532a2445",
}


def test_the_config_knows_exactly_the_generators_there_are() -> None:
    assert set(get_args(Sized)) == set(SIZED)
    assert set(get_args(Unsized)) == set(UNSIZED)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_bytes_on_every_machine(name: str) -> None:
    assert sha256_of_rows(source_of(name, 50))[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_how_many_there_are(name: str) -> None:
    assert rows_of(name, 30)[:10] == rows_of(name, 10)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_other_rows(name: str) -> None:
    first, second = rows_of(name, 40), rows_of(name, 40, seed=1)
    assert sum(a == b for a, b in zip(first, second, strict=True)) <= 1


@pytest.mark.parametrize("name", sorted(SIZED))
@pytest.mark.parametrize("words", [20, 500])
def test_rows_have_about_as_many_words_as_were_asked_for(name: str, words: int) -> None:
    counts = [
        len(" ".join(map(str, row.values())).split()) for row in rows_of(name, 20, words=words)
    ]
    assert min(counts) >= words
    assert np.median(counts) <= 1.5 * words + 60


def test_a_generated_source_is_pinned_by_the_hash_of_the_file_it_would_be(tmp_path) -> None:
    source = source_of("prose", 12)
    (made,) = source_files(source)
    synthesize_rows(SynthesizeRowsRequest(source=source), tmp_path / "rows")
    written = (tmp_path / "rows" / ROWS).read_bytes()
    assert made.identity == f"sha256:{hashlib.sha256(written).hexdigest()}"
    assert b"".join(lines(source)) == written
    columns = Columns(required=(("text",),))
    assert [number for number, _ in read_rows(made, columns, set())] == list(range(1, 13))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"generator": "prosa"}, "generator=prosa"),
        ({"words": None}, "generator prose needs words"),
        ({"generator": "programs"}, "generator programs takes no words"),
        ({"rows": 0}, "rows=0"),
        ({"rows": None}, "rows=null"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], said: str) -> None:
    good = {"generator": "prose", "rows": 3, "words": 20, "seed": 0}
    with pytest.raises(UserError) as caught:
        validate_values(SyntheticSource, good | values)
    assert said in caught.value.what
