"""Which softmax layers carry retrieval? Leave one out, and see what is lost (Appendix M)."""

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

# The accuracy of each task (and of metrics that do not count) without a layer; None: of all.
Measure = Callable[[int | None], Mapping[str, float]]
_RUN = "run.json"
_MEASURED = re.compile(r"run\.json|whole\.json|without_layer_[0-9]+\.json|\..*\.json\.new")


def measure_layers(
    plan: LayerRanking, layers: Sequence[int], measure: Measure, out: Path
) -> LayerRanking:
    """Measure the model whole and without each layer, and write the ranking.

    What was measured is kept beside `out` until it is written: a killed ranking goes on with the
    next layer, and one that is written already is returned as it is.

    Args:
        plan: the ranking, still without accuracies and layers.
        layers: which to rank.
        measure: called once per layer that is not measured yet.
        out: the JSON file to write.

    Raises:
        UserError: `out` holds another ranking, or what is kept beside it is of another.
        BusyError: another process is writing it.
        StageFailedError: the disk is full; what was measured is kept.
    """
    with explaining_write_errors(out, "what was measured is kept"):
        make_folder(out.parent)
        with holding_lease(out) as lease:
            work = out.with_name(f".{out.name}.measured")
            if out.exists():
                ranking = _written_before(out, plan)
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


def _written_before(out: Path, plan: LayerRanking) -> LayerRanking:
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
            f"{work}: holds what was measured for another ranking: another checkpoint, other "
            "data, tasks, samples or engine settings",
            hint="Remove it, or choose another --out.",
        )


def _measured(work: Path, layer: int | None, measure: Measure) -> Mapping[str, float]:
    path = work / ("whole.json" if layer is None else f"without_layer_{layer}.json")
    if path.exists():
        try:
            held: Mapping[str, float] = unseal(path.read_text(encoding="utf-8").rstrip("\n"))
        except ValueError as error:
            raise UserError(
                f"{path}: is damaged ({error})", hint="Remove it: that layer is measured again."
            ) from error
        return held
    accuracy = measure(layer)
    replace_text(path, f"{seal(accuracy)}\n")
    return accuracy


def _ranked(
    plan: LayerRanking,
    layers: Sequence[int],
    measured: Mapping[int | None, Mapping[str, float]],
) -> LayerRanking:
    tasks = [task.name for task in plan.tasks]
    # Rounded: sums of floats must not tell layers apart that lose the same.
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
