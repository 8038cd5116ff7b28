"""Training on what a tokenizer's own template writes: the same text, and masks that are exact."""

from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from amnesia_bench.config.data_schema import Chat, ChatML, Llama3Chat, Qwen3Chat, TemplateChat
from amnesia_bench.data.chat import Segment, render, tool_results_as_user_turns
from amnesia_bench.data.chat_template import ChatTemplate
from amnesia_bench.data.conversation import Conversation, DroppedRow, Message, Reason
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.rendering import Renderer, check_template
from amnesia_bench.errors import UserError
from tests.support.chat_templates import ALPACA, QWEN_SYSTEM, TEMPLATES, Template, tokenizer_with

TEMPLATE = TemplateChat(loss_on="assistant")
CALL = {"name": "weather", "arguments": {"city": 'Köln "x"'}}
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)


def says(role: str, content: str) -> Message:
    return Message(role=role, content=content, answer=content)


def answers(
    text: str,
    reasoning: str | None = None,
    *,
    calls: tuple[dict[str, object], ...] = (),
    trained: bool = True,
) -> Message:
    content, answer, chain = text, text, None
    if reasoning is not None:
        chain, answer = f"\n{reasoning}\n", f"\n\n{text}"
        content = f"<think>{chain}</think>{answer}"
    return Message(
        role="assistant", content=content, reasoning=chain, answer=answer, tool_calls=calls,
        trained=trained,
    )  # fmt: skip


def talk(*messages: Message, tools: tuple[dict[str, object], ...] = ()) -> Conversation:
    return Conversation(messages=messages, tools=tools)


@cache
def tokenizer(name: str) -> DataTokenizer:
    return tokenizer_with(Path(mkdtemp()), TEMPLATES[name])


@cache
def fitting_renderer(style: Chat, name: str) -> Renderer | None:
    try:
        return Renderer(style, tokenizer(name))
    except UserError:
        return None


def trained(segments: list[Segment]) -> list[str]:
    return [segment.text for segment in segments if segment.trained]


HI = says("user", "\n Hi \n")
CHAINS = talk(HI, answers("b", "r1"), says("user", "c"), answers("d", "r2"))
CONVERSATIONS = {
    "plain": talk(says("system", "Be brief."), HI, answers("b"), says("user", "c"), answers("d")),
    "spaces": talk(HI, answers("\n\n Hello\n ü \n")),
    "chains": CHAINS,
    "an earlier chain": talk(HI, answers("b", "r1"), says("user", "c"), answers("d")),
    "untrained": talk(HI, answers("bad", trained=False), says("user", "c"), answers("d")),
    "results in user turns": talk(
        HI, answers("call", "r1"), says("user", "<tool_response>\n5\n</tool_response>"),
        answers("d", "r2"),
    ),
    "tools": talk(
        HI, answers("", "r1", calls=(CALL,)), says("tool", '5 C "cold"\nü'), answers("d", "r2"),
        tools=TOOLS,
    ),
    "calls": talk(
        HI, answers("", calls=(CALL,)), says("tool", "5"), answers("See.", calls=(CALL, CALL))
    ),
}  # fmt: skip
_QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln \\"x\\""}}\n</tool_call>'
_TAG_CALL = (
    '<tool_call>\n<function=weather>\n<parameter=city>Köln "x"</parameter>\n</function>\n'
    "</tool_call>"
)


def _chatml(**changes: list[str] | str) -> dict[str, list[str] | str]:
    """Return what a template trains that writes answers as they are, with exceptions."""
    return {
        "plain": ["b<|im_end|>", "d<|im_end|>"],
        "spaces": ["\n\n Hello\n ü \n<|im_end|>"],
        "chains": ["<think>\nr1\n</think>\n\nb<|im_end|>", "<think>\nr2\n</think>\n\nd<|im_end|>"],
        "an earlier chain": ["<think>\nr1\n</think>\n\nb<|im_end|>", "d<|im_end|>"],
        "untrained": ["d<|im_end|>"],
        "results in user turns": ["<think>\nr1\n</think>\n\ncall<|im_end|>",
                                  "<think>\nr2\n</think>\n\nd<|im_end|>"],
        "tools": "omits the tools",
        "calls": "omits",
    } | {name.replace("_", " "): expected for name, expected in changes.items()}  # fmt: skip


