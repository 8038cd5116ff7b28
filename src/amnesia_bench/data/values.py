"""Field values of rows from JSON and Parquet: absent values, texts, and JSON inside texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from amnesia_bench.data.dropped import DroppedRow, Reason
from amnesia_bench.errors import UserError

_LOSS_NAME = re.compile("loss|train|mask|weight|label|grad|scale", re.IGNORECASE)


def absent(value: object) -> bool:
    """Return whether a value is null, or an empty text, list or object.

    Parquet gives every item of a list the fields of all items, with nulls for missing ones.
    """
    return value is None or (isinstance(value, str | bytes | Sequence | Mapping) and not value)


def present(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that are not `absent`."""
    return {str(key): value for key, value in fields.items() if not absent(value)}


def text_value(value: object, at: str) -> str:
    """Return a value that must be a text; null becomes the empty text.

    Raises:
        UserError: the value is not a text.
        DroppedRow: the text is not valid Unicode.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{at} is of type {type(value).__name__}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can express and UTF-8 cannot
        raise DroppedRow(Reason.NOT_UNICODE) from error
    return value


def items(value: object, at: str) -> list[Any]:
    """Return a value that must be a list, or a text with a JSON list.

    Raises:
        UserError: the value is neither.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_nested_json(value, at)
    if absent(value):
        return []
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UserError(f"{at} is of type {type(value).__name__}, expected a list")
    return list(value)


def parse_nested_json(value: str, at: str) -> object:
    """Parse JSON inside a text.

    Raises:
        DroppedRow: the text is not JSON. Models generated many such texts, so this is common.
    """
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DroppedRow(Reason.NOT_JSON, f"{at}: {value:.80}") from error


def names(fields: Mapping[str, object]) -> str:
    """Return the field names of an object for an error message."""
    return ", ".join(f"{key!s:.80}" for key in list(fields)[:20]) or "nothing"


def refuse_unknown(fields: Mapping[str, object], known: frozenset[str], at: str) -> None:
    """Raise UserError for an unknown field that may change the meaning of an object.

    A numeric field is accepted as a measurement, such as a length, unless its name suggests a loss
    weight.
    """
    for key, value in sorted(present(fields).items()):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in known or (is_number and not _LOSS_NAME.search(key)):
            continue
        name = key[:80]
        raise UserError(
            f"{at}: unknown field {name}, with value {value!r:.80}",
            hint="It may change the meaning of the text, so it is not ignored. If it does not, "
            f"remove it from the rows, for example with\n  jq -c 'del(..|.{name}?)' FILE",
        )
