"""A line either is what was written, or is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.store.sealed_json import seal, unseal

RECORDS = st.dictionaries(
    st.text(min_size=1).filter(lambda key: key != "crc32"),
    st.none() | st.integers() | st.text() | st.lists(st.integers(0, 9), max_size=3),
    min_size=1,
    max_size=5,
)


@given(RECORDS)
def test_what_was_sealed_comes_back_and_stays_a_json_line(record: dict[str, object]) -> None:
    line = seal(record)
    assert line.isascii()
    assert "\n" not in line
    assert unseal(line) == record
    assert {key: value for key, value in json.loads(line).items() if key != "crc32"} == record


def test_every_single_bit_counts() -> None:
    line = seal({"text": "The number is 1234567.", "tokens": [1, 2]}).encode()
    for i in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[i // 8] ^= 1 << i % 8
        with pytest.raises(ValueError, match="checksum"):
            unseal(flipped.decode("latin-1"))


@pytest.mark.parametrize("line", ["", "{}", '{"a": 1}', "null", '{"crc32": "00000000"}'])
def test_a_line_that_was_never_sealed_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="checksum"):
        unseal(line)
