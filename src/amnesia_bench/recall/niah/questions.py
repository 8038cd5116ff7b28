"""RULER's question answering (ruler_qa_squad, ruler_qa_hotpot): questions about some of many texts.

The wording and the order of the draws are those of lm-evaluation-harness 0.4.13
(lm_eval/tasks/ruler/qa_utils.py). lm-eval downloads the questions; here they are read from a file
of the user. Prompts share only their first sentences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pydantic import TypeAdapter, ValidationError

from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.drafts import Draft, Search, TokenMeter, TooLongError
from amnesia_bench.recall.niah.streams import RandomStreams
from amnesia_bench.recall.niah.tasks import RecallTask

SQUAD_TASK = RecallTask(name="ruler_qa_squad")
HOTPOT_TASK = RecallTask(name="ruler_qa_hotpot")

# The files that lm-eval downloads, and the options that take them.
SOURCES = {
    SQUAD_TASK.name: "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
    HOTPOT_TASK.name: "https://huggingface.co/datasets/namlh2004/hotpotqa/resolve/"
    "7e54db4656209750ff487f6fdf8e39a66dba136b/hotpot_dev_distractor_v1.json",
}
OPTIONS = {SQUAD_TASK.name: "--squad", HOTPOT_TASK.name: "--hotpot"}

_STEP = 10
_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\n"
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its answers, the indices of the texts with the answer, and of related texts."""

    query: str
    outputs: tuple[str, ...]
    context: tuple[int, ...]
    more_context: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """The questions and texts of a file; `sha256` is the hash of its bytes, in hex."""

    path: Path
    sha256: str
    questions: tuple[Question, ...]
    texts: tuple[str, ...]


_Strings = tuple[str, ...]


@dataclass(frozen=True)
class _SquadAnswer:
    text: str


@dataclass(frozen=True)
class _SquadQuestion:
    question: str
    is_impossible: bool
    answers: tuple[_SquadAnswer, ...]


@dataclass(frozen=True)
class _SquadParagraph:
    context: str
    qas: tuple[_SquadQuestion, ...]


@dataclass(frozen=True)
class _SquadArticle:
    paragraphs: tuple[_SquadParagraph, ...]


@dataclass(frozen=True)
class _Squad:
    data: tuple[_SquadArticle, ...]


@dataclass(frozen=True)
class _HotpotQuestion:
    question: str
    answer: str
    context: tuple[tuple[str, _Strings], ...]


def read_questions(task: str, path: Path) -> QuestionFile:
    """Read the file that lm-eval downloads for a task.

    Raises:
        UserError: the file does not exist, or is not such a file.
    """
    hint = f"Download it: {SOURCES[task]}\nThen: {OPTIONS[task]} {path.name or 'FILE'}"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {task} needs its questions", hint=hint)
    try:
        content = path.read_bytes()
        data = json.loads(content)
        _check_characters(data)
        questions, texts = _squad(data) if task == SQUAD_TASK.name else _hotpot(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "its top level"
        raise UserError(
            f"{path}: not the questions of {task} (at {place}: {problem['msg']})", hint=hint
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})", hint=hint) from error
    if not questions or not all(question.outputs for question in questions):
        raise UserError(f"{path}: has questions without an answer, or none at all", hint=hint)
    digest = hashlib.sha256(content).hexdigest()
    return QuestionFile(path=path, sha256=digest, questions=questions, texts=texts)


def _check_characters(data: object) -> None:
    # A lone surrogate (a \\ud... escape in JSON) is no character, and tokenizers refuse it.
    json.dumps(data, ensure_ascii=False).encode()


def _squad(data: object) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    articles = TypeAdapter(_Squad).validate_python(data).data
    texts = sorted({paragraph.context for article in articles for paragraph in article.paragraphs})
    numbers = {text: number for number, text in enumerate(texts)}
    questions = []
    for article in articles:
        of_article = [numbers[paragraph.context] for paragraph in article.paragraphs]
        for paragraph in article.paragraphs:
            own = numbers[paragraph.context]
            questions += [
                Question(
                    query=question.question,
                    outputs=tuple(answer.text for answer in question.answers),
                    context=(own,),
                    more_context=tuple(number for number in of_article if number != own),
                )
                for question in paragraph.qas
                if not question.is_impossible
            ]
    return tuple(questions), tuple(texts)


