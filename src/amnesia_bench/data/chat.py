"""Conversations as segments of text, each either trained or not: exact loss masks by construction.

Segments are tokenised one by one, so no token straddles the border of what is trained, and what
precedes an answer is tokenised as at inference. Their text joined is what the tokenizer's own
chat template gives; `check_template` holds it against the tokenizer at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from amnesia_bench.config.data_schema import Chat, ChatML, MistralChat
from amnesia_bench.data.conversation import (
    END_THINK,
    THINK,
    Conversation,
    DroppedRow,
    Message,
    Reason,
)
from amnesia_bench.errors import UserError

if TYPE_CHECKING:
    from amnesia_bench.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Segment:
    """A text that is tokenised by itself, and whether its tokens count in the loss."""

    text: str
    trained: bool


# What makes the structure of a chat, and so must not come out of a message.
_MARKUP = {
    "qwen3": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "chatml": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "mistral": ("<s>", "</s>", "[INST]", "[/INST]"),
}
_EMPTY_THINK = f"{THINK}\n\n{END_THINK}\n\n"


def render(conversation: Conversation, chat: Chat) -> list[Segment]:
    """Return a conversation as segments.

    Trained are the answers from their first character through the token that ends the turn. An
    empty think block is not: at inference it belongs to the prompt.

    Raises:
        DroppedRow: the style cannot say it.
    """
    markup, messages = _MARKUP[chat.style], conversation.messages
    if any(mark in message.content for message in messages for mark in markup):
        raise DroppedRow(Reason.MARKUP)
    if isinstance(chat, MistralChat):
        parts = _mistral(messages)
    elif isinstance(chat, ChatML):
        parts = _chatml(_with_system(messages, chat.default_system), _as_written)
    else:
        parts = _chatml(messages, _qwen3_answer)
    segments = _joined(parts)
    if chat.loss_on == "all":
        return [Segment(segment.text, True) for segment in segments]
    return segments


def _chatml(
    messages: Sequence[Message], answer: Callable[[Message, bool], Iterable[Segment]]
) -> Iterable[Segment]:
    for i, message in enumerate(messages):
        yield Segment(f"<|im_start|>{message.role}\n", False)
        if message.role == "assistant":
            yield from answer(message, i == len(messages) - 1)
            yield Segment("<|im_end|>", message.trained)
            yield Segment("\n", False)
        else:
            yield Segment(f"{message.content}<|im_end|>\n", False)


def _as_written(message: Message, last: bool) -> Iterable[Segment]:
    return [Segment(message.content, message.trained)]


def _qwen3_answer(message: Message, last: bool) -> Iterable[Segment]:
    answer, trained = message.answer.lstrip("\n"), message.trained
    if message.reasoning is None:
        if last:
            return [Segment(_EMPTY_THINK, False), Segment(answer, trained)]
        return [Segment(message.answer, trained)]
    if not last:
        return [Segment(answer, trained)]
    reasoning = message.reasoning.strip("\n")
    return [Segment(f"{THINK}\n{reasoning}\n{END_THINK}\n\n{answer}", trained)]


def _with_system(messages: Sequence[Message], default: str | None) -> Sequence[Message]:
    if default is None or messages[0].role == "system":
        return messages
    return [Message(role="system", content=default, answer=default), *messages]


def _mistral(messages: Sequence[Message]) -> Iterable[Segment]:
    if messages[0].role == "system":
        raise DroppedRow(Reason.SYSTEM)
    yield Segment("<s>", False)
    for message in messages:
        if message.role == "user":
            yield Segment(f"[INST] {message.content}[/INST]", False)
        else:
            yield Segment(f" {message.content.strip()}</s>", message.trained)


def _joined(parts: Iterable[Segment]) -> list[Segment]:
    """Join neighbours that are both trained or both not, so that they are tokenised together."""
    return [
        Segment("".join(part.text for part in run), trained)
        for trained, run in groupby(parts, key=lambda part: part.trained)
    ]


def _probe(style: str) -> Conversation:
    answer, thought, written = "The answer is 4.", None, "The answer is 4."
    if style == "qwen3":
        thought = "Two and two make four."
        written = f"{THINK}\n{thought}\n{END_THINK}\n\n{answer}"
    messages = (
        Message(role="user", content="Hi.", answer="Hi."),
        Message(role="assistant", content="Hello!", answer="Hello!"),
        Message(role="user", content="What is 2 + 2?", answer="What is 2 + 2?"),
        Message(role="assistant", content=written, reasoning=thought, answer=answer),
    )
    return Conversation(messages=messages)


def check_template(chat: Chat, tokenizer: Tokenizer) -> None:
    """Render a short conversation both here and with the tokenizer's own template.

    Raises:
        UserError: they differ, or the tokenizer lacks a token of the style.
    """
    missing = [mark for mark in _MARKUP[chat.style][:2] if tokenizer.id_of(mark) is None]
    if missing:
        raise UserError(
            f"chat.style={chat.style}: the tokenizer of {tokenizer.folder} has no token "
            f"{', '.join(missing)}",
            hint="Choose the style of that model, such as data.chat.style=chatml.",
        )
    probe = _probe(chat.style)
    segments = render(probe, chat)
    expected = tokenizer.apply_template(
        [{"role": m.role, "content": m.content} for m in probe.messages]
    )
    if expected is None:
        return
    ours = "".join(segment.text for segment in segments)
    if ours != expected:
        raise UserError(
            f"chat.style={chat.style} is not what the tokenizer of {tokenizer.folder} uses.\n"
            f"Its template gives {expected!r}\nthe style gives      {ours!r}",
            hint="Choose the style of that model: data.chat.style=qwen3, chatml (with "
            "data.chat.default_system=...), or mistral.",
        )
    pieces = [token for segment in segments for token in tokenizer.encode(segment.text)]
    if pieces != tokenizer.encode(ours):
        raise UserError(
            f"{tokenizer.folder}: this tokenizer treats the beginning of a text as special; "
            "answers cannot be tokenised apart from their prompts with it"
        )
