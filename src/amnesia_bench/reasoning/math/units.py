"""Units that answers carry: which words mean the same one, and which differ for sure."""

from __future__ import annotations

_SYNONYMS = (
    "mm millimeter millimetre",
    "cm centimeter centimetre",
    "m meter metre",
    "km kilometer kilometre",
    "in inch inche",
    "ft foot feet",
    "yd yard",
    "mi mile",
    "mg milligram",
    "g gram gm",
    "kg kilogram",
    "oz ounce",
    "ml milliliter millilitre",
    "l liter litre",
    "s second sec",
    "min minute",
    "h hour hr",
    "day",
    "week",
    "month",
    "year yr",
    "mph",
    "kph kmh",
    "dollar usd buck",
    "euro eur",
    "pound lb gbp",  # of weight or of money
    "yen jpy",
    "cent",
    "rupee rs inr",
    "degree deg",
    "radian rad",
    "percent pct percentage",
    "am",
    "pm",
)
_KNOWN = {word: names.split()[0] for names in _SYNONYMS for word in names.split()}


def canonical_unit(words: str) -> str:
    """Return the name of a known unit, with its power; empty for everything else.

    >>> canonical_unit("centimeters^2"), canonical_unit("p.m."), canonical_unit("apples")
    ('cm^2', 'pm', '')
    """
    bare, _, power = words.casefold().partition("^")
    bare = bare.replace(".", "").strip()
    for prefix, exponent in (("square ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if bare.startswith(prefix):
            bare, power = bare.removeprefix(prefix), exponent
    bare = bare.strip()
    name = _KNOWN.get(bare) or _KNOWN.get(bare.removesuffix("s")) or ""
    exponent = power.strip("{} ")
    return f"{name}^{exponent}" if name and exponent else name
