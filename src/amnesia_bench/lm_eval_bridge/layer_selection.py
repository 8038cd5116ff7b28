"""Select the layers that stay softmax attention, as HALO and Jet-Nemotron do.

One layer at a time, the teacher's attention is replaced by the linear mixer of the stage-1 student.
With R the mean retrieval accuracy and C the mean commonsense accuracy of the model in which layer l
is replaced, the score of l is

    halo          min(50, (max R - R_l) / (max C - C_l + 1e-10))
    jet_nemotron  R of the original model - R_l

and the layers with the highest scores stay. Source: attn-layer-selection of
thunlp/hybrid-linear-attention @229e301, whose published logs give these layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from amnesia_bench.errors import UserError
from amnesia_bench.lm_eval_bridge.score_files import TaskScore, read_scores
from amnesia_bench.records import codec
from amnesia_bench.records.layer_selection import (
    ORIGINAL,
    RUN,
    LayerScoresRun,
    LayerSelection,
    ReplacedLayer,
)
from amnesia_bench.requests.checkpoints import SelectLayersRequest
from amnesia_bench.store.files import (
    explaining_write_errors,
    make_folder,
    read_json,
    replace_text,
)
from amnesia_bench.store.sealed_json import sealed_text, unsealed

_LAYER = re.compile(r"layer_?(\d+)")
_RESUME = "Run the same `amnesia score-layers` again: it resumes."
_HIGHEST_SCORE = 50.0
_EPSILON = 1e-10

Means = tuple[float, float]  # of retrieval and of commonsense


def select_layers(request: SelectLayersRequest, out: Path) -> LayerSelection:
    """Select layers from finished scores, and write the selection to a JSON file.

    If `out` has this selection already, it stays as it is.

    Raises:
        UserError: the folder lacks scores, a layer or the original model; fewer layers than
            requested have scores; or `out` exists with other contents.
    """
    original, layers = _means(request)
    selection = selected(request, original, layers)
    text = sealed_text(codec.to_json(selection))
    with explaining_write_errors(out, "nothing was written"):
        if out.exists():
            if out.is_file() and out.read_text(encoding="utf-8", errors="replace") == text:
                return selection
            raise UserError(f"{out}: already exists", hint="Choose another file.")
        make_folder(out.parent)
        replace_text(out, text)
    return selection


def selected(
    request: SelectLayersRequest, original: Means | None, layers: Mapping[int, Means]
) -> LayerSelection:
    """Apply a rule to the means of every layer.

    Args:
        request: the rule, and the number of layers to select.
        original: the means of the original model; the rule of Jet-Nemotron needs them.
        layers: for every layer, the means of the model in which it is replaced.
    """
    if request.count > len(layers):
        raise UserError(
            f"{request.count} layers are requested, and {len(layers)} have scores",
            hint=f"--count {len(layers)} or fewer",
        )
    best_retrieval = max(retrieval for retrieval, _ in layers.values())
    best_commonsense = max(commonsense for _, commonsense in layers.values())

    def score(retrieval: float, commonsense: float) -> float:
        if request.rule == "halo":
            lost = best_commonsense - commonsense
            return min(_HIGHEST_SCORE, (best_retrieval - retrieval) / (lost + _EPSILON))
        assert original is not None, "checked when the scores were read"
        return original[0] - retrieval

    replaced = [
        ReplacedLayer(layer=layer, retrieval=means[0], commonsense=means[1], score=score(*means))
        for layer, means in layers.items()
    ]
    ranked = sorted(replaced, key=lambda entry: (-entry.score, entry.layer))
    return LayerSelection(
        rule=request.rule,
        selected=tuple(sorted(entry.layer for entry in ranked[: request.count])),
        layers=tuple(ranked),
        tasks={"retrieval": request.retrieval, "commonsense": request.commonsense},
        original_retrieval=None if original is None else original[0],
        original_commonsense=None if original is None else original[1],
    )


def _means(request: SelectLayersRequest) -> tuple[Means | None, Mapping[int, Means]]:
    """Return the means of the original model and of every layer, from the folder of the request."""
    folder = request.scores
    folders: dict[int, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and (match := _LAYER.fullmatch(path.name)):
            if (layer := int(match[1])) in folders:
                raise UserError(
                    f"{folder}: has two folders for layer {layer}: {folders[layer]} and {path}",
                    hint="Give the folder of one model.",
                )
            folders[layer] = path
    if not folders:
        raise UserError(
            f"{folder}: has no folders layer0, layer1, ...",
            hint=_RESUME
            if (folder / RUN).exists()
            else "Save the output of lm-eval for each replaced layer in such a folder.",
        )
    _check_complete(folder, folders)
    originals = [path for path in sorted(folder.rglob(ORIGINAL)) if path.is_dir()]
    if len(originals) > 1:
        raise UserError(
            f"{folder}: has two folders of the original model: {originals[0]} and {originals[1]}",
            hint="Give the folder of one model.",
        )
    original = originals[0] if originals else None
    if original is None and request.rule == "jet_nemotron":
        raise UserError(
            f"{folder}: has no folder {ORIGINAL}",
            hint="The rule of Jet-Nemotron compares with the original model; halo does not.",
        )
    layers = {layer: _folder_means(path, request) for layer, path in sorted(folders.items())}
    return None if original is None else _folder_means(original, request), layers


def _check_complete(folder: Path, layers: Mapping[int, Path]) -> None:
    """Check that no layer is missing; only `score_layers` records how many there are."""
    path, count = folder / RUN, max(layers) + 1
    if path.exists():
        content = unsealed(read_json(path), str(path), "Evaluate the layers again.")
        count = max(count, codec.from_json(LayerScoresRun, content, str(path)).num_layers)
    missing = sorted(set(range(count)) - set(layers))
    if missing and missing[0] > max(layers):
        raise UserError(
            f"{folder}: has scores of {len(layers)} of {count} layers, so it is not finished",
            hint=_RESUME,
        )
    if missing:
        raise UserError(
            f"{folder}: has layer{max(layers)} but not layer{missing[0]}",
            hint="The best scores of all layers enter the score of each, so all are needed.",
        )


def _folder_means(folder: Path, request: SelectLayersRequest) -> Means:
    scores = read_scores(folder)
    return (
        fmean(_values(scores, request.retrieval, folder, without_first=False)),
        fmean(_values(scores, request.commonsense, folder, without_first=True)),
    )


def _values(
    scores: Mapping[str, Sequence[TaskScore]], tasks: Sequence[str], folder: Path, *,
    without_first: bool,
) -> list[float]:  # fmt: skip
    """Return the mean of each task's values.

    Without the first value, if there are several: the accuracy of commonsense tasks comes before
    the accuracy normalised by length, which counts. Values at context lengths are sorted by length.
    """
    if unknown := [task for task in tasks if task not in scores]:
        raise UserError(
            f"{folder}: has no score of {unknown[0]}; it has {', '.join(sorted(scores))}",
            hint="Name the tasks: --retrieval TASK,... --commonsense TASK,...",
        )
    means = []
    for task in tasks:
        ordered = sorted(scores[task], key=_context)
        several = len(ordered) > 1
        values = [score.value for score in (ordered[1:] if without_first and several else ordered)]
        means.append(fmean(values))
    return means


def _context(score: TaskScore) -> int:
    return int(score.metric) if score.metric.isdigit() else 0
