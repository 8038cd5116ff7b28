"""Rank softmax layers by the retrieval accuracy that is lost without each (Appendix M)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.layer_ranking import LayerImportance, LayerRanking
from amnesia_bench.store.files import (
    explaining_write_errors,
    make_folder,
    read_json,
    remove_files,
    replace_text,
)
from amnesia_bench.store.lease import holding_lease
from amnesia_bench.store.sealed_json import seal, sealed_text, unseal, unsealed
from amnesia_bench.surgery.ranked_layers import read_ranking

# Returns the value of each metric for the model without the given layer; None removes no layer.
Measure = Callable[[int | None], Mapping[str, float]]
_RUN = "run.json"
_MEASURED = re.compile(r"run\.json|whole\.json|without_layer_[0-9]+\.json|\..*\.json\.new")


def measure_layers(
    plan: LayerRanking, layers: Sequence[int], measure: Measure, out: Path
) -> LayerRanking:
    """Measure the complete model and the model without each layer, and write the ranking.

    Measurements are stored in a folder next to `out` until `out` is written. A ranking that was
    killed resumes with the next layer; if `out` exists, its ranking is returned unchanged.

    Args:
        plan: the record of the ranking, with empty `accuracy` and `layers`.
        layers: indices of the layers to rank.
        measure: called once for each layer that has no measurement yet, and with None for the
            complete model.
        out: the JSON file to write.

    Raises:
        UserError: `out` or the folder with the measurements belongs to another ranking.
        BusyError: another process is writing the ranking.
        StageFailedError: the disk is full; finished measurements are kept.
    """
    with explaining_write_errors(out, "finished measurements are kept"):
        make_folder(out.parent)
        with holding_lease(out) as lease:
            work = out.with_name(f".{out.name}.measured")
            if out.exists():
                ranking = _finished_ranking(out, plan)
                remove_files(work, _MEASURED)
                return ranking
            make_folder(work)
            _check_run(work, plan, layers)
            measured = {layer: _measured(work, layer, measure) for layer in (None, *layers)}
            ranking = _ranked(plan, layers, measured)
            lease.check()
            replace_text(out, sealed_text(codec.to_json(ranking)))
            remove_files(work, _MEASURED)
    return ranking


def _finished_ranking(out: Path, plan: LayerRanking) -> LayerRanking:
    ranking = read_ranking(out)
    if replace(ranking, accuracy={}, layers=()) != plan:
        raise UserError(f"{out}: already exists, with another ranking", hint="Choose another file.")
    return ranking


def _check_run(work: Path, plan: LayerRanking, layers: Sequence[int]) -> None:
    run = {"plan": codec.to_json(plan), "layers": list(layers)}
    path = work / _RUN
    if not path.exists():
        replace_text(path, sealed_text(run))
    elif unsealed(read_json(path), str(path), "Remove that folder.") != run:
        raise UserError(
            f"{work}: holds measurements of another ranking: another checkpoint, other data, "
            "tasks, samples or engine settings",
            hint="Remove the folder, or choose another --out.",
        )


def _measured(work: Path, layer: int | None, measure: Measure) -> Mapping[str, float]:
    path = work / ("whole.json" if layer is None else f"without_layer_{layer}.json")
    if path.exists():
        try:
            accuracy: Mapping[str, float] = unseal(path.read_text(encoding="utf-8").rstrip("\n"))
        except ValueError as error:
            raise UserError(
                f"{path}: damaged ({error})", hint="Remove it: the layer is measured again."
            ) from error
        return accuracy
    accuracy = measure(layer)
    replace_text(path, f"{seal(accuracy)}\n")
    return accuracy


def _ranked(
    plan: LayerRanking,
    layers: Sequence[int],
    measured: Mapping[int | None, Mapping[str, float]],
) -> LayerRanking:
    tasks = [task.name for task in plan.tasks]
    # Rounding preserves ties: without it, sums of equal losses may differ in the last bits.
    means = {
        layer: round(sum(accuracy[task] for task in tasks) / len(tasks), 12)
        for layer, accuracy in measured.items()
    }
    entries = [
        LayerImportance(
            layer=layer,
            importance=round(means[None] - means[layer], 12),
            accuracy=measured[layer],
        )
        for layer in layers
    ]
    ranked = sorted(entries, key=lambda entry: (-entry.importance, entry.layer))
    return replace(plan, accuracy=measured[None], layers=tuple(ranked))
