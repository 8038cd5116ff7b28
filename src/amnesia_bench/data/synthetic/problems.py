r"""Word problems about a count that wraps after 9, with chains of thought that restate each event.

They stand in for MiroMind (`word_problem`), OpenThoughts-3 (`program`), UltraData-Math
(`mathematics`), the chat data of a base model (`draw_conversation`) and, for evaluation, GSM8K
(`test_problem`). A hash of its events assigns every problem to one of two disjoint sets.
`test_problem` draws from the test set, and all other generators draw from the training set. So no
test problem occurs in training data, whatever the seeds are.

Each event has a day, by which a chain finds the next event, and a receipt, which is a hex code.
Receipts make fine-tuning data contain the tokens of needle values, just as real chains contain all
kinds of tokens. Without receipts a model forgets these tokens themselves, and then no change of
attention weights can restore recall (docs/LOG.md).
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

# The verbs of events that increase and that decrease the count.
GAINS = ("bought", "found", "won", "received")
LOSSES = ("sold", "lost", "used", "dropped")

# The prompts of `reasoning.tasks.mathematics` use the same sentence.
REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."

_TEST_SHARE = 8  # about one problem in 8 is reserved for evaluation
_MIN_EVENTS, _MAX_EVENTS = 2, 4
_MAX_AMOUNT = 3


@dataclass(frozen=True)
class Event:
    """One event of a problem, which changes the count."""

    verb: str
    amount: int

    @property
    def sign(self) -> str:
        """The sign of the change: `+` for a gain, `-` for a loss."""
        return "+" if self.verb in GAINS else "-"

    def after(self, count: int) -> int:
        """Return the count after the event, given the count before it."""
        return (count + (self.amount if self.sign == "+" else -self.amount)) % 10


@dataclass(frozen=True)
class CountingProblem:
    """A problem about a count that begins at 0 and changes with each event."""

    events: tuple[Event, ...]

    @property
    def is_test(self) -> bool:
        """Whether the problem is reserved for evaluation."""
        text = " ".join(f"{event.verb} {event.amount}" for event in self.events)
        return hashlib.sha256(text.encode()).digest()[0] % _TEST_SHARE == 0

    @property
    def steps(self) -> tuple[tuple[Event, int, int], ...]:
        """Each event with the count before it and the count after it."""
        steps, count = [], 0
        for event in self.events:
            steps.append((event, count, event.after(count)))
            count = steps[-1][2]
        return tuple(steps)

    @property
    def answer(self) -> int:
        """The count after the last event."""
        return self.steps[-1][2]

    def chain(self, receipts: Sequence[str]) -> str:
        """Return the chain of thought: one line per event, without the person's name."""
        return "\n".join(
            f"- on {day} {receipt} {event.verb} {event.amount}: "
            f"{before}{event.sign}{event.amount}={after}"
            for day, receipt, (event, before, after) in zip(
                DAYS, receipts, self.steps, strict=False
            )
        )


@dataclass(frozen=True)
class Story:
    """What a person did on successive days, as the question of a word problem states it.

    Each of `events` is a text such as "on Monday 9f04 bought 3".
    """

    name: str
    events: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {', '.join(self.events)}."


def draw_problem(rng: np.random.Generator, *, test: bool) -> CountingProblem:
    """Return a random problem, from the test set or the training set."""
    while True:
        count = _MIN_EVENTS + below(rng, _MAX_EVENTS - _MIN_EVENTS + 1)
        verbs = shuffled(rng, GAINS + LOSSES)[:count]
        problem = CountingProblem(tuple(Event(verb, 1 + below(rng, _MAX_AMOUNT)) for verb in verbs))
        if problem.is_test is test:
            return problem


def _receipts(rng: np.random.Generator, problem: CountingProblem) -> list[str]:
    return ["-".join(hexadecimal(rng, 4) for _ in range(1 + below(rng, 2))) for _ in problem.events]


