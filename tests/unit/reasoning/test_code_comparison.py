from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.reasoning.code.comparison import printed_difference, returned_equals
from amnesia_bench.sandbox.driver import json_value

numbers = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([0.0, 1.0, 0.5, 2.0**70, float(10**300)]),
    st.sampled_from([2**63, -(2**63), 2**70, 10**300, 10**4000]),
)
jsons = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
answers = st.recursive(
    st.one_of(
        st.none(),
        numbers,
        st.text(max_size=3),
        st.fractions(),
        st.decimals(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=2), st.integers(0, 1)), inner, max_size=3),
    ),
    max_leaves=6,
)


def through_the_pipe(value: Any) -> Any:
    return json.loads(json.dumps(json_value(value)))


class TestReturned:
    @given(answers, jsons)
    def test_equality_outside_is_that_of_python_inside(self, answer: Any, expected: Any) -> None:
        assert returned_equals(through_the_pipe(answer), expected) == (answer == expected)

    @given(jsons)
    def test_a_value_equals_itself_unless_it_is_not_a_number(self, value: Any) -> None:
        assert returned_equals(through_the_pipe(value), value) == (value == json_copy(value))

    @pytest.mark.parametrize(
        ("answer", "expected", "equal"),
        [
            (Fraction(1, 2), 0.5, True),
            (Fraction(1, 3), 1 / 3, False),
            (Decimal("2.50"), 2.5, True),
            (Decimal("NaN"), 1, False),
            (True, 1, True),
            ((1, 2), [1, 2], False),
            ({1, 2}, [1, 2], False),
            (range(2), [0, 1], False),
            ({1: 2}, {"1": 2}, False),
            (b"a", "a", False),
            (object(), None, False),
            (math.nan, math.nan, False),
        ],
    )
    def test_examples(self, answer: Any, expected: Any, equal: bool) -> None:
        assert returned_equals(through_the_pipe(answer), expected) is equal

    @pytest.mark.parametrize(
        "forged",
        [
            {"dict": 5},
            {"dict": [[["a"], 1]]},
            {"dict": [["a", 1], ["a", 1]]},
            {"dict": [1]},
            {"ratio": ["0x1"]},
            {"ratio": ["x", "y"]},
            {"other": []},
            {},
            {"ratio": ["0x2", "0x2"]},
        ],
    )
    @pytest.mark.parametrize("expected", [{"a": 1}, {"a": 1, "b": 1}, 1, None, [], "x", 1.5])
    def test_what_no_driver_writes_equals_nothing(self, forged: Any, expected: Any) -> None:
        assert not returned_equals(forged, expected)


def json_copy(value: Any) -> Any:
    """A copy: inside containers Python takes a NaN for equal if it is the very same object."""
    if isinstance(value, float):
        return float(str(value))
    if isinstance(value, list):
        return [json_copy(item) for item in value]
    if isinstance(value, dict):
        return {key: json_copy(item) for key, item in value.items()}
    return value


# What a hostile frame may hold, and texts of all that a judge splits and converts.
frames = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.sampled_from(["ratio", "dict", "other"]), st.text(max_size=3)), inner
        ),
    ),
    max_leaves=8,
)
words = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["nan", "sNaN", "-inf", "1e999999", "0x10", "1_0", "٤", "1e-400", "9" * 5000]),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from([" ", "\n", "\t", "\x00", "\u2028", "\u00a0"]),
)
texts = st.lists(words, max_size=12).map("".join)
tolerances = st.sampled_from([None, 1e-6])


