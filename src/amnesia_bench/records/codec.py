"""Convert frozen dataclasses to JSON and back without loss: no key is dropped, added or guessed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, SchemaValidator, core_schema, to_jsonable_python

from amnesia_bench.errors import UserError

Record = TypeVar("Record")

# For each of these error types of pydantic, the JSON type that was expected.
_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
}
# Problems with keys are reported first. If a key is misspelled, or the file was written by a newer
# version, the other problems are consequences of these.
_KEY_PROBLEMS = {"unexpected_keyword_argument": "unknown key", "missing": "missing key"}


def to_json(value: object) -> Any:
    """Return a record as plain JSON values (dict, list, str, int, float, bool, None)."""
    return to_jsonable_python(value)


def from_json(record: type[Record], data: object, where: str) -> Record:
    """Build a record from parsed JSON.

    Args:
        record: the dataclass to build.
        data: the result of `json.loads`.
        where: the name of the file, for error messages.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type.
    """
    try:
        return cast("Record", _validator(cast("Any", record)).validate_python(data))
    except ValidationError as error:
        raise UserError(f"{where}: {_problem(error.errors(include_url=False))}") from error


@cache
def _validator(record: Any) -> SchemaValidator:
    return SchemaValidator(_exact(TypeAdapter(record).core_schema))


def _exact(schema: Any) -> Any:
    """Return pydantic's schema of a record, changed to accept parsed JSON and nothing else.

    Pydantic's strict mode expects tuples, enums and dataclasses, but parsed JSON has lists, strings
    and dicts instead. Its JSON mode rejects lone surrogates, which answers may contain.
    """
    if isinstance(schema, list):
        return [_exact(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    match schema.get("type"):
        case "default":  # a file must have every key; only Python code may rely on defaults
            return _exact(schema["schema"])
        case "float":  # an integer stays an integer: 1 is not rewritten as 1.0
            numbers: list[Any] = [{"type": "int", "strict": True}, {**schema, "strict": True}]
            return core_schema.union_schema(
                numbers, mode="left_to_right", custom_error_type="float_type"
            )
        case "int" | "str" | "bool":
            return {**schema, "strict": True}
        case "dataclass-args":
            schema = {**schema, "extra_behavior": "forbid"}
    return {key: _exact(value) for key, value in schema.items()}


def _problem(details: Sequence[ErrorDetails]) -> str:
    for kind, problem in _KEY_PROBLEMS.items():
        if keys := [detail["loc"] for detail in details if detail["type"] == kind]:
            *parent, _ = keys[0]
            names = [repr(name) for *above, name in keys if above == parent]
            return _at(parent, f"{problem} {', '.join(names)}")
    detail = details[0]
    match detail["type"]:
        case "value_error":
            return _at(detail["loc"], str(detail["ctx"]["error"]))
        case "enum":
            message = f"expected {detail['ctx']['expected']}"
        case kind:
            message = f"expected {_EXPECTED[kind]}" if kind in _EXPECTED else detail["msg"]
    return _at(detail["loc"], f"{message}, got {detail['input']!r:.80}")


def _at(loc: Sequence[int | str], problem: str) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return f"{path.removeprefix('.')}: {problem}" if path else problem
