"""A tokenizer's own chat template as a writer of training conversations, with exact loss masks.

A template is a program, so the place of an answer is found by running it twice: on the
conversation, and on one with marks instead of the texts. The second output with the texts put in
must be the first, to the byte. Trained is what a model writes at inference: from the end of the
prompt that the template makes for an answer, through the token that ends the turn.
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

# Tags inside messages, not between them. Some tokenizers have them as special tokens.
_TAGS_IN_MESSAGES = frozenset(
    (THINK, END_THINK, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
)
# Ways to ask for an answer, best first; an answer that thinks is never the result of the first.
_PROMPTS: tuple[Mapping[str, bool], ...] = (
    {"enable_thinking": False},
    {},
    {"enable_thinking": True},
)


def talk(*turns: str, reasoning: str | None = None) -> Conversation:
    """Return a conversation of user and assistant in turn; the last answer has the reasoning."""
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
    """The chat template of a tokenizer that has one."""

    def __init__(self, tokenizer: DataTokenizer) -> None:
        self._tokenizer = tokenizer
        self._reasoning_field = self._takes_reasoning_field()
        self._arguments_as_text = self._takes_arguments_as_text()
        self._ends: frozenset[str] = frozenset()
        self._markup = tokenizer.special_tokens
        self._learn_tokens()

    def probe(self) -> list[Segment]:
        """Return a question and an answer as segments.

        Raises:
            UserError: the template cannot write them, or ends the answer with no special token.
        """
        try:
            return self.segments(talk("Hi!", "Hello!"), "assistant")
        except DroppedRow as dropped:
            raise UserError(
                f"{self._tokenizer.folder}: no loss mask can be made with its chat template "
                f"({dropped})",
                hint="Correct the template in that folder (it may need eos_token after each "
                "answer), or choose a style: --chat STYLE.",
            ) from dropped

    def text(self, conversation: Conversation) -> str:
        """Return what the template writes.

        Raises:
            NotWritten: it refuses the conversation.
        """
        plain = [self._message(message) for message in conversation.messages]
        return self._write(plain, conversation.tools)

    def segments(self, conversation: Conversation, loss_on: LossOn) -> list[Segment]:
        """Return a conversation as segments; their joined text is what the template writes.

        Raises:
            NotWritten: the template refuses the conversation, or leaves a part of it out.
            DroppedRow: a message holds tokens of the template's structure.
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
            own = [i for i, each in enumerate(scaffold.placed) if each.mark.turn == turn]
            if not own[0] or own[-1] - own[0] != len(own) - 1:
                raise NotWritten(f"it mixes messages[{turn}] with others")
            thinks = scaffold.placed[own[0]].mark.part == "reasoning"
            prompts = (
                self._write(marked[:turn], tools, prompt=True, **options)
                for options in (_PROMPTS[1:] if thinks else _PROMPTS)
            )
            begin = filled.place(_begin(scaffold, own[0], prompts))
            end = scaffold.first(self._ends, own[-1])
            if end is None:
                raise NotWritten(f"it ends messages[{turn}] with no special token")
            yield whole[done:begin], None
            done = filled.place(end[0]) + len(end[1])
            yield whole[begin:done], message.trained
        yield whole[done:], None

    def _message(
        self, message: Message, marks: Marks | None = None, turn: int = 0
    ) -> dict[str, object]:
        """Return a message as templates take it; with marks instead of its texts if given."""

        def put(part: str, text: str) -> str:
            return text if marks is None else marks.put(turn, part, text)

        if message.role != "assistant":
            return {
                "role": message.role,
                "content": put(f"{message.role} message", message.content),
                **message.answers,
            }
        plain: dict[str, object] = {"role": message.role}
        begun, answer = "", message.content
        if message.answer != message.content:
            begun, answer = _split(message.content)
            if self._reasoning_field:
                begun, answer = "", answer.lstrip("\n")
        if message.reasoning and self._reasoning_field:
            plain["reasoning_content"] = put("reasoning", message.reasoning.strip("\n"))
        elif message.reasoning:
            opened, _, chain = begun.removesuffix(END_THINK).partition(THINK)
            begun = opened + THINK + put("reasoning", chain) + END_THINK
        called = message.tool_calls and not answer.strip()
        plain["content"] = begun + (answer if called else put("answer", answer))
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
        """Return the arguments of a call as the template takes them: an object, or its JSON."""
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
        # What a template computes may fail as any Python may.
        except (
            TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
            ValueError,
        ) as error:  # fmt: skip
            raise NotWritten(f"it says {str(error)!r}") from error

    def _refuse_lost_tools(self, conversation: Conversation, whole: str) -> None:
        """Refuse a conversation whose functions, or arguments of calls, the template ignores."""
        messages = conversation.messages
        if conversation.tools and whole == self.text(Conversation(messages=messages)):
            raise NotWritten("it leaves out the tools")
        without = tuple(
            replace(m, tool_calls=tuple({**call, "arguments": {}} for call in m.tool_calls))
            for m in messages
        )
        called = any(call.get("arguments") for m in messages for call in m.tool_calls)
        if called and whole == self.text(Conversation(messages=without, tools=conversation.tools)):
            raise NotWritten("it leaves out the arguments of tool calls")

    def _takes_reasoning_field(self) -> bool:
        """Whether the template wants a chain in a field of its own, not in the content."""
        shown = {}
        for self._reasoning_field in (True, False):
            try:
                text = self.text(talk("Hi!", "Hello!", reasoning="A chain."))
            except DroppedRow:
                text = ""
            shown[self._reasoning_field] = "A chain." in text
        return shown[True] or not shown[False]

    def _takes_arguments_as_text(self) -> bool:
        """Whether the template writes the arguments of a call as JSON only if they are a text."""
        arguments = {"a": "b"}
        calls = ({"name": "add", "arguments": arguments},)
        question, answer = talk("Hi!", "").messages
        conversation = Conversation(messages=(question, replace(answer, tool_calls=calls)))
        for self._arguments_as_text in (False, True):
            try:
                written = self.text(conversation)
            except DroppedRow:
                continue
            if str(arguments) not in written:  # Python's way to write an object
                return self._arguments_as_text
        return False

    def _learn_tokens(self) -> None:
        """Find the texts that end answers, and the tokens that make the structure of a chat."""
        messages = talk("Hi!", "Hello!", "Bye!", "Goodbye!").messages
        marks = Marks()
        marked = [self._message(message, marks, i) for i, message in enumerate(messages)]
        try:
            scaffold = Scaffold(self._write(marked), marks.made, messages)
        except DroppedRow:
            return  # `segments` says why
        self._ends = frozenset(
            end
            for i, each in enumerate(scaffold.placed)
            if each.mark.part == "answer"
            for end in self._ends_after(scaffold, i)
        )
        structure = {token for token in self._tokenizer.added_tokens if token in scaffold.text}
        self._markup = (self._markup | structure) - _TAGS_IN_MESSAGES

    def _ends_after(self, scaffold: Scaffold, i: int) -> tuple[str, ...]:
        """Return what ends the turn of the answer at the `i`-th mark.

        It is the first special token, or all of them up to the one that ends generation where that
        one follows without a text between: Cohere closes its answer and then the turn. A call of
        a tool may be closed by another token before it.
        """
        special, last = self._tokenizer.special_tokens, self._tokenizer.eos_token
        first = scaffold.first(special, i)
        if first is None:
            return ()
        begin, token = first
        end = begin + len(token)
        while token != last:
            rest = scaffold.text[end : scaffold.limit(i)]
            following = [each for each in special if rest.startswith(each)]
            if not following:
                return (first[1],)
            token = max(following, key=len)
            end += len(token)
        return scaffold.text[begin:end], token


def _begin(scaffold: Scaffold, first: int, prompts: Iterable[str]) -> int:
    """Return where in a scaffold an answer begins: where its prompt ends.

    Args:
        scaffold: the conversation.
        first: the answer's first mark.
        prompts: what the template writes to have the answer generated, best first.
    """
    before, own = scaffold.placed[first - 1], scaffold.placed[first]
    gap = scaffold.text[before.end : own.begin]
    for prompt in prompts:
        opening = prompt.rpartition(before.mark.text)[2]
        if gap.startswith(opening):
            empty_block = gap.rfind(END_THINK, len(opening))
            if empty_block < 0:
                return before.end + len(opening)
            # An empty block is the prompt's, whether or not the template's prompt has it.
            rest = gap[empty_block + len(END_THINK) :]
            return own.begin - len(rest.lstrip("\n"))
    if own.mark.part == "answer":
        return own.begin
    raise NotWritten(
        f"it writes {gap!r} before the {own.mark.part} of messages[{own.mark.turn}], and another "
        "text when it asks for an answer"
    )


def _split(content: str) -> tuple[str, str]:
    """Split an answer's text after its think block."""
    begun, end, answer = content.partition(END_THINK)
    return begun + end, answer
