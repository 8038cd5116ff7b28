"""The reasons to drop a row, with hints for the user."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a row yields no document."""

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
    NOT_ONE_QUESTION = "not one question and one answer"
    MARKUP = "special tokens of the chat in a message"
    TOOLS = "tools or calls of them, and the tokenizer has no chat template"
    TEMPLATE = "the tokenizer's chat template writes it differently"
    NOT_WRITTEN = "the tokenizer's chat template cannot write it"
    NOT_UNICODE = "half a surrogate pair"
    UNTRAINED = "no trained token"


_THINKING_OPTIONAL = (
    "This config requires a chain of thought in every answer. For mixed answers use the "
    "config messages, sharegpt, alpaca or prompt_response, with --input."
)
DROP_HINTS = {
    Reason.NO_CHAIN: _THINKING_OPTIONAL,
    Reason.EMPTY_CHAIN: _THINKING_OPTIONAL,
    Reason.OPEN_CHAIN: "Such answers were truncated during generation: remove them.",
    Reason.OTHER_TAGS: "Replace these tags with <think> and </think>.",
    Reason.ROLE_ORDER: "A conversation is an optional system message, then user and assistant in "
    "turn, with tool results in between; it ends with an assistant message.",
    Reason.TEMPLATE: "To train on the template's output: --chat template.",
    Reason.UNTRAINED: "Every assistant turn has weight 0, so it is excluded from the loss.",
}


class DroppedRow(Exception):
    """Raised for a row that yields no document.

    `detail` describes or locates the problem in the row, for the error message.
    """

    def __init__(self, reason: Reason, detail: str | None = None) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.reason.value if self.detail is None else f"{self.reason.value} ({self.detail})"
