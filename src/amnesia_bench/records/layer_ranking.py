"""The output of `amnesia rank-layers`: how much retrieval depends on each softmax layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import Parent


@dataclass(frozen=True, kw_only=True)
class RankingTask:
    """One task of a ranking: its name and version in lm-eval, its metric, and its data.

    `n` is the number of documents that were evaluated, `sha256` the hash of all documents.
    """

    name: str
    version: str
    metric: str
    n: int
    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class LayerImportance:
    """The loss of accuracy without one layer: accuracy of the full model minus that without it.

    `accuracy` (fractions) has one key per task, and one per metric that is not used for ranking.
    """

    layer: int
    importance: float
    accuracy: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerRanking:
    """Layers by importance, in descending order; ties are broken by the lower layer index.

    `ablation` describes how a layer was disabled, `accuracy` is that of the full model, `settings`
    are those of the engine.
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