def _ending(end: str, begin: str = "", **changes: list[str] | str) -> dict[str, list[str] | str]:
    plain = _chatml(**{"spaces": ["Hello\n ü<|im_end|>"]} | changes)
    return {
        name: [begin + text.replace("<|im_end|>", end) for text in texts]
        if isinstance(texts, list)
        else texts
        for name, texts in plain.items()
    }


_QWEN3 = _chatml(
    spaces=[" Hello\n ü \n<|im_end|>"],
    chains=["b<|im_end|>", "<think>\nr2\n</think>\n\nd<|im_end|>"],
    an_earlier_chain=["b<|im_end|>", "d<|im_end|>"],
    tools=[
        f"<think>\nr1\n</think>\n\n{_QWEN_CALL}<|im_end|>",
        "<think>\nr2\n</think>\n\nd<|im_end|>",
    ],
    calls=[f"{_QWEN_CALL}<|im_end|>", f"See.\n{_QWEN_CALL}\n{_QWEN_CALL}<|im_end|>"],
)
_QWEN3_5 = _chatml(
    spaces=["Hello\n ü<|im_end|>"],
    chains=["b<|im_end|>", "r2\n</think>\n\nd<|im_end|>"],
    an_earlier_chain=["b<|im_end|>", "d<|im_end|>"],
    results_in_user_turns=["r1\n</think>\n\ncall<|im_end|>", "r2\n</think>\n\nd<|im_end|>"],
    calls=[f"{_TAG_CALL}<|im_end|>", f"See.{_TAG_CALL}{_TAG_CALL}<|im_end|>"],
)
EXPECTED = {
    "qwen3": _QWEN3,
    "qwen3_2507": _chatml(calls=_QWEN3["calls"]),
    "qwen2_5": _chatml(),
    # The prompt has opened the block.
    "qwen3_5": _QWEN3_5,
    "qwen3_5_small": _QWEN3_5,
    "cohere2": _ending(
        "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        spaces=["\n\n Hello\n ü \n<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"],
    ),
    "llama3": _ending("<|eot_id|>"),
    "llama3_2": _ending("<|eot_id|>", calls="it raises 'only one call at once'"),
    # Its system message stands before a last question, and conversations end in an answer.
    "mistral": _ending(
        "</s>", " ", plain=r"omits the system message of messages\[0\]",
        tools="it raises 'calls need ids", calls="it raises 'calls need ids",
    ),
    "gemma3": _ending(
        "<end_of_turn>", tools="'roles must alternate'", calls="'roles must alternate'"
    ),
    "smollm3": _chatml(spaces=[" Hello\n ü \n<|im_end|>"]),
    "r1_distill": _ending(
        "</s>", spaces=["Hello\n ü \n</s>"], chains=r"omits the reasoning of messages\[3\]",
        an_earlier_chain=["b</s>", "d</s>"],
        results_in_user_turns=r"omits the reasoning of messages\[1\]",
    ),
    "gpt_oss": {
        "plain": ["<|channel|>final<|message|>b<|end|>", "<|channel|>final<|message|>d<|return|>"],
        "spaces": ["<|channel|>final<|message|>\n\n Hello\n ü \n<|return|>"],
        "chains": [
            "<|channel|>final<|message|>b<|end|>",
            "<|channel|>analysis<|message|>r2<|end|>"
            "<|start|>assistant<|channel|>final<|message|>d<|return|>",
        ],
        "an earlier chain": [
            "<|channel|>final<|message|>b<|end|>", "<|channel|>final<|message|>d<|return|>"
        ],
        "untrained": ["<|channel|>final<|message|>d<|return|>"],
        "tools": "omits the tools",
        "calls": "omits the arguments of tool calls",
    },
}  # fmt: skip


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_the_templates_and_trained_is_what_the_assistant_wrote(
    name: str, conversation: str
) -> None:
    expected = EXPECTED[name].get(conversation)
    if expected is None:
        pytest.skip("another case shows it")
    renderer = Renderer(TEMPLATE, tokenizer(name))
    if isinstance(expected, str):
        with pytest.raises(DroppedRow, match=expected) as caught:
            renderer.segments(CONVERSATIONS[conversation])
        assert caught.value.reason is Reason.NOT_WRITTEN
        return
    segments = renderer.segments(CONVERSATIONS[conversation])
    text = ChatTemplate(tokenizer(name)).text(CONVERSATIONS[conversation])
    assert "".join(segment.text for segment in segments) == text
    assert trained(segments) == expected
    backend = Backend.from_str(tokenizer(name).serialized)
    tokens = [token for part in trained(segments) for token in tokenizer(name).encode(part)]
    assert backend.decode(tokens, skip_special_tokens=False) == "".join(expected)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("qwen3", Qwen3Chat(loss_on="assistant")),
        ("qwen3_2507", ChatML(loss_on="assistant")),
        ("qwen2_5", ChatML(default_system=QWEN_SYSTEM, loss_on="assistant")),
        ("llama3", Llama3Chat(loss_on="assistant")),
    ],
)
def test_styles_cut_texts_where_the_template_does(name: str, style: Chat) -> None:
    assert not isinstance(style, TemplateChat)
    by_style, by_template = Renderer(style, tokenizer(name)), Renderer(TEMPLATE, tokenizer(name))
    for conversation in list(CONVERSATIONS.values())[:6]:
        segments = by_template.segments(conversation)
        assert render(conversation, style) == by_style.segments(conversation) == segments


