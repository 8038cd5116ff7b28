"""Render conversations as segments for one tokenizer, and check them against its chat template.

At the start, both the style and the template render a few plain conversations. If the results
differ, the style belongs to another model. Later, both render every row. If the results differ (for
example in a chain of thought that only one of them keeps, in a system message, or in whitespace),
the row is dropped and counted. Tool calls are rendered by the template only. Tool results without
calls are turned into user turns if the template cannot render them.
"""

from __future__ import annotations

from itertools import pairwise, takewhile
from operator import eq

from amnesia_bench.config.data_schema import (
    Chat,
    ChatML,
    Llama3Chat,
    MistralChat,
    QuestionAnswerChat,
    Qwen3Chat,
    TemplateChat,
)
from amnesia_bench.data.chat import (
    MARKUP,
    Segment,
    Style,
    StyleName,
    calls_tools,
    refuse_markup,
    render,
    tool_results_as_user_turns,
)
from amnesia_bench.data.chat_template import ChatTemplate, make_conversation
from amnesia_bench.data.conversation import Conversation, DroppedRow, Reason
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.template_marks import NotWritten
from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.chat_format import question_prompt

# Conversations that style and template must render identically. Some datasets have no chains of
# thought, and some have one in every answer, so what only one of these kinds needs is not probed
# here but compared row by row.
_PROBES = (
    make_conversation("Hi.", "Hello!"),
    make_conversation("Hi.", "Hello!", "What is 2 + 2?", "The answer is 4."),
)
_SHOWN_CHARACTERS = 40
_PLAIN: dict[StyleName, Style] = {
    "qwen3": Qwen3Chat(loss_on="assistant"),
    "chatml": ChatML(default_system=None, loss_on="assistant"),
    "mistral": MistralChat(loss_on="assistant"),
    "llama3": Llama3Chat(loss_on="assistant"),
}


