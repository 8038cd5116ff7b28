"""RULER's variable tracking (ruler_vt): chains of assignments, hidden in repeated lines.

The wording (with its misspelling) and the order of the draws are those of lm-evaluation-harness
0.4.13 (lm_eval/tasks/ruler/vt_utils.py). Each prompt begins with a solved example; its variables
get new names in every prompt, so prompts share only their first few dozen tokens.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from amnesia_bench.recall.niah.drafts import Draft, Pieces, Search, TokenMeter, TooLongError
from amnesia_bench.recall.niah.splicing import Span
from amnesia_bench.recall.niah.streams import RandomStreams
from amnesia_bench.recall.niah.tasks import LINE, RecallTask

TRACKING_TASK = RecallTask(name="ruler_vt")
_HOPS = 4
_STEP, _EXAMPLE_STEP = 10, 5
_EXAMPLE_TOKENS = 500  # lm-eval's max_seq_length of the example
_NOISE = f"{LINE}\n"
_HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_THEY_ARE = "they are: "
# lm-eval draws again for ever if the smallest prompt does not fit; its length hardly varies.
_ATTEMPTS = 200


def noise_text(lines: int) -> str:
    """Return the repeated lines as they are in a prompt, with a line break and a space between."""
    return " ".join([_NOISE] * lines)


def lines_up_to(characters: int) -> int:
    """Return how many lines have at least this many characters, with what is between them."""
    return -(-characters // (len(_NOISE) + 1))


@dataclass(frozen=True, kw_only=True)
class _Chain:
    variables: list[str]
    assignments: list[str]

    @property
    def value(self) -> str:
        return self.assignments[0].split("=")[-1].strip()


class TrackingDrawer:
    """Draws the prompts at one length; the base text of `meter` is `noise_text`."""

    def __init__(self, context_tokens: int, meter: TokenMeter) -> None:
        self._context_tokens = context_tokens
        self.meter = meter

    def draw(self, samples: int, streams: RandomStreams, *, every: bool) -> list[Draft]:
        """Draw the prompts; see `Drawer`."""
        example = self._example(streams)
        search = Search(
            first=_STEP,
            step=_STEP,
            reserved=TRACKING_TASK.answer_tokens + self.meter.tokens([example]),
            context_tokens=self._context_tokens,
            every=every,
        )

        def text(lines: int) -> Pieces:
            chain, pieces = _hidden_chain(lines, streams)
            return [*pieces, f" {chain.variables}"]

        lines = search.size(text, self.meter)
        if lines < _STEP:
            _, pieces = _hidden_chain(_STEP, streams)
            raise TooLongError(self.meter.tokens(pieces) + search.reserved)
        return [
            self._sample(index, lines, example, search.reserved, streams)
            for index in range(samples)
        ]

    def _sample(
        self, index: int, lines: int, example: str, reserved: int, streams: RandomStreams
    ) -> Draft:
        length = 0
        for _ in range(_ATTEMPTS + lines // _STEP):
            try:
                chain, pieces = _hidden_chain(lines, streams)
            except EqualNamesError:
                lines -= _STEP if lines > _STEP else 0
                continue
            length = self.meter.tokens(pieces) + reserved
            if length <= self._context_tokens:
                renamed = _renamed(example, streams.python)
                *before, end = pieces
                assert isinstance(end, str)
                cut = end.rindex(" Answer: According to")
                return Draft(
                    index=index,
                    pieces=[f"{renamed}\n\n", *before, end[:cut]],
                    outputs=tuple(chain.variables),
                    gen_prefix=end[cut:].strip(),
                    length=length,
                )
            lines -= _STEP if lines > _STEP else 0
        raise TooLongError(length)

    def _example(self, streams: RandomStreams) -> str:
        """Return the solved example of all prompts, before its variables are renamed."""

        def text(lines: int) -> Pieces:
            chain, example = _example_text(lines, streams)
            return [f"{example} {chain.variables}"]

        lines = Search(
            first=_EXAMPLE_STEP,
            step=_EXAMPLE_STEP,
            reserved=TRACKING_TASK.answer_tokens,
            context_tokens=_EXAMPLE_TOKENS,
            every=True,
        ).size(text, self.meter)
        if lines < _EXAMPLE_STEP:
            _, example = _example_text(_EXAMPLE_STEP, streams)
            raise ExampleError(self.meter.tokens([example]) + TRACKING_TASK.answer_tokens)
        length = 0
        for _ in range(_ATTEMPTS):
            chain, example = _example_text(lines, streams)
            length = self.meter.tokens([example]) + TRACKING_TASK.answer_tokens
            if length <= _EXAMPLE_TOKENS:
                return f"{example} {' '.join(chain.variables)}\n\n"
            lines -= _EXAMPLE_STEP if lines > _EXAMPLE_STEP else 0
        raise ExampleError(length)


class ExampleError(Exception):
    """The solved example of ruler_vt, which may have 500 tokens, has `tokens` in its shortest form.

    lm-eval then draws for ever.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class EqualNamesError(Exception):
    """Two variables of a chain have the same name; lm-eval then fails, and shortens the text."""