class TestHostileAnswers:
    @given(frames, jsons, tolerances)
    def test_any_frame_is_judged(self, frame: Any, expected: Any, tolerance: float | None) -> None:
        frame = json.loads(json.dumps(frame))
        assert returned_equals(frame, expected, tolerance) in (True, False)

    @given(texts, texts, tolerances)
    def test_any_text_is_judged(self, text: str, expected: str, tolerance: float | None) -> None:
        found = printed_difference(text, expected, tolerance)
        assert found is None or "line" in found

    @given(texts, texts)
    def test_what_is_right_stays_right_with_a_tolerance(self, text: str, expected: str) -> None:
        if printed_difference(text, expected) is None:
            assert printed_difference(text, expected, 1e-6) is None

    @given(answers, jsons)
    def test_what_equals_stays_so_with_a_tolerance(self, answer: Any, expected: Any) -> None:
        if returned_equals(through_the_pipe(answer), expected):
            assert returned_equals(through_the_pipe(answer), expected, 1e-5)


class TestTolerance:
    @pytest.mark.parametrize(
        ("printed", "expected", "right"),
        [
            ("0.3333333", "0.333333333333", True),
            ("0.33333", "0.333333333333", False),
            ("1000000.5", "1000000.0", True),
            ("1000002", "1000000.0", False),
            ("1e-9", "0.0", True),
            ("-0.0000001", "0.0", True),
            ("3.0000000001", "3", False),
            ("99999999999999999", "100000000000000000", False),
            ("Case 1: 0.50000001", "Case 1: 0.5", True),
            ("Case  1:  0.5", "Case 1: 0.5", True),
            ("case 1: 0.5", "Case 1: 0.5", False),
            ("nan", "0.5", False),
            ("inf", "1e400", True),
            ("0.5 0.5", "0.5", False),
            ("x.y", "x.z", False),
        ],
    )
    def test_of_printed_numbers(self, printed: str, expected: str, right: bool) -> None:
        assert (printed_difference(printed, expected, 1e-6) is None) is right

    @pytest.mark.parametrize(
        ("answer", "expected", "right"),
        [
            (1 / 3, 0.33333, True),
            (0.334, 0.33333, False),
            (1, 1.0, True),
            (1.000000001, 1, False),
            ([1e-9, 2.0000001], [0.0, 2.0], True),
            ({"a": 0.1 + 0.2}, {"a": 0.3}, True),
            (Fraction(1, 3), 0.33333, True),
            (Decimal("0.333331"), 0.33333, True),
            (Fraction(10**900, 3), 0.5, False),
            ("0.5", 0.5, False),
            (True, 1.0, True),
            (math.nan, 0.5, False),
            (10**400, 1.5, False),
        ],
    )
    def test_of_returned_numbers(self, answer: Any, expected: Any, right: bool) -> None:
        assert returned_equals(through_the_pipe(answer), expected, 1e-5) is right


class TestPrinted:
    @pytest.mark.parametrize(
        ("printed", "expected"),
        [
            ("1 2\n", "1 2"),
            ("\n\n 1 2 \n\n", "1 2"),
            ("1   2", "1 2"),
            ("a\n b \nc", "a\nb\nc\n"),
            ("1.0", "1"),
            ("1e3", "1000"),
            ("-0", "0"),
            ("0.1000", ".1"),
            ("", "\n"),
        ],
    )
    def test_white_space_and_number_formats_make_no_difference(
        self, printed: str, expected: str
    ) -> None:
        assert printed_difference(printed, expected) is None

    @pytest.mark.parametrize(
        ("printed", "expected", "difference"),
        [
            ("1\n2", "1 2", "2 lines, expected 1"),
            ("a  b", "a b", "line 1"),
            ("x\n1.0000001", "x\n1", "line 2"),
            ("Yes", "YES", "line 1"),
            ("1 2 3", "1 2", "line 1"),
            ("nan", "nan ", None),
            ("NaN 1", "NaN 1.0", "line 1"),
            ("sNaN", "1", "line 1"),
            ("1e999999999999999999999", "1", "line 1"),
            ("Infinity", "inf", None),
        ],
    )
    def test_other_differences_count(
        self, printed: str, expected: str, difference: str | None
    ) -> None:
        assert printed_difference(printed, expected) == difference
