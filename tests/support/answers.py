"""Answers that nobody would write: pieces of LaTeX, digits of all scripts, brackets, any length."""

from hypothesis import strategies as st

_PIECES = (
    *("\\frac", "{", "}", "(", ")", "[", "]", "\\{", "\\}", ",", "{,}", "1", "23", "456", "000"),
    *(
        ".",
        "\\text{",
        "abc",
        "cm",
        "x",
        "=",
        "\\boxed{",
        "^",
        "_",
        "$",
        "\\overline{",
        "\\sqrt",
        "√",
    ),
    *("½", "٣", "²", "\\left", "\\right", "\\color{", "and", "or", "%", "\\%", "\\pmod{", "-", "+"),
    *("\\pm", "i", "\\", "\\\\", "~", "\\!", "\\,", "漢", "e", "E+", "\\begin{pmatrix}", "&", "|"),
    *("\\end{pmatrix}", "feet", "\\$", "°", "\\mathrm{", ":", "/", "ﷺ", "hours", "million", "<"),
    *("</think>", "<think>", "#", "*", "P.S.", "\n", "9" * 400, "\\infty", "!", "\\le"),
)
LATEX = st.builds(
    lambda pieces, times, space: (space.join(pieces) * times)[:100_000],
    st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), min_size=1, max_size=20),
    st.sampled_from([1, 1, 1, 7, 100, 2000]),
    st.sampled_from(["", " ", "\n"]),
)
