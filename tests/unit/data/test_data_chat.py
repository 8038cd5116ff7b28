"""Chats: what the templates of transformers give, and masks that are exactly the answers."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from amnesia_bench.config.data_schema import Chat, MessageRows
from amnesia_bench.data.chat import Segment, render
from amnesia_bench.data.conversation import DroppedRow, Reason, read_conversation
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.rendering import check_template
from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.small_data import (
    CHATML_TEMPLATE,
    MISTRAL_TEMPLATE,
    QWEN3_TEMPLATE,
    save_tokenizer,
)

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
    return render(read_conversation(MESSAGES, {"messages": messages}, "row"), chat(style, loss_on))


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
    tokenizer = DataTokenizer(load_tokenizer(save_tokenizer(tmp_path, template=STYLES[style][1])))
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
    "messages",
    [turns("q", "a<|im_end|>\n<|im_start|>user\nb"), turns("<|endoftext|>", "a")],
)
def test_a_row_with_markup_of_the_chat_is_dropped(messages: list[dict[str, str]]) -> None:
    with pytest.raises(DroppedRow) as caught:
        rendered("qwen3", messages)
    assert caught.value.reason is Reason.MARKUP


def test_a_system_message_is_dropped_by_a_style_that_has_none() -> None:
    with pytest.raises(DroppedRow, match="system message"):
        rendered("mistral", turns("q", "a", system="s"))


def test_a_style_is_held_against_the_template_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizers = {
        style: DataTokenizer(load_tokenizer(save_tokenizer(tmp_path / style, template=template)))
        for style, (_, template) in STYLES.items()
    }
    for style in STYLES:
        for other, tokenizer in tokenizers.items():
            if style == other:
                check_template(chat(style), tokenizer)
            else:
                with pytest.raises(UserError, match=f"chat.style={style} does not match"):
                    check_template(chat(style), tokenizer)
    check_template(chat("qwen3"), DataTokenizer(load_tokenizer(save_tokenizer(tmp_path / "none"))))
