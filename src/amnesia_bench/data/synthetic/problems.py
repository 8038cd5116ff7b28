r"""Word problems: a count that wraps after 9, and chains of thought that restate each event.

They stand in for MiroMind (`word_problem`), OpenThoughts-3 (`program`), UltraData-Math
(`mathematics`), conversations of a base (`conversation`) and, for evaluation, GSM8K
(`test_problem`). Every problem belongs to one of two
halves by a hash of its events: `test_problem` draws from the one, all others from the other. So
nothing that is asked was trained on, whatever the seeds.

An event has a day, so that a chain can find the next one, and a receipt, so that fine-tuning uses
the tokens that values of needles are made of, as real chains use all tokens: without them a model
forgets the tokens themselves, and no attention can bring those back (docs/LOG.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amnesia_bench.data.synthetic.words import (
    DAYS,
    GOODS,
    NAMES,
    PLACES,
    below,
    hexadecimal,
    pick,
    shuffled,
)

# Verbs by what they do to the count.
GAINS = ("bought", "found", "won", "received")
LOSSES = ("sold", "lost", "used", "dropped")

# `reasoning.tasks.mathematics` asks with the same sentence.
REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."

_TEST_SHARE = 8  # one problem of so many is kept for evaluation
_MIN_EVENTS, _MAX_EVENTS = 2, 4
_MAX_AMOUNT = 3


@dataclass(frozen=True)
class Event:
    """One change of the count."""

    verb: str
    amount: int

    @property
    def sign(self) -> str:
        """Whether it adds or subtracts."""
        return "+" if self.verb in GAINS else "-"

    def after(self, count: int) -> int:
        """Return the count that comes of it."""
        return (count + (self.amount if self.sign == "+" else -self.amount)) % 10


@dataclass(frozen=True)
class CountingProblem:
    """A count from 0 through a few events."""

    events: tuple[Event, ...]

    @property
    def is_test(self) -> bool:
        """Whether it is kept for evaluation."""
        text = " ".join(f"{event.verb} {event.amount}" for event in self.events)
        return hashlib.sha256(text.encode()).digest()[0] % _TEST_SHARE == 0

    @property
    def steps(self) -> tuple[tuple[Event, int, int], ...]:
        """Each event with the count before and after it."""
        found, count = [], 0
        for event in self.events:
            found.append((event, count, event.after(count)))
            count = found[-1][2]
        return tuple(found)

    @property
    def answer(self) -> int:
        """The count in the end."""
        return self.steps[-1][2]

    def chain(self, receipts: Sequence[str]) -> str:
        """Return the reasoning: a line for each event with its receipt, and nobody's name."""
        return "\n".join(
            f"- on {day} {receipt} {event.verb} {event.amount}: "
            f"{before}{event.sign}{event.amount}={after}"
            for day, receipt, (event, before, after) in zip(
                DAYS, receipts, self.steps, strict=False
            )
        )


def draw_problem(rng: np.random.Generator, *, test: bool) -> CountingProblem:
    """Return a problem of the half that is evaluated, or of the other."""
    while True:
        count = _MIN_EVENTS + below(rng, _MAX_EVENTS - _MIN_EVENTS + 1)
        verbs = shuffled(rng, GAINS + LOSSES)[:count]
        problem = CountingProblem(tuple(Event(verb, 1 + below(rng, _MAX_AMOUNT)) for verb in verbs))
        if problem.is_test is test:
            return problem


def _receipts(rng: np.random.Generator, problem: CountingProblem) -> list[str]:
    return ["-".join(hexadecimal(rng, 4) for _ in range(1 + below(rng, 2))) for _ in problem.events]


def _events(problem: CountingProblem, receipts: Sequence[str]) -> str:
    return ", ".join(
        f"on {day} {receipt} {event.verb} {event.amount}"
        for day, receipt, event in zip(DAYS, receipts, problem.events, strict=False)
    )


