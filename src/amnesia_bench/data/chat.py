"""Render conversations as text segments that are trained or not, for exact loss masks.

Segments are tokenised separately. So no token crosses the boundary of a trained segment, and the
text before an answer gets the same token ids as at inference. Each style renders the same text as
the chat template of its models. `rendering.Renderer` compares the two on every row, and renders
tool calls with the template only.
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
    """A text that is tokenised separately; `trained` tells whether its tokens count in the loss."""

    text: str
    trained: bool


# A text, with True for an answer to train on, False for an answer without loss, and None for text
# that is not part of an answer.
Part = tuple[str, bool | None]

# Tokens that structure a chat, and therefore must not occur in a message. A tokenizer fits a style
# only if it has the first two tokens of that style.
MARKUP: dict[StyleName, tuple[str, ...]] = {
    "qwen3": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "chatml": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "mistral": ("<s>", "</s>", "[INST]", "[/INST]"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>", "<|end_header_id|>", "<|begin_of_text|>"),
}
_EMPTY_THINK = f"{THINK}\n\n{END_THINK}\n\n"


def render(conversation: Conversation, chat: Style) -> list[Segment]:
    """Render a conversation as segments.

    The trained part of an answer extends from its first character through the token that ends the
    turn. An empty think block is not trained, since it belongs to the prompt at inference.

    Raises:
        DroppedRow: the style cannot render the conversation.
    """
    if calls_tools(conversation):
        raise DroppedRow(Reason.TOOLS)
    messages = tool_results_as_user_turns(conversation).messages
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
    """Return whether a conversation has tools or tool calls, which no style can render."""
    return bool(conversation.tools) or any(message.tool_calls for message in conversation.messages)


def tool_results_as_user_turns(conversation: Conversation) -> Conversation:
    """Turn the tool results of a conversation into user turns, in the format of Qwen's agents."""
    messages: list[Message] = []
    for is_result, run in groupby(
        conversation.messages, key=lambda message: message.role == "tool"
    ):
        if not is_result:
            messages.extend(run)
            continue
        text = "\n".join(f"<tool_response>\n{result.content}\n</tool_response>" for result in run)
        messages.append(Message(role="user", content=text, answer=text))
    return replace(conversation, messages=tuple(messages))


def refuse_markup(texts: Iterable[str], markup: frozenset[str]) -> None:
    """Raise DroppedRow if a text contains a token that structures the chat."""
    pattern = _any_of(markup)
    if any(pattern.search(text) for text in texts):
        raise DroppedRow(Reason.MARKUP)


@lru_cache
def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """Return one pattern for all tokens, as a tokenizer may have a thousand of them."""
    return re.compile("|".join(map(re.escape, sorted(tokens))) or "(?!)")


def segments_of(parts: Iterable[Part], loss_on: LossOn) -> list[Segment]:
    """Join adjacent parts of the same kind into segments, and mark the trained segments."""
    runs = [
        ("".join(text for text, _ in run), answer)
        for answer, run in groupby((part for part in parts if part[0]), key=lambda part: part[1])
    ]
    if loss_on == "all":
        return [Segment(text, answer is not False) for text, answer in runs]
    return [Segment(text, answer is True) for text, answer in runs]


def last_query(messages: Sequence[Message]) -> int:
    """Return the index of the last user message that is not a tool result.

    Without such a message, return the index of the last message.
    """
    for i in range(len(messages) - 1, -1, -1):
        if messages[i].role == "user" and not is_tool_response(messages[i].content):
            return i
    return len(messages) - 1


def is_tool_response(content: str) -> bool:
    """Return whether a user message is a tool result in the format of Qwen's agents."""
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
