"""Values of a row as JSON and Parquet hold them: absent, text, or JSON written as a text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from amnesia_bench.data.dropped import DroppedRow, Reason
from amnesia_bench.errors import UserError

_OF_LOSS = re.compile("loss|train|mask|weight|label|grad|scale", re.IGNORECASE)


def absent(value: object) -> bool:
    """Whether a field says nothing: null, or an empty text, list or object.

    Parquet gives every item of a list all fields of all items, with nulls where there was none.
    """
    return value is None or (isinstance(value, str | bytes | Sequence | Mapping) and not value)


def present(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that say something."""
    return {str(key): value for key, value in fields.items() if not absent(value)}


def text_value(value: object, at: str) -> str:
    """Return a value that must be a text; a null is an empty one.

    Raises:
        UserError: it is something else.
        DroppedRow: it is not valid Unicode.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{at} is a {type(value).__name__}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # which JSON can say and UTF-8 cannot
        raise DroppedRow(Reason.NOT_UNICODE) from error
    return value


def items(value: object, at: str) -> list[Any]:
    """Return a value that must be a list, or a list written as JSON in a text.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_nested_json(value, at)
    if absent(value):
        return []
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UserError(f"{at} is a {type(value).__name__}, expected a list")
    return list(value)


def parse_nested_json(value: str, at: str) -> object:
    """Parse JSON inside a text.

    Raises:
        DroppedRow: it is not JSON; many such texts were written by models.
    """
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DroppedRow(Reason.NOT_JSON, f"{at}: {value:.80}") from error


def names(fields: Mapping[str, object]) -> str:
    """List the fields of an object, for messages."""
    return ", ".join(f"{key!s:.80}" for key in list(fields)[:20]) or "nothing"


def refuse_unknown(fields: Mapping[str, object], known: frozenset[str], at: str) -> None:
    """Raise UserError for a field that is not known and may change what an object means.

    A number is taken for a measure of it, such as a length, unless its name speaks of a loss.
    """
    for key, value in sorted(present(fields).items()):
        measure = isinstance(value, int | float) and not isinstance(value, bool)
        if key in known or (measure and not _OF_LOSS.search(key)):
            continue
        name = key[:80]
        raise UserError(
            f"{at}: {name} is a field that this program does not know; its value is {value!r:.80}",
            hint="It might change what the text means, so it is not ignored. If it does not, "
            f"remove it from the rows, such as with\n  jq -c 'del(..|.{name}?)' FILE",
        )
