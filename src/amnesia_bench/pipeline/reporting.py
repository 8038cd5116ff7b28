"""What `amnesia report` is asked when all stages are done, and whether it has answered before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import amnesia_bench
from amnesia_bench.config.load import config_dir
from amnesia_bench.pipeline.graph import Graph, Row
from amnesia_bench.store.files import make_folder, replace_text

_STAMP = ".report.json"


@dataclass(frozen=True, kw_only=True)
class ReportCall:
    """One page: its folder, and the arguments of `amnesia report` without it."""

    out: Path
    arguments: tuple[str, ...]


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
            )
        )
    return calls


def is_current(call: ReportCall) -> bool:
    """Return whether a page was made of the same cells by the same code."""
    stamp = call.out / _STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp(call)


def mark_current(call: ReportCall) -> None:
    """Remember what a page was made of."""
    make_folder(call.out)
    replace_text(call.out / _STAMP, _stamp(call))


def _stamp(call: ReportCall) -> str:
    """Return the arguments, which hold the ids of stages, and a hash of what lays them out."""
    package = Path(amnesia_bench.__file__).parent
    digest = hashlib.sha256()
    for folder in (package / "report", package / "records", config_dir() / "report"):
        for path in sorted(path for path in folder.rglob("*") if path.suffix != ".pyc"):
            digest.update(path.read_bytes() if path.is_file() else b"")
    return json.dumps([*call.arguments, digest.hexdigest()], indent=1)


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
