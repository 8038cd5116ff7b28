"""From folders of cells to a report in a folder: one call for a command or a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.files import config_name
from amnesia_bench.config.load import load_option
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Provenance
from amnesia_bench.records.report import DecidedClaim, Making, Report, TableReport
from amnesia_bench.report.answers import read_anew
from amnesia_bench.report.claims import decide
from amnesia_bench.report.drift import read_drift
from amnesia_bench.report.figures import figures_of
from amnesia_bench.report.heat_maps import heat_maps_of
from amnesia_bench.report.page import page
from amnesia_bench.report.paths import portable
from amnesia_bench.report.places import (
    Places,
    differing_settings,
    left_out,
    place_cells,
    refuse_ambiguous,
    without_column,
)
from amnesia_bench.report.sources import Source, read_source
from amnesia_bench.report.svg import standalone
from amnesia_bench.report.tables import build_table, build_trade_offs
from amnesia_bench.report.text_formats import csv_text, json_text, latex, markdown
from amnesia_bench.store.files import explaining_write_errors, make_folder, replace_text

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What to report: tables, their cells, files of drift, and where.

    Tables are configs of configs/report, or files of your own by path. `overrides` change every
    table: `report.models=[tiny]`.
    """

    tables: tuple[str, ...]
    sources: tuple[Source, ...]
    out: Path
    overrides: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()


def build_report(request: ReportRequest, provenance: Provenance) -> Report:
    """Read everything a report says.

    Raises:
        UserError: a table, folder or file is missing or damaged, two cells are for one place, or
            a cell may belong to several fine-tunes.
    """
    tables = {config_name(each): load_table(each, request.overrides) for each in request.tables}
    if len(tables) < len(set(request.tables)):
        raise UserError(f"two tables of one name: {', '.join(request.tables)}")
    out = request.out
    read_anew()
    read = [read_source(source, out) for source in request.sources]
    found = [cell for cells, _ in read for cell in cells]
    refuse_ambiguous(found, tables)
    placed = {name: place_cells(found, table) for name, table in tables.items()}
    unused = left_out(found, list(placed.values()), tables)
    if found and not any(placed.values()):
        raise UserError(
            f"none of {len(found)} cells belongs into {', '.join(tables)}", hint="\n".join(unused)
        )
    return Report(
        made=Making(
            tool_version=provenance.tool_version,
            command=portable(provenance.command),
            commit=provenance.commit,
            dirty=provenance.dirty,
            created=provenance.started,
        ),
        tables=tuple(_report_on(name, tables[name], placed[name]) for name in tables),
        drift=tuple(read_drift(each, out) for each in request.drift),
        notes=(
            *(note for _, said in read for note in said),
            *unused,
            *without_column(found, list(placed.values()), tables),
        ),
    )


def write_report(report: Report, out: Path) -> tuple[Path, ...]:
    """Write `<table>.md`, `.csv`, `.tex`, `.json` of each table, all figures, and `report.html`.

    Each file appears whole, the page last: reading a report while it is written anew is safe.
    Files of the same names are replaced.

    Returns:
        What was written, the page last.

    Raises:
        UserError, StageFailedError, MissingEnvironmentError: it cannot be written there.
    """
    files: dict[str, str] = {}
    for each in report.tables:
        name = each.table.name
        files |= {
            f"{name}.md": markdown(each, report),
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


def _report_on(name: str, table: TableConfig, places: Places) -> TableReport:
    return TableReport(
        table=build_table(name, table, places),
        claims=_claims(table, places),
        heat_maps=heat_maps_of(table, places),
        trade_offs=build_trade_offs(table, places),
        notes=differing_settings(places),
    )


def _claims(table: TableConfig, places: Places) -> tuple[DecidedClaim, ...]:
    """Decide a table's claims; of other runs than the paper's, say what its own table shows."""
    decided = decide(table, places)
    if table.stands_for is None:
        return decided
    paper = {each.id: each.holds_in_paper for each in decide(load_table(table.stands_for, ()), {})}
    return tuple(replace(each, holds_in_paper=paper.get(each.id)) for each in decided)
