"""Add up how long the artifacts took to which a report owes its cells."""

from __future__ import annotations

from collections.abc import Iterable

from amnesia_bench.records.artifacts import Hardware
from amnesia_bench.records.report import ReportCost
from amnesia_bench.reporting.sources import CellEntry


def cost_of_cells(entries: Iterable[CellEntry]) -> ReportCost:
    """Return the cost of cells; an artifact that several cells share counts once."""
    manifests = {
        folder.resolve(): manifest
        for entry in entries
        for folder, manifest in entry.ancestry.items()
    }
    made = [manifest.provenance for manifest in manifests.values()]
    return ReportCost(
        artifacts=len(made),
        seconds=sum(provenance.seconds or 0.0 for provenance in made),
        machines=tuple(sorted({_machine(provenance.hardware) for provenance in made})),
    )


def _machine(hardware: Hardware) -> str:
    return ", ".join((f"{hardware.cpu} with {hardware.cpu_cores} cores", *hardware.gpus))
