r"""Score mathematical answers: extract them, compare them with the gold answer, and assign votes.

The answer is the content of the last closed \boxed. Flexible scorers also accept unboxed answers.
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

# The second alternative skips escaped characters, so `\{` and `\}` do not count as braces.
_MARKS = re.compile(
    r"\\+(?:boxed|fbox|framebox)(?:\s*\{| +(?P<bare>[-+]?[.\d][^\s{}$\\]*))|\\.|[{}]", re.DOTALL
)
# Placeholders that models write instead of an answer.
_PLACEHOLDER = re.compile(
    r"(?:\s|[.…?_$<>\[\]()]|\\(?:[ ,;:!_]|$)"
    r"|\\(?:[lc]?dots|dotsc|q?quad|square|underline|text\w*|mbox)(?![A-Za-z])|\\(?:phantom|hspace)\{[^{}]*\}|[{}]"
    r"|(?i:(?:insert |put |type )?(?:(?:the|your|final|my) )*(?:answer|result|solution)(?: here)?)"
    r")*"
)
_PLACEHOLDER_CHARACTERS = 60
# Text that may separate the boxes of one list: bullets, math delimiters, "and", "or", `x =`. The
# quantifier is possessive to prevent slow backtracking: a newline matches in two ways, as the start
# of a bullet or as white space.
_BETWEEN = re.compile(
    r"(?>\n\s{0,8}(?:[-*]|\d\.)\s|\s|[$,;.&]|\\[()\[\],;! ]|\\q?quad"
    r"|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\b[A-Za-z](?:_\{?\d\}?)?\s*=)*+"
)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")


@dataclass(frozen=True, kw_only=True)
class _Box:
    """The positions of a box and of its content in a text."""

    start: int
    end: int
    content: slice


def last_boxed(text: str, *, several: bool = False) -> str | None:
    r"""Return the content of the last closed `\boxed{...}` (or `\fbox`, `\framebox`), or None.

    Boxes that are cut off or contain a placeholder (`\boxed{}`, `\boxed{...}`) are ignored. Of
    nested boxes, the outermost closed one counts. `\boxed 5` is 5. The text is scanned only once.

    Args:
        text: an answer.
        several: whether the gold answer is a list. Adjacent boxes at the end of the text are then
            joined as its elements: `\boxed{1} and \boxed{-2}` is `1,-2`.
    """
    boxes = [box for box in _boxes(text) if not _is_placeholder(text[box.content].strip())]
    if not boxes:
        return None
    first = len(boxes) - 1
    while several and first and _BETWEEN.fullmatch(text, boxes[first - 1].end, boxes[first].start):
        first -= 1
    return ",".join(dict.fromkeys(text[box.content].strip() for box in boxes[first:]))


def without_boxes(text: str) -> str:
    """Remove the closed boxes from a text, so that an answer outside them can be searched for."""
    starts = [0, *(box.end for box in _boxes(text))]
    ends = [*(box.start for box in _boxes(text)), len(text)]
    return " ".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _boxes(text: str) -> list[_Box]:
    """Return the outermost closed boxes in the order in which they appear."""
    # For each open brace, the start of its box and of its content; None if it opens no box.
    opened: list[tuple[int, int] | None] = []
    boxes: list[_Box] = []
    for mark in _MARKS.finditer(text):
        token = mark.group()
        if token == "{":
            opened.append(None)
        elif token == "}":
            if starts := opened.pop() if opened else None:
                while boxes and boxes[-1].start > starts[0]:
                    boxes.pop()
                content = slice(starts[1], mark.start())
                boxes.append(_Box(start=starts[0], end=mark.end(), content=content))
        elif token.endswith("{") and len(token) > 2:
            opened.append((mark.start(), mark.end()))
        elif mark["bare"]:
            start = mark.start("bare")
            content = slice(start, start + len(mark["bare"].rstrip(".,;:")))
            boxes.append(_Box(start=mark.start(), end=mark.end(), content=content))
    return boxes


def _is_placeholder(content: str) -> bool:
    """Return whether the content of a box is a placeholder, not an answer."""
    if len(content) > _PLACEHOLDER_CHARACTERS:
        return False
    return _PLACEHOLDER.fullmatch(content) is not None


def last_number(text: str) -> str | None:
    """Return the last number in a text without thousands separators, or None if there is none."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


