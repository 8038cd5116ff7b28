r"""Mathematical answers: taken out of their box, compared with the gold answer, counted as votes.

The answer is what the last closed \boxed holds, or less strictly what stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from amnesia_bench.reasoning.math.equality import Equality, is_list, obstacle_of
from amnesia_bench.reasoning.math.pool import ComparisonPool
from amnesia_bench.reasoning.task import Attempt, Row, ScoringResult
from amnesia_bench.records.evaluation import Outcome, Verdict

# Any other escaped character is skipped, so that `\{` and `\}` are no braces.
_MARKS = re.compile(
    r"\\+(?:boxed|fbox|framebox)(?:\s*\{| +(?P<bare>[-+]?[.\d][^\s{}$\\]*))|\\.|[{}]", re.DOTALL
)
# What models write where the answer is to go.
_PLACEHOLDER = re.compile(
    r"(?:\s|[.…?_$<>\[\]()]|\\(?:[ ,;:!_]|$)"
    r"|\\(?:[lc]?dots|dotsc|q?quad|square|underline|text\w*|mbox)(?![A-Za-z])|\\(?:phantom|hspace)\{[^{}]*\}|[{}]"
    r"|(?i:(?:insert |put |type )?(?:(?:the|your|final|my) )*(?:answer|result|solution)(?: here)?)"
    r")*"
)
_PLACEHOLDER_CHARACTERS = 60
# Between boxes that belong together: a bullet, mathematics' own marks, "and", "or", a variable.
# Possessive, since a newline may stand before a bullet or alone.
_BETWEEN = re.compile(
    r"(?>\n\s{0,8}(?:[-*]|\d\.)\s|\s|[$,;.&]|\\[()\[\],;! ]|\\q?quad"
    r"|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\b[A-Za-z](?:_\{?\d\}?)?\s*=)*+"
)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")


@dataclass(frozen=True, kw_only=True)
class _Box:
    """Where a box is in a text, and where in it its content."""

    start: int
    end: int
    content: slice


def last_boxed(text: str, *, several: bool = False) -> str | None:
    r"""Return what the last closed `\boxed{...}` (or `\fbox`, `\framebox`) holds; None without one.

    A box that was cut off does not count, nor does one that only repeats the request for an answer:
    `\boxed{}`, `\boxed{...}`. Of nested boxes the outermost closed one counts; `\boxed 5` is 5. One
    pass, whatever the text.

    Args:
        text: an answer.
        several: the gold answer is a list, so neighbouring boxes at the end are its elements:
            `\boxed{1} and \boxed{-2}` is `1,-2`.
    """
    found = [box for box in _boxes(text) if not _is_placeholder(text[box.content].strip())]
    if not found:
        return None
    last = len(found) - 1
    while several and last and _BETWEEN.fullmatch(text, found[last - 1].end, found[last].start):
        last -= 1
    return ",".join(dict.fromkeys(text[box.content].strip() for box in found[last:]))


def without_boxes(text: str) -> str:
    """Return a text without its closed boxes, to be searched for an answer outside of them."""
    starts = [0, *(box.end for box in _boxes(text))]
    ends = [*(box.start for box in _boxes(text)), len(text)]
    return " ".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _boxes(text: str) -> list[_Box]:
    """Return the outermost closed boxes in their order."""
    opened: list[tuple[int, int] | None] = []  # per open brace: where a box and its content begin
    found: list[_Box] = []
    for mark in _MARKS.finditer(text):
        token = mark.group()
        if token == "{":
            opened.append(None)
        elif token == "}":
            if place := opened.pop() if opened else None:
                while found and found[-1].start > place[0]:
                    found.pop()
                inside = slice(place[1], mark.start())
                found.append(_Box(start=place[0], end=mark.end(), content=inside))
        elif token.endswith("{") and len(token) > 2:
            opened.append((mark.start(), mark.end()))
        elif mark["bare"]:
            inside = slice(
                mark.start("bare"), mark.start("bare") + len(mark["bare"].rstrip(".,;:"))
            )
            found.append(_Box(start=mark.start(), end=mark.end(), content=inside))
    return found


def _is_placeholder(content: str) -> bool:
    """Return whether an answer repeats the request for an answer, and holds none."""
    if len(content) > _PLACEHOLDER_CHARACTERS:
        return False
    return _PLACEHOLDER.fullmatch(content) is not None


def last_number(text: str) -> str | None:
    """Return the last number of a text, without its thousands separators; None without one."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


# How much of a text's end is searched for an answer without a box.
_TAIL_CHARACTERS = 2000

Votes = Generator[tuple[str, str], bool, list[int | None]]


