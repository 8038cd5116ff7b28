"""Read rows of the supported datasets as conversations.

If a field is missing, unknown or of the wrong type, the dataset does not match the config, which is
an error. If a conversation makes no sense, only the row is bad: it is dropped, and counted by
reason.
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
# Tags with which other models begin a chain of thought. Without this pattern, such a chain would be
# taken for the answer.
_OTHER_TAGS = re.compile(
    r"\s*(<(think|thinking|thoughts?|reasoning|seed:think|\|begin_of_thought\|)>|\[think\]|◁think▷"
    r"|<\|channel\|>analysis)",
    re.IGNORECASE,
)
_RESPONSE, _END_RESPONSE = "<tool_response>", "</tool_response>"
# The roles that may follow each role.
_NEXT = {
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation.

    `content` is the complete text. In an assistant message, `reasoning` is the chain of thought
    (None without one), from a think block or a separate field, and `content` includes it in a think
    block. `answer` is the text after the think block. Each of `tool_calls` is
    {"name": str, "arguments": object}, with an "id" if the row has one. `answers` identifies the
    call that a tool message answers, by `tool_call_id` and `name`. `trained` tells whether an
    assistant message counts in the loss.
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
    """The messages of a conversation in order, and the JSON schemas of the available tools.

    After an optional system message, user and assistant messages alternate. Tool results (messages
    of role `tool`, without tags around their text) follow an assistant message or another tool
    result.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] = ()


def read_conversation(rows: ChatRows, row: Row, where: str) -> Conversation:
    """Read a row as a conversation.

    Raises:
        DroppedRow: the row cannot be used for training.
        UserError: a field is unknown, unusable or of the wrong type; the message names the row.
    """
    row_turns, tools = read_row(rows, row, where)
    turns = [turn for row_turn in row_turns for turn in _without_response_tags(row_turn)]
    _check_order([turn.role for turn in turns])
    must_think = isinstance(rows, QuestionResponseRows | ShareGptRows)
    messages = tuple(
        _answer(turn, must_think=must_think) if turn.role == "assistant" else _other(turn)
        for turn in turns
    )
    return Conversation(messages=messages, tools=tools)


def _without_response_tags(turn: Turn) -> list[Turn]:
    """Split a turn of `<tool_response>` blocks into one tool turn per block.

    A user turn is split only if its text has exactly the form in which chat templates write tool
    results. Other turns are returned unchanged.
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
    rest = roles[1:] if roles[0] == "system" else roles
    if not rest or rest[0] != "user":
        raise DroppedRow(Reason.ROLE_ORDER, f"begins with {rest[0] if rest else 'system only'}")
    for before, after in pairwise(rest):
        if after not in _NEXT[before]:
            raise DroppedRow(Reason.ROLE_ORDER, f"{after} after {before}")
    if rest[-1] != "assistant":
        raise DroppedRow(Reason.ROLE_ORDER, f"ends with {rest[-1]}")


def _other(turn: Turn) -> Message:
    if turn.role == "user" and not turn.text.strip():
        raise DroppedRow(Reason.EMPTY)
    return Message(role=turn.role, content=turn.text, answer=turn.text, answers=turn.answers)


def _answer(turn: Turn, *, must_think: bool) -> Message:
    """Return an assistant turn as a message, with its chain in `content` and in `reasoning`."""
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
    """Return the content, the text inside its think block (None without one), and the answer.

    If the content has only the closing tag, since the opening tag was part of the prompt, the
    opening tag is added to the returned content.
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
