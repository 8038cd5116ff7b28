"""Translate pydantic's errors to messages for users.

A message has the path of the value as the user would type it and, for an unknown name, the known
names and the closest one.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from amnesia_bench.errors import UserError

# Messages in terms of YAML for errors that pydantic describes in terms of JSON or Python.
_PLAIN = {
    "tuple_type": "expected a list",
    "too_short": "expected at least one item",
    "model_type": "expected keys below it",
    "dict_type": "expected keys below it",
}


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint for an unknown name: the closest known name, and all known names."""
    listed = f"Known: {', '.join(sorted(known))}." if known else "Nothing can be set there."
    close = get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}? {listed}" if close else listed


Keys = Sequence[int | str]


def _no_place(keys: Keys) -> str | None:
    return None


def check_known(field: str, name: str, known: Sequence[str]) -> None:
    """Check that a field's value is a known name; for use in pydantic validators.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in known:
        raise ValueError(f"{field}={name:.80}: unknown. {nearest(name, known)}")


def describe(
    error: ValidationError,
    model: type[BaseModel],
    data: object,
    where: Callable[[Keys], str | None] = _no_place,
) -> UserError:
    """Return one error that lists all problems of `data`.

    Args:
        error: pydantic's error.
        model: pydantic model against which `data` was validated.
        data: the values that were validated.
        where: function that returns the file and line that set a value, or None if an override set
            it.
    """
    # A misspelled key causes two errors, "unknown" and "missing"; list first the one with the key
    # that the user typed.
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    # Pydantic also reports a list as too short if all its items are invalid; omit that error.
    details = [d for d in details if d["type"] != "too_short" or not d["input"]]
    problems, hints = [], []
    for detail in details:
        keys = _typed_keys(detail["loc"], data)
        problem, hint = _problem(detail, model, _shown_path(keys))
        place = where(keys) if keys else None
        problems.append(problem if place is None else f"{problem} ({place})")
        hints += [] if hint is None else [hint]
    return UserError("\n".join(problems), hint="\n".join(dict.fromkeys(hints)) or None)


def _problem(detail: ErrorDetails, model: type[BaseModel], path: str) -> tuple[str, str | None]:
    loc = detail["loc"]
    match detail["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key", nearest(str(loc[-1]), _known_keys(model, loc[:-1]))
        case "missing":
            return f"{path}: missing", None
        case "union_tag_invalid":
            context = detail["ctx"]
            tags = [tag.strip("'") for tag in context["expected_tags"].split(", ")]
            key = context["discriminator"].strip("'")
            return f"{path}.{key}={context['tag']}: unknown", nearest(context["tag"], tags)
        case "union_tag_not_found" if isinstance(detail["input"], dict):
            return f"{path}.{detail['ctx']['discriminator'].strip(chr(39))}: missing", None
        case "value_error":
            error = str(detail["ctx"]["error"])
            return f"{path}: {error}" if path else error, None
    message = _PLAIN.get(detail["type"], detail["msg"])
    return f"{path}={_shown(detail['input'])}: {message}", None


def _shown(value: object) -> str:
    return "null" if value is None else f"{value!s:.80}"


def _typed_keys(loc: Keys, data: Any) -> list[int | str]:
    """Return a location as the user would type it, without pydantic's tags of union members."""
    keys: list[int | str] = []
    for position, part in enumerate(loc):
        exists = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if exists:
            data = data[part]
        elif position < len(loc) - 1 or not isinstance(data, dict):
            continue
        keys.append(part)
    return keys


def _shown_path(keys: Keys) -> str:
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return "".join(parts).lstrip(".")


def _known_keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    annotation: Any = model
    for part in loc:
        annotation = _not_null(_member(annotation, part))
    return list(getattr(annotation, "model_fields", {}))


def _member(annotation: Any, part: int | str) -> Any:
    """Return the type to which one part of a location leads: a field, an item or a union member."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(item for item in map(_bare, get_args(annotation)) if part in item[1])[0]
    if get_origin(annotation) is Mapping:
        return get_args(annotation)[1]
    if isinstance(part, int):
        return _bare(get_args(annotation)[0])[0]
    return annotation.model_fields[part].annotation


def _not_null(annotation: Any) -> Any:
    """Return the other member of a union of one type and None."""
    members = [member for member in get_args(annotation) if member is not types.NoneType]
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return members[0] if is_union and len(members) == 1 else annotation


def _bare(annotation: Any) -> tuple[Any, Sequence[str]]:
    """Return a union's member, stripped of `Annotated`, and the tags that select it."""
    if get_origin(annotation) is Annotated:
        bare, *notes = get_args(annotation)
        return bare, [note.tag for note in notes if isinstance(note, Tag)]
    kind = annotation.model_fields["kind"].annotation
    return annotation, get_args(kind) if get_origin(kind) is Literal else []
