"""Texts of others on a terminal: nothing that it would act on."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Ünïcode 漢字 \U0001f600", "plain, Ünïcode 漢字 \U0001f600"),
        ("\x1b[2J\x1b]0;pwned\x07x", "\\x1b[2J\\x1b]0;pwned\\x07x"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("\x9b31m\x00\x7f", "\\x9b31m\\x00\\x7f"),
        ("half \ud800", "half \\ud800"),
        ("[red]x[/red]", "[red]x[/red]"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_and_tabs_may_be_kept() -> None:
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


@given(st.text(st.characters()))
def test_any_text_becomes_printable_and_loses_nothing(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    if "\\" not in text:
        assert json.dumps(shown.encode("raw_unicode_escape").decode("unicode_escape")) == (
            json.dumps(text)
        )
