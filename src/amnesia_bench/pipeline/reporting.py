"""Determine the report pages of a run, and check whether they are up to date."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import amnesia_bench
from amnesia_bench.config.files import config_dir
from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.pipeline.adopted import adoption_notes, needed_stages
from amnesia_bench.pipeline.graph import ExperimentRow, Graph, stages_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.experiments import (
    LabelledAnalysis,
    LabelledCells,
    LabelledDrift,
    ReportRequest,
)
from amnesia_bench.store.files import nearest_existing, replace_text
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.layout import MANIFEST, stage_path

RESTORATION = "restoration.json"
_STAMP = ".report.json"
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class ReportCall:
    """One report page: its request, its output folder, and the folders of its cells."""

    request: ReportRequest
    out: Path
    sources: tuple[Path, ...]


def report_calls(graphs: Sequence[Graph], store: Path, results: Path) -> list[ReportCall]:
    """Return the report pages of a run, one per choice of a sweep; each covers all experiments.

    Args:
        graphs: the graphs of the run's experiments.
        store: the folder of all artifacts.
        results: the folder of all reports. A page is written to <profile>/<experiment> if the run
            has only one experiment, otherwise to <profile>; in a sweep, it is written to a
            subfolder named after the choice.
    """
    experiments = {graph.job.config.experiment.name for graph in graphs}
    calls = []
    for choice in dict.fromkeys(_choice(graph, graphs) for graph in graphs):
        members = [graph for graph in graphs if _choice(graph, graphs) == choice]
        profile = members[0].job.config.profile
        out = results / profile.name
        if len(experiments) == 1:
            out /= members[0].job.config.experiment.name
        rows = [row for graph in members for row in graph.rows]
        request = ReportRequest(
            tables=_unique(name for graph in members for name in graph.reports),
            sources=_unique(source for row in rows for source in _sources(row, store)),
            overrides=profile.report_overrides,
            drift=_unique(curve for row in rows for curve in _drift(row, store)),
            notes=adoption_notes(store, needed_stages(store, stages_of(members))),
            analyses=_unique(
                LabelledAnalysis(
                    folder=analysis.stage.folder(store),
                    model=analysis.model,
                    finetune=analysis.finetune,
                    seed=str(analysis.seed),
                )
                for graph in members
                for analysis in graph.analyses
            ),
        )
        folders = _unique(
            [
                *(stage.folder(store) for row in rows for stage in row.measured),
                *(analysis.folder for analysis in request.analyses),
            ]
        )
        page = out / choice if choice else out
        calls.append(ReportCall(request=request, out=page, sources=folders))
    return calls


def measured_part(call: ReportCall, note: str) -> ReportCall:
    """Return the page of a run that failed: only finished cells, with a note on the failure."""
    request = call.request
    sources = tuple(s for s in request.sources if (s.folder / MANIFEST).is_file())
    drift = tuple(curve for curve in request.drift if curve.file.is_file())
    analyses = tuple(each for each in request.analyses if (each.folder / MANIFEST).is_file())
    missing = len(request.sources) - len(sources)
    note = f"{missing} of {len(request.sources)} evaluations are missing. {note}"
    return replace(
        call,
        request=request.model_copy(
            update={
                "sources": sources,
                "drift": drift,
                "notes": (note, *request.notes),
                "analyses": analyses,
            }
        ),
        sources=(*(each.folder for each in sources), *(each.folder for each in analyses)),
    )


def check_writable(call: ReportCall) -> None:
    """Check that a report can be written; called before the run, which may take days.

    Raises:
        UserError: the path of the report's folder, or of a folder above it, is a file.
        MissingEnvironmentError: the folder is not writable.
    """
    existing = nearest_existing(call.out)
    if not existing.is_dir():
        raise UserError(
            f"{existing}: is a file, but reports need a folder", hint="Choose another --out."
        )
    if not os.access(existing, os.W_OK):
        raise MissingEnvironmentError(
            f"{existing}: the report cannot be written to this folder", hint="Choose another --out."
        )


def is_current(call: ReportCall) -> bool:
    """Return whether a page is up to date: its request, cells, code and configs are unchanged."""
    return _stamped(call).get("made_of") == _made_of(call) and not edited_files(call)


def edited_files(call: ReportCall) -> list[str]:
    """Return the files of a page that were changed or removed since they were written."""
    files = _stamped(call).get("files", {})
    return [name for name, sha256 in files.items() if _sha256(call.out / name) != sha256]


def mark_current(call: ReportCall, written: Iterable[Path]) -> None:
    """Record the hash of a page's inputs and the hashes of the files that were written."""
    stamp = {
        "made_of": _made_of(call),
        "files": {path.name: _sha256(path) for path in written},
    }
    replace_text(call.out / _STAMP, json.dumps(stamp, indent=1) + "\n")


def _stamped(call: ReportCall) -> dict[str, Any]:
    try:
        stamp = json.loads((call.out / _STAMP).read_bytes())
    except (OSError, ValueError):
        return {}
    valid = isinstance(stamp, dict) and isinstance(stamp.get("files"), dict)
    return stamp if valid else {}


def _sha256(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def _made_of(call: ReportCall) -> str:
    """Return a hash of a page's request, its cells, the package's code and the report configs."""
    package = Path(amnesia_bench.__file__).parent
    digest = hashlib.sha256(repr(call.request).encode())
    for path in sorted([*package.rglob("*"), *(config_dir() / "report").rglob("*")]):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    for folder in call.sources:
        digest.update((folder / MANIFEST).read_bytes())
    return digest.hexdigest()


def _choice(graph: Graph, graphs: Sequence[Graph]) -> str:
    """Return the overrides, except `experiment`, that are not common to all jobs of a sweep."""
    all_jobs = [set(other.job.overrides) for other in graphs]
    own = (o for o in graph.job.overrides if not all(o in job for job in all_jobs))
    return ",".join(o.replace("/", "-") for o in own if not o.startswith("experiment="))


def _sources(row: ExperimentRow, store: Path) -> Iterator[LabelledCells]:
    for stage in row.measured:
        folder = stage.folder(store)
        yield LabelledCells(folder=folder, model=row.model, method=_method(row), seed=str(row.seed))


def _drift(row: ExperimentRow, store: Path) -> Iterator[LabelledDrift]:
    if row.method == "restored":
        label = f"{row.model}/{_method(row)}/{row.seed}"
        yield LabelledDrift(file=drift_file(store, row.checkpoint), label=label)


def drift_file(store: Path, checkpoint: Stage) -> Path:
    """Return the record of a restored checkpoint, or its copy in a store without checkpoints."""
    file = checkpoint.folder(store) / RESTORATION
    copy = stage_path(store, checkpoint.id) / RESTORATION
    return copy if copy.is_file() and not file.is_file() else file


def _method(row: ExperimentRow) -> str:
    return row.method if row.method == "pre" else f"{row.method}@{row.finetune}"


def _unique(items: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys(items))
