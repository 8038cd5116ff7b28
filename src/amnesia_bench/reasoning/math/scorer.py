"""Mathematical answers: extracted, held against the gold answer, and counted as votes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from amnesia_bench.reasoning.judging import Attempt, Row, ScoringResult
from amnesia_bench.reasoning.math.comparison import is_list
from amnesia_bench.reasoning.math.equality import Equality, obstacle_of
from amnesia_bench.reasoning.math.extraction import last_boxed, last_number, without_boxes
from amnesia_bench.reasoning.math.pool import ComparisonPool
from amnesia_bench.records.evaluation import Outcome, Verdict

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
