"""Recall of a checkpoint through lm-eval: `evaluate`, one task and length after another."""

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
from amnesia_bench.inference.protocol import Engine, PromptRequest, silent
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM
from amnesia_bench.lm_eval_bridge.niah_task import (
    DocumentPromptSet,
    LmEvalNiahTask,
    ScoredAnswer,
    official_task,
    prompt_set_task,
)
from amnesia_bench.recall.measure import (
    PromptSetChoice,
    PromptSetId,
    open_prompt_sets_for,
    recall_cell,
    recall_of,
    recall_sample,
    sampling_settings,
)
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING, SEED, find_task, score_needle
from amnesia_bench.records import codec
from amnesia_bench.records.evaluation import Cell, Generation, Outcome, Verdict
from amnesia_bench.records.recall import RecallSample
from amnesia_bench.requests.recall import (
    EvaluateRequest,
)
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
    """Let lm-eval ask a checkpoint needle prompts and score its answers.

    Each task and length gets a folder in `out`; see `NiahEvaluation`. A run that was killed
    resumes from the answers that they hold.

    Args:
        request: the checkpoint and the prompts.
        out: the folder to write.
        progress: called with one line before and after each task and length.
        count: called with the numbers of answered and of all requests of one task and length.

    Returns:
        A cell for each task and length, in the order of their evaluation.

    Raises:
        UserError: checkpoint, prompts or engine do not fit the request, or `out` holds the
            answers of another run.
        MissingEnvironmentError: lm-eval's essays or vLLM are not to be had.
        StageFailedError: the checkpoint was changed while it answered, its logits are not finite,
            or lm-eval scored fewer prompts than asked for.
        BusyError: another process writes to `out`.
    """
    for task in request.tasks or ():
        find_task(task)
    candidate = open_candidate(request.checkpoint, request.method)
    samples, pending = _prompts_to_ask(request, candidate)
    engine = open_engine(
        request.engine, candidate, verify_prefix=request.verify_prefix, count=count
    )
    longest = request.max_new_tokens or load_niah().max_new_tokens
    evaluation = NiahEvaluation(engine, candidate, samples, out, longest)
    cells = []
    for name, evaluate_set in pending:
        progress(f"{name}: {samples} prompts")
        cell = evaluate_set(evaluation)
        assert cell.value is not None
        progress(f"{name}: recall {100 * cell.value:.3g} %")
        cells.append(cell)
    return tuple(cells)


def _prompts_to_ask(
    request: EvaluateRequest, candidate: Candidate
) -> tuple[int, list[tuple[str, Callable[[NiahEvaluation], Cell]]]]:
    """Return how many prompts of each set to ask, and the sets by name."""
    if request.prompts is not None:
        choice = PromptSetChoice(
            tasks=request.tasks, lengths=request.lengths, samples=request.samples
        )
        prompt_sets = open_prompt_sets_for(request.prompts, [candidate], choice)
        samples = request.samples or min(map(len, prompt_sets))
        return samples, [(each.name, methodcaller("evaluate", each)) for each in prompt_sets]
    defaults = load_niah()
    return request.samples or defaults.samples, [
        (f"{task}@{length}", methodcaller("official", task, length))
        for length in request.lengths or defaults.lengths
        for task in request.tasks or defaults.tasks
    ]


class RecordingEngine:
    """An engine whose answers are kept in a folder, and taken from it where it holds them."""

    def __init__(self, engine: Engine, folder: Path, identity: Mapping[str, str]) -> None:
        self._engine = engine
        self._folder = folder
        self._identity = identity
        self.generations: tuple[Generation, ...] = ()

    @property
    def settings(self) -> Mapping[str, str]:
        """Those of the engine behind it."""
        return self._engine.settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request, as soon as all are answered and on disk."""
        self.generations = generate_missing(
            self._engine, requests, self._folder, identity=self._identity
        )
        yield from self.generations


@dataclass(frozen=True, kw_only=True)
class OfficialPromptSetId:
    """One task at one length of lm-eval's own generator: its name, and what its prompts hang on."""

    task: str
    context_tokens: int
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.task}@{self.context_tokens}"