def _hotpot(data: object) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    rows = TypeAdapter(tuple[_HotpotQuestion, ...]).validate_python(data)

    def texts_of(row: _HotpotQuestion) -> list[str]:
        return [f"{title}\n{''.join(sentences)}" for title, sentences in row.context]

    texts = sorted({text for row in rows for text in texts_of(row)})
    numbers = {text: number for number, text in enumerate(texts)}
    questions = tuple(
        Question(
            query=row.question,
            outputs=(row.answer,),
            context=tuple(numbers[text] for text in texts_of(row)),
            more_context=(),
        )
        for row in rows
    )
    return questions, tuple(texts)


class QuestionsDrawer:
    """Draws the prompts of a task at one length.

    Args:
        task: the task.
        context_tokens: lm-eval's max_seq_length.
        file: questions and texts.
        meter: counts tokens.
    """

    def __init__(
        self, task: RecallTask, context_tokens: int, file: QuestionFile, meter: TokenMeter
    ) -> None:
        self._task = task
        self._context_tokens = context_tokens
        self._file = file
        self._texts: list[str] = []
        self.meter = meter

    def draw(self, samples: int, streams: RandomStreams, *, every: bool) -> list[Draft]:
        """Draw the prompts; see `Drawer`. Prompts that do not fit are left out, as in lm-eval."""
        # A list of its own: lm-eval shuffles the texts in place if all of them are used, so the
        # numbers of later questions refer to other texts.
        self._texts = list(self._file.texts)
        questions = self._file.questions
        if samples > len(questions):
            raise UserError(
                f"{self._file.path}: has {len(questions)} questions with an answer, but {samples} "
                "prompts are requested",
                hint=f"--samples {len(questions)}",
            )
        search = Search(
            first=_STEP,
            step=_STEP,
            reserved=self._task.answer_tokens,
            context_tokens=self._context_tokens,
            largest=len(self._texts),
            every=every,
        )

        def text(size: int) -> list[str]:
            # lm-eval appends the list of answers as Python prints it.
            return [f"{self._drawn(0, size, streams)} {list(questions[0].outputs)}"]

        size = max(search.size(text, self.meter), 1)
        shortest: list[int] = []
        drafts = [
            draft
            for index in range(samples)
            if (draft := self._sample(index, size, streams, shortest)) is not None
        ]
        if not drafts:
            raise TooLongError(min(shortest))
        return drafts

    def _sample(
        self, index: int, size: int, streams: RandomStreams, shortest: list[int]
    ) -> Draft | None:
        """Return a prompt; if it does not fit, append its length to `shortest`."""
        question = self._file.questions[index]
        least = len(question.context)
        length = 0
        for texts in (*range(max(size, least), least, -_STEP), least):
            text = self._drawn(index, texts, streams)
            length = self.meter.tokens([text]) + self._task.answer_tokens
            if length <= self._context_tokens:
                return Draft(
                    index=index,
                    pieces=[text],
                    outputs=question.outputs,
                    gen_prefix="Answer:",
                    length=length,
                )
        shortest.append(length)
        return None

    def _drawn(self, index: int, size: int, streams: RandomStreams) -> str:
        """Return the text of a prompt with about `size` texts."""
        chosen = self._chosen(self._file.questions[index], size, streams.python)
        # With few or all texts of the file, nothing else depends on the seed.
        Random(streams.texts_seed).shuffle(chosen)
        context = "\n\n".join(
            f"Document {number}:\n{text}" for number, text in enumerate(chosen, start=1)
        )
        return (
            f"{_INSTRUCTION}The following are given documents.\n\n{context}\n\n"
            f"{_INSTRUCTION}Question: {self._file.questions[index].query}"
        )

    def _chosen(self, question: Question, size: int, rng: Random) -> list[str]:
        texts, own, related = self._texts, question.context, question.more_context
        if size >= len(texts):
            return texts
        if size - len(own) > len(related):
            known = sorted({*own, *related})
            missing = max(0, size - len(own) - len(related))
            drawn = rng.sample(range(len(texts) - len(known)), missing)
            numbers = [*own, *related, *(_without(known, number) for number in drawn)]
        else:
            numbers = [*own, *rng.sample(related, max(0, size - len(own)))]
        return [texts[number] for number in numbers]


def _without(known: Sequence[int], place: int) -> int:
    """Return the number at a place among all numbers that are not in `known`, which is sorted."""
    for number in known:
        place += number <= place
    return place
