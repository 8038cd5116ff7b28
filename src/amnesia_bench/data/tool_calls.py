"""Read the tool definitions and tool calls of rows, in the forms that datasets use."""

from __future__ import annotations

import json
from collections.abc import Mapping

from amnesia_bench.data.dropped import DroppedRow, Reason
from amnesia_bench.data.values import (
    absent,
    items,
    names,
    parse_nested_json,
    refuse_unknown,
    text_value,
)
from amnesia_bench.errors import UserError

Call = Mapping[str, object]
Schema = Mapping[str, object]

_CALL_FIELDS = frozenset({"id", "type", "index", "function", "name", "arguments"})


def tool_calls(value: object, at: str) -> tuple[Call, ...]:
    """Return the calls of a turn as {"name": str, "arguments": object}, with their "id" if present.

    A call may have OpenAI's form {"type": "function", "function": {...}}, or the plain form
    {"name": ..., "arguments": ...}. The value may be one call or a list of calls. The value and
    each call may also be a JSON text. Arguments in a JSON text are parsed, since templates render
    objects and texts differently.

    Raises:
        UserError: the value has none of these forms.
        DroppedRow: a text is not JSON.
    """
    if isinstance(value, str):
        value = parse_nested_json(value, at)
    calls = [value] if isinstance(value, Mapping) else items(value, at)
    return tuple(_call(call, f"{at}[{i}]") for i, call in enumerate(calls))


def tools(value: object, at: str) -> tuple[Schema, ...]:
    """Return the tools of a row as JSON schemas, with their contents unchanged.

    The value may be one tool or a list of tools. The value and each tool may also be a JSON text.

    Raises:
        UserError: the value has none of these forms, or a tool has no name.
        DroppedRow: a text is not JSON.
    """
    if isinstance(value, str):
        value = parse_nested_json(value, at) if value.strip() else None
    schemas = [value] if isinstance(value, Mapping) else items(value, at)
    return tuple(_schema(schema, f"{at}[{i}]") for i, schema in enumerate(schemas))


def name_of(tool: Schema) -> str:
    """Return the name of a tool."""
    function = tool.get("function") or tool
    assert isinstance(function, Mapping)
    return str(function["name"])


def _call(value: object, at: str) -> Call:
    if isinstance(value, str):
        value = parse_nested_json(value, at)
    call = _object(value, at)
    call_id = {} if absent(call.get("id")) else {"id": text_value(str(call["id"]), f"{at}: id")}
    refuse_unknown(call, _CALL_FIELDS, at)
    if call.get("type") not in (None, "", "function"):
        raise UserError(f"{at}: type is {call['type']!r:.80}, expected function")
    if not absent(call.get("function")):
        call = _object(call["function"], f"{at}.function")
        refuse_unknown(call, _CALL_FIELDS, f"{at}.function")
    arguments = call.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        arguments = parse_nested_json(arguments, f"{at}.arguments")
    if absent(arguments):
        arguments = {}
    arguments = _json_value(arguments, f"{at}.arguments")
    return {**call_id, "name": _name(call, at), "arguments": arguments}


def _schema(value: object, at: str) -> Schema:
    if isinstance(value, str):
        value = parse_nested_json(value, at)
    schema = _object(value, at)
    function = schema.get("function")
    _name(schema if absent(function) else _object(function, f"{at}.function"), at)
    _json_value(schema, at)
    return schema


def _object(value: object, at: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UserError(f"{at} is of type {type(value).__name__}, expected an object with a name")
    return value


def _name(function: Mapping[str, object], at: str) -> str:
    name = text_value(function.get("name"), f"{at}: name")
    if not name:
        raise UserError(f"{at}: has no name; it has {names(function)}")
    return name


def _json_value(value: object, at: str) -> object:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise DroppedRow(Reason.NOT_UNICODE) from error
    except ValueError as error:  # NaN, which Python's JSON parser accepts
        raise DroppedRow(Reason.NOT_JSON, at) from error
    except TypeError as error:  # a date or bytes from Parquet
        raise UserError(f"{at}: not a JSON value ({error!s:.80})") from error
    return value
