# ruff: noqa: RUF001 - this module maps signs that look alike
r"""Rewrite an answer in canonical plain LaTeX, without markup that only changes its appearance.

`canonical` changes the notation of an answer, never its meaning. It keeps words that the author
marked as text inside `\text`; `reading` interprets them.
"""

from __future__ import annotations

import re
import unicodedata

Rule = tuple[re.Pattern[str], str]

_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
_SIGNS = {
    **dict.fromkeys("−–—‒﹣－", "-"),
    **dict.fromkeys("·⋅∙", "\\cdot "),
    **dict.fromkeys("\u2009\u202f", "\\,"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **dict.fromkeys("’‘′", "'"),
    **{"×": "\\times ", "÷": "\\div ", "±": "\\pm ", "√": "\\sqrt ", "∞": "\\infty "},
    **{"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∠": "\\angle "},
    **{"∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "°": "^\\circ "},
    **{"。": ".", "、": ","},
    **{"⟨": "\\langle ", "⟩": "\\rangle ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}"},
    **{"£": "\\pounds ", "€": "\\euro ", "₹": "\\rupee ", "¥": "\\yen ", "¢": "\\text{ cents}"},
}


def _greek_name(letter: str) -> str:
    r"""Return the LaTeX command for a Greek letter, for example `\lambda` for λ."""
    return f"\\{unicodedata.name(letter).split()[-1].lower().replace('lamda', 'lambda')} "


_SYMBOLS = str.maketrans(_SIGNS | {letter: _greek_name(letter) for letter in _GREEK})
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

# Commands by their effect on the group that follows: drop the command but keep the group (style),
# mark the group as text, or skip the group. Of a colour command's two groups, the first is skipped.
_COMMANDS = {
    "style": re.compile(
        "boxed|fbox|framebox|mathbf|boldsymbol|bm|pmb|mathit|mathsf|mathtt|emph|underline"
        "|displaystyle|textstyle|limits|left|right|[bB]igg?[lr]?|bf|rm|it|boldmath|normalsize"
        "|tiny|scriptsize|footnotesize|small|large|Large|LARGE|huge|Huge"
    ),
    "text": re.compile("text(?:bf|it|rm|sf|tt|normal)?|[mh]box|mathrm"),
    "skip": re.compile("color|textcolor|colorbox|hspace|phantom"),
}
_TOKEN = re.compile(r"\\([A-Za-z]+)\*?\s*|\\.|[{}]|[^\\{}]+|\\$", re.DOTALL)
# Mathematics that authors set in upright type: numbers, and constants with these names.
_UPRIGHT_MATH = re.compile(r"[^A-Za-z]*|\s*[ieTP]\s*")
# One or more numbers, with an optional label and noun: `18 miles`, `Answer: 5`, `5 and 7`.
_AMOUNT = r"\s*[-+]?(?:\\?\$)?\d[\d.,]*%?"
_COUNTED = re.compile(
    r"(?P<label>[^\d\\{}]*(?:[:=]|\b(?:is|are|equals)))?"
    rf"(?P<amount>{_AMOUNT}(?:\s+(?:and|or){_AMOUNT})*)(?P<noun>\s+[^\d\\{{}}]+)?"
)

# Rules for spaces, signs with several names, delimiters and fractions, applied in this order.
_RULES: tuple[Rule, ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:quad|qquad|enspace|thinspace|newline)(?![A-Za-z])|(?<!\\)\\[;: ]|~", " "),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"(?<!\\)\\\$|\\textdollar(?![A-Za-z])", r"\\dollar "),
        (r"\$", ""),
        (r"\\(?:leq|leqslant)(?![A-Za-z])|<=|=<", r"\\le "),
        (r"\\(?:geq|geqslant)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:infin|infinity)(?![A-Za-z])", r"\\infty "),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
        (r"\\colon(?![A-Za-z])|\{:\}", ":"),
        (r"\\degrees?(?![A-Za-z])|\^\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])", r"^\\circ "),
        (r"(?<=\d)\s*\^\s*\{\s*(?:\\text\{)?\s*(?:st|nd|rd|th)\s*(?:\}\s*)?\}", " "),
        (r"(?<=\d)\s*\^?\s*\\text\{\s*(?:st|nd|rd|th)\s*\}", " "),
        (r"(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])", " "),
        (r"\\frac\s*\{\\text\{([^{}]*)\}\}\s*\{\\text\{([^{}]*)\}\}", r"\\text{\1/\2}"),
        (r"\*\*", "^"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d|\\pi(?![A-Za-z]))(?=\s*[\d\\{])", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*(\d|\\pi(?![A-Za-z]))", r"\1{\2}"),
        (r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
    )
)
_NAMES = re.compile(
    r"(\\text\{[^{}]*\})|(?<![A-Za-z\\])(?:(sqrt)(\d*)|(sin|cos|tan|cot|csc|log|ln|arcsin|arccos"
    r"|arctan|pi|theta|alpha|beta|infty|infinity|inf|oo))(?![A-Za-z])"
)
_SYNONYMS = {"infinity": "infty", "inf": "infty", "oo": "infty"}
# Groups of digits, between which there may be thousands separators.
_RUN = re.compile(r"(?<![\d.,_^])\d+(?:(?:,\\!\s*|\{,\}|\\,|\\!|,| )\d+)+")
_SEPARATOR = re.compile(r",\\!\s*|\{,\}|\\,|\\!|,| ")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?: \d{3})+")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
# The last two rules are needed because math-verify parses `2(3)` as a mixed number with value 5.
_NUMBERS: tuple[Rule, ...] = (
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\,"), " "),
    (re.compile(r"\\sqrt\s*\(((?:[^()]|\([^()]*\))*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\w.}^])(\d+) (\d+)/(\d+)(?![\d.])"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"(?<![\w.}^])(\d+(?:\.\d+)?)\s*\((?=\s*[-\d\\])"), r"\1\\cdot("),
    (re.compile(r"(?<=\d)\)\s*\((?=\s*[-\d])"), r")\\cdot("),
)


