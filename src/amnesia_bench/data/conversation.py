"""Rows of the supported datasets as conversations, and why a row may not be one.

Two kinds of wrong are kept apart. A field that is missing, holds another type, or is not known
means that the dataset is not what the config says: an error. A conversation that makes no sense
means a bad row: it is dropped, and counted by reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from amnesia_bench.config.data_schema import ChatRows, QuestionResponseRows, ShareGptRows
from amnesia_bench.data.dropped import DroppedRow as DroppedRow
from amnesia_bench.data.dropped import Reason as Reason
from amnesia_bench.data.row_forms import read_row
from amnesia_bench.data.turns import END_THINK as END_THINK
from amnesia_bench.data.turns import Turn

Row = Mapping[str, object]

THINK = "<think>"
# How other models open a chain; in an answer without <think>, it is one that would be missed.
_OTHER_TAGS = re.compile(
    r"\s*(<(think|thinking|thoughts?|reasoning|seed:think|\|begin_of_thought\|)>|\[think\]|◁think▷"
    r"|<\|channel\|>analysis)",
    re.IGNORECASE,
)
_RESPONSE, _END_RESPONSE = "<tool_response>", "</tool_response>"
# Which roles may follow each.
_NEXT = {
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn.

    `content` is the whole text. `reasoning` and `answer` split an assistant's: the chain of
    thought, from a think block of the content or from a field of its own, is in both `content` and
    `reasoning`, and None where there is none. `tool_calls` are an assistant's, {"name": str,
    "arguments": object} each, with an "id" if the row has it. `answers` is which call a tool's
    turn answers, by `tool_call_id` and `name`. `trained` says whether an assistant's turn counts
    in the loss.
    """

    role: str
    content: str
    reasoning: str | None = None
    answer: str
    tool_calls: tuple[Mapping[str, object], ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    trained: bool = True


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns in order, and the JSON schemas of the tools on offer.

    An optional system message is followed by user and assistant in turn; between them the answers
    of tools (role `tool`, without their tags) each follow an assistant or one another.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] = ()


def read_conversation(rows: ChatRows, row: Row, where: str) -> Conversation:
    """Return a row as a conversation.

    Raises:
        DroppedRow: the row is of no use.
        UserError: a field holds the wrong type, cannot be used, or is not known; names the row.
    """
    read, tools = read_row(rows, row, where)
    turns = [turn for each in read for turn in _without_response_tags(each)]
    _check_order([turn.role for turn in turns])
    must_think = isinstance(rows, QuestionResponseRows | ShareGptRows)
    messages = tuple(
        _answer(turn, must_think=must_think) if turn.role == "assistant" else _other(turn)
        for turn in turns
    )
    return Conversation(messages=messages, tools=tools)


def _without_response_tags(turn: Turn) -> list[Turn]:
    """Return a turn of `<tool_response>` blocks as the answers of tools that it holds.

    A user's turn is taken for one only where the templates write the very same text for tools.
    """
    text = turn.text.strip() if turn.role == "tool" else turn.text
    begin, end = f"{_RESPONSE}\n", f"\n{_END_RESPONSE}"
    if turn.role == "tool" and text.startswith(_RESPONSE) and text.endswith(_END_RESPONSE):
        inner = text[len(_RESPONSE) : -len(_END_RESPONSE)].strip("\n")
        text = f"{begin}{inner}{end}"
    is_response = turn.role in ("user", "tool") and len(text) >= len(begin + end)
    if not (is_response and text.startswith(begin) and text.endswith(end)):
        return [turn]
    contents = text[len(begin) : -len(end)].split(f"{end}\n{begin}")
    return [replace(turn, role="tool", text=content) for content in contents]


def _check_order(roles: list[str]) -> None:
    if not roles:
        raise DroppedRow(Reason.EMPTY)
    talk = roles[1:] if roles[0] == "system" else roles
    if not talk or talk[0] != "user":
        raise DroppedRow(Reason.ROLE_ORDER, f"begins with {talk[0] if talk else 'system only'}")
    for before, after in pairwise(talk):
        if after not in _NEXT[before]:
            raise DroppedRow(Reason.ROLE_ORDER, f"{after} after {before}")
    if talk[-1] != "assistant":
        raise DroppedRow(Reason.ROLE_ORDER, f"ends with {talk[-1]}")


def _other(turn: Turn) -> Message:
    if turn.role == "user" and not turn.text.strip():
        raise DroppedRow(Reason.EMPTY)
    return Message(role=turn.role, content=turn.text, answer=turn.text, answers=turn.answers)


def _answer(turn: Turn, *, must_think: bool) -> Message:
    """Return an assistant's turn, its chain of thought within its content and apart from it."""
    content, inside, answer = _split(turn.text)
    chains = {chain.strip() for chain in (*turn.chains, inside or "")} - {""}
    if len(chains) > 1:
        raise DroppedRow(Reason.TWO_CHAINS)
    if not answer.strip() and not turn.calls:
        raise DroppedRow(Reason.NO_ANSWER if chains or inside is not None else Reason.EMPTY)
    if must_think and not chains:
        raise DroppedRow(Reason.NO_CHAIN if inside is None else Reason.EMPTY_CHAIN)
    reasoning = inside if chains else None
    if chains and not (inside or "").strip():
        reasoning = turn.chains[0]
        content = f"{THINK}\n{reasoning.strip(chr(10))}\n{END_THINK}\n\n{answer.lstrip(chr(10))}"
    return Message(
        role=turn.role,
        content=content,
        reasoning=reasoning,
        answer=answer,
        tool_calls=turn.calls,
        trained=turn.trained,
    )


def _split(content: str) -> tuple[str, str | None, str]:
    """Return the content, what stands in its think block (None without one), and the answer.

    Where only the end of the block is written, since the prompt held its beginning, the content
    is returned with both.
    """
    opened, closed = content.count(THINK), content.count(END_THINK)
    if (opened, closed) == (0, 0):
        if _OTHER_TAGS.match(content):
            raise DroppedRow(Reason.OTHER_TAGS, content.strip()[:20])
        return content, None, content
    if (opened, closed) == (0, 1):
        content = f"{THINK}\n{content.lstrip(chr(10))}"
    elif (opened, closed) == (1, 0):
        raise DroppedRow(Reason.OPEN_CHAIN)
    elif (opened, closed) != (1, 1):
        raise DroppedRow(Reason.THINK_BLOCK)
    before, _, rest = content.partition(THINK)
    inside, end, answer = rest.partition(END_THINK)
    if before.strip() or not end:
        raise DroppedRow(Reason.THINK_BLOCK)
    return content, inside, answer if inside.strip() else answer.lstrip("\n")