def _hidden_chain(lines: int, streams: RandomStreams) -> tuple[_Chain, Pieces]:
    """Return a chain and the pieces of a text that hides it between at least 10 lines."""
    chain = _draw_chain(5, streams)
    places = sorted(streams.python.sample(range(lines), len(chain.assignments)))
    pieces: list[Span | str] = [_HEAD]
    at = 0
    for place, assignment in zip(places, chain.assignments, strict=True):
        start = place * (len(_NOISE) + 1)
        pieces += [Span(at, start), f"{assignment} "]
        at = start
    pieces.append(Span(at, lines * (len(_NOISE) + 1) - 1))
    pieces.append(_question(chain))
    return chain, pieces


def _example_text(lines: int, streams: RandomStreams) -> tuple[_Chain, str]:
    """Return the chain and the text of an example, whose variables have three letters."""
    chain = _draw_chain(3, streams)
    assignments = chain.assignments
    sentences = [_NOISE] * lines
    if len(sentences) <= len(assignments):
        # Too few lines: lm-eval divides them at the full stops, which leaves double spaces.
        parts = [part for noise in sentences for part in noise.split(".")]
        sentences = [f"{part}." if part.strip() else part for part in parts]
        if len(sentences) <= len(assignments):
            assignments = assignments[: len(sentences) - 1]
    places = sorted(streams.python.sample(range(len(sentences)), len(assignments)))
    for inserted, (place, assignment) in enumerate(zip(places, assignments, strict=True)):
        sentences.insert(place + inserted, assignment)
    context = " ".join(sentences).replace(". \n", ".\n")
    return chain, f"{_HEAD}{context}{_question(chain)}"


def _draw_chain(letters: int, streams: RandomStreams) -> _Chain:
    def name() -> str:
        return "".join(streams.python.choices(string.ascii_uppercase, k=letters))

    names = [name() for _ in range(_HOPS + 1)]
    while len(set(names)) < _HOPS + 1:
        names.append(name())
    if len(names) > _HOPS + 1:
        # lm-eval draws a number for this chain, and one for a chain that it cannot build.
        streams.numpy.randint(10000, 99999, size=2)
        raise EqualNamesError
    variables = names
    assignments = [f"VAR {variables[0]} = {streams.numpy.randint(10000, 99999)}"]
    assignments += [f"VAR {new} = VAR {old} " for old, new in pairwise(variables)]
    return _Chain(variables=variables, assignments=assignments)


def _question(chain: _Chain) -> str:
    value = chain.value
    return (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. "
        "Answer: According to the chain(s) of variable assignment in the text above, "
        f"{_HOPS + 1} variables are assgined the value {value}, {_THEY_ARE}"
    )


def _renamed(example: str, rng: Random) -> str:
    """Return an example with new variables; a new name may replace a part of an earlier one."""
    answer = example[example.index(_THEY_ARE) + len(_THEY_ARE) :]
    for variable in answer.split():
        new = "".join(rng.choices(string.ascii_uppercase, k=len(variable)))
        example = example.replace(variable, new)
    return example
