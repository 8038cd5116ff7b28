"""Rows of the supported datasets as conversations, and why a row may not be one.

Two kinds of wrong are kept apart. A field that is missing or holds another type means that the
dataset changed: an error. A conversation that makes no sense means a bad row: it is dropped, and
counted by reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from amnesia_bench.config.data_schema import MessageRows, QuestionResponseRows, ShareGptRows
from amnesia_bench.errors import UserError

Row = Mapping[str, object]

THINK, END_THINK = "<think>", "</think>"
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


class Reason(StrEnum):
    """Why a row gives no document."""

    EMPTY = "empty text or message"
    OTHER_DOMAIN = "another domain"
    ROLE_ORDER = "roles out of order"
    SYSTEM = "system message in a style without one"
    TOOLS = "tools, tool calls or tool results, and the tokenizer has no chat template"
    TEMPLATE = "the tokenizer's chat template writes it differently"
    NOT_WRITTEN = "the tokenizer's chat template cannot write it"
    THINK_BLOCK = "not exactly one think block at the beginning"
    MARKUP = "special tokens of the chat in a message"
    NOT_UNICODE = "half a surrogate pair"
    UNTRAINED = "no trained token"


class DroppedRow(Exception):
    """This row gives no document."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. `content` is the whole text; `reasoning` and `answer` split an assistant's."""

    role: str  # system, user, assistant, or tool
    content: str
    reasoning: str | None = None  # from a think block of the content or from a field of its own
    answer: str
    tool_calls: tuple[Mapping[str, object], ...] = ()  # an assistant's {"name": str, "arguments"}
    trained: bool = True  # an assistant turn that counts in the loss


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns, and the JSON schemas of the functions on offer."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] = ()


def columns_of(rows: QuestionResponseRows | ShareGptRows | MessageRows) -> tuple[str, ...]:
    """Return the fields that a row must have."""
    if isinstance(rows, QuestionResponseRows):
        return ("question", "response")
    if isinstance(rows, ShareGptRows):
        return ("conversations",) if rows.domain is None else ("conversations", "domain")
    return ("messages",)


def conversation(
    rows: QuestionResponseRows | ShareGptRows | MessageRows, row: Row, where: str
) -> Conversation:
    """Return a row as turns: an optional system, then user and assistant in turn.

    Raises:
        DroppedRow: the row is of no use.
        UserError: a field is not of the type it should have; names the row.
    """
    if isinstance(rows, QuestionResponseRows):
        turns = [
            ("user", string(row, "question", where)),
            ("assistant", string(row, "response", where)),
        ]
    elif isinstance(rows, ShareGptRows):
        if rows.domain is not None and string(row, "domain", where) != rows.domain:
            raise DroppedRow(Reason.OTHER_DOMAIN)
        turns = _turns(row, "conversations", ("from", "value"), where)
        turns = [(_SHAREGPT_ROLES.get(role, role), content) for role, content in turns]
    else:
        turns = _turns(row, "messages", ("role", "content"), where)
    _check_order([role for role, _ in turns])
    thinks = not isinstance(rows, MessageRows)
    return Conversation(
        messages=tuple(_message(role, content, must_think=thinks) for role, content in turns)
    )


def string(row: Row, field: str, where: str) -> str:
    """Return a field that must hold a text; a null is an empty one."""
    value = row[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {field} is a {type(value).__name__}, expected a text")
    return value


def check_unicode(text: str) -> None:
    """Refuse what JSON can say and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DroppedRow(Reason.NOT_UNICODE) from error


def _turns(row: Row, field: str, keys: tuple[str, str], where: str) -> list[tuple[str, str]]:
    value = row[field]
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{where}: {field} is a {type(value).__name__}, expected a list")
    turns = []
    for i, item in enumerate(value):
        at = f"{where}: {field}[{i}]"
        if not isinstance(item, Mapping) or not all(key in item for key in keys):
            there = ", ".join(item) if isinstance(item, Mapping) else type(item).__name__
            raise UserError(f"{at}: expected {keys[0]} and {keys[1]}, it has {there}")
        turns.append((string(item, keys[0], at), string(item, keys[1], at)))
    return turns


def _check_order(roles: list[str]) -> None:
    if not roles:
        raise DroppedRow(Reason.EMPTY)
    talk = roles[1:] if roles[0] == "system" else roles
    if not talk or len(talk) % 2 or talk != ["user", "assistant"] * (len(talk) // 2):
        raise DroppedRow(Reason.ROLE_ORDER)


def _message(role: str, content: str, *, must_think: bool) -> Message:
    if not content.strip():
        raise DroppedRow(Reason.EMPTY)
    check_unicode(content)
    if role != "assistant":
        return Message(role=role, content=content, answer=content)
    opened, closed = content.count(THINK), content.count(END_THINK)
    if (opened, closed) == (0, 0) and not must_think:
        return Message(role=role, content=content, answer=content)
    before, _, rest = content.partition(THINK)
    reasoning, end, answer = rest.partition(END_THINK)
    if (opened, closed) != (1, 1) or before.strip() or not end:
        raise DroppedRow(Reason.THINK_BLOCK)
    if not reasoning.strip() or not answer.strip():
        raise DroppedRow(Reason.EMPTY)
    return Message(role=role, content=content, reasoning=reasoning, answer=answer)
