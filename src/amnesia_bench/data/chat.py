"""Conversations as segments of text, each either trained or not: exact loss masks by construction.

Segments are tokenised one by one, so no token straddles the border of what is trained, and what
precedes an answer is tokenised as at inference. Each style writes what the chat template of its
models writes; `rendering.Renderer` compares the two on every row, and leaves calls of tools to
the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Literal

from amnesia_bench.config.data_schema import ChatML, Llama3Chat, LossOn, MistralChat, Qwen3Chat
from amnesia_bench.data.conversation import (
    END_THINK,
    THINK,
    Conversation,
    DroppedRow,
    Message,
    Reason,
)

Style = Qwen3Chat | ChatML | MistralChat | Llama3Chat
StyleName = Literal["qwen3", "chatml", "mistral", "llama3"]


@dataclass(frozen=True)
class Segment:
    """A text that is tokenised by itself, and whether its tokens count in the loss."""

    text: str
    trained: bool


# A text, and whether it is an answer to train: None is not an answer, False one to leave out.
Part = tuple[str, bool | None]

# What makes the structure of a chat, and so must not come out of a message. A tokenizer must have
# the first two of a style.
MARKUP: dict[StyleName, tuple[str, ...]] = {
    "qwen3": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "chatml": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "mistral": ("<s>", "</s>", "[INST]", "[/INST]"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>", "<|end_header_id|>", "<|begin_of_text|>"),
}
_EMPTY_THINK = f"{THINK}\n\n{END_THINK}\n\n"


def render(conversation: Conversation, chat: Style) -> list[Segment]:
    """Return a conversation as segments.

    Trained are the answers from their first character through the token that ends the turn. An
    empty think block is not: at inference it belongs to the prompt.

    Raises:
        DroppedRow: the style cannot write it.
    """
    if calls_tools(conversation):
        raise DroppedRow(Reason.TOOLS)
    messages = results_as_user_turns(conversation).messages
    refuse_markup((message.content for message in messages), frozenset(MARKUP[chat.style]))
    if isinstance(chat, MistralChat):
        parts = _mistral(messages)
    elif isinstance(chat, Llama3Chat):
        parts = _llama3(messages)
    elif isinstance(chat, ChatML):
        parts = _chatml(messages, chat.default_system)
    else:
        parts = _qwen3(messages)
    return segments_of(parts, chat.loss_on)


def calls_tools(conversation: Conversation) -> bool:
    """Whether there are tools or calls of them, which no style writes."""
    return bool(conversation.tools) or any(each.tool_calls for each in conversation.messages)


def results_as_user_turns(conversation: Conversation) -> Conversation:
    """Return a conversation with results of tools in turns of the user, as agent traces of Qwen."""
    messages: list[Message] = []
    for is_result, run in groupby(conversation.messages, key=lambda each: each.role == "tool"):
        if not is_result:
            messages.extend(run)
            continue
        text = "\n".join(f"<tool_response>\n{each.content}\n</tool_response>" for each in run)
        messages.append(Message(role="user", content=text, answer=text))
    return replace(conversation, messages=tuple(messages))


def refuse_markup(texts: Iterable[str], markup: frozenset[str]) -> None:
    """Refuse texts that hold tokens of a chat's structure."""
    any_mark = _any_of(markup)
    if any(any_mark.search(text) for text in texts):
        raise DroppedRow(Reason.MARKUP)


@lru_cache
def _any_of(marks: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern that finds any mark; a tokenizer may have a thousand."""
    return re.compile("|".join(map(re.escape, sorted(marks))) or "(?!)")


def segments_of(parts: Iterable[Part], loss_on: LossOn) -> list[Segment]:
    """Join neighbours of one kind, so that they are tokenised together; decide what is trained."""
    runs = [
        ("".join(text for text, _ in run), answer)
        for answer, run in groupby((part for part in parts if part[0]), key=lambda part: part[1])
    ]
    if loss_on == "all":
        return [Segment(text, answer is not False) for text, answer in runs]
    return [Segment(text, answer is True) for text, answer in runs]


def last_query(messages: Sequence[Message]) -> int:
    """Return the index of the last message that a user wrote, not a tool; the last one if none."""
    for i in range(len(messages) - 1, -1, -1):
        if messages[i].role == "user" and not is_tool_response(messages[i].content):
            return i
    return len(messages) - 1


def is_tool_response(content: str) -> bool:
    """Whether a user's message is the result of a tool, as agent traces of Qwen write it."""
    return content.startswith("<tool_response>") and content.endswith("</tool_response>")


def _qwen3(messages: Sequence[Message]) -> Iterator[Part]:
    query = last_query(messages)
    for i, message in enumerate(messages):
        if message.role != "assistant":
            yield f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n", None
            continue
        yield "<|im_start|>assistant\n", None
        reasoning = (message.reasoning or "").strip("\n")
        split = message.answer != message.content
        answer = message.answer.lstrip("\n") if split else message.content
        if i > query and (reasoning or i == len(messages) - 1):
            answer = answer.lstrip("\n")
            if reasoning:
                answer = f"{THINK}\n{reasoning}\n{END_THINK}\n\n{answer}"
            else:
                yield _EMPTY_THINK, None
        yield f"{answer}<|im_end|>", message.trained
        yield "\n", None


def _chatml(messages: Sequence[Message], default_system: str | None) -> Iterator[Part]:
    if default_system is not None and messages[0].role != "system":
        yield f"<|im_start|>system\n{default_system}<|im_end|>\n", None
    for message in messages:
        yield f"<|im_start|>{message.role}\n", None
        answer = message.trained if message.role == "assistant" else None
        yield f"{message.content}<|im_end|>", answer
        yield "\n", None


def _mistral(messages: Sequence[Message]) -> Iterator[Part]:
    if any(message.role == "system" for message in messages):
        raise DroppedRow(Reason.SYSTEM)
    yield "<s>", None
    for message in messages:
        if message.role == "user":
            yield f"[INST] {message.content}[/INST]", None
        else:
            yield f" {message.content.strip()}</s>", message.trained


def _llama3(messages: Sequence[Message]) -> Iterator[Part]:
    yield "<|begin_of_text|>", None
    for message in messages:
        yield f"<|start_header_id|>{message.role}<|end_header_id|>\n\n", None
        answer = message.trained if message.role == "assistant" else None
        yield f"{message.content.strip()}<|eot_id|>", answer
