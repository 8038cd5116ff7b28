"""One user message as a model wants to read it, and what of its answer is not thinking."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.config.eval_schema import Think
from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.tokenizer import with_beginning

# Templates of Llama 3.2, SmolLM3 and others write today's date into the system message. Data and
# prompts must not depend on the day: this is the date of templates that have a fixed one.
_FIXED_DATE = {
    "%-d": "26", "%d": "26", "%-m": "7", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024",
    "%y": "24", "%A": "Friday", "%a": "Fri", "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How messages become prompts.

    `template` is Jinja source, None to send the message as it is. `sha256` is the template's.
    `opens_thinking`: the prompt ends inside a thinking block, so the answer begins in one.
    """

    template: str | None
    sha256: str | None
    opens_thinking: bool


def prompt_format(
    tokenizer: Any, *, use_template: bool, template: str | None, think: Think | None
) -> PromptFormat:
    """Find out how a tokenizer's model is asked.

    Args:
        tokenizer: of the checkpoint.
        use_template: false sends messages as they are.
        template: Jinja source in place of the tokenizer's own.
        think: the marks around thinking; None when none is expected.

    Raises:
        UserError: there is no template, or it cannot be rendered.
    """
    if not use_template:
        return PromptFormat(template=None, sha256=None, opens_thinking=False)
    if template is None:
        template = _own_template(tokenizer)
    bare = _render(tokenizer, template, "Hello", add_generation_prompt=False)
    full = _render(tokenizer, template, "Hello", add_generation_prompt=True)
    same = (a == b for a, b in zip(bare, full, strict=False))
    answer_begins = full[len(list(takewhile(bool, same))) :]
    opens = think is not None and _is_open(answer_begins, think)
    digest = hashlib.sha256(template.encode()).hexdigest()
    return PromptFormat(template=template, sha256=digest, opens_thinking=opens)


def prompt_tokens(tokenizer: Any, layout: PromptFormat, message: str) -> NDArray[np.int32]:
    """Return the token ids, int32 [T], of a prompt with one user message.

    A template writes its special tokens itself; without one the tokenizer adds those that begin a
    text.
    """
    text = message
    if layout.template is not None:
        text = _render(tokenizer, layout.template, message, add_generation_prompt=True)
    ids = np.asarray(tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int32)
    return with_beginning(tokenizer, ids) if layout.template is None else ids


def with_fixed_date(template: str) -> str:
    """Return a chat template that writes the same on every day."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f" | replace('{code}', '{text}')" for code, text in _FIXED_DATE.items())
    return (
        "{%- macro strftime_now(format) -%}{{- format" + replaced + " -}}{%- endmacro %}\n"
    ) + template


def without_thinking(text: str, think: Think | None, *, opened: bool) -> str | None:
    """Return what follows the thinking in an answer; as in lm-eval, without the blanks before it.

    A closing mark ends the block that is open, or, as the first one, a block that the prompt may
    have opened; any other is text that the answer quotes.

    Args:
        text: the answer.
        think: the marks around thinking; None takes the whole text.
        opened: the prompt ended inside a thinking block.

    Returns:
        None when the thinking never ended.
    """
    if think is None:
        return text
    start, closed = 0, False
    for mark in re.finditer(f"{re.escape(think.open)}|{re.escape(think.close)}", text):
        if mark.group() == think.open:
            opened = True
        elif opened or not closed or not text[start : mark.start()].strip():
            start, closed, opened = mark.end(), True, False
    return None if opened else text[start:].lstrip()


def _is_open(text: str, think: Think) -> bool:
    return text.rfind(think.open) > text.rfind(think.close)


def _own_template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template",
            hint="Give one (of the fine-tune, for all rows of a table): --chat-template FILE; or "
            "send the problems as they are: --no-chat-template.",
        ) from error


def _render(tokenizer: Any, template: str, message: str, *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            chat_template=with_fixed_date(template),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    # What a template computes may fail as any Python may.
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"the chat template cannot be rendered: {error}") from error
    return str(rendered)