class NiahEvaluation:
    """Evaluates one checkpoint, one prompt set at a time, into a folder.

    `<out>/<prompt set>/` holds `generations.jsonl`, `verdicts.jsonl` and, written last,
    `cell.json`; of prompts of our own also `samples.jsonl`, which knows how deep each needle was.

    Args:
        engine: with the checkpoint in it.
        candidate: the checkpoint.
        samples: how many prompts of each set, from the first.
        out: the folder to write.
        max_new_tokens: of an answer.
    """

    def __init__(
        self,
        engine: Engine,
        candidate: Candidate,
        samples: int,
        out: Path,
        max_new_tokens: int = NIAH_SAMPLING.max_new_tokens,
    ) -> None:
        self._engine = engine
        self._candidate = candidate
        self._samples = samples
        self._out = out
        self._max_new_tokens = max_new_tokens

    def evaluate(self, prompt_set: DocumentPromptSet) -> Cell:
        """Evaluate prompts of our own.

        Raises:
            UserError: the prompt set has fewer prompts than asked for, a prompt is too long for the
                model, or the folder holds the answers of another run.
        """
        if len(prompt_set) < self._samples:
            raise UserError(
                f"{prompt_set.name} has {len(prompt_set)} prompts, not {self._samples}",
                hint="amnesia niah build makes 500 of each.",
            )
        return self._evaluate(prompt_set, lambda: prompt_set_task(prompt_set), prompt_set)

    def official(self, task: str, context_tokens: int) -> Cell:
        """Evaluate prompts that lm-eval's own generator makes anew.

        Raises:
            UserError: a prompt is too long for the model, or the folder holds the answers of
                another run.
            StageFailedError: the generator made fewer prompts than asked for.
        """
        tokenizer = self._candidate.tokenizer
        depends = {
            "generator": f"lm-eval {metadata.version('lm-eval')}",
            "seed": SEED,
            "task": task,
            "max_seq_length": context_tokens,
            "tokenizer": tokenizer_identity(tokenizer),
            # lm-eval counts them when it fills a context.
            "around": with_special_tokens(tokenizer, np.zeros(0, np.int32)).tolist(),
        }
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        prompt_set = OfficialPromptSetId(task=task, context_tokens=context_tokens, sha256=digest)
        folder = self._candidate.folder
        return self._evaluate(prompt_set, lambda: official_task(task, context_tokens, folder), None)

    def _evaluate(
        self,
        named: PromptSetId,
        make_task: Callable[[], LmEvalNiahTask],
        prompt_set: DocumentPromptSet | None,
    ) -> Cell:
        folder = self._out / named.name
        identity = {"checkpoint": self._candidate.parent.identity, "prompts": named.sha256}
        engine = RecordingEngine(self._engine, folder, identity)
        lm = AmnesiaLM(engine, self._candidate.tokenizer, prompt_set)
        judged = make_task().run(lm, self._samples, self._max_new_tokens)
        verdicts = [_verdict(generation, judged) for generation in engine.generations]
        settings = {
            **engine.settings,
            **sampling_settings(replace(NIAH_SAMPLING, max_new_tokens=self._max_new_tokens)),
            "chat_template": "none",
            "scorer": f"lm-eval {metadata.version('lm-eval')}",
        }
        recall = recall_of([verdict.outcome for verdict in verdicts])
        found = recall_cell(recall, self._candidate, named, settings)
        samples = [
            recall_sample(generation, self._candidate, prompt_set)
            for generation in engine.generations
            if prompt_set is not None
        ]
        _write(folder, verdicts, samples, found)
        return found


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


def _verdict(generation: Generation, judged: Sequence[ScoredAnswer]) -> Verdict:
    """Return our verdict on an answer, held against lm-eval's."""
    theirs = judged[generation.key.doc]
    verdict = score_needle(generation, theirs.value)
    if (verdict.outcome is Outcome.CORRECT) != (theirs.score == 1):
        raise RuntimeError(
            f"{generation.key}: lm-eval scored {theirs.score}, we say {verdict.outcome.value}"
        )
    return verdict
