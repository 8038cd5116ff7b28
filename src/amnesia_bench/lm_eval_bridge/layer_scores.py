"""Evaluate a teacher in which one layer at a time has the linear mixer of its stage-1 student.

The scores are written in lm-eval's format, in the layout of attn-layer-selection in
thunlp/hybrid-linear-attention @229e301, which `select_layers` reads:

<out>/run.json                      what is evaluated: teacher, student, tasks, number of layers
<out>/original/results_TASK.json    the scores of the teacher
<out>/layerL/results_TASK.json      the scores of the model in which layer L is linear
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from amnesia_bench.conversion.layer_replacement import ReplaceableLayers
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import Candidate, open_candidates
from amnesia_bench.inference.devices import chosen_device
from amnesia_bench.inference.protocol import EngineOptions, silent
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.lm_eval_bridge.commonsense_tasks import load_commonsense_tasks
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM
from amnesia_bench.lm_eval_bridge.retrieval_tasks import load_retrieval_tasks
from amnesia_bench.lm_eval_bridge.score_files import result_text
from amnesia_bench.lm_eval_bridge.zero_shot import ZeroShotTask, accuracies
from amnesia_bench.records import codec
from amnesia_bench.records.layer_selection import RUN, LayerScoresRun, folder_of_layer
from amnesia_bench.requests.checkpoints import ScoreLayersRequest
from amnesia_bench.store.files import (
    explaining_write_errors,
    make_folder,
    read_json,
    replace_text,
)
from amnesia_bench.store.lease import Lease, holding_lease
from amnesia_bench.store.sealed_json import sealed_text, unsealed

_ROWS = 16  # answers in a batch of log-likelihoods, as in HALO


def score_layers(
    request: ScoreLayersRequest, out: Path, *, progress: Callable[[str], None] = silent
) -> int:
    """Evaluate the teacher with each layer replaced in turn, and write the scores to `out`.

    Only one model is in memory. A run that was killed resumes after the last finished task of the
    last layer. If all scores are in `out`, nothing is evaluated.

    Args:
        request: teacher, student and tasks.
        out: the folder to write.
        progress: called with one line of text before each task of each model.

    Returns:
        The number of layers.

    Raises:
        UserError: teacher, student or documents do not fit, or `out` has scores of another run.
        BusyError: another process is writing `out`.
        StageFailedError: a checkpoint changed, logits are not finite, lm-eval scored fewer
            documents than requested, or the disk is full; finished scores are kept.
        MissingEnvironmentError: the documents cannot be downloaded.
    """
    layers = ReplaceableLayers(request.teacher, request.student, chosen_device(None))
    candidates = open_candidates({"teacher": request.teacher, "student": request.student})
    tokenizer = candidates[0].tokenizer
    scorer = _Scorer(
        module=layers.module,
        tokenizer=tokenizer,
        retrieval=load_retrieval_tasks(request.retrieval, tokenizer, request.data),
        commonsense=load_commonsense_tasks(request.commonsense, request.data),
        samples=request.samples,
        candidates=candidates,
        progress=progress,
    )
    with explaining_write_errors(out, "finished scores are kept"):
        make_folder(out)
        with holding_lease(out) as lease:
            _check_run(out, scorer.run(layers.num_layers))
            for layer in (None, *range(layers.num_layers)):
                folder = out / folder_of_layer(layer)
                if pending := scorer.pending(folder):
                    with layers.replaced(layer):
                        scorer.score(pending, folder, lease)
    return layers.num_layers


@dataclass(frozen=True, kw_only=True)
class _Scorer:
    """Evaluates a model whose layers are replaced by its caller, and writes its scores."""

    module: Any
    tokenizer: Any
    retrieval: Sequence[ZeroShotTask]
    commonsense: Sequence[ZeroShotTask]
    samples: int | None
    candidates: Sequence[Candidate]
    progress: Callable[[str], None]

    def engine(self) -> TransformersEngine:
        """Return an engine for the model as it is now; it tests the model's cache."""
        return TransformersEngine(self.module, self.tokenizer, EngineOptions())

    def run(self, num_layers: int) -> LayerScoresRun:
        """Return the record of everything that decides the scores."""
        teacher, student = (candidate.parent for candidate in self.candidates)
        return LayerScoresRun(
            teacher=teacher,
            student=student,
            tasks=tuple(task.record(self.samples) for task in (*self.retrieval, *self.commonsense)),
            num_layers=num_layers,
            settings=self.engine().settings,
        )

    def pending(self, folder: Path) -> tuple[ZeroShotTask, ...]:
        """Return the tasks without scores in the folder of a model."""
        tasks = (*self.retrieval, *self.commonsense)
        return tuple(task for task in tasks if not _result_path(folder, task).exists())

    def score(self, tasks: Sequence[ZeroShotTask], folder: Path, lease: Lease) -> None:
        """Evaluate the model on tasks, and write the scores of each as soon as they are known."""
        engine = self.engine()
        for task in tasks:
            self.progress(f"{folder.name}: {task.name}")
            values = self._values(task, engine)
            for candidate in self.candidates:
                candidate.held.check()
            lease.check()
            make_folder(folder)
            replace_text(_result_path(folder, task), result_text(task.record(self.samples), values))

    def _values(self, task: ZeroShotTask, engine: TransformersEngine) -> Mapping[str, float]:
        """Return the scores of a task by lm-eval's names of the metrics."""
        if task in self.commonsense:
            # Our engines compute no log-likelihoods.
            lm = HFLM(self.module, backend="causal", tokenizer=self.tokenizer, batch_size=_ROWS)
            return accuracies(lm, [task], self.samples)
        measured = accuracies(AmnesiaLM(engine, self.tokenizer), [task], self.samples)
        metric, name = next(iter(task.metrics.items()))
        return {metric: measured[name]}


def _result_path(folder: Path, task: ZeroShotTask) -> Path:
    return folder / f"results_{task.name}.json"


def _check_run(out: Path, run: LayerScoresRun) -> None:
    path = out / RUN
    if path.exists():
        content = unsealed(read_json(path), str(path), "Remove that folder.")
        if codec.from_json(LayerScoresRun, content, str(path)) != run:
            raise UserError(
                f"{out}: has scores of another run: of another teacher or student, of other tasks, "
                "documents or samples, or with other settings of the engine",
                hint="Remove the folder, or choose another --out.",
            )
    elif any(entry for entry in out.iterdir() if not entry.name.startswith(".")):
        raise UserError(f"{out}: already exists, with other files", hint="Choose another --out.")
    else:
        replace_text(path, sealed_text(codec.to_json(run)))
