"""What an answer says before algebra sees it: its words, unit and value, however it is written."""

from fractions import Fraction

import pytest
from hypothesis import given, settings

from amnesia_bench.reasoning.math.equality import forms_to_compare, glance, is_list
from amnesia_bench.reasoning.math.latex import canonical
from amnesia_bench.reasoning.math.reading import MAX_CHARACTERS, canonical_unit, read
from amnesia_bench.reasoning.math.scorer import last_boxed, last_number, without_boxes
from tests.support.answers import LATEX


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("\\mathbf{\\frac12}", "\\frac{1}{2}"),
        ("{\\color{red}5}", "{5}"),
        ("\\textcolor{red}{5}", "5"),
        ("\\text{460}", "460"),
        ("3+2\\mathrm{i}", "3+2i"),
        ("2√12", "2\\sqrt{12}"),
        ("(\N{MINUS SIGN}∞,2]", "(-\\infty ,2]"),
        ("x²", "x^{2}"),
        ("1½", "1\\frac{1}{2}"),
        ("١٢", "12"),
        ("pi/2", "\\pi /2"),
        ("sqrt(2(3+x))", "\\sqrt{2\\cdot(3+x)}"),
        ("0.1\\overline{6}", "\\frac{15}{90}"),
        ("1 4/5", "1\\frac{4}{5}"),
        ("\\text{5 and 7}", "5 and 7"),
        ("\\text{18 miles}", "18\\text{ miles}"),
        ("12^{\\text{th}}", "12"),
        ("\\frac{5\\text{th}}{2}", "\\frac{5 }{2}"),
        ("20{,}000\\pi", "20000\\pi"),
        ("11,\\! 111,\\! 111,\\! 100", "11111111100"),
        ("32, 349", "32, 349"),
        ("(1,100)", "(1,100)"),
        ("(10,000)", "(10000)"),
        ("(1,000, 2,000)", "(1000, 2000)"),
        ("1,2,123", "1,2,123"),
        ("1{,}5", "1.5"),
        ("\\frac{1}{2}.", "\\frac{1}{2}"),
        ("\\begin{pmatrix} 1 \\\\[2pt] 2 \\end{pmatrix}",) * 2,
    ],
)
def test_one_way_of_writing(answer: str, plain: str) -> None:
    assert canonical(answer) == plain


@pytest.mark.parametrize(
    ("answer", "form", "unit"),
    [
        ("18 eggs", "18", ""),
        ("18 more apples", "18", ""),
        ("12cm", "12", "cm"),
        ("12 m", "12", "m"),
        ("5\\text{ cm}^2", "5", "cm^2"),
        ("100 square feet", "100", "ft^2"),
        ("£460", "460", "pound"),
        ("US\\$5", "5", "dollar"),
        ("USD 460", "460", "dollar"),
        ("\\text{Total: }460", "460", ""),
        ("The answer is 460", "460", ""),
        ("4{:}30\\text{ p.m.}", "4:30", "pm"),
        ("2516_{9}", "2516", "base 9"),
        ("73 \\pmod{1000}", "73", "mod 1000"),
        ("90^\\circ", "90", "degree"),
        ("p - q\\text{ units}", "p - q", ""),
        ("x < 2 \\text{ or } x > 3", "x < 2,x > 3", ""),
        ("5, 6, and 7", "5, 6,7", ""),
        ("x \\text{ if } x>0", "x", ""),
        # Products of variables are no words.
        ("5 abc", "5", ""),
        ("ab + abc", "ab + abc", ""),
        ("xyz", "xyz", ""),
    ],
)
def test_a_value_and_its_unit(answer: str, form: str, unit: str) -> None:
    reading = read(answer)
    assert (reading.form, reading.unit, reading.parts) == (form, unit, ())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("\\text{June 20}", "june20"),
        ("June 20", "june20"),
        ("\\textbf{no real solutions}", "norealsolutions"),
        ("\\text{(C)}", "c"),
        ("C", "c"),
        ("5", None),
        ("x+1", None),
    ],
)
def test_an_answer_in_words(answer: str, words: str | None) -> None:
    assert read(answer).words == words


def test_a_quantity_in_several_units_equals_none_in_one() -> None:
    assert read("6 \\text{ feet } 2 \\text{ inches}").parts == (("6", "ft"), ("2", "in"))
    assert glance("6 ft 2 in", "6 \\text{ feet and } 2 \\text{ inches}") is True
    assert glance("6", "6 ft 2 in") is False
    assert glance("5 hours 30 minutes", "5 hours 20 minutes") is False


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("12 cm", "12 m"),
        ("2516_8", "2516_9"),
        ("3 \\pmod 7", "3 \\pmod 8"),
        ("\\$5", "£5"),
        ("\\{-2,1\\}", "(-2,1)"),
        ("0", "5x-7y+11z+4=0"),
        ("\\text{even}", "\\text{odd}"),
        ("32349", "32348"),
    ],
)
def test_what_is_different_for_sure(first: str, second: str) -> None:
    assert glance(first, second) is False
    assert glance(second, first) is False


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("\\begin{pmatrix}6\\\\8\\end{pmatrix}", "2\\begin{pmatrix}3\\\\4\\end{pmatrix}"),
        ("\\text{even}", "2k"),
        ("x=5", "5"),
        ("0", "x+y=0"),
        ("1,-2", "(1,-2)"),
    ],
)
def test_what_is_left_to_algebra(first: str, second: str) -> None:
    assert glance(first, second) is None


def test_a_list_is_compared_with_a_tuple_in_its_order() -> None:
    assert forms_to_compare("1,-2", "(1,-2)") == ("(1,-2)", "(1,-2)")
    assert forms_to_compare("1,-2", "-2,1") == ("1,-2", "-2,1")
    assert [is_list(gold) for gold in ("1,-2", "\\{1,2\\}", "(1,2)", "1,200", "f(1,2)")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_units_have_one_name() -> None:
    named = [canonical_unit(u) for u in ("centimeters^2", "p.m.", "sq. ft", "Inches", "apples")]
    assert named == ["cm^2", "pm", "ft^2", "in", ""]


def test_a_longer_answer_than_anybody_gives_is_not_read() -> None:
    long = "1" * (MAX_CHARACTERS + 1)
    assert read(long).number is None
    assert glance(long, long) is True
    assert read("1" * MAX_CHARACTERS).number == Fraction(int("1" * MAX_CHARACTERS))
    assert read("\N{MATHEMATICAL DOUBLE-STRUCK DIGIT EIGHT}" * 9).number == Fraction(888888888)


def test_no_pattern_takes_exponential_time() -> None:
    for text in ("\\text{" + "1" * 1900 + "x}", "\\text{" + "1 and " * 300 + "}", "1 and " * 300):
        assert read(text).number is None
    for gap in ("\n\n- " * 2000, "\n" * 50_000 + "z"):  # neighbouring boxes, or not
        assert "2" in str(last_boxed(f"\\boxed{{1}}{gap}\\boxed{{2}}", several=True))


@given(LATEX)
@settings(max_examples=300, deadline=2000)
def test_any_answer_is_read_in_bounded_time(answer: str) -> None:
    text = answer[:100_000]
    for part in (text, text[:MAX_CHARACTERS]):
        reading = read(part)
        assert glance(part, part) is True
        assert reading.number is None or isinstance(reading.number, Fraction)
        forms_to_compare("1,2", part)
        glance("7", part)
    last_boxed(text, several=True)
    last_number(text)
    without_boxes(text)
    assert last_boxed(f"{text.replace(chr(92), '')} \\boxed{{7}}") == "7"