def test_tools_are_left_to_the_template_and_refused_without_one(tmp_path: Path) -> None:
    style = Qwen3Chat(loss_on="assistant")
    assert (
        trained(Renderer(style, tokenizer("qwen3")).segments(CONVERSATIONS["tools"]))
        == (_QWEN3["tools"])
    )
    bare = Renderer(style, tokenizer_with(tmp_path, Template("")))
    for name in ("tools", "calls"):
        with pytest.raises(DroppedRow, match="tools or calls of them"):
            bare.segments(CONVERSATIONS[name])
    # Results alone are a turn of the user's.
    results = talk(HI, answers("call", "r1"), says("tool", "5"), says("tool", "6"), answers("d"))
    by_template = Renderer(TEMPLATE, tokenizer("qwen3")).segments(results)
    assert bare.segments(results) == by_template
    response = "<tool_response>\n5\n</tool_response>\n<tool_response>\n6\n</tool_response>"
    for style, name in ((Llama3Chat(loss_on="assistant"), "llama3"), (TEMPLATE, "gemma3")):
        segments = Renderer(style, tokenizer(name)).segments(results)
        assert response in "".join(segment.text for segment in segments)


def test_a_row_that_the_template_writes_otherwise_is_dropped_and_shown(tmp_path: Path) -> None:
    # Plain talk is ChatML, but chains of earlier answers are cut.
    source = TEMPLATES["qwen3_2507"].source.replace(
        "{%- set text = m.content -%}",
        "{%- set text = m.content.split('</think>')[-1] -%}",
    )
    renderer = Renderer(ChatML(loss_on="assistant"), tokenizer_with(tmp_path, Template(source)))
    assert trained(renderer.segments(CONVERSATIONS["plain"])) == ["b<|im_end|>", "d<|im_end|>"]
    with pytest.raises(DroppedRow, match=r"differently \(template .*nb<.*style '.*<think>"):
        renderer.segments(CHAINS)


