"""Read the records of why recall is lost from the folders that `analyze` wrote."""

from __future__ import annotations

from typing import TypeVar

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.attention import (
    Autocorrelation,
    DistanceShift,
    FinetuneDivergence,
    GradientsByDistance,
    HeadDistances,
    PooledAttention,
)
from amnesia_bench.records.causes import ModelAnalysis
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.requests.experiments import LabelledAnalysis
from amnesia_bench.store.files import read_json
from amnesia_bench.store.layout import MANIFEST

_KIND = "analysis"
Record = TypeVar("Record")


def read_analysis(source: LabelledAnalysis, files: ArtifactFiles) -> ModelAnalysis:
    """Read the records of an analysis.

    Args:
        source: the folder, and its labels in the report.
        files: the file cache of this report.

    Raises:
        UserError: the folder is not a finished analysis, or a file differs from its manifest.
    """
    folder = source.folder
    if not (folder / MANIFEST).is_file() or files.manifest(folder).kind != _KIND:
        raise UserError(
            f"{folder}: not a finished folder of `amnesia analyze`",
            hint="amnesia analyze gradients ... --out FOLDER",
        )

    def read(kind: type[Record], pattern: str) -> list[Record]:
        records = []
        for path in sorted(folder.glob(pattern)):
            files.check_hash(path, folder)
            records.append(codec.from_json(kind, read_json(path), str(path)))
        return records

    return ModelAnalysis(
        model=source.model,
        finetune=source.finetune,
        seed=source.seed,
        autocorrelations=tuple(
            read(Autocorrelation, "ratio_of_sums_*.json")
            + read(Autocorrelation, "mean_of_correlations_*.json")
        ),
        gradients=tuple(read(GradientsByDistance, "gradients_*.json")),
        distances={each.role: each for each in read(HeadDistances, "distance_*.json")},
        shifts={each.second: each for each in read(DistanceShift, "shift_*.json")},
        maps=_in_order_of_roles(read(PooledAttention, "map_*.json")),
        divergence=next(iter(read(FinetuneDivergence, "divergence.json")), None),
    )


def _in_order_of_roles(maps: list[PooledAttention]) -> tuple[PooledAttention, ...]:
    roles = ("pre", "post", "restored")
    rank = {role: i for i, role in enumerate(roles)}
    return tuple(
        sorted(maps, key=lambda each: (each.layer, each.head, rank.get(each.role, len(roles))))
    )
