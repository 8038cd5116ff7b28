"""What `amnesia rank-layers` writes: how much retrieval each softmax layer carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import Parent


@dataclass(frozen=True, kw_only=True)
class RankingTask:
    """One task of a ranking: lm-eval's name and version of it, the metric taken, and its data.

    `n` is how many documents were asked, `sha256` the hash of all documents of the task.
    """

    name: str
    version: str
    metric: str
    n: int
    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class LayerImportance:
    """What is lost without one layer: accuracy of the whole model less that without it.

    `accuracy` (fractions) has a key per task, and those of metrics that do not count.
    """

    layer: int
    importance: float
    accuracy: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerRanking:
    """Layers by importance, the greatest first; of equals the lower layer first.

    `ablation` says what was done to a layer, `accuracy` is that of the whole model, `settings`
    are the engine's.
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
            ValueError: there are not so many, or none is asked for.
        """
        if not 0 < count <= len(self.layers):
            raise ValueError(f"top{count}: the ranking has {len(self.layers)} layers")
        return tuple(sorted(entry.layer for entry in self.layers[:count]))