def canonical(answer: str) -> str:
    """Return the canonical notation of an answer, in linear time."""
    text = answer if "\\begin" in answer else re.sub(r"\\\\+(?=[A-Za-z])", r"\\", answer)
    text = re.sub(r"\\(?:left|right)\s*\.", "", text)
    text = _without_style(_ascii(text))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _NAMES.sub(_latex_name, _RUN.sub(_join_thousands, text))
    text = _REPEATING.sub(_repeating_decimal, text)
    for pattern, replacement in _NUMBERS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text)
    return text.strip(" ,;:").rstrip(" .,;:").rstrip("\\ ")


def _ascii(text: str) -> str:
    """Replace mathematical signs by LaTeX, and the digits of all scripts by ASCII digits."""
    if text.isascii():
        return text
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub(r"√\s*(\d+)", r"\\sqrt{\1}", text)
    return "".join(map(_ascii_character, text.translate(_SYMBOLS)))


def _ascii_character(character: str) -> str:
    if character.isascii():
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    above, slash, below = plain.partition("\N{FRACTION SLASH}")
    return f"\\frac{{{above}}}{{{below}}}" if slash and above and below else plain


def _without_style(text: str) -> str:
    r"""Remove fonts, colours and sizes from a text, and put all upright words in `\text`."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    pending = ""
    for match in _TOKEN.finditer(text):
        token, command = match.group(), match.group(1)
        if command and (effect := _effect(command)):
            pending = effect
        elif token == "{":
            groups.append((pending or "group", []))
            pending = ""
        elif token == "}" and len(groups) > 1:
            kind, pieces = groups.pop()
            groups[-1][1].append(_group(kind, "".join(pieces)))
            pending = "style" if kind == "skip" else ""
        elif token != "}":
            groups[-1][1].append(token)
            pending = "" if token.strip() else pending
    return "".join(piece for _, pieces in groups for piece in pieces)


def _effect(command: str) -> str | None:
    return next((name for name, names in _COMMANDS.items() if names.fullmatch(command)), None)


def _group(kind: str, content: str) -> str:
    if kind == "skip":
        return ""
    if kind == "group":
        return f"{{{content}}}"
    if kind == "style" or "\\text{" in content or _UPRIGHT_MATH.fullmatch(content):
        return content
    outside = content.split("$")
    if len(outside) % 2 and len(outside) > 1:  # mathematics among words
        return "".join(p if i % 2 else _group(kind, p) for i, p in enumerate(outside))
    if counted := _COUNTED.fullmatch(content):
        words = {name: f"\\text{{{text}}}" for name, text in counted.groupdict().items() if text}
        return words.get("label", "") + counted["amount"] + words.get("noun", "")
    content = content.replace("\\$", "$")
    return content if re.search(r"[\\^{}]", content) else f"\\text{{{content}}}"


def _latex_name(match: re.Match[str]) -> str:
    words, root, digits, name = match.groups()
    if words:
        return str(words)
    if root:
        return f"\\sqrt{{{digits}}}" if digits else "\\sqrt"
    return f"\\{_SYNONYMS.get(name, name)} "


def _join_thousands(match: re.Match[str]) -> str:
    r"""Remove thousands separators from a match of `_RUN`; return it unchanged if it has none.

    `1,234`, `1{,}234`, `1\,234` and `1 234` are the same number. `1{,}5` is a number with a decimal
    comma. Inside brackets a bare comma separates elements, as in `(1,100)`, unless the next group
    has a leading zero or other commas separate the elements, as in `(1,000, 2,000)`.
    """
    run = match.group()
    groups = _SEPARATOR.split(run)
    signs = set(_SEPARATOR.findall(run))
    if not _THOUSANDS.fullmatch(" ".join(groups)):
        return ".".join(groups) if signs == {"{,}"} and len(groups) == 2 else run
    if signs != {","} or any(group[0] == "0" for group in groups[1:]):
        return "".join(groups)
    content = _bracketed(match.string, match.start(), match.end())
    is_list = content is not None and not re.search(r",(?=\D)", content)
    return run if is_list else "".join(groups)


def _bracketed(text: str, start: int, end: int) -> str | None:
    r"""Return the content of the innermost brackets around a span, or None if there are none.

    Braces around the argument of a command do not count.
    """
    depth = 0
    for i in range(start - 1, -1, -1):
        if text[i] in ")]}":
            depth += 1
        elif text[i] in "([{":
            if depth == 0:
                if text[i] == "{" and text[i - 1 : i] != "\\":
                    return None  # the argument of a command
                stop = re.search(r"[)\]}]", text[end:])
                return text[i + 1 : end + stop.start() if stop else None]
            depth -= 1
    return None


def _repeating_decimal(match: re.Match[str]) -> str:
    r"""Convert a repeating decimal, such as `0.1\overline{6}`, to a fraction."""
    whole, fixed, period = match.groups()
    scale, nines = 10 ** len(fixed), 10 ** len(period) - 1
    digits = int(f"{whole}{fixed}" or "0") * nines + int(period)
    return f"\\frac{{{digits}}}{{{scale * nines}}}"