@dataclass(frozen=True, kw_only=True)
class MathScorer:
    r"""Judges by the last `\boxed` answer.

    Args:
        gold: the gold answer of a problem.
        unboxed: what to do without a box. None: there is no answer. `number`: take the last
            number. `any`: take what math-verify finds in the last 2,000 characters.
    """

    gold: Callable[[Row], str]
    unboxed: str | None = None

    def __call__(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> ScoringResult:
        with ComparisonPool() as pool:
            return self.judge(rows, attempts, pool)

    def judge(
        self, rows: Sequence[Row], attempts: Sequence[Attempt], pool: ComparisonPool
    ) -> ScoringResult:
        """Judge as a call does, in processes that outlive it."""
        golds = [self.gold(rows[attempt.key.doc]) for attempt in attempts]
        answers = self._extract(golds, attempts, pool)
        # Problem by problem, as they are compared.
        together = chain.from_iterable(zip(golds, answers, strict=True))
        equality = Equality(pool, filter(None, together))
        judged = _judge(golds, answers, equality)
        votes = _vote(attempts, answers, equality)
        verdicts = tuple(
            Verdict(key=attempt.key, outcome=outcome, answer=answer, detail=detail)
            for attempt, answer, (outcome, detail) in zip(attempts, answers, judged, strict=True)
        )
        return ScoringResult(verdicts=verdicts, votes=votes)

    def _extract(
        self, golds: Sequence[str], attempts: Sequence[Attempt], pool: ComparisonPool
    ) -> list[str | None]:
        texts = [attempt.text or "" for attempt in attempts]
        answers = [
            last_boxed(text, several=is_list(gold)) for text, gold in zip(texts, golds, strict=True)
        ]
        if self.unboxed == "number":
            return [last_number(t) if a is None else a for t, a in zip(texts, answers, strict=True)]
        if self.unboxed == "any":
            rest = {i: without_boxes(texts[i]) for i, a in enumerate(answers) if a is None}
            tails = {i: text[-_TAIL_CHARACTERS:] for i, text in rest.items()}
            searched = {i: tail for i, tail in tails.items() if tail.strip()}
            found = pool.run([("find", tail) for tail in searched.values()])
            for i, answer in zip(searched, found, strict=True):
                answers[i] = (answer.strip() or None) if isinstance(answer, str) else None
        return answers


def _judge(
    golds: Sequence[str], answers: Sequence[str | None], equality: Equality
) -> list[tuple[Outcome, str | None]]:
    """Return outcome and detail per answer; pairs that occur more than once are compared once."""
    found: dict[tuple[str, str], tuple[Outcome, str | None]] = {}
    hard = []
    for gold, answer in dict.fromkeys(zip(golds, answers, strict=True)):
        if answer is None:
            continue
        if (equal := equality.known(gold, answer)) is not None:
            found[gold, answer] = (Outcome.CORRECT if equal else Outcome.WRONG), None
        elif (obstacle := equality.obstacle(answer)) is not None:
            found[gold, answer] = obstacle
        else:
            hard.append((gold, answer))
    for pair, reply in zip(hard, equality.ask("verify", hard), strict=True):
        right = Outcome.CORRECT if reply is True else Outcome.WRONG
        found[pair] = obstacle_of(reply) or (right, None)
    return [
        (Outcome.NO_ANSWER, None) if answer is None else found[gold, answer]
        for gold, answer in zip(golds, answers, strict=True)
    ]


def _vote(
    attempts: Sequence[Attempt], answers: Sequence[str | None], equality: Equality
) -> tuple[int | None, ...]:
    """Return the class of each answer among those to the same problem.

    All problems go on side by side: each waits for one comparison at a time, and the processes
    get these together.
    """
    pairs = zip(attempts, answers, strict=True)
    groups = [
        [answer for _, answer in group] for _, group in groupby(pairs, lambda pair: pair[0].key.doc)
    ]
    running = {i: _classes(group) for i, group in enumerate(groups)}
    classes: dict[int, list[int | None]] = {}
    asked: dict[int, tuple[str, str]] = {}
    replies: dict[tuple[str, str], bool] = {}
    while running:
        for i, votes in list(running.items()):
            try:
                pair = asked[i] if i in asked else next(votes)
                while (equal := _equal(pair, replies, equality)) is not None:
                    pair = votes.send(equal)
                asked[i] = pair
            except StopIteration as done:
                classes[i] = done.value
                del running[i]
        hard = list(dict.fromkeys(asked[i] for i in running))
        for pair, reply in zip(hard, equality.ask("same", hard), strict=True):
            replies[pair] = reply is True
    return tuple(vote for i in range(len(groups)) for vote in classes[i])


def _equal(
    pair: tuple[str, str], replies: Mapping[tuple[str, str], bool], equality: Equality
) -> bool | None:
    if pair in replies:
        return replies[pair]
    equal = equality.known(*pair)
    if equal is None and any(map(equality.obstacle, pair)):
        return False
    return equal


def _classes(answers: Sequence[str | None]) -> Votes:
    """Put each answer into the first class whose first member it equals, or into a new one.

    Asks for comparisons by yielding pairs.
    """
    firsts: list[str] = []
    classes: list[int | None] = []
    for answer in answers:
        if answer is None:
            classes.append(None)
            continue
        for i, first in enumerate(firsts):
            if answer == first or (yield first, answer):
                classes.append(i)
                break
        else:
            classes.append(len(firsts))
            firsts.append(answer)
    return classes
