"""Why a row gives no document, and what a user can do about it."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a row gives no document."""

    EMPTY = "empty text or message"
    OTHER_DOMAIN = "another domain"
    ROLE_ORDER = "roles out of order"
    SYSTEM = "system message in a style without one"
    TWO_SYSTEMS = "two different system messages"
    NO_CHAIN = "an answer without a chain of thought"
    EMPTY_CHAIN = "an empty think block"
    NO_ANSWER = "no answer after the chain of thought"
    OPEN_CHAIN = "a think block that is not closed"
    TWO_CHAINS = "a think block and another chain of thought in a field"
    OTHER_TAGS = "a chain of thought in other tags than <think>"
    THINK_BLOCK = "not exactly one think block at the beginning"
    NOT_JSON = "a text that should be JSON and is not"
    MARKUP = "special tokens of the chat in a message"
    TOOLS = "tools or calls of them, and the tokenizer has no chat template"
    TEMPLATE = "the tokenizer's chat template writes it differently"
    NOT_WRITTEN = "the tokenizer's chat template cannot write it"
    NOT_UNICODE = "half a surrogate pair"
    UNTRAINED = "no trained token"


_THINKING_OPTIONAL = (
    "This config wants a chain in every answer. With and without: take the config messages, "
    "sharegpt, alpaca or prompt_response, with --input."
)
WAYS_OUT = {
    Reason.NO_CHAIN: _THINKING_OPTIONAL,
    Reason.EMPTY_CHAIN: _THINKING_OPTIONAL,
    Reason.OPEN_CHAIN: "Such answers were cut off while they were generated: leave them out.",
    Reason.OTHER_TAGS: "Write these tags as <think> and </think>.",
    Reason.ROLE_ORDER: "A conversation is an optional system message, then user and assistant in "
    "turn, with the tools' answers between; it ends with an assistant.",
    Reason.TEMPLATE: "What the template writes is trained with --chat template.",
    Reason.UNTRAINED: "Every assistant's turn is left out of the loss (weight 0).",
}


class DroppedRow(Exception):
    """This row gives no document. `detail` says where in the row, for the first example."""

    def __init__(self, reason: Reason, detail: str | None = None) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.reason.value if self.detail is None else f"{self.reason.value} ({self.detail})"
