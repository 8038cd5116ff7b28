"""Make requests from command-line options; errors name the option with an invalid value."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from amnesia_bench.errors import UserError

Kind = TypeVar("Kind", bound=BaseModel)


def make(
    kind: type[Kind], options: Mapping[str, str] = MappingProxyType({}), /, **values: object
) -> Kind:
    """Create a request or a part of one: `make(RankLayersRequest, samples=args.samples, ...)`.

    Args:
        kind: a class of `amnesia_bench.requests`.
        options: for each field whose option is not `--FIELD`, the name of its option, for example
            `{"folder": "DIR"}`.
        values: the values of the fields.

    Raises:
        UserError: a value is invalid; the message has one line for each, for example
            `--samples 0: must be at least 1`.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        lines: dict[str, str] = {}
        # Keep the first error per field: pydantic also reports a list as too short if all its items
        # are invalid.
        for detail in error.errors():
            field = str(detail["loc"][0]) if detail["loc"] else ""
            option = options.get(field, f"--{field.replace('_', '-')}" if field else "")
            lines.setdefault(field, _line(option, detail))
        raise UserError("\n".join(lines.values())) from error


def _line(option: str, detail: ErrorDetails) -> str:
    """Return a line that describes an invalid value in terms of the option that the user typed."""
    value, limits = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case _ if value is None or detail["type"] == "missing":
            return f"{option} is missing"
        case "value_error":
            return f"{option}: {limits['error']}".removeprefix(": ")
        case "greater_than" if isinstance(limits["gt"], int):
            problem = f"must be at least {limits['gt'] + 1}"
        case "greater_than":
            problem = f"must be above {limits['gt']:g}"
        case "greater_than_equal":
            problem = f"must be at least {limits['ge']:g}"
        case "less_than":
            problem = f"must be below {limits['lt']:g}"
        case "less_than_equal":
            problem = f"must be at most {limits['le']:g}"
        case "literal_error":
            problem = f"must be {limits['expected']}"
        case "too_short":
            return f"{option}: expected at least one"
        case _:
            problem = detail["msg"]
    return f"{option} {value!s:.80}: {problem}"
