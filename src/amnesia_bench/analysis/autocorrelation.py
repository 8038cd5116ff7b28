"""The autocorrelation of token ids by distance, in excess of chance (Appendix G; Figure 3, left).

Shapes: N texts, W resamplings, D distances, V token types.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.analysis.decay import (
    MIN_DISTANCES,
    Floats,
    Resampled,
    describe_tail,
    draw_weights,
    fit_decay,
    from_peak,
)
from amnesia_bench.analysis.texts import Texts
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.attention import Autocorrelation

RATIO, MEAN = "ratio_of_sums", "mean_of_correlations"


def autocorrelations(
    texts: Texts, max_distance: int, data: Parent, rng: np.random.Generator
) -> tuple[Autocorrelation, ...]:
    """Return two variants of the autocorrelation of token ids, with fits of their decay.

    The formula is missing in our copy of the paper, so two readings of its text are computed; see
    `records.attention.Autocorrelation`. Let m_v(d) be the share of token pairs at distance d in
    which both tokens are v, and let pi_v be the frequency of v. Each reading is the sum over v of
    w_v (m_v(d) - pi_v^2), divided by the same sum at distance 0. w_v is 1 in the first reading and
    1 / (1 - pi_v) in the second.

    Args:
        texts: texts that are longer than the largest distance.
        max_distance: the largest distance, in tokens.
        data: the data, as a parent of the records.
        rng: the random generator that draws the resamplings of the texts.

    Raises:
        UserError: there are fewer than two texts, a text is too short, or all tokens are equal.
    """
    tokens = [text.tokens for text in texts.taken]
    _check_lengths(texts.source, [len(text) for text in tokens], max_distance)
    types, row, of_text = _numbered(tokens)
    if len(types) < 2:
        raise UserError(
            f"{texts.source}: all tokens are equal; an autocorrelation needs two token types",
            hint="Use other data.",
        )
    resamplings = draw_weights(len(tokens), rng)
    frequency = np.bincount(row) / len(row)
    records = []
    for reading in (RATIO, MEAN):
        weight = np.ones(len(types)) if reading == RATIO else 1 / (1 - frequency)
        curve = _curve(row, of_text, weight, max_distance, resamplings)
        decaying = from_peak(curve)
        enough = len(decaying.values) >= MIN_DISTANCES
        halves = len(decaying.values) >= 2 * MIN_DISTANCES
        records.append(
            Autocorrelation(
                source=texts.source,
                data=data,
                reading=reading,
                n=len(tokens),
                tokens=len(row),
                too_short=texts.too_short,
                chance=float(frequency @ frequency),
                curve=curve.curve(),
                fit=fit_decay(decaying, noisy=True) if enough else None,
                tail=describe_tail(decaying, noisy=True) if halves else None,
                settings={"tokens": "from the first trained one of a document to the last"},
            )
        )
    return tuple(records)


def _check_lengths(source: str, lengths: Sequence[int], max_distance: int) -> None:
    if len(lengths) < 2:
        raise UserError(
            f"{source}: {len(lengths)} texts; an interval needs at least two",
            hint="Use data with more texts.",
        )
    if (shortest := min(lengths)) <= max_distance:
        raise UserError(
            f"{source}: a text of {shortest} tokens is too short for the largest distance, "
            f"{max_distance}",
            hint=f"--max-distance {shortest - 1}, or longer texts.",
        )


def _numbered(
    tokens: Sequence[NDArray[np.int32]],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the token types [V], and the type index and text index of each token of all texts."""
    types, row = np.unique(np.concatenate(tokens), return_inverse=True)
    of_text = np.repeat(np.arange(len(tokens)), [len(text) for text in tokens])
    return types, row.astype(np.int64), of_text


def _curve(
    row: NDArray[np.int64],
    of_text: NDArray[np.int64],
    weight: Floats,
    max_distance: int,
    resamplings: Floats,
) -> Resampled:
    """Return one reading at distances 1 to D, for the original texts and for each resampling."""
    num_texts = int(of_text[-1]) + 1
    matches = np.zeros((num_texts, max_distance))
    lengths = np.bincount(of_text)
    pairs = lengths[:, None] - np.arange(1, max_distance + 1)
    of_token = weight[row]
    for d in range(1, max_distance + 1):
        same = (row[d:] == row[:-d]) & (of_text[d:] == of_text[:-d])
        matches[:, d - 1] = np.bincount(
            of_text[:-d][same], weights=of_token[:-d][same], minlength=num_texts
        )

    def reading(times: Floats) -> Floats:
        counted = np.bincount(row, weights=times[of_text], minlength=len(weight))
        frequency = counted / counted.sum()
        chance, at_zero = weight @ frequency**2, weight @ frequency
        shares = (times @ matches) / (times @ pairs)
        result: Floats = (shares - chance) / (at_zero - chance)
        return result

    replicates = np.stack([reading(times) for times in resamplings])
    return Resampled(reading(np.ones(num_texts)), replicates, 1)
