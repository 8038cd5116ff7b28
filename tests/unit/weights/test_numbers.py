"""Rounding to the file's dtype happens once, to nearest, ties to even."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.weights.numbers import FLOAT_DTYPES, decode, encode


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_16_bit_pattern_survives_the_way_through_float64(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[np.isfinite(decode(bits.view(np.uint8), dtype))]
    assert encode(decode(finite.view(np.uint8), dtype), dtype) == finite.tobytes()


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-3.38e38, max_value=3.38e38))
def test_bf16_is_the_nearest_value_and_even_on_a_tie(value: float) -> None:
    result = np.frombuffer(encode(np.array([value]), "BF16"), np.uint16)[0]
    exact = Fraction(value)

    def distance(bits: int) -> Fraction | None:
        number = float(np.array([bits], np.uint16).view(ml_dtypes.bfloat16)[0])
        return abs(Fraction(number) - exact) if np.isfinite(number) else None

    mine = distance(int(result))
    assert mine is not None
    for neighbour in (int(result) - 1, int(result) + 1):
        if (neighbour & 0x7FFF) <= 0x7F80 and neighbour >= 0:
            other = distance(neighbour)
            assert other is None or mine < other or (mine == other and result % 2 == 0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("beside_a_tie", "nearest"),  # float32 makes each the tie, which goes to the even neighbour
    [(1 + 2**-8 + 2**-40, 1 + 2**-7), (1 + 3 * 2**-8 - 2**-40, 1 + 2**-7)],
)
def test_two_roundings_would_have_been_wrong(
    beside_a_tie: float, nearest: float, sign: int
) -> None:
    rounded = np.frombuffer(encode(np.array([sign * beside_a_tie]), "BF16"), ml_dtypes.bfloat16)
    assert rounded[0] == sign * nearest


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_nan_and_infinity_stay_what_they_are(dtype: str) -> None:
    values = np.array([np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(decode(encode(values, dtype), dtype), values)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_signed_zero_and_overflow(dtype: str) -> None:
    zeros = encode(np.array([0.0, -0.0]), dtype)
    assert np.signbit(decode(zeros, dtype)).tolist() == [False, True]
    if dtype != "F64":
        assert np.isinf(decode(encode(np.array([1e300]), dtype), dtype)).all()
