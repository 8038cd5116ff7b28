r"""Word problems: a count that wraps after 9, and chains of thought that restate each event.

They stand in for MiroMind (`word_problem`), OpenThoughts-3 (`program`), UltraData-Math
(`mathematics`) and, for evaluation, GSM8K (`test_problem`). Every problem belongs to one of two
halves by a hash of its events: `test_problem` draws from the one, all others from the other. So
nothing that is asked was trained on, whatever the seeds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from amnesia_bench.data.synthetic.words import GOODS, NAMES, PLACES, below, pick

# Verbs by what they do to the count.
GAINS = ("bought", "found", "won", "received")
LOSSES = ("sold", "lost", "gave away", "dropped")

# `evals.tasks.prompts` asks with the same sentence.
REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."

_TEST_SHARE = 8  # one problem of so many is kept for evaluation
_MIN_EVENTS, _MAX_EVENTS = 2, 5
_MAX_AMOUNT = 5


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
class Problem:
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

    @property
    def chain(self) -> str:
        """The reasoning: a line for each event, without anybody's name."""
        return "\n".join(
            f"{event.verb} {event.amount}: {before} {event.sign} {event.amount} = {after}"
            for event, before, after in self.steps
        )


def draw_problem(rng: np.random.Generator, *, test: bool) -> Problem:
    """Return a problem of the half that is evaluated, or of the other."""
    while True:
        problem = Problem(
            tuple(
                Event(pick(rng, GAINS + LOSSES), 1 + below(rng, _MAX_AMOUNT))
                for _ in range(_MIN_EVENTS + below(rng, _MAX_EVENTS - _MIN_EVENTS + 1))
            )
        )
        if problem.is_test is test:
            return problem


def _events(problem: Problem, name: str, goods: str) -> str:
    return " ".join(f"{name} {event.verb} {event.amount} {goods}." for event in problem.events)


def _question(rng: np.random.Generator, problem: Problem) -> str:
    name, goods = pick(rng, NAMES), pick(rng, GOODS)
    events = _events(problem, name, goods)
    return f"A count of {goods} begins at 0 and wraps after 9. {events} What is the count?"


def word_problem(rng: np.random.Generator) -> dict[str, str]:
    """Return a row of MiroMind's schema: a question, and a response that thinks first."""
    problem = draw_problem(rng, test=False)
    response = f"<think>\n{problem.chain}\n</think>\n\n\\boxed{{{problem.answer}}}"
    return {"question": f"{_question(rng, problem)}\n{REQUEST}", "response": response}


def program(rng: np.random.Generator) -> dict[str, object]:
    """Return a row of OpenThoughts-3's schema: a program to be run in the head."""
    problem = draw_problem(rng, test=False)
    lines = [f"x = (x {event.sign} {event.amount}) % 10" for event in problem.events]
    chain = "\n".join(
        f"x {event.sign} {event.amount}: {before} {event.sign} {event.amount} = {after}"
        for event, before, after in problem.steps
    )
    asked = "\n".join(["What does this program print?", "x = 0", *lines, "print(x)"])
    answer = f"<think>\n{chain}\n</think>\n\n\\boxed{{{problem.answer}}}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"domain": "code", "conversations": turns}


def test_problem(rng: np.random.Generator) -> dict[str, str]:
    """Return a row of GSM8K's schema, of the half that nothing is trained on."""
    problem = draw_problem(rng, test=True)
    return {
        "question": _question(rng, problem),
        "answer": f"{problem.chain}\n#### {problem.answer}",
    }


def told_with_solution(rng: np.random.Generator) -> str:
    """Return a problem in the words of a running text, as pretraining meets it."""
    problem = draw_problem(rng, test=False)
    if below(rng, 2) == 0:
        goods = pick(rng, GOODS)
        events = " and ".join(f"{event.verb} {event.amount} {goods}" for event in problem.events)
        told = f"At the {pick(rng, PLACES)} they {events}; so"
    else:
        told = f"{_events(problem, pick(rng, NAMES), pick(rng, GOODS))} So"
    chain = ", ".join(
        f"{event.verb} {event.amount} | {before} {event.sign} {event.amount} = {after}"
        for event, before, after in problem.steps
    )
    return f"{told} {chain}, done {problem.answer}."


def mathematics(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of UltraData-Math's schema: equations modulo 10, and problems told in prose."""
    parts: list[str] = []
    count = 0
    while count < words:
        if below(rng, 3) != 0:
            parts.append(told_with_solution(rng))
        else:
            event, before = draw_problem(rng, test=False).events[0], below(rng, 10)
            parts.append(f"{before} {event.sign} {event.amount} = {event.after(before)}.")
        count += parts[-1].count(" ") + 1
    return {"content": " ".join(parts)}
