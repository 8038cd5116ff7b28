"""From folders of cells to a report in a folder: the front door `report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.files import config_name
from amnesia_bench.config.load import load_option
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Provenance
from amnesia_bench.records.report import DecidedClaim, Report, ReportProvenance, TableReport
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.claims import decide
from amnesia_bench.reporting.drift import read_drift
from amnesia_bench.reporting.figures import figures_of
from amnesia_bench.reporting.page import page
from amnesia_bench.reporting.paths import portable
from amnesia_bench.reporting.sources import read_source
from amnesia_bench.reporting.svg import standalone
from amnesia_bench.reporting.table_slots import (
    FilledSlots,
    differing_settings,
    fill_slots,
    refuse_ambiguous,
    unused_cells,
    without_column,
)
from amnesia_bench.reporting.tables import build_table, build_trade_offs, heat_maps_of
from amnesia_bench.reporting.text_formats import csv_text, json_text, latex, table_markdown
from amnesia_bench.requests.experiments import ReportRequest
from amnesia_bench.store.files import explaining_write_errors, make_folder, replace_text
from amnesia_bench.store.provenance import collect_provenance

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A report, and the files that hold it, the page last."""

    report: Report
    files: tuple[Path, ...]


def report(request: ReportRequest, out: Path) -> WrittenReport:
    """Lay cells out in the paper's tables, decide its claims, and write it all into a folder.

    Each file appears whole, the page last: reading a report while it is written again is safe.
    Files of the same names are replaced.

    Args:
        request: the tables, and what they are made of.
        out: the folder.

    Raises:
        UserError: a table, folder or file is missing or damaged, two cells are for one slot, a
            cell may belong to several fine-tunes, or there is a file in the way.
        StageFailedError, MissingEnvironmentError: it cannot be written there.
    """
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    built = _build(request, out, provenance)
    return WrittenReport(report=built, files=_write(built, out))


def _build(request: ReportRequest, out: Path, provenance: Provenance) -> Report:
    asked = tuple(dict.fromkeys(request.tables))
    tables = {config_name(table): load_table(table, request.overrides) for table in asked}
    if len(tables) < len(asked):
        raise UserError(f"two tables have the same name: {', '.join(asked)}")
    files = ArtifactFiles()
    read = [read_source(source, out, files) for source in request.sources]
    found = [cell for cells, _ in read for cell in cells]
    refuse_ambiguous(found, tables)
    placed = {name: fill_slots(found, table) for name, table in tables.items()}
    unused = unused_cells(found, list(placed.values()), tables)
    if found and not any(placed.values()):
        raise UserError(
            f"no column of {', '.join(tables)} matches any of the {len(found)} cells given",
            hint="\n".join(unused),
        )
    return Report(
        made=ReportProvenance(
            tool_version=provenance.tool_version,
            command=portable(provenance.command),
            commit=provenance.commit,
            dirty=provenance.dirty,
            created=provenance.started,
        ),
        tables=tuple(_report_on(name, tables[name], placed[name]) for name in tables),
        drift=tuple(read_drift(each, out) for each in request.drift),
        notes=(
            *(note for _, notes in read for note in notes),
            *unused,
            *without_column(found, list(placed.values()), tables),
        ),
    )


def _write(report: Report, out: Path) -> tuple[Path, ...]:
    files: dict[str, str] = {}
    for each in report.tables:
        name = each.table.name
        files |= {
            f"{name}.md": table_markdown(each, report),
            f"{name}.csv": csv_text(each.table),
            f"{name}.tex": latex(each.table),
            f"{name}.json": json_text(each, made=report.made),
        }
    if report.drift:
        files["drift.json"] = json_text(report.drift)
    files |= {f"{figure}.svg": standalone(drawn) for figure, drawn in figures_of(report).items()}
    files[REPORT] = page(report)
    with explaining_write_errors(out, "files written before it are whole"):
        make_folder(out)
        for file, text in files.items():
            replace_text(out / file, text)
    return tuple(out / file for file in files)


def load_table(name: str, overrides: Sequence[str]) -> TableConfig:
    """Return a table of configs/report, or of a file by its path.

    Raises:
        UserError: there is none of this name, or it is not well formed.
    """
    return load_option("report", name, overrides, TableConfig)


def _report_on(name: str, table: TableConfig, slots: FilledSlots) -> TableReport:
    return TableReport(
        table=build_table(name, table, slots),
        claims=_claims(table, slots),
        heat_maps=heat_maps_of(table, slots),
        trade_offs=build_trade_offs(table, slots),
        notes=differing_settings(slots),
    )


def _claims(table: TableConfig, slots: FilledSlots) -> tuple[DecidedClaim, ...]:
    """Decide a table's claims; of other runs than the paper's, say what its own table shows."""
    decided = decide(table, slots)
    if table.stands_for is None:
        return decided
    paper = {each.id: each.holds_in_paper for each in decide(load_table(table.stands_for, ()), {})}
    return tuple(replace(each, holds_in_paper=paper.get(each.id)) for each in decided)
