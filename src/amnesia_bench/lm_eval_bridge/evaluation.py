"""Measure the recall of a checkpoint with lm-eval, one task and length at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from operator import methodcaller
from pathlib import Path

import numpy as np

from amnesia_bench.config.load import load_niah
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import Candidate, open_candidate
from amnesia_bench.inference.generation import generate_missing
from amnesia_bench.inference.load_engine import open_engine
from amnesia_bench.inference.merging import PartsEngine
from amnesia_bench.inference.protocol import Engine, PromptRequest, silent
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM
from amnesia_bench.lm_eval_bridge.niah_task import (
    DocumentPromptSet,
    LmEvalNiahTask,
    ScoredAnswer,
    official_task,
    prompt_set_task,
)
from amnesia_bench.printable import counted
from amnesia_bench.recall.measure import (
    PromptSetChoice,
    PromptSetId,
    open_prompt_sets_for,
    recall_cell,
    recall_of,
    recall_sample,
    sampling_settings,
)
from amnesia_bench.recall.niah.catalogue import find_task, task_sampling
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING, SEED, score_answer
from amnesia_bench.records import codec
from amnesia_bench.records.evaluation import Cell, FinishReason, Generation, Verdict
from amnesia_bench.records.recall import RecallSample, found_values
from amnesia_bench.requests.answering import AnswerPart, MergedParts
from amnesia_bench.requests.recall import EvaluateRequest
from amnesia_bench.store.checksums import write_checksums
from amnesia_bench.store.files import explaining_write_errors, replace_text
from amnesia_bench.tokenizers.tokenizer import tokenizer_identity, with_special_tokens

CELL = "cell.json"
VERDICTS = "verdicts.jsonl"
SAMPLES = "samples.jsonl"


def evaluate(
    request: EvaluateRequest,
    out: Path,
    *,
    progress: Callable[[str], None] = silent,
    count: Callable[[int, int], None] = silent,
) -> tuple[Cell, ...]:
    """Evaluate a checkpoint on needle prompts; lm-eval scores the answers.

    The results of each task and length are written to a subfolder of `out`; see `NiahEvaluation`. A
    run that was killed resumes from the answers in these subfolders.

    Args:
        request: the checkpoint and the prompts.
        out: the output folder.
        progress: called with one line of text before and after each task and length.
        count: called with the number of answered requests and the total number of requests of
            the current task and length.

    Returns:
        One cell per task and length, in the order of evaluation; none if only a part of the answers
        is generated.

    Raises:
        UserError: checkpoint, prompts or engine do not fit the request, `out` contains the answers
            of another run, or a part is missing or belongs to another run.
        MissingEnvironmentError: lm-eval's essays or vLLM are not available.
        StageFailedError: the checkpoint changed during the evaluation, its logits are not finite,
            or lm-eval scored fewer prompts than requested.
        BusyError: another process is writing to `out`.
    """
    for task in request.tasks or ():
        find_task(task)
    candidate = open_candidate(request.checkpoint, request.method)
    samples, pending = _pending_evaluations(request, candidate)
    division = request.division
    engine: Engine | MergedParts
    if isinstance(division, MergedParts):
        engine = division
    else:
        engine = open_engine(
            request.engine, candidate, verify_prefix=request.verify_prefix, count=count
        )
    part = division if isinstance(division, AnswerPart) else None
    evaluation = NiahEvaluation(engine, candidate, samples, out, request.max_new_tokens, part)
    cells = []
    for name, evaluate_set in pending:
        number = samples if part is None else len(part.documents(samples))
        progress(f"{name}: {counted(number, 'prompt')}")
        cell = evaluate_set(evaluation)
        if cell is None:
            continue
        assert cell.value is not None
        progress(f"{name}: recall {100 * cell.value:.3g} %")
        cells.append(cell)
    return tuple(cells)


def _pending_evaluations(
    request: EvaluateRequest, candidate: Candidate
) -> tuple[int, list[tuple[str, Callable[[NiahEvaluation], Cell | None]]]]:
    """Return the number of prompts per set, and each set's name and evaluation function."""
    if request.prompts is not None:
        choice = PromptSetChoice(
            tasks=request.tasks, lengths=request.lengths, samples=request.samples
        )
        prompt_sets = open_prompt_sets_for(request.prompts, [candidate], choice)
        samples = request.samples or min(map(len, prompt_sets))
        return samples, [
            (prompt_set.name, methodcaller("evaluate", prompt_set)) for prompt_set in prompt_sets
        ]
    defaults = load_niah()
    return request.samples or defaults.samples, [
        (f"{task}@{length}", methodcaller("official", task, length))
        for length in request.lengths or defaults.lengths
        for task in request.tasks or defaults.tasks
    ]


