"""Export cells and answers in another tool's format; the entry point is `export`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.exports.evaluations import EvaluatedModel, read_evaluations
from amnesia_bench.exports.every_eval_ever import every_eval_ever_files
from amnesia_bench.exports.hub_format import eval_results_files
from amnesia_bench.exports.lm_eval_format import lm_eval_files
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.experiments import ExportRequest
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was exported: the names of models, the files, and notes on what was left out."""

    models: tuple[str, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def export(request: ExportRequest, out: Path) -> ExportResult:
    """Write the cells and answers below folders in another tool's format.

    Args:
        request: the format, and the folders of cells.
        out: a new folder; it also gets a manifest.

    Raises:
        UserError: a folder has no finished cells, a file is damaged, nothing can be exported in
            this format, or `out` exists.
        StageFailedError, MissingEnvironmentError: `out` cannot be written.
    """
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    evaluations = read_evaluations(request.sources)
    files: dict[str, str] = {}
    notes = list(evaluations.notes)
    for model in evaluations.models:
        texts, left_out = _files_of(model, request.format)
        if clash := set(texts) & set(files):
            raise UserError(
                f"{model.name}: another model has the same file name {min(clash)}",
                hint="Label the models: MODEL/METHOD/SEED=DIR.",
            )
        files |= texts
        notes += left_out
    if not files:
        raise UserError(f"nothing to export as {request.format}", hint="\n".join(notes))
    parents = [_parent(source.folder) for source in request.sources]
    with publishing(out) as work:
        for name, text in files.items():
            path = work.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        work.finish("export", parents, provenance)
    return ExportResult(
        models=tuple(model.name for model in evaluations.models),
        files=tuple(out / name for name in files),
        notes=tuple(notes),
    )


def _files_of(model: EvaluatedModel, format: str) -> tuple[dict[str, str], list[str]]:
    if format == "hub-eval-results":
        return eval_results_files(model)
    made = lm_eval_files(model) if format == "lm-eval" else every_eval_ever_files(model)
    return made, []


def _parent(folder: Path) -> Parent:
    manifest = folder / MANIFEST
    identity = f"sha256:{sha256_of(manifest)}" if manifest.is_file() else "unknown"
    return Parent(role="cells", location=str(folder), identity=identity)
