"""The verdict on a claim of a report."""

from __future__ import annotations

from enum import StrEnum


class ClaimVerdict(StrEnum):
    """The verdict on a claim: above the bound, below it, or neither is established.

    `NOT_SHOWN` is also the verdict if cells are missing. `NOT_ENOUGH_DATA` is the verdict on a
    claim about the cause for which too few texts, heads or runs were measured.
    """

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_SHOWN = "not shown"
    NOT_ENOUGH_DATA = "not enough data"
