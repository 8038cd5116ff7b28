"""Conversations to segments with the tokenizer at hand: its chat template has the last word.

At the start a few plain conversations are written by the style and by the template; if they
differ, the style is another model's. Later every row is written by both: one that differs (chains
that only one of them keeps, a system message, whitespace) is dropped and counted. Calls of tools
are written by the template alone; results alone, where it cannot, as turns of the user.
"""

from __future__ import annotations

from itertools import pairwise, takewhile
from operator import eq

from amnesia_bench.config.data_schema import (
    Chat,
    ChatML,
    Llama3Chat,
    MistralChat,
    Qwen3Chat,
    TemplateChat,
)
from amnesia_bench.data.chat import (
    MARKUP,
    Segment,
    Style,
    StyleName,
    calls_tools,
    render,
    results_as_user_turns,
)
from amnesia_bench.data.chat_template import ChatTemplate, talk
from amnesia_bench.data.conversation import Conversation, DroppedRow, Reason
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.template_marks import NotWritten
from amnesia_bench.errors import UserError

# What a style must write as the template does. Data without chains, and data of chains only, are
# both common, so what only one of them uses is left to the rows.
_PROBES = (talk("Hi.", "Hello!"), talk("Hi.", "Hello!", "What is 2 + 2?", "The answer is 4."))
_SHOWN_CHARACTERS = 40
_PLAIN: dict[StyleName, Style] = {
    "qwen3": Qwen3Chat(loss_on="assistant"),
    "chatml": ChatML(default_system=None, loss_on="assistant"),
    "mistral": MistralChat(loss_on="assistant"),
    "llama3": Llama3Chat(loss_on="assistant"),
}


class Renderer:
    """Writes conversations as a config says, for one tokenizer."""

    def __init__(self, chat: Chat, tokenizer: DataTokenizer) -> None:
        """Check that the style is the tokenizer's.

        Raises:
            UserError: see `check_template`.
        """
        check_template(chat, tokenizer)
        self._chat = chat
        self._template = ChatTemplate(tokenizer) if tokenizer.chat_template else None

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Return a conversation as segments.

        Raises:
            DroppedRow: it cannot be written, or the style writes it unlike the template.
        """
        template, chat = self._template, self._chat
        if template is not None and calls_tools(conversation):
            return template.segments(conversation, chat.loss_on)
        plain = results_as_user_turns(conversation)
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
            ours = "".join(segment.text for segment in segments)
            theirs = template.text(plain)
            if ours != theirs:
                raise NotWritten(_difference(ours, theirs), Reason.TEMPLATE)
        return segments


def check_template(chat: Chat, tokenizer: DataTokenizer) -> None:
    """Compare what a style and the tokenizer's own template write.

    Raises:
        UserError: they differ, the tokenizer lacks a token of the style, or `template` was asked
            for and there is none that can be trained on; the hint names what fits.
    """
    if isinstance(chat, TemplateChat):
        if tokenizer.chat_template is None:
            raise UserError(
                f"chat.style=template: the tokenizer of {tokenizer.folder} has no chat template",
                hint=_what_fits(tokenizer),
            )
        segments = ChatTemplate(tokenizer).probe()
    else:
        _check_style(chat, tokenizer)
        segments = render(_PROBES[1], chat)
    for before, segment in pairwise(segments):
        alone = tokenizer.encode(segment.text)
        if tokenizer.encode(before.text + segment.text)[-len(alone) :] != alone:
            raise UserError(
                f"{tokenizer.folder}: this tokenizer treats the beginning of a text as special; "
                "answers cannot be tokenised apart from their prompts with it"
            )


def _check_style(chat: Style, tokenizer: DataTokenizer) -> None:
    missing = _missing(chat.style, tokenizer)
    if missing:
        raise UserError(
            f"chat.style={chat.style}: the tokenizer of {tokenizer.folder} has no token "
            f"{', '.join(missing)}",
            hint=_what_fits(tokenizer),
        )
    difference = _differs(chat, tokenizer)
    if difference is not None:
        ours, theirs = difference
        raise UserError(
            f"chat.style={chat.style} is not what the tokenizer of {tokenizer.folder} uses.\n"
            f"Its template gives {theirs!r}\nthe style gives      {ours!r}",
            hint=_what_fits(tokenizer),
        )


def _missing(style: StyleName, tokenizer: DataTokenizer) -> list[str]:
    return [mark for mark in MARKUP[style][:2] if tokenizer.id_of(mark) is None]


def _differs(chat: Style, tokenizer: DataTokenizer) -> tuple[str, str] | None:
    """Return the first plain conversation that style and template write differently, as both do."""
    if tokenizer.chat_template is None:
        return None
    template = ChatTemplate(tokenizer)
    for probe in _PROBES:
        ours = "".join(segment.text for segment in render(probe, chat))
        try:
            theirs = template.text(probe)
        except DroppedRow as dropped:
            theirs = str(dropped)
        if ours != theirs:
            return ours, theirs
    return None


def _what_fits(tokenizer: DataTokenizer) -> str:
    """Return what to type for this tokenizer."""
    styles = _styles_with_tokens(tokenizer)
    if tokenizer.chat_template is None:
        if not styles:
            return "Put the chat template of that model into its folder: --chat template."
        return f"It has the tokens of --chat {' or '.join(styles)}."
    fitting = [f"--chat {style}" for style in styles if _differs(_PLAIN[style], tokenizer) is None]
    system = _default_system(tokenizer)
    if system is not None:
        named = ChatML(default_system=system, loss_on="assistant")
        if "chatml" in styles and _differs(named, tokenizer) is None:
            fitting.append(f"data.chat.style=chatml 'data.chat.default_system=\"{system}\"'")
    try:
        ChatTemplate(tokenizer).probe()
        fitting.append("--chat template, which trains on what its template writes")
    except UserError as error:
        if not fitting:
            return f"No style fits: {error}"
    return f"What fits is {', or '.join(fitting)}."


def _styles_with_tokens(tokenizer: DataTokenizer) -> list[StyleName]:
    return [style for style in _PLAIN if not _missing(style, tokenizer)]


def _default_system(tokenizer: DataTokenizer) -> str | None:
    """Return the system message of a ChatML template for conversations that have none."""
    opening, closing = "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"
    try:
        text = ChatTemplate(tokenizer).text(_PROBES[0])
    except DroppedRow:
        return None
    system, found, _ = text.removeprefix(opening).partition(closing)
    typeable = not set(system) & set("\"'\n\\")
    return system if text.startswith(opening) and found and typeable else None


def _difference(ours: str, theirs: str) -> str:
    """Show where two texts begin to differ."""
    same = sum(1 for _ in takewhile(bool, map(eq, ours, theirs)))
    begin = max(0, same - _SHOWN_CHARACTERS // 2)
    shown = [repr(text[begin : begin + _SHOWN_CHARACTERS]) for text in (theirs, ours)]
    return f"{shown[0]}, the style {shown[1]}"
