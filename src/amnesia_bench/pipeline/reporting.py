"""What `amnesia report` is asked when all stages are done, and whether it has answered before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import amnesia_bench
from amnesia_bench.config.load import config_dir
from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.pipeline.graph import Graph, Row
from amnesia_bench.store.files import nearest_existing, replace_text
from amnesia_bench.store.layout import MANIFEST

_STAMP = ".report.json"


@dataclass(frozen=True, kw_only=True)
class ReportCall:
    """One page: its folder, the arguments of `amnesia report` without it, and what it reads."""

    out: Path
    arguments: tuple[str, ...]
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
        arguments = [f"--table={name}" for name in _unique(r for g in members for r in g.reports)]
        rows = [row for graph in members for row in graph.rows]
        arguments += _unique(text for row in rows for text in _sources(row, store))
        calls.append(
            ReportCall(
                out=out / choice if choice else out,
                arguments=(*arguments, *profile.report_overrides),
                sources=tuple(dict.fromkeys(s.folder(store) for row in rows for s in row.measured)),
            )
        )
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
    """Return whether a page is there, made of the same cells by the same code."""
    stamp = call.out / _STAMP
    return stamp.is_file() and stamp.read_bytes() == _stamp(call).encode()


def mark_current(call: ReportCall) -> None:
    """Remember what a page was made of."""
    replace_text(call.out / _STAMP, _stamp(call))


def _stamp(call: ReportCall) -> str:
    """Return the arguments, the files of the page, and a hash of cells, code and configs."""
    package = Path(amnesia_bench.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*package.rglob("*"), *(config_dir() / "report").rglob("*")]):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    for folder in call.sources:
        digest.update((folder / MANIFEST).read_bytes())
    files = (path.name for path in call.out.iterdir() if path.is_file() and path.name != _STAMP)
    return json.dumps([*call.arguments, *sorted(files), digest.hexdigest()], indent=1)


def _choice(graph: Graph, graphs: Sequence[Graph]) -> str:
    """Return the overrides that tell a job of a sweep from the others, but for its experiment."""
    all_others = [set(other.job.overrides) for other in graphs]
    own = (o for o in graph.job.overrides if not all(o in others for others in all_others))
    return ",".join(o.replace("/", "-") for o in own if not o.startswith("experiment="))


def _sources(row: Row, store: Path) -> list[str]:
    method = row.method if row.method == "pre" else f"{row.method}@{row.finetune}"
    label = f"{row.model}/{method}/{row.seed}"
    found = [f"--cells={label}={stage.folder(store)}" for stage in row.measured]
    if row.method == "restored":
        found.append(f"--drift={label}={row.checkpoint.folder(store) / 'restoration.json'}")
    return found


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
