"""The output of `amnesia rank-layers`: how much retrieval depends on each softmax layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import Parent


@dataclass(frozen=True, kw_only=True)
class RankingTask:
    """One task of a ranking: its name and version in lm-eval, its metric, and its data.

    `n` is the number of documents that were evaluated. `source` is the origin of the documents, and
    `sha256` the hash of all of them.
    """

    name: str
    version: str
    metric: str
    n: int
    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class LayerImportance:
    """The importance of a layer: the mean accuracy over tasks that is lost without this layer.

    `accuracy` maps each task, and each metric that is not used for ranking, to the accuracy without
    the layer, as a fraction.
    """

    layer: int
    importance: float
    accuracy: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerRanking:
    """A ranking of layers by importance, the most important first.

    Of equally important layers, the one with the lower index comes first. `ablation` describes how
    a layer was disabled, `accuracy` is the accuracy of the full model on each task, and `settings`
    are the settings of the engine.
    """

    checkpoint: Parent
    ablation: str
    tasks: tuple[RankingTask, ...]
    accuracy: Mapping[str, float]
    layers: tuple[LayerImportance, ...]
    settings: Mapping[str, str]

    def top(self, count: int) -> tuple[int, ...]:
        """Return the `count` most important layers, in ascending order.

        Raises:
            ValueError: `count` is 0, or larger than the number of layers.
        """
        if not 0 < count <= len(self.layers):
            raise ValueError(f"top{count}: the ranking has {len(self.layers)} layers")
        return tuple(sorted(entry.layer for entry in self.layers[:count]))
