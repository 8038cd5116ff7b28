"""Turn a user message into a prompt, and strip the reasoning block from the answer.

Training data and evaluations take the wording of prompts from here, so that they agree.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.config.eval_schema import QUESTION_ANSWER, ChatPrompt, Think
from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.tokenizer import with_leading_special_tokens

# The chat templates of Llama 3.2, SmolLM3 and others write today's date into the system message.
# Data and prompts must not depend on the day, so these templates get a fixed date instead: the same
# date (26 July 2024) that templates with a hard-coded date use.
_FIXED_DATE = {
    "%-d": "26", "%d": "26", "%-m": "7", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024",
    "%y": "24", "%A": "Friday", "%a": "Fri", "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip


# The instruction of Qwen2.5-Math and Qwen3; open-r1 puts it before the problem. The paper does not
# state its instruction.
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."
_QUESTION_ANSWER = "Question: {message}\nAnswer:"


def step_by_step(problem: str) -> str:
    """Append to a problem the instruction to reason step by step and to box the final answer."""
    return f"{problem}\n{STEP_BY_STEP}"


def question_prompt(message: str) -> str:
    """Return the prompt of the format question_answer; an answer to it begins with a space."""
    return _QUESTION_ANSWER.format(message=message)


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a user message is turned into a prompt.

    `template` is the Jinja source of the chat template; if it is None, the message is sent
    unchanged, or as `question_prompt` writes it if `as_question` is true. `sha256` is the hash of
    the template or of that format. `opens_thinking` is true if the prompt ends inside a thinking
    block, so that the answer begins inside it.
    """

    template: str | None
    sha256: str | None
    opens_thinking: bool
    as_question: bool = False


def prompt_format(
    tokenizer: Any, *, chat: ChatPrompt, template: str | None, think: Think | None
) -> PromptFormat:
    """Return the prompt format of a checkpoint.

    Args:
        tokenizer: the tokenizer of the checkpoint.
        chat: whether to apply a chat template, or the name of a format; see `EvalConfig`.
        template: Jinja source that overrides the tokenizer's own template.
        think: the tags that delimit a thinking block; None if the model does not think.

    Raises:
        UserError: the tokenizer has no template, or the template cannot be rendered.
    """
    if chat == QUESTION_ANSWER:
        digest = hashlib.sha256(_QUESTION_ANSWER.encode()).hexdigest()
        return PromptFormat(template=None, sha256=digest, opens_thinking=False, as_question=True)
    if not chat:
        return PromptFormat(template=None, sha256=None, opens_thinking=False)
    if template is None:
        template = _own_template(tokenizer)
    message = _render(tokenizer, template, "Hello", add_generation_prompt=False)
    prompt = _render(tokenizer, template, "Hello", add_generation_prompt=True)
    equal = (a == b for a, b in zip(message, prompt, strict=False))
    generation_prompt = prompt[len(list(takewhile(bool, equal))) :]
    opens = think is not None and _is_open(generation_prompt, think)
    digest = hashlib.sha256(template.encode()).hexdigest()
    return PromptFormat(template=template, sha256=digest, opens_thinking=opens)


def prompt_tokens(tokenizer: Any, layout: PromptFormat, message: str) -> NDArray[np.int32]:
    """Return the token ids, int32 [T], of a prompt with one user message.

    A chat template writes its own special tokens. Without a template, the tokenizer's leading
    special tokens are prepended.
    """
    text = question_prompt(message) if layout.as_question else message
    if layout.template is not None:
        text = _render(tokenizer, layout.template, message, add_generation_prompt=True)
    ids = np.asarray(tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int32)
    return with_leading_special_tokens(tokenizer, ids) if layout.template is None else ids


def with_fixed_date(template: str) -> str:
    """Return a chat template whose output does not depend on the current date."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f" | replace('{code}', '{text}')" for code, text in _FIXED_DATE.items())
    return (
        "{%- macro strftime_now(format) -%}{{- format" + replaced + " -}}{%- endmacro %}\n"
    ) + template


def without_thinking(text: str, think: Think | None, *, opened: bool) -> str | None:
    """Return the answer after its thinking block, without leading whitespace, as in lm-eval.

    A closing tag ends the open block. Without an open block, a closing tag still ends one if it is
    the first closing tag of the text (the prompt may have opened the block), or if only whitespace
    separates it from the previous closing tag. Any other closing tag is part of the answer.

    Args:
        text: the generated text.
        think: the tags that delimit a thinking block; if None, the text is returned unchanged.
        opened: whether the prompt ended inside a thinking block.

    Returns:
        The answer, or None if a thinking block is not closed.
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
            hint="Pass one (the fine-tune's, for all rows of a table): --chat-template FILE; or "
            "send the problems without a template: --no-chat-template, or as questions: "
            f"eval.chat_template={QUESTION_ANSWER}.",
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
    # Expressions in a template can raise the errors of any Python expression.
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"the chat template cannot be rendered: {error}") from error
    return str(rendered)