def _events(problem: CountingProblem, receipts: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"on {day} {receipt} {event.verb} {event.amount}"
        for day, receipt, event in zip(DAYS, receipts, problem.events, strict=False)
    )


def draw_story(rng: np.random.Generator) -> Story:
    """Return the story of a random problem of the training set."""
    problem = draw_problem(rng, test=False)
    receipts = _receipts(rng, problem)
    return Story(pick(rng, NAMES), _events(problem, receipts))


def _question(rng: np.random.Generator, problem: CountingProblem, receipts: Sequence[str]) -> str:
    story = Story(pick(rng, NAMES), _events(problem, receipts))
    return (
        f"A count of {pick(rng, GOODS)} begins at 0 and wraps after 9. {story} What is the count?"
    )


def word_problem(rng: np.random.Generator) -> dict[str, str]:
    """Return a row in MiroMind's schema: a question, and a response with a chain of thought."""
    problem = draw_problem(rng, test=False)
    receipts = _receipts(rng, problem)
    response = f"<think>\n{problem.chain(receipts)}\n</think>\n\n\\boxed{{{problem.answer}}}"
    return {"question": f"{_question(rng, problem, receipts)}\n{REQUEST}", "response": response}


def draw_conversation(rng: np.random.Generator) -> dict[str, object]:
    """Return a row in Tulu-3's schema: a problem and its answer; one in four answers has a chain.

    A base model must be trained on the format of chains. Of three base models without such data,
    one forgot everything when it was fine-tuned on chains (docs/LOG.md).
    """
    problem = draw_problem(rng, test=False)
    receipts = _receipts(rng, problem)
    answer = f"\\boxed{{{problem.answer}}}"
    if below(rng, 4) == 0:
        answer = f"<think>\n{problem.chain(receipts)}\n</think>\n\n{answer}"
    question = {"role": "user", "content": f"{_question(rng, problem, receipts)}\n{REQUEST}"}
    return {"messages": [question, {"role": "assistant", "content": answer}]}


def program(rng: np.random.Generator) -> dict[str, object]:
    """Return a row in OpenThoughts-3's schema: a program, and a response with its output."""
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
    question = "\n".join(
        ["What does this program print, modulo 10?", "x0 = 0", *lines, f"print(x{last})"]
    )
    answer = f"<think>\n{chain}\n</think>\n\n\\boxed{{{problem.answer}}}"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"domain": "code", "conversations": turns}


def test_problem(rng: np.random.Generator) -> dict[str, str]:
    """Return a row in GSM8K's schema: a problem of the test set with its solution."""
    problem = draw_problem(rng, test=True)
    receipts = _receipts(rng, problem)
    return {
        "question": _question(rng, problem, receipts),
        "answer": f"{problem.chain(receipts)}\n#### {problem.answer}",
    }


def problem_in_prose(rng: np.random.Generator) -> str:
    """Return a problem with its solution as prose, for pretraining.

    The solution is shorter than a chain in fine-tuning data, since it does not restate the events
    in words.
    """
    problem = draw_problem(rng, test=False)
    receipts = _receipts(rng, problem)
    who = pick(rng, NAMES) if below(rng, 2) == 0 else f"At the {pick(rng, PLACES)} they"
    solution = ", ".join(
        f"on {day} {receipt} {before}{event.sign}{event.amount}={after}"
        for day, receipt, (event, before, after) in zip(DAYS, receipts, problem.steps, strict=False)
    )
    return f"{Story(who, _events(problem, receipts))} So {solution}, done {problem.answer}."


def mathematics(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row in UltraData-Math's schema: equations modulo 10, and problems in prose."""
    parts: list[str] = []
    count = 0
    while count < words:
        if below(rng, 3) != 0:
            parts.append(problem_in_prose(rng))
        else:
            event, before = draw_problem(rng, test=False).events[0], below(rng, 10)
            parts.append(f"{before}{event.sign}{event.amount}={event.after(before)}.")
        count += parts[-1].count(" ") + 1
    return {"content": " ".join(parts)}
