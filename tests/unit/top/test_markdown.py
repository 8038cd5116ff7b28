"""What others wrote is shown by Markdown as it is, and never obeyed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.markdown import block, code, escape

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](http://tracker/x.png)",
    "a | b |\n| --- | --- |",
    "`code` ``",
    "\\",
    "a\n\n# heading",
    "&lt;b&gt;",
    "\u202ereversed",
]


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def bare(text: str, marks: str) -> list[str]:
    """Return the marks of a text that no backslash stands before."""
    found, skip = [], False
    for letter in text:
        if not skip and letter in marks:
            found.append(letter)
        skip = letter == "\\" and not skip
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_become_text(text: str) -> None:
    shown = escape(text)
    assert Tags(shown).found == []
    assert "\n" not in shown
    assert bare(shown, "`[]|<>") == []


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    shown = escape(text)
    assert bare(shown, "`[]|<>") == []
    assert len(shown.splitlines()) <= 1


def test_what_is_harmless_stays_as_it_is() -> None:
    for text in ("HypeNet-2B", "niah_single_3@2048", "runs/a b-c.d (2)", "QK-Restore, 50 %"):
        assert escape(text) == text


@given(st.text(alphabet="`a |\\<", min_size=1))
def test_code_ends_where_it_should(text: str) -> None:
    shown = code(text)
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    inner = shown[len(fence) : -len(fence)]
    assert shown.endswith(fence)
    assert len(fence) not in {len(run) for run in re.findall("`+", inner)}
    assert text in inner


def test_a_block_outlasts_any_backticks_in_it() -> None:
    assert block("ls", "sh") == ["```sh", "ls", "```"]
    assert block("a\n```\nb", "sh")[0] == "````sh"