def test_arguments_of_calls_are_objects_or_texts_as_the_template_wants_them(tmp_path: Path) -> None:
    rows = [
        talk(HI, answers("", calls=({"name": "f", "arguments": arguments},)))
        for arguments in ({"a": "ü"}, '{"a": "ü"}')
    ]
    written = [trained(Renderer(TEMPLATE, tokenizer("qwen3")).segments(row)) for row in rows]
    assert (
        written
        == [['<tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call><|im_end|>']] * 2
    )
    source = TEMPLATES["qwen3"].source.replace(
        "call.function.arguments is string", "true"
    )  # concatenates the arguments, as DeepSeek's does
    renderer = Renderer(TEMPLATE, tokenizer_with(tmp_path, Template(source)))
    assert [trained(renderer.segments(row)) for row in rows] == written


def test_a_result_names_the_call_that_it_answers_where_the_template_says_so() -> None:
    call = {"id": "call00001", **CALL}
    result = replace(says("tool", "5"), answers={"tool_call_id": "call00001", "name": "weather"})
    conversation = talk(HI, answers("", calls=(call,)), result, answers("Cold."))
    segments = Renderer(TEMPLATE, tokenizer("mistral")).segments(conversation)
    assert [segment.text for segment in segments] == [
        "<s>[INST] \n Hi \n[/INST]",
        '[TOOL_CALLS]{"name": "weather", "arguments": {"city": "Köln \\"x\\""}, "id": "call00001"}'
        "</s>",
        '[TOOL_RESULTS]{"content": 5, "call_id": "call00001"}',
        " Cold.</s>",
    ]
    assert [segment.trained for segment in segments] == [False, True, False, True]


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_tags_of_a_message_may_be_special_tokens(name: str, tmp_path: Path) -> None:
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    template = TEMPLATES[name]
    special = tokenizer_with(tmp_path, replace(template, specials=(*template.specials, *tags)))
    conversation = talk(HI, answers("<tool_call>\n{}\n</tool_call>", "r1"))
    segments = Renderer(TEMPLATE, special).segments(conversation)
    assert segments == Renderer(TEMPLATE, tokenizer(name)).segments(conversation)
    assert trained(segments) == [
        f"<think>\nr1\n</think>\n\n<tool_call>\n{{}}\n</tool_call>{template.eos}"
    ]


def test_a_template_with_a_date_writes_the_same_every_day() -> None:
    for name, date in (("llama3_2", "26 Jul 2024"), ("smollm3", "26 July 2024")):
        text = ChatTemplate(tokenizer(name)).text(CONVERSATIONS["spaces"])
        assert f"Today Date: {date}\n" in text


def test_a_loss_on_everything_leaves_out_answers_that_are_not_to_be_trained() -> None:
    renderer = Renderer(TemplateChat(loss_on="all"), tokenizer("qwen3"))
    segments = renderer.segments(CONVERSATIONS["untrained"])
    assert [segment.text for segment in segments if not segment.trained] == ["bad<|im_end|>"]


def test_special_tokens_in_a_message_are_refused() -> None:
    for name, text in (("gemma3", "a<end_of_turn>"), ("r1_distill", "<|User|>")):
        with pytest.raises(DroppedRow) as caught:
            Renderer(TEMPLATE, tokenizer(name)).segments(talk(HI, answers(text)))
        assert caught.value.reason is Reason.MARKUP


