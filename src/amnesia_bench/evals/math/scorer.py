"""Mathematical answers: extracted, held against the gold answer, and counted as votes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any

from amnesia_bench.evals.judging import Attempt, Judged, Row
from amnesia_bench.evals.math.comparison import MAX_CHARACTERS, glance
from amnesia_bench.evals.math.extraction import last_boxed, last_number
from amnesia_bench.evals.math.pool import ComparisonPool, Failure
from amnesia_bench.records.evaluation import Outcome, Verdict

# How much of a text's end is searched for an answer without a box.
_TAIL_CHARACTERS = 2000

_RIGHT, _WRONG = (Outcome.CORRECT, None), (Outcome.WRONG, None)
_REPLIES: Mapping[Any, tuple[Outcome, str | None]] = MappingProxyType(
    {
        True: _RIGHT,
        False: _WRONG,
        Failure.TIME_LIMIT: (Outcome.TIME_LIMIT, "the comparison ran out of time"),
        Failure.DIED: (Outcome.WRONG, "the comparison ran out of memory or stack"),
    }
)

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

    def __call__(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> Judged:
        with ComparisonPool() as pool:
            answers = self._extract(attempts, pool)
            golds = [self.gold(rows[attempt.key.doc]) for attempt in attempts]
            judged = _judge(golds, answers, pool)
            hopeless = {
                answer
                for answer, (_, detail) in zip(answers, judged, strict=True)
                if answer is not None and detail is not None
            }
            votes = _vote(attempts, answers, hopeless, pool)
        verdicts = tuple(
            Verdict(key=attempt.key, outcome=outcome, answer=answer, detail=detail)
            for attempt, answer, (outcome, detail) in zip(attempts, answers, judged, strict=True)
        )
        return Judged(verdicts=verdicts, votes=votes)

    def _extract(self, attempts: Sequence[Attempt], pool: ComparisonPool) -> list[str | None]:
        texts = [attempt.text or "" for attempt in attempts]
        answers = [last_boxed(text) for text in texts]
        if self.unboxed == "number":
            return [last_number(t) if a is None else a for t, a in zip(texts, answers, strict=True)]
        if self.unboxed == "any":
            tails = {i: texts[i][-_TAIL_CHARACTERS:] for i, a in enumerate(answers) if a is None}
            searched = {i: tail for i, tail in tails.items() if tail.strip()}
            found = pool.run([("find", tail) for tail in searched.values()])
            for i, answer in zip(searched, found, strict=True):
                answers[i] = (answer.strip() or None) if isinstance(answer, str) else None
        return answers


def _judge(
    golds: Sequence[str], answers: Sequence[str | None], pool: ComparisonPool
) -> list[tuple[Outcome, str | None]]:
    """Return outcome and detail per answer; pairs that occur more than once are compared once."""
    pairs = dict.fromkeys(
        (gold, answer) for gold, answer in zip(golds, answers, strict=True) if answer is not None
    )
    found: dict[tuple[str, str], tuple[Outcome, str | None]] = {}
    for gold, answer in pairs:
        equal = glance(gold, answer)
        if equal is not None:
            found[gold, answer] = _REPLIES[equal]
        elif len(answer) > MAX_CHARACTERS:
            found[gold, answer] = Outcome.WRONG, f"longer than {MAX_CHARACTERS} characters"
    hard = [pair for pair in pairs if pair not in found]
    for pair, reply in zip(hard, pool.run([("verify", *pair) for pair in hard]), strict=True):
        if isinstance(reply, dict):
            found[pair] = Outcome.WRONG, f"cannot be compared ({reply['error']})"
        else:
            found[pair] = _REPLIES[reply]
    return [
        (Outcome.NO_ANSWER, None) if answer is None else found[gold, answer]
        for gold, answer in zip(golds, answers, strict=True)
    ]


def _vote(
    attempts: Sequence[Attempt],
    answers: Sequence[str | None],
    hopeless: set[str],
    pool: ComparisonPool,
) -> tuple[int | None, ...]:
    """Return the class of each answer among those to the same problem.

    All problems go on side by side: each waits for one comparison at a time, and the pool gets
    these together.
    """
    pairs = zip(attempts, answers, strict=True)
    groups = [
        [answer for _, answer in group] for _, group in groupby(pairs, lambda pair: pair[0].key.doc)
    ]
    running = {i: _classes(group, hopeless) for i, group in enumerate(groups)}
    classes: dict[int, list[int | None]] = {}
    known: dict[tuple[str, str], bool] = {}
    asked: dict[int, tuple[str, str] | None] = dict.fromkeys(running)
    while running:
        for i, votes in list(running.items()):
            try:
                asked[i] = _next_unknown(votes, asked[i], known)
            except StopIteration as done:
                classes[i] = done.value
                del running[i]
        hard = list(dict.fromkeys(pair for i in running if (pair := asked[i]) is not None))
        for pair, reply in zip(hard, pool.run([("same", *pair) for pair in hard]), strict=True):
            known[pair] = reply is True
    return tuple(vote for i in range(len(groups)) for vote in classes[i])


def _next_unknown(
    votes: Votes, asked: tuple[str, str] | None, known: dict[tuple[str, str], bool]
) -> tuple[str, str]:
    """Let a problem's count go on until it asks for a comparison that is still to be made."""
    pair = next(votes) if asked is None else votes.send(known[asked])
    while True:
        if pair not in known:
            equal = glance(*pair)
            if equal is None:
                return pair
            known[pair] = equal
        pair = votes.send(known[pair])


def _classes(answers: Sequence[str | None], hopeless: set[str]) -> Votes:
    """Put each answer into the first class whose first member it equals, or into a new one.

    Asks for comparisons by yielding pairs. An answer that could not be compared with the gold
    one is equal only to itself.
    """
    firsts: list[str] = []
    classes: list[int | None] = []
    for answer in answers:
        if answer is None:
            classes.append(None)
            continue
        found = firsts.index(answer) if answer in firsts else None
        if found is None and answer not in hopeless:
            for i, first in enumerate(firsts):
                if first not in hopeless and (yield first, answer):
                    found = i
                    break
        if found is None:
            firsts.append(answer)
            found = len(firsts) - 1
        classes.append(found)
    return classes
