"""The outputs of `amnesia score-layers` and `select-layers`: which layers stay softmax layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.layer_ranking import RankingTask

RUN = "run.json"  # of `score_layers`, in the folder of its scores
ORIGINAL = "original"  # the folder with the scores of the model without a replaced layer


def folder_of_layer(layer: int | None) -> str:
    """Return the name of the folder with the scores of a replaced layer; None replaces none."""
    return ORIGINAL if layer is None else f"layer{layer}"


@dataclass(frozen=True, kw_only=True)
class LayerScoresRun:
    """What `score_layers` evaluates: two checkpoints, the tasks, and the settings of the engine."""

    teacher: Parent
    student: Parent
    tasks: tuple[RankingTask, ...]
    num_layers: int
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ReplacedLayer:
    """The scores of the model in which one layer's attention is replaced by its linear mixer.

    `retrieval` and `commonsense` are means over tasks, as fractions. `score` is what the rule makes
    of them.
    """

    layer: int
    retrieval: float
    commonsense: float
    score: float


@dataclass(frozen=True, kw_only=True)
class LayerSelection:
    """The layers that stay softmax attention.

    Attributes:
        rule: "halo" or "jet_nemotron".
        selected: the selected layers, in ascending order.
        layers: all layers, the highest score first; of equal scores the lower index.
        tasks: the tasks whose scores were averaged, as "retrieval" and "commonsense".
        original_retrieval, original_commonsense: the means of the model without a replaced layer;
            None if it has no scores.
    """

    rule: str
    selected: tuple[int, ...]
    layers: tuple[ReplacedLayer, ...]
    tasks: Mapping[str, tuple[str, ...]]
    original_retrieval: float | None
    original_commonsense: float | None
