"""Render training conversations with a tokenizer's own chat template, with exact loss masks.

A template is a program, so answers are located by rendering a conversation twice: as it is, and as
a copy in which marks replace the texts. With the texts put back in place of the marks, the second
output must equal the first exactly. The trained part of a turn is what a model generates at
inference: from the end of the template's generation prompt through the token that ends the turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from amnesia_bench.config.data_schema import LossOn
from amnesia_bench.data.chat import Part, Segment, refuse_markup, segments_of
from amnesia_bench.data.conversation import (
    END_THINK,
    THINK,
    Conversation,
    DroppedRow,
    Message,
)
from amnesia_bench.data.template_marks import Marks, NotWritten, Scaffold
from amnesia_bench.errors import UserError

if TYPE_CHECKING:
    from amnesia_bench.data.data_tokenizer import DataTokenizer

# Tags that occur inside messages, not between them. In some tokenizers they are special tokens.
_TAGS_IN_MESSAGES = frozenset(
    (THINK, END_THINK, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
)
# Template options to try for the generation prompt, in order of preference. The first is not used
# for answers with a chain of thought.
_PROMPTS: tuple[Mapping[str, bool], ...] = (
    {"enable_thinking": False},
    {},
    {"enable_thinking": True},
)


def make_conversation(*turns: str, reasoning: str | None = None) -> Conversation:
    """Return a conversation of alternating user and assistant turns.

    `reasoning` is the chain of thought of the last turn.
    """
    messages = [
        Message(role=("user", "assistant")[i % 2], content=text, answer=text)
        for i, text in enumerate(turns)
    ]
    if reasoning is not None:
        chain, answer = f"\n{reasoning}\n", f"\n\n{turns[-1]}"
        content = f"{THINK}{chain}{END_THINK}{answer}"
        messages[-1] = replace(messages[-1], content=content, reasoning=chain, answer=answer)
    return Conversation(messages=tuple(messages))


class ChatTemplate:
    """Renders conversations with the chat template of a tokenizer."""

    def __init__(self, tokenizer: DataTokenizer) -> None:
        self._tokenizer = tokenizer
        self._reasoning_field = self._takes_reasoning_field()
        self._arguments_as_text = self._takes_arguments_as_text()
        self._ends: frozenset[str] = frozenset()
        self._markup = tokenizer.special_tokens
        self._find_tokens()

    def probe(self) -> list[Segment]:
        """Render a sample question and answer as segments, to test the template.

        Raises:
            UserError: the template cannot render them, or ends the answer without a special token.
        """
        try:
            return self.segments(make_conversation("Hi!", "Hello!"), "assistant")
        except DroppedRow as dropped:
            raise UserError(
                f"{self._tokenizer.folder}: its chat template does not allow an exact loss mask "
                f"({dropped})",
                hint="Correct the template in that folder (it may lack eos_token after each "
                "answer), or choose a style: --chat STYLE.",
            ) from dropped

    def text(self, conversation: Conversation) -> str:
        """Render a conversation as text.

        Raises:
            NotWritten: the template cannot render the conversation.
        """
        plain = [self._message(message) for message in conversation.messages]
        return self._write(plain, conversation.tools)

    def segments(self, conversation: Conversation, loss_on: LossOn) -> list[Segment]:
        """Render a conversation as segments whose joined texts are the template's output.

        Raises:
            NotWritten: the template cannot render the conversation, or omits a part of it.
            DroppedRow: a message contains tokens that structure the chat.
        """
        messages, tools = conversation.messages, conversation.tools
        calls = [call for message in messages for call in message.tool_calls]
        answers = [message.answers for message in messages]
        written = json.dumps([tools, calls, answers], ensure_ascii=False, default=str)
        refuse_markup([*(message.content for message in messages), written], self._markup)
        whole = self.text(conversation)
        self._refuse_lost_tools(conversation, whole)
        return segments_of(self._parts(conversation, whole), loss_on)

    def _parts(self, conversation: Conversation, whole: str) -> Iterator[Part]:
        messages, tools = conversation.messages, conversation.tools
        marks = Marks()
        marked = [self._message(message, marks, i) for i, message in enumerate(messages)]
        scaffold = Scaffold(self._write(marked, tools), marks.made, messages)
        filled = scaffold.filled(whole)
        done = 0
        for turn, message in enumerate(messages):
            if message.role != "assistant":
                continue
            own = [i for i, placed in enumerate(scaffold.placed) if placed.mark.turn == turn]
            if not own[0] or own[-1] - own[0] != len(own) - 1:
                raise NotWritten(f"it mixes messages[{turn}] with other messages")
            thinks = scaffold.placed[own[0]].mark.part == "reasoning"
            prompts = (
                self._write(marked[:turn], tools, prompt=True, **options)
                for options in (_PROMPTS[1:] if thinks else _PROMPTS)
            )
            begin = filled.place(_begin(scaffold, own[0], prompts))
            end = scaffold.first(self._ends, own[-1])
            if end is None:
                raise NotWritten(f"it ends messages[{turn}] without a special token")
            yield whole[done:begin], None
            done = filled.place(end[0]) + len(end[1])
            yield whole[begin:done], message.trained
        yield whole[done:], None

    def _message(
        self, message: Message, marks: Marks | None = None, turn: int = 0
    ) -> dict[str, object]:
        """Return a message in the format of chat templates.

        If `marks` is set, its marks replace the texts of the message. `turn` is the index of the
        message in the conversation, and is stored in the marks.
        """

        def put(part: str, text: str) -> str:
            return text if marks is None else marks.put(turn, part, text)

        if message.role != "assistant":
            return {
                "role": message.role,
                "content": put(f"{message.role} message", message.content),
                **message.answers,
            }
        plain: dict[str, object] = {"role": message.role}
        think_block, answer = "", message.content
        if message.answer != message.content:
            think_block, answer = _split(message.content)
            if self._reasoning_field:
                think_block, answer = "", answer.lstrip("\n")
        if message.reasoning and self._reasoning_field:
            plain["reasoning_content"] = put("reasoning", message.reasoning.strip("\n"))
        elif message.reasoning:
            before, _, chain = think_block.removesuffix(END_THINK).partition(THINK)
            think_block = before + THINK + put("reasoning", chain) + END_THINK
        only_calls = message.tool_calls and not answer.strip()
        plain["content"] = think_block + (answer if only_calls else put("answer", answer))
        if message.tool_calls:
            plain["tool_calls"] = [
                {
                    "type": "function",
                    **({"id": call["id"]} if "id" in call else {}),
                    "function": {
                        "name": put("tool call", str(call["name"])),
                        "arguments": self._arguments(call.get("arguments")),
                    },
                }
                for call in message.tool_calls
            ]
        return plain

    def _arguments(self, arguments: object) -> object:
        """Return the arguments of a tool call as the template expects them: as object or JSON."""
        if isinstance(arguments, str) and not self._arguments_as_text:
            try:
                return json.loads(arguments)
            except ValueError:
                return arguments
        if self._arguments_as_text and not isinstance(arguments, str):
            return json.dumps(arguments, ensure_ascii=False)
        return arguments

    def _write(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] = (),
        *,
        prompt: bool = False,
        **options: bool,
    ) -> str:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_template(messages, tools, prompt=prompt, **options)
        # Expressions in a template can raise the errors of any Python expression.
        except (
            TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
            ValueError,
        ) as error:  # fmt: skip
            raise NotWritten(f"it raises {str(error)!r}") from error

    def _refuse_lost_tools(self, conversation: Conversation, whole: str) -> None:
        """Raise NotWritten if the template omits the tools or the arguments of tool calls."""
        messages = conversation.messages
        if conversation.tools and whole == self.text(Conversation(messages=messages)):
            raise NotWritten("it omits the tools")
        without_arguments = tuple(
            replace(m, tool_calls=tuple({**call, "arguments": {}} for call in m.tool_calls))
            for m in messages
        )
        if not any(call.get("arguments") for m in messages for call in m.tool_calls):
            return
        if whole == self.text(Conversation(messages=without_arguments, tools=conversation.tools)):
            raise NotWritten("it omits the arguments of tool calls")

    def _takes_reasoning_field(self) -> bool:
        """Return whether the template takes reasoning from a separate field, not from content."""
        rendered = {}
        for self._reasoning_field in (True, False):
            try:
                text = self.text(make_conversation("Hi!", "Hello!", reasoning="A chain."))
            except DroppedRow:
                text = ""
            rendered[self._reasoning_field] = "A chain." in text
        return rendered[True] or not rendered[False]

    def _takes_arguments_as_text(self) -> bool:
        """Return whether the template writes arguments as JSON only if it gets a JSON text."""
        arguments = {"a": "b"}
        calls = ({"name": "add", "arguments": arguments},)
        question, answer = make_conversation("Hi!", "").messages
        conversation = Conversation(messages=(question, replace(answer, tool_calls=calls)))
        for self._arguments_as_text in (False, True):
            try:
                written = self.text(conversation)
            except DroppedRow:
                continue
            if str(arguments) not in written:  # not as Python's repr of the object
                return self._arguments_as_text
        return False

    def _find_tokens(self) -> None:
        """Find the texts that end answers and the tokens that structure a chat in a sample chat."""
        messages = make_conversation("Hi!", "Hello!", "Bye!", "Goodbye!").messages
        marks = Marks()
        marked = [self._message(message, marks, i) for i, message in enumerate(messages)]
        try:
            scaffold = Scaffold(self._write(marked), marks.made, messages)
        except DroppedRow:
            return  # `segments` reports the reason
        self._ends = frozenset(
            end
            for i, placed in enumerate(scaffold.placed)
            if placed.mark.part == "answer"
            for end in self._ends_after(scaffold, i)
        )
        # Gemma has added tokens for runs of white space, which belong to any text.
        structure = {
            token
            for token in self._tokenizer.added_tokens
            if token in scaffold.text and not token.isspace()
        }
        self._markup = (self._markup | structure) - _TAGS_IN_MESSAGES

    def _ends_after(self, scaffold: Scaffold, i: int) -> tuple[str, ...]:
        """Return the texts that may end the turn of the answer at the `i`-th mark.

        A turn ends with the first special token after the answer. If only special tokens separate
        this token from EOS, the turn ends with the sequence from this token through EOS, since
        templates such as Cohere's close first the answer and then the turn. In that case EOS alone
        is an end too, since a different token may precede it after a tool call.
        """
        special, last = self._tokenizer.special_tokens, self._tokenizer.eos_token
        first = scaffold.first(special, i)
        if first is None:
            return ()
        begin, token = first
        end = begin + len(token)
        while token != last:
            rest = scaffold.text[end : scaffold.limit(i)]
            following = [candidate for candidate in special if rest.startswith(candidate)]
            if not following:
                return (first[1],)
            token = max(following, key=len)
            end += len(token)
        return scaffold.text[begin:end], token


def _begin(scaffold: Scaffold, first: int, prompts: Iterable[str]) -> int:
    """Return the position in a scaffold at which the prompt ends and an answer begins.

    Args:
        scaffold: the rendered conversation with marks.
        first: the index of the answer's first mark.
        prompts: the template's prompts up to the answer, in order of preference.
    """
    before, own = scaffold.placed[first - 1], scaffold.placed[first]
    gap = scaffold.text[before.end : own.begin]
    for prompt in prompts:
        opening = prompt.rpartition(before.mark.text)[2]
        if gap.startswith(opening):
            empty_block = gap.rfind(END_THINK, len(opening))
            if empty_block < 0:
                return before.end + len(opening)
            # An empty think block counts as prompt, even if the template's prompt lacks it.
            rest = gap[empty_block + len(END_THINK) :]
            return own.begin - len(rest.lstrip("\n"))
    if own.mark.part == "answer":
        return own.begin
    raise NotWritten(
        f"it writes {gap!r} before the {own.mark.part} of messages[{own.mark.turn}], but a "
        "different text in its generation prompt"
    )


def _split(content: str) -> tuple[str, str]:
    """Split the content of an assistant message into its think block and the text after it."""
    before, end, answer = content.partition(END_THINK)
    return before + end, answer