@pytest.mark.parametrize(
    ("name", "style", "fits"),
    [
        ("llama3", Qwen3Chat(loss_on="assistant"), "Use --chat llama3, or --chat templ"),
        ("llama3_2", Llama3Chat(loss_on="assistant"), "Use --chat template"),
        ("qwen3_2507", Qwen3Chat(loss_on="assistant"), "Use --chat chatml, or --chat te"),
        ("qwen3", ChatML(loss_on="assistant"), "Use --chat qwen3, or --chat template"),
        ("gemma3", ChatML(loss_on="assistant"), "Use --chat template"),
        ("mistral", Llama3Chat(loss_on="assistant"), "Use --chat mistral, or --chat te"),
        ("qwen2_5", Qwen3Chat(loss_on="assistant"),
         f"Use data.chat.style=chatml 'data.chat.default_system=\"{QWEN_SYSTEM}\"', or"),
    ],
)  # fmt: skip
def test_a_style_of_another_model_is_refused_with_one_that_fits(
    name: str, style: Chat, fits: str
) -> None:
    with pytest.raises(UserError, match=f"chat.style={style.style}") as caught:
        check_template(style, tokenizer(name))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(fits)


def test_a_template_that_no_mask_can_be_made_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends messages\[1\] without a special token"):
        check_template(TEMPLATE, tokenizer_with(tmp_path / "a", ALPACA))
    broken = Template("{{- raise_exception('no') -}}")
    with pytest.raises(UserError, match="it raises 'no'"):
        check_template(TEMPLATE, tokenizer_with(tmp_path / "b", broken))
    with pytest.raises(UserError, match="has no chat template") as caught:
        check_template(TEMPLATE, tokenizer_with(tmp_path / "c", Template("")))
    assert caught.value.hint.startswith(
        "The tokenizer has the tokens of --chat qwen3 or chatml or mistral. For a base model, "
    )


_TEXTS = st.one_of(
    st.text(max_size=12),
    st.text("\n \t<>/think|zq0\"{}%", max_size=20),
    st.sampled_from(
        ["zq0qz", "<think>", "</think>", "<tool_response>\nx\n</tool_response>", "/no_think",
         "{{ messages }}", "<|im_end|>", "\u2028", "Be\r\nbrief."]
    ),
)  # fmt: skip
_ANSWERS = st.builds(
    lambda text, reasoning, calls, is_trained: answers(
        text, reasoning, calls=calls, trained=is_trained
    ),
    _TEXTS,
    st.none() | _TEXTS,
    st.just(()) | st.just(({"name": "f", "arguments": {"a": "zq1qz"}},)) | st.just((CALL,)),
    st.booleans(),
)
_TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "tool"]), _TEXTS, _ANSWERS), min_size=1, max_size=4
)


# What closes an answer, where it is not the end-of-sequence token alone.
_ENDS = {"gemma3": "<end_of_turn>", "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_conversation_is_written_exactly_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TEMPLATES)))
    system = [says("system", text) for text in data.draw(st.lists(_TEXTS, max_size=1))]
    turns = data.draw(_TURNS)
    talked = [message for role, text, answer in turns for message in (says(role, text), answer)]
    conversation = Conversation(
        messages=(*system, *talked), tools=data.draw(st.just(()) | st.just(TOOLS))
    )
    template = ChatTemplate(tokenizer(name))
    styles = [TEMPLATE, Qwen3Chat(loss_on="assistant"), ChatML(loss_on="assistant")]
    for style in styles:
        renderer = fitting_renderer(style, name)
        if renderer is None:
            continue  # another model's
        try:
            segments = renderer.segments(conversation)
        except DroppedRow:
            continue
        texts = []
        for either in (conversation, tool_results_as_user_turns(conversation)):
            with suppress(DroppedRow):
                texts.append(template.text(either))
        assert "".join(segment.text for segment in segments) in texts
        end = _ENDS.get(name, TEMPLATES[name].eos)
        wanted = [message for message in conversation.messages if message.trained]
        written = trained(segments)
        assert len(written) == len([m for m in wanted if m.role == "assistant"])
        for text, message in zip(
            written, [m for m in wanted if m.role == "assistant"], strict=True
        ):
            assert message.answer.strip() in text
            assert all(str(call["name"]) in text for call in message.tool_calls)
            if name != "gpt_oss":
                assert text.endswith(end)
            if not message.tool_calls and not message.reasoning and name != "gpt_oss":
                assert text.removesuffix(end).strip() == message.answer.strip()