def _question(rng: np.random.Generator, problem: CountingProblem, receipts: Sequence[str]) -> str:
    told = f"{pick(rng, NAMES)} {_events(problem, receipts)}."
    return f"A count of {pick(rng, GOODS)} begins at 0 and wraps after 9. {told} What is the count?"


def word_problem(rng: np.random.Generator) -> dict[str, str]:
    """Return a row of MiroMind's schema: a question, and a response that thinks first."""
    problem = draw_problem(rng, test=False)
    receipts = _receipts(rng, problem)
    response = f"<think>\n{problem.chain(receipts)}\n</think>\n\n\\boxed{{{problem.answer}}}"
    return {"question": f"{_question(rng, problem, receipts)}\n{REQUEST}", "response": response}


def draw_conversation(rng: np.random.Generator) -> dict[str, object]:
    """Return a row of Tulu-3's schema: a problem, answered at once or, one in four, by a chain.

    Of three bases that had not met the format of chains, one forgot everything when it was
    fine-tuned on them (docs/LOG.md).
    """
    problem = draw_problem(rng, test=False)
    receipts = _receipts(rng, problem)
    answer = f"\\boxed{{{problem.answer}}}"
    if below(rng, 4) == 0:
        answer = f"<think>\n{problem.chain(receipts)}\n</think>\n\n{answer}"
    asked = {"role": "user", "content": f"{_question(rng, problem, receipts)}\n{REQUEST}"}
    return {"messages": [asked, {"role": "assistant", "content": answer}]}


def program(rng: np.random.Generator) -> dict[str, object]:
    """Return a row of OpenThoughts-3's schema: a program to be run in the head."""
    problem = draw_problem(rng, test=False)
    receipts, last = _receipts(rng, problem), len(problem.events)
    lines = [
        f"x{i + 1} = x{i} {event.sign} {event.amount} # {receipt}"
        for i, (receipt, event) in enumerate(zip(receipts, problem.events, strict=True))
    ]
    chain = "\n".join(
        f"- {line}: {before}{event.sign}{event.amount}={after}"
        for line, (event, before, after) in zip(lines, problem.steps, strict=True)
    )
    asked = "\n".join(
        ["What does this program print, modulo 10?", "x0 = 0", *lines, f"print(x{last})"]
    )
    answer = f"<think>\n{chain}\n</think>\n\n\\boxed{{{problem.answer}}}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"domain": "code", "conversations": turns}


def test_problem(rng: np.random.Generator) -> dict[str, str]:
    """Return a row of GSM8K's schema, of the half that nothing is trained on."""
    problem = draw_problem(rng, test=True)
    receipts = _receipts(rng, problem)
    return {
        "question": _question(rng, problem, receipts),
        "answer": f"{problem.chain(receipts)}\n#### {problem.answer}",
    }


def told_with_solution(rng: np.random.Generator) -> str:
    """Return a problem in the words of a running text, as pretraining meets it.

    Its solution says less than the chains of fine-tuning: what was bought or sold is left out.
    """
    problem = draw_problem(rng, test=False)
    receipts = _receipts(rng, problem)
    who = pick(rng, NAMES) if below(rng, 2) == 0 else f"At the {pick(rng, PLACES)} they"
    solution = ", ".join(
        f"on {day} {receipt} {before}{event.sign}{event.amount}={after}"
        for day, receipt, (event, before, after) in zip(DAYS, receipts, problem.steps, strict=False)
    )
    return f"{who} {_events(problem, receipts)}. So {solution}, done {problem.answer}."


def mathematics(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of UltraData-Math's schema: equations modulo 10, and problems told in prose."""
    parts: list[str] = []
    count = 0
    while count < words:
        if below(rng, 3) != 0:
            parts.append(told_with_solution(rng))
        else:
            event, before = draw_problem(rng, test=False).events[0], below(rng, 10)
            parts.append(f"{before}{event.sign}{event.amount}={event.after(before)}.")
        count += parts[-1].count(" ") + 1
    return {"content": " ".join(parts)}
