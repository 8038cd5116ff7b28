"""What a model reads and what of its answer counts: templates and thinking."""

import hashlib

import numpy as np
import pytest
from tokenizers import processors

from amnesia_bench.config.eval_schema import Think
from amnesia_bench.errors import UserError
from amnesia_bench.tokenizers.chat_format import prompt_format, prompt_tokens, without_thinking
from amnesia_bench.tokenizers.tokenizer import with_leading_special_tokens, with_special_tokens
from tests.support.reasoning import CHATML, SPECIAL, THINKING, byte_tokenizer

THINK = Think(open="<think>", close="</think>")


@pytest.mark.parametrize(
    ("text", "opened", "left"),
    [
        ("an answer", False, "an answer"),
        ("an answer", True, None),
        ("a</think>b", True, "b"),
        ("<think>a</think>b", False, "b"),
        ("<think>a</think>b<think>c", False, None),
        ("a</think>b<think>c</think>d", True, "d"),
        # Blank lines after thinking, as Qwen3 writes them, are no first paragraph.
        ("a</think>\n\n b\n", True, "b\n"),
        ("<think>\n\n</think>\n\nb", False, "b"),
        ("\n\nb", False, "b"),
        # A closing mark that closes nothing is quoted.
        ("a</think>b, after </think>", True, "b, after </think>"),
        ("a</think>\n</think>\nb", False, "b"),
        ("<think>a", False, None),
        ("a</think>", True, ""),
        ("", False, ""),
        ("", True, None),
    ],
)
def test_only_what_follows_the_last_thinking_counts(
    text: str, opened: bool, left: str | None
) -> None:
    assert without_thinking(text, THINK, opened=opened) == left
    assert without_thinking(text, None, opened=opened) == text


def test_other_marks_of_thinking_are_a_matter_of_config() -> None:
    think = Think(open="[THINK]", close="[/THINK]")
    assert without_thinking("[THINK]a[/THINK]b</think>c", think, opened=False) == "b</think>c"


@pytest.mark.parametrize(
    ("template", "opens"),
    [
        (CHATML, False),
        (THINKING, True),
        # Qwen3 without thinking: the block is closed again.
        (CHATML.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"), False),
        # The marks in a system message are no open block.
        ("<think> is your tool.\n" + CHATML, False),
    ],
)
def test_a_prompt_that_ends_inside_thinking_is_known(template: str, opens: bool) -> None:
    layout = prompt_format(byte_tokenizer(template), chat=True, template=None, think=THINK)
    assert layout.opens_thinking is opens
    assert layout.sha256 == hashlib.sha256(template.encode()).hexdigest()


def test_a_prompt_is_one_user_message_in_the_template() -> None:
    tokenizer = byte_tokenizer()
    layout = prompt_format(tokenizer, chat=True, template=None, think=None)
    tokens = prompt_tokens(tokenizer, layout, "What is 1 + 1?")
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == (
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    # Special tokens are single tokens, once.
    assert (tokens == tokenizer.convert_tokens_to_ids("<|im_start|>")).sum() == 2


def test_a_given_template_replaces_the_tokenizers_own() -> None:
    tokenizer = byte_tokenizer(None)
    layout = prompt_format(tokenizer, chat=True, template=THINKING, think=THINK)
    assert layout.opens_thinking
    assert tokenizer.decode(prompt_tokens(tokenizer, layout, "?")).endswith("<think>\n")


def test_without_a_template_the_message_goes_as_it_is() -> None:
    tokenizer = byte_tokenizer(None)
    layout = prompt_format(tokenizer, chat=False, template=None, think=THINK)
    assert (layout.sha256, layout.opens_thinking) == (None, False)
    assert tokenizer.decode(prompt_tokens(tokenizer, layout, "What?")) == "What?"


def test_a_prompt_never_ends_in_the_eos_that_a_tokenizer_appends() -> None:
    tokenizer = byte_tokenizer(None)
    begin, end = SPECIAL[1], SPECIAL[0]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(each, tokenizer.convert_tokens_to_ids(each)) for each in (begin, end)],
    )
    assert tokenizer("What?").input_ids[-1] == tokenizer.eos_token_id
    layout = prompt_format(tokenizer, chat=False, template=None, think=None)
    assert tokenizer.decode(prompt_tokens(tokenizer, layout, "What?")) == f"{begin}What?"
    bare = np.asarray(tokenizer("What?", add_special_tokens=False).input_ids, np.int32)
    assert tokenizer.decode(with_leading_special_tokens(tokenizer, bare)) == f"{begin}What?"
    # lm-eval's own models send it.
    assert with_special_tokens(tokenizer, bare).tolist() == tokenizer("What?").input_ids


def test_a_template_with_a_date_asks_the_same_every_day() -> None:
    tokenizer = byte_tokenizer("{{- strftime_now('%d %b %Y') + ': ' + messages[0].content -}}")
    layout = prompt_format(tokenizer, chat=True, template=None, think=None)
    assert tokenizer.decode(prompt_tokens(tokenizer, layout, "Hi")) == "26 Jul 2024: Hi"


@pytest.mark.parametrize("template", ["{% if x %}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}"])
def test_a_template_that_cannot_be_rendered_is_one_message(template: str) -> None:
    with pytest.raises(UserError, match="chat template cannot be rendered"):
        prompt_format(byte_tokenizer(), chat=True, template=template, think=THINK)


def test_a_tokenizer_without_a_template_says_what_to_type() -> None:
    with pytest.raises(UserError, match="--no-chat-template"):
        prompt_format(byte_tokenizer(None), chat=True, template=None, think=None)


def test_a_template_that_writes_no_prompt_for_an_answer_opens_nothing() -> None:
    tokenizer = byte_tokenizer("{{ messages[0]['content'] }}")
    layout = prompt_format(tokenizer, chat=True, template=None, think=THINK)
    assert not layout.opens_thinking