class Renderer:
    """Renders conversations in the chat format of a config, for one tokenizer."""

    def __init__(self, chat: Chat, tokenizer: DataTokenizer) -> None:
        """Check that the chat format fits the tokenizer.

        Raises:
            UserError: see `check_template`.
        """
        check_template(chat, tokenizer)
        self._chat, self._tokenizer = chat, tokenizer
        self._template = ChatTemplate(tokenizer) if tokenizer.chat_template else None

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Render a conversation as segments.

        Raises:
            DroppedRow: the conversation cannot be rendered, or style and template render it
                differently.
        """
        template, chat = self._template, self._chat
        if isinstance(chat, QuestionAnswerChat):
            return _question_answer(conversation, self._tokenizer)
        if template is not None and calls_tools(conversation):
            return template.segments(conversation, chat.loss_on)
        plain = tool_results_as_user_turns(conversation)
        if isinstance(chat, TemplateChat):
            assert template is not None, "checked at the start"
            try:
                return template.segments(conversation, chat.loss_on)
            except NotWritten:
                if plain == conversation:
                    raise
                return template.segments(plain, chat.loss_on)
        segments = render(conversation, chat)
        if template is not None:
            by_style = "".join(segment.text for segment in segments)
            by_template = template.text(plain)
            if by_style != by_template:
                raise NotWritten(_difference(by_style, by_template), Reason.TEMPLATE)
        return segments


def _question_answer(conversation: Conversation, tokenizer: DataTokenizer) -> list[Segment]:
    """Render a question and its answer for a model without a chat template.

    Raises:
        DroppedRow: the conversation has other turns, or contains special tokens.
    """
    messages = conversation.messages
    if conversation.tools or [message.role for message in messages] != ["user", "assistant"]:
        raise DroppedRow(Reason.NOT_ONE_QUESTION)
    question, answer = messages
    refuse_markup((question.content, answer.content), tokenizer.special_tokens)
    segments = [
        Segment(tokenizer.leading_tokens, False),
        Segment(question_prompt(question.content), False),
        Segment(f" {answer.content.strip()}{tokenizer.eos_token}", answer.trained),
    ]
    return [segment for segment in segments if segment.text]


def check_template(chat: Chat, tokenizer: DataTokenizer) -> None:
    """Check that a chat format fits a tokenizer.

    Raises:
        UserError: style and template render conversations differently, the tokenizer lacks a token
            of the style, it tokenises an answer differently without the text before it, or the
            format is `template` and the tokenizer's template is missing or allows no exact loss
            mask. In most cases the hint names the formats that fit.
    """
    if isinstance(chat, TemplateChat):
        if tokenizer.chat_template is None:
            raise UserError(
                f"chat.style=template: the tokenizer of {tokenizer.folder} has no chat template",
                hint=_format_hint(tokenizer),
            )
        segments = ChatTemplate(tokenizer).probe()
    elif isinstance(chat, QuestionAnswerChat):
        if tokenizer.eos_token is None:
            raise UserError(
                f"chat.style=question_answer: the tokenizer of {tokenizer.folder} has no EOS "
                "token, which ends answers",
                hint="Set eos_token in its tokenizer_config.json.",
            )
        segments = _question_answer(_PROBES[0], tokenizer)
    else:
        _check_style(chat, tokenizer)
        segments = render(_PROBES[1], chat)
    for before, segment in pairwise(segments):
        alone = tokenizer.encode(segment.text)
        if tokenizer.encode(before.text + segment.text)[-len(alone) :] != alone:
            raise UserError(
                f"{tokenizer.folder}: this tokenizer treats the start of a text specially, so "
                "answers cannot be tokenised separately from their prompts"
            )


def _check_style(chat: Style, tokenizer: DataTokenizer) -> None:
    missing_tokens = _missing_tokens(chat.style, tokenizer)
    if missing_tokens:
        raise UserError(
            f"chat.style={chat.style}: the tokenizer of {tokenizer.folder} has no token "
            f"{', '.join(missing_tokens)}",
            hint=_format_hint(tokenizer),
        )
    difference = _first_difference(chat, tokenizer)
    if difference is not None:
        by_style, by_template = difference
        raise UserError(
            f"chat.style={chat.style} does not match the chat template of {tokenizer.folder}.\n"
            f"Its template gives {by_template!r}\nthe style gives      {by_style!r}",
            hint=_format_hint(tokenizer),
        )


def _missing_tokens(style: StyleName, tokenizer: DataTokenizer) -> list[str]:
    return [mark for mark in MARKUP[style][:2] if tokenizer.id_of(mark) is None]


def _first_difference(chat: Style, tokenizer: DataTokenizer) -> tuple[str, str] | None:
    """Return both renderings (by style, by template) of the first probe in which they differ.

    Return None if they agree on all probes, or if the tokenizer has no template.
    """
    if tokenizer.chat_template is None:
        return None
    template = ChatTemplate(tokenizer)
    for probe in _PROBES:
        by_style = "".join(segment.text for segment in render(probe, chat))
        try:
            by_template = template.text(probe)
        except DroppedRow as dropped:
            by_template = str(dropped)
        if by_style != by_template:
            return by_style, by_template
    return None


def _format_hint(tokenizer: DataTokenizer) -> str:
    """Return a hint that names the chat formats that fit a tokenizer."""
    styles = _styles_with_tokens(tokenizer)
    if tokenizer.chat_template is None:
        plain = "For a base model, use --chat question_answer, which needs no template."
        if not styles:
            return f"{plain} Or save the model's chat template there, then use --chat template."
        return f"The tokenizer has the tokens of --chat {' or '.join(styles)}. {plain}"
    fitting = [
        f"--chat {style}" for style in styles if _first_difference(_PLAIN[style], tokenizer) is None
    ]
    system = _default_system(tokenizer)
    if system is not None:
        with_system = ChatML(default_system=system, loss_on="assistant")
        if "chatml" in styles and _first_difference(with_system, tokenizer) is None:
            fitting.append(f"data.chat.style=chatml 'data.chat.default_system=\"{system}\"'")
    try:
        ChatTemplate(tokenizer).probe()
        fitting.append("--chat template, which trains on the template's own output")
    except UserError as error:
        if not fitting:
            return f"No chat style fits: {error}"
    return f"Use {', or '.join(fitting)}."


def _styles_with_tokens(tokenizer: DataTokenizer) -> list[StyleName]:
    return [style for style in _PLAIN if not _missing_tokens(style, tokenizer)]


def _default_system(tokenizer: DataTokenizer) -> str | None:
    """Return the default system message of a ChatML template, or None.

    It is also None if the message cannot be typed in a command-line option.
    """
    opening, closing = "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"
    try:
        text = ChatTemplate(tokenizer).text(_PROBES[0])
    except DroppedRow:
        return None
    system, separator, _ = text.removeprefix(opening).partition(closing)
    typeable = not set(system) & set("\"'\n\\")
    return system if text.startswith(opening) and separator and typeable else None


def _difference(by_style: str, by_template: str) -> str:
    """Describe the first difference between two texts by an excerpt of each."""
    common = sum(1 for _ in takewhile(bool, map(eq, by_style, by_template)))
    begin = max(0, common - _SHOWN_CHARACTERS // 2)
    template_excerpt, style_excerpt = (
        repr(text[begin : begin + _SHOWN_CHARACTERS]) for text in (by_template, by_style)
    )
    return f"template {template_excerpt}, style {style_excerpt}"
