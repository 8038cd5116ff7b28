"""The front door `tune`: screens, races, the choice, its confirmation, and the checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml  # type: ignore[import-untyped]

from amnesia_bench.config.schema import Variant
from amnesia_bench.drawing.svg import standalone
from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import silent
from amnesia_bench.records import codec
from amnesia_bench.records.tuning import Screen, Tuning
from amnesia_bench.reporting.tuning_figure import tuning_figure
from amnesia_bench.requests.checkpoints import RestoreRequest
from amnesia_bench.requests.tuning import TuneRequest
from amnesia_bench.surgery.restoration import check_restore_target, restore
from amnesia_bench.tuning.evaluation import Examiner, ModelEvaluator
from amnesia_bench.tuning.outcome import SearchResult, choose_candidate, confirm, tuning_record
from amnesia_bench.tuning.racing import Race, proposals
from amnesia_bench.tuning.screens import (
    drift_screen,
    kl_screen,
    prediction_logits,
    ranking_screen,
    screen_prompts,
)
from amnesia_bench.tuning.setup import (
    TuningInputs,
    engine_options,
    open_examiner,
    open_inputs,
    settings_of,
)
from amnesia_bench.tuning.space import POST, Space, prior_of
from amnesia_bench.tuning.summary import tuning_markdown

RECORD, SUMMARY, PICTURE = "tuning.json", "tuning.md", "tuning.svg"
_VARIANT = "tuned"  # the name of the variant, and of its file


def tune(
    request: TuneRequest,
    out: Path,
    *,
    progress: Callable[[str], None] = silent,
    count: Callable[[int, int], None] = silent,
) -> Tuning:
    """Search the best trade-off of recall against reasoning, and write it as a checkpoint.

    Answers are stored in the work folder: the same call resumes a killed search, with the same
    result.

    Args:
        request: the checkpoints, the questions and the budget.
        out: the folder of the checkpoint to write. Besides the files of a restore, it contains
            `tuning.json`, `tuning.md`, `tuning.svg` and `tuned.yaml`, a variant for `restore`.
        progress: called with one line of text per step.
        count: called with the number of answered requests and the total number of requests; both
            restart whenever a candidate receives further questions.

    Returns:
        The record of the search, which is also written to tuning.json.

    Raises:
        UserError: an input does not fit, the budget is too small, the search and the confirmation
            would share prompts, pre and post are equal, or `out` exists; nothing was written.
        StageFailedError: a checkpoint changed during the search, or its logits are not finite.
        BusyError: another process is writing to the same folder of answers, or `out`.
        MissingEnvironmentError: the problems cannot be downloaded.
    """
    if os.path.lexists(out):
        raise UserError(f"{out}: already exists", hint="Choose another folder, or remove it.")
    inputs = open_inputs(request)
    check_restore_target(out, inputs.job.pair)
    screens = [drift_screen(inputs.job.pair, inputs.job.plans)]
    screens += [ranking_screen(file, inputs.layers) for file in request.rankings]
    few, tokenizer = screen_prompts(inputs.needles), inputs.post.tokenizer
    progress(f"predictions of pre on {len(few)} prompts")
    pre_logits = prediction_logits(request.pre, engine_options(request), few, tokenizer)
    examiner = open_examiner(request, inputs, count)
    screens.append(kl_screen(examiner.model, pre_logits, few, tokenizer, progress))
    space = _space(examiner, screens, progress)
    race = _search(request, inputs, examiner, space, progress)
    chosen = choose_candidate(race.finished)
    progress(f"chosen: {chosen.label}; fresh questions follow")
    fresh = ModelEvaluator(examiner, inputs.fresh_needles, inputs.fresh_problems, progress)
    known = list(dict.fromkeys((*race.entries[:2], chosen)))
    result = SearchResult(
        race=race,
        rules=inputs.rules,
        chosen=chosen,
        confirmed=confirm(known, fresh, inputs.rules),
        screens=tuple(screens),
    )
    _report_sharing(examiner, progress)
    parents = inputs.pre.parent, inputs.post.parent
    record = tuning_record(result, parents, settings_of(request, examiner))
    _write(request, chosen.mix.variant(_VARIANT, space.places), record, out)
    return record


def _space(examiner: Examiner, screens: list[Screen], progress: Callable[[str], None]) -> Space:
    if not examiner.model.can_change_rest:
        progress(
            "only the softmax layers are searched: other weights of pre and post differ in name or "
            "shape, or the model stores them in another form than the files"
        )
    places = examiner.model.places
    layers = sorted({layer for layer, _ in places})
    by_layer = [
        {int(layer): value for layer, value in screen.by_layer.items()} for screen in screens
    ]
    return Space(
        places=places, prior=prior_of(layers, by_layer), rest=examiner.model.can_change_rest
    )


def _search(
    request: TuneRequest,
    inputs: TuningInputs,
    examiner: Examiner,
    space: Space,
    progress: Callable[[str], None],
) -> Race:
    evaluator = ModelEvaluator(examiner, inputs.needles, inputs.problems, progress)
    rng = np.random.default_rng([request.seed, 2])
    propose = proposals(
        space.planned(), lambda front: space.offspring(front, rng), {POST, space.qk_restore}
    )
    race = Race(evaluator, inputs.rules, propose, progress)
    race.run(space.qk_restore)
    return race


def _report_sharing(examiner: Examiner, progress: Callable[[str], None]) -> None:
    memo = examiner.model.memo
    if memo is not None and (total := memo.computed + memo.replayed):
        progress(
            f"prefill: {memo.replayed:,} of {total:,} layer calls per token "
            f"({100 * memo.replayed / total:.0f} %) were taken from earlier candidates"
        )


def _write(request: TuneRequest, variant: Variant, record: Tuning, out: Path) -> None:
    """Write the checkpoint with its proof, its card, and the record of the search."""
    summary = tuning_markdown(record)
    fields = variant.model_dump(mode="json", exclude={"name"})
    attached = {
        RECORD: json.dumps(codec.to_json(record), indent=2, allow_nan=False) + "\n",
        SUMMARY: summary,
        PICTURE: standalone(tuning_figure(record, request.reasoning.task)) + "\n",
        f"{_VARIANT}.yaml": yaml.safe_dump(fields, sort_keys=False),
    }
    request_of_restore = RestoreRequest(
        pre=request.pre, post=request.post, variant=variant, cast=request.cast, allow_noop=True
    )
    restore(request_of_restore, out, attached=attached, results=summary)