class RecordingEngine:
    """Wraps an engine; it writes the answers to a folder, and reuses existing answers.

    With a `part`, only that part of the requests is answered.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        identity: Mapping[str, str],
        part: AnswerPart | None = None,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._identity = identity
        self._part = part
        self.generations: tuple[Generation, ...] = ()

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of the wrapped engine."""
        return self._engine.settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request; yield the answers after all of them have been written.

        The answers to requests of other parts are empty, and are not written.
        """
        total = len(requests)
        own = range(total) if self._part is None else self._part.documents(total)
        self.generations = generate_missing(
            self._engine, requests[own.start : own.stop], self._folder, identity=self._identity
        )
        yield from self.generations
        yield from (_no_answer(requests[i]) for i in range(total) if i not in own)


def _no_answer(request: PromptRequest) -> Generation:
    return Generation(
        key=request.key,
        text="",
        tokens=(),
        prompt_tokens=len(request.tokens),
        finish_reason=FinishReason.LENGTH,
        seed=None,
    )


@dataclass(frozen=True, kw_only=True)
class OfficialPromptSetId:
    """The identity of a prompt set from lm-eval's generator; `sha256` is a hash of its inputs."""

    task: str
    context_tokens: int
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.task}@{self.context_tokens}"


class NiahEvaluation:
    """Evaluates one checkpoint, one prompt set at a time, and writes the results to a folder.

    The folder `<out>/<prompt set>` contains `generations.jsonl`, `verdicts.jsonl` and `cell.json`,
    which is written after them. For stored prompts, it also contains `samples.jsonl` with the
    depths of the needles. With a `part`, the folder contains the answers of that part only.

    Args:
        engine: the engine that runs the checkpoint, or the folders of finished parts.
        candidate: the checkpoint.
        samples: number of prompts per set, starting with the first.
        out: the output folder.
        max_new_tokens: maximum number of tokens per answer; None selects the config's. Tasks may
            have a smaller limit.
        part: the part of each prompt set to answer; None for the whole.
    """

    def __init__(
        self,
        engine: Engine | MergedParts,
        candidate: Candidate,
        samples: int,
        out: Path,
        max_new_tokens: int | None = None,
        part: AnswerPart | None = None,
    ) -> None:
        self._engine = engine
        self._candidate = candidate
        self._samples = samples
        self._out = out
        self._max_new_tokens = max_new_tokens
        self._part = part

    def evaluate(self, prompt_set: DocumentPromptSet) -> Cell | None:
        """Evaluate a prompt set that `amnesia niah build` wrote; a part has no cell.

        Raises:
            UserError: the prompt set has fewer prompts than requested, a prompt is too long for the
                model, or the output folder contains the answers of another run.
        """
        if len(prompt_set) < self._samples:
            raise UserError(
                f"{prompt_set.name} has {len(prompt_set)} prompts, not {self._samples}",
                hint="amnesia niah build writes 500 per prompt set.",
            )
        return self._evaluate(prompt_set, lambda: prompt_set_task(prompt_set), prompt_set)

    def official(self, task: str, context_tokens: int) -> Cell | None:
        """Evaluate prompts from lm-eval's own generator; a part has no cell.

        Raises:
            UserError: a prompt is too long for the model, or the output folder contains the
                answers of another run.
            StageFailedError: the generator returned fewer prompts than requested.
        """
        tokenizer = self._candidate.tokenizer
        depends = {
            "generator": f"lm-eval {metadata.version('lm-eval')}",
            "seed": SEED,
            "task": task,
            "max_seq_length": context_tokens,
            "tokenizer": tokenizer_identity(tokenizer),
            # lm-eval counts the special tokens as part of the context length.
            "around": with_special_tokens(tokenizer, np.zeros(0, np.int32)).tolist(),
        }
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        prompt_set = OfficialPromptSetId(task=task, context_tokens=context_tokens, sha256=digest)
        folder = self._candidate.folder
        return self._evaluate(prompt_set, lambda: official_task(task, context_tokens, folder), None)

    def _evaluate(
        self,
        prompt_set_id: PromptSetId,
        make_task: Callable[[], LmEvalNiahTask],
        prompt_set: DocumentPromptSet | None,
    ) -> Cell | None:
        name = prompt_set_id.name
        folder = self._out / name
        identity = {"checkpoint": self._candidate.parent.identity, "prompts": prompt_set_id.sha256}
        source = self._engine
        if isinstance(source, MergedParts):
            source = PartsEngine([part / name for part in source.folders], identity)
        engine = RecordingEngine(source, folder, identity, self._part)
        lm = AmnesiaLM(engine, self._candidate.tokenizer, prompt_set)
        limit = self._max_new_tokens or load_niah().max_new_tokens
        sampling = task_sampling(prompt_set_id.task, replace(NIAH_SAMPLING, max_new_tokens=limit))
        answers = make_task().run(lm, self._samples, sampling.max_new_tokens)
        if self._part is not None:
            return None  # lm-eval scored empty answers to the prompts of other parts
        verdicts = [_verdict(generation, answers) for generation in engine.generations]
        settings = {
            **engine.settings,
            **sampling_settings(sampling),
            "chat_template": "none",
            "scorer": f"lm-eval {metadata.version('lm-eval')}",
        }
        scores = [answers[generation.key.doc].score for generation in engine.generations]
        recall = recall_of([verdict.outcome for verdict in verdicts], scores)
        cell = recall_cell(recall, scores, self._candidate, prompt_set_id, settings)
        samples = [
            recall_sample(generation, self._candidate, prompt_set)
            for generation in engine.generations
            if prompt_set is not None
        ]
        _write(folder, verdicts, samples, cell)
        return cell


def _write(
    folder: Path, verdicts: Sequence[Verdict], samples: Sequence[RecallSample], cell: Cell
) -> None:
    with explaining_write_errors(folder, "the answers are kept"):
        replace_text(folder / VERDICTS, _lines(verdicts))
        if samples:
            replace_text(folder / SAMPLES, _lines(samples))
        replace_text(folder / CELL, json.dumps(codec.to_json(cell), indent=2) + "\n")
        write_checksums(folder, [VERDICTS, CELL, *([SAMPLES] if samples else [])])


def _lines(records: Sequence[object]) -> str:
    return "".join(json.dumps(codec.to_json(record)) + "\n" for record in records)


def _verdict(generation: Generation, answers: Sequence[ScoredAnswer]) -> Verdict:
    """Return our verdict on an answer; raise an error if it contradicts lm-eval's score."""
    answer = answers[generation.key.doc]
    verdict = score_answer(generation, answer.values)
    found = found_values(generation.text, answer.values)
    if answer.score != sum(found) / len(found):
        raise RuntimeError(
            f"{generation.key}: lm-eval's score is {answer.score}, and we find {sum(found)} of "
            f"{len(found)} values"
        )
    return verdict
