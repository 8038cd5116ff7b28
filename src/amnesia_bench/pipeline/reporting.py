"""The reports of a run when all its stages are done, and whether they are there already."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import amnesia_bench
from amnesia_bench.config.files import config_dir
from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.pipeline.graph import ExperimentRow, Graph
from amnesia_bench.requests.experiments import LabelledCells, LabelledDrift, ReportRequest
from amnesia_bench.store.files import nearest_existing, replace_text
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.layout import MANIFEST

_STAMP = ".report.json"
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class ReportCall:
    """One page, its folder, and the folders of cells that it is made of."""

    request: ReportRequest
    out: Path
    sources: tuple[Path, ...]


def report_calls(graphs: Sequence[Graph], store: Path, results: Path) -> list[ReportCall]:
    """Return the pages of a run: one for all its experiments, one for each choice of a sweep.

    Args:
        graphs: what was run.
        store: where its artifacts are.
        results: the folder of all reports; a page is in <profile>, <profile>/<experiment> where
            there is one experiment, and below that in a folder named after a sweep's choice.
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
        )
        folders = _unique(stage.folder(store) for row in rows for stage in row.measured)
        page = out / choice if choice else out
        calls.append(ReportCall(request=request, out=page, sources=folders))
    return calls


def check_writable(call: ReportCall) -> None:
    """Refuse a folder that no report can be written to, before the work of days for it begins.

    Raises:
        UserError: there is a file in the way.
        MissingEnvironmentError: no permission, or a read-only file system.
    """
    there = nearest_existing(call.out)
    if not there.is_dir():
        raise UserError(f"{there}: a file, where reports were to go", hint="Name another --out.")
    if not os.access(there, os.W_OK):
        raise MissingEnvironmentError(
            f"{there}: no report can be written there", hint="Name another --out."
        )


def is_current(call: ReportCall) -> bool:
    """Return whether a page is there as it was written, of the same cells by the same code."""
    return _stamped(call).get("made_of") == _made_of(call) and not edited_files(call)


def edited_files(call: ReportCall) -> list[str]:
    """Return the files of a page that hold something else than was written, or are missing."""
    files = _stamped(call).get("files", {})
    return [name for name, sha256 in files.items() if _sha256(call.out / name) != sha256]


def mark_current(call: ReportCall, written: Iterable[Path]) -> None:
    """Remember what a page was made of, and what was written."""
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
    right = isinstance(stamp, dict) and isinstance(stamp.get("files"), dict)
    return stamp if right else {}


def _sha256(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def _made_of(call: ReportCall) -> str:
    """Return a hash of the request, its cells, the code and the configs."""
    package = Path(amnesia_bench.__file__).parent
    digest = hashlib.sha256(repr(call.request).encode())
    for path in sorted([*package.rglob("*"), *(config_dir() / "report").rglob("*")]):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    for folder in call.sources:
        digest.update((folder / MANIFEST).read_bytes())
    return digest.hexdigest()


def _choice(graph: Graph, graphs: Sequence[Graph]) -> str:
    """Return the overrides that tell a job of a sweep from the others, but for its experiment."""
    all_others = [set(other.job.overrides) for other in graphs]
    own = (o for o in graph.job.overrides if not all(o in others for others in all_others))
    return ",".join(o.replace("/", "-") for o in own if not o.startswith("experiment="))


def _sources(row: ExperimentRow, store: Path) -> Iterator[LabelledCells]:
    for stage in row.measured:
        folder = stage.folder(store)
        yield LabelledCells(folder=folder, model=row.model, method=_method(row), seed=str(row.seed))


def _drift(row: ExperimentRow, store: Path) -> Iterator[LabelledDrift]:
    if row.method == "restored":
        label = f"{row.model}/{_method(row)}/{row.seed}"
        yield LabelledDrift(file=row.checkpoint.folder(store) / "restoration.json", label=label)


def _method(row: ExperimentRow) -> str:
    return row.method if row.method == "pre" else f"{row.method}@{row.finetune}"


def _unique(items: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys(items))
