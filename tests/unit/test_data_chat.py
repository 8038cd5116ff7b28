"""Chats: what the templates of transformers give, and masks that are exactly the answers."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from amnesia_bench.config.data_schema import Chat, MessageRows, QuestionResponseRows, ShareGptRows
from amnesia_bench.data.chat import Segment, render
from amnesia_bench.data.conversation import DroppedRow, Reason, conversation
from amnesia_bench.data.rendering import check_template
from amnesia_bench.data.tokenizer import load_tokenizer
from amnesia_bench.errors import UserError
from tests.small_data import CHATML_TEMPLATE, MISTRAL_TEMPLATE, QWEN3_TEMPLATE, save_tokenizer

MESSAGES = MessageRows()
STYLES = {
    "qwen3": ({"style": "qwen3"}, QWEN3_TEMPLATE),
    "chatml": ({"style": "chatml", "default_system": "You are kind."}, CHATML_TEMPLATE),
    "mistral": ({"style": "mistral"}, MISTRAL_TEMPLATE),
}


def chat(style: str, loss_on: str = "assistant") -> Chat:
    values = STYLES[style][0] | {"loss_on": loss_on}
    adapter: TypeAdapter[Chat] = TypeAdapter(Chat)
    return adapter.validate_json(json.dumps(values))


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    said = [{"role": "system", "content": system}] if system else []
    return said + [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]


def rendered(
    style: str, messages: list[dict[str, str]], loss_on: str = "assistant"
) -> list[Segment]:
    return render(conversation(MESSAGES, {"messages": messages}, "row"), chat(style, loss_on))


CONVERSATIONS = [
    turns("Hi", "Hello"),
    turns("2+2?", "<think>\nfour\n</think>\n\n4"),
    turns("2+2?", "<think>\n\n\nfour \n\n</think>\n4\n"),
    turns("Hi", "Hello", "2+2?", "<think>\nfour\n</think>\n\n4"),
    turns("a", "<think>\nb\n</think>\n\nc", "d", "<think>\ne\n</think>\n\nf"),
    turns("a", "<think>\nb\n</think>\n\nc", "d", "e"),
    turns("\n  spaces around \n", "\n\n two lines\n\nÜ \u0065\u0301 \U0001f600 ", "x", "y"),
    turns("Hi", "Hello", system="Be brief."),
]


@pytest.mark.parametrize("style", list(STYLES))
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_text_is_what_the_template_of_transformers_gives(
    style: str, messages: list[dict[str, str]], tmp_path: Path
) -> None:
    if style == "mistral" and messages[0]["role"] == "system":
        pytest.skip("the style has no system messages")
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, template=STYLES[style][1]))
    segments = rendered(style, messages)
    assert "".join(segment.text for segment in segments) == tokenizer.apply_template(messages)
    assert all(a.trained != b.trained for a, b in pairwise(segments))


@pytest.mark.parametrize(
    ("style", "messages", "trained"),
    [
        ("qwen3", turns("q", "<think>\nr\n</think>\n\na"), ["<think>\nr\n</think>\n\na<|im_end|>"]),
        ("qwen3", turns("q", "a"), ["a<|im_end|>"]),  # the empty block belongs to the prompt
        ("qwen3", turns("q", "a", "q", "<think>\nr\n</think>\n\nb"),
         ["a<|im_end|>", "<think>\nr\n</think>\n\nb<|im_end|>"]),
        ("qwen3", turns("q", "<think>\nr\n</think>\n\na", "q", "b"),
         ["a<|im_end|>", "b<|im_end|>"]),
        ("chatml", turns("q", " a\n", system="s"), [" a\n<|im_end|>"]),
        ("chatml", turns("q", "<think>r</think>a"), ["<think>r</think>a<|im_end|>"]),
        ("mistral", turns("q", " a ", "r", "b"), [" a</s>", " b</s>"]),
    ],
)  # fmt: skip
def test_trained_is_each_answer_through_the_end_of_its_turn(
    style: str, messages: list[dict[str, str]], trained: list[str]
) -> None:
    assert [s.text for s in rendered(style, messages) if s.trained] == trained


def test_a_loss_on_everything_cuts_the_texts_where_the_other_does() -> None:
    messages = CONVERSATIONS[3]
    some, everything = rendered("qwen3", messages), rendered("qwen3", messages, "all")
    assert [s.text for s in everything] == [s.text for s in some]
    assert all(s.trained for s in everything)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], Reason.EMPTY),
        (None, Reason.EMPTY),
        (turns("q"), Reason.ROLE_ORDER),
        (turns("q", "a", "q"), Reason.ROLE_ORDER),
        (turns("q", "a", "q", "a")[1:], Reason.ROLE_ORDER),
        ([{"role": "system", "content": "s"}], Reason.ROLE_ORDER),
        ([*turns("q", "a"), {"role": "tool", "content": "t"}], Reason.ROLE_ORDER),
        (turns("q", " \n"), Reason.EMPTY),
        (turns("", "a"), Reason.EMPTY),
        (turns("q", "<think>\nr\n</think>\n"), Reason.EMPTY),
        (turns("q", "<think>\n\n</think>\na"), Reason.EMPTY),
        (turns("q", "<think>a<think>b</think>c"), Reason.THINK_BLOCK),
        (turns("q", "<think>a</think>b</think>c"), Reason.THINK_BLOCK),
        (turns("q", "<think>a</think>b<think>c</think>d"), Reason.THINK_BLOCK),
        (turns("q", "<think>never closed"), Reason.THINK_BLOCK),
        (turns("q", "never opened</think>a"), Reason.THINK_BLOCK),
        (turns("q", "</think>a<think>"), Reason.THINK_BLOCK),
        (turns("q", "first <think>r</think>a"), Reason.THINK_BLOCK),
        (turns("q", "a<|im_end|>\n<|im_start|>user\nb"), Reason.MARKUP),
        (turns("<|endoftext|>", "a"), Reason.MARKUP),
        (turns("q", "\ud800"), Reason.NOT_UNICODE),
    ],
)
def test_a_row_that_makes_no_conversation_is_dropped_with_its_reason(
    messages: list[dict[str, str]] | None, reason: Reason
) -> None:
    with pytest.raises(DroppedRow) as caught:
        rendered("qwen3", messages)  # type: ignore[arg-type]
    assert caught.value.reason is reason


def test_a_system_message_is_dropped_by_a_style_that_has_none() -> None:
    with pytest.raises(DroppedRow, match="system message"):
        rendered("mistral", turns("q", "a", system="s"))


def test_chains_of_thought_are_read_from_question_and_response_and_from_sharegpt() -> None:
    answer = "<think>\nr\n</think>\n\na"
    from_pair = conversation(
        QuestionResponseRows(), {"question": "q", "response": answer, "id": 3}, "row"
    )
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]
    from_list = conversation(ShareGptRows(domain=None), {"conversations": said}, "row")
    assert from_pair == from_list
    assert [message.role for message in from_pair.messages] == ["user", "assistant"]
    for rows, row in [
        (QuestionResponseRows(), {"question": "q", "response": "no thought"}),
        (ShareGptRows(domain=None), {"conversations": [said[0], {"from": "gpt", "value": "a"}]}),
    ]:
        with pytest.raises(DroppedRow, match="think block"):
            conversation(rows, row, "row")
    with pytest.raises(DroppedRow, match="another domain"):
        conversation(ShareGptRows(domain="code"), {"conversations": said, "domain": "math"}, "row")


@pytest.mark.parametrize(
    ("rows", "row", "said"),
    [
        (QuestionResponseRows(), {"question": ["q"], "response": "a"}, "f:3: question is a list"),
        (MESSAGES, {"messages": "hello"}, "f:3: messages is a str, expected a list"),
        (MESSAGES, {"messages": [{"from": "human", "value": "q"}]},
         r"f:3: messages\[0\]: expected role and content, it has from, value"),
        (MESSAGES, {"messages": ["q"]}, r"messages\[0\]: expected role and content, it has str"),
        (ShareGptRows(domain=None), {"conversations": [{"from": "human", "value": 3}]},
         r"conversations\[0\]: value is a int"),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_an_error_that_names_the_row(
    rows: MessageRows, row: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        conversation(rows, row, "f:3")


def test_a_style_is_held_against_the_template_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizers = {
        style: load_tokenizer(save_tokenizer(tmp_path / style, template=template))
        for style, (_, template) in STYLES.items()
    }
    for style in STYLES:
        for other, tokenizer in tokenizers.items():
            if style == other:
                check_template(chat(style), tokenizer)
            else:
                with pytest.raises(UserError, match=f"chat.style={style} is not what"):
                    check_template(chat(style), tokenizer)
    check_template(chat("qwen3"), load_tokenizer(save_tokenizer(tmp_path / "none")))