# Number of characters at the end of a text that are searched for an unboxed answer.
_TAIL_CHARACTERS = 2000

Votes = Generator[tuple[str, str], bool, list[int | None]]


@dataclass(frozen=True, kw_only=True)
class MathScorer:
    r"""Judges the last `\boxed` answer of each attempt.

    Args:
        gold: returns the gold answer of a problem.
        unboxed: which answer to extract from a text without a box. None: no answer. `number`: the
            last number. `any`: the answer that math-verify finds in the last 2,000 characters.
    """

    gold: Callable[[Row], str]
    unboxed: str | None = None

    def __call__(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> ScoringResult:
        with ComparisonPool() as pool:
            return self.judge(rows, attempts, pool)

    def judge(
        self, rows: Sequence[Row], attempts: Sequence[Attempt], pool: ComparisonPool
    ) -> ScoringResult:
        """Judge attempts as `__call__` does, with the workers of an open pool."""
        golds = [self.gold(rows[attempt.key.doc]) for attempt in attempts]
        answers = self._extract(golds, attempts, pool)
        # Ordered by problem, so that one worker parses most answers that are compared.
        all_answers = chain.from_iterable(zip(golds, answers, strict=True))
        equality = Equality(pool, filter(None, all_answers))
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
            unboxed = {i: without_boxes(texts[i]) for i, a in enumerate(answers) if a is None}
            ends = {i: text[-_TAIL_CHARACTERS:] for i, text in unboxed.items()}
            searched = {i: end for i, end in ends.items() if end.strip()}
            replies = pool.run([("find", end) for end in searched.values()])
            for i, answer in zip(searched, replies, strict=True):
                answers[i] = (answer.strip() or None) if isinstance(answer, str) else None
        return answers


def _judge(
    golds: Sequence[str], answers: Sequence[str | None], equality: Equality
) -> list[tuple[Outcome, str | None]]:
    """Return the outcome and detail of each answer; repeated pairs are compared only once."""
    outcomes: dict[tuple[str, str], tuple[Outcome, str | None]] = {}
    undecided = []
    for gold, answer in dict.fromkeys(zip(golds, answers, strict=True)):
        if answer is None:
            continue
        if (equal := equality.known(gold, answer)) is not None:
            outcomes[gold, answer] = (Outcome.CORRECT if equal else Outcome.WRONG), None
        elif (obstacle := equality.obstacle(answer)) is not None:
            outcomes[gold, answer] = obstacle
        else:
            undecided.append((gold, answer))
    for pair, reply in zip(undecided, equality.ask("verify", undecided), strict=True):
        outcome = Outcome.CORRECT if reply is True else Outcome.WRONG
        outcomes[pair] = obstacle_of(reply) or (outcome, None)
    return [
        (Outcome.NO_ANSWER, None) if answer is None else outcomes[gold, answer]
        for gold, answer in zip(golds, answers, strict=True)
    ]


def _vote(
    attempts: Sequence[Attempt], answers: Sequence[str | None], equality: Equality
) -> tuple[int | None, ...]:
    """For each answer, return the index of its equivalence class among answers to the same problem.

    All problems are processed concurrently: each waits for one comparison at a time, and the pool
    receives the pending comparisons of all problems as one batch.
    """
    pairs = zip(attempts, answers, strict=True)
    groups = [
        [answer for _, answer in group] for _, group in groupby(pairs, lambda pair: pair[0].key.doc)
    ]
    running = {i: _classes(group) for i, group in enumerate(groups)}
    classes: dict[int, list[int | None]] = {}
    pending: dict[int, tuple[str, str]] = {}
    replies: dict[tuple[str, str], bool] = {}
    while running:
        for i, votes in list(running.items()):
            try:
                pair = pending[i] if i in pending else next(votes)
                while (equal := _equal(pair, replies, equality)) is not None:
                    pair = votes.send(equal)
                pending[i] = pair
            except StopIteration as done:
                classes[i] = done.value
                del running[i]
        undecided = list(dict.fromkeys(pending[i] for i in running))
        for pair, reply in zip(undecided, equality.ask("same", undecided), strict=True):
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
    """Assign each answer to the first class whose first member it equals, or to a new class.

    This generator yields pairs to compare, receives whether they are equal, and returns the class
    indices.
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
