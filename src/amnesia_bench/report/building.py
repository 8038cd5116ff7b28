"""From folders of cells to a report in a folder: one call for a command or a stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Provenance
from amnesia_bench.records.report import Report
from amnesia_bench.report.claims import decide
from amnesia_bench.report.drift import read_drift
from amnesia_bench.report.heat_maps import heat_maps_of
from amnesia_bench.report.layout import columns_of
from amnesia_bench.report.page import figures, json_text, page
from amnesia_bench.report.places import differing_settings, place_cells
from amnesia_bench.report.sources import Source, read_source
from amnesia_bench.report.tables import build_table
from amnesia_bench.report.text_formats import csv_text, latex, markdown
from amnesia_bench.store.files import explain_write_error, make_folder, replace_text

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What to report: the name and config of a table, its cells, and files of drift."""

    name: str
    table: TableConfig
    sources: tuple[Source, ...]
    drift: tuple[str, ...] = ()


def build_report(request: ReportRequest, provenance: Provenance) -> Report:
    """Read everything a report says.

    Raises:
        UserError: a folder or file is missing or damaged, or two cells are for one place.
    """
    read = [read_source(source) for source in request.sources]
    notes = [note for _, said in read for note in said]
    columns = columns_of(request.table)
    found = [cell for cells, _ in read for cell in cells]
    places, unknown = place_cells(found, request.table, columns)
    if found and not places:
        raise UserError(
            f"none of {len(found)} cells belongs into {request.name}",
            hint="\n".join(unknown) or "They are of other tasks, lengths, metrics or scorers.",
        )
    return Report(
        tool_version=provenance.tool_version,
        command=provenance.command,
        commit=provenance.commit,
        dirty=provenance.dirty,
        created=provenance.started,
        table=build_table(request.name, request.table, columns, places),
        claims=decide(request.table.claims, request.table, places),
        heat_maps=heat_maps_of(places, columns),
        drift=tuple(read_drift(each) for each in request.drift),
        notes=(*notes, *unknown, *differing_settings(places)),
    )


def write_report(report: Report, out: Path) -> Path:
    """Write a report in all formats: `<table>.md`, `.csv`, `.tex`, `.json` and `report.html`.

    Each file appears whole, the page last: reading a report while it is written anew is safe.
    Files of the same names are replaced.

    Returns:
        The page.

    Raises:
        UserError, StageFailedError, MissingEnvironmentError: it cannot be written there.
    """
    name = report.table.name
    files = {
        f"{name}.md": markdown(report, out),
        f"{name}.csv": csv_text(report),
        f"{name}.tex": latex(report.table),
        f"{name}.json": json_text(report),
        **{f"{figure}.svg": drawn for figure, drawn in figures(report).items()},
        REPORT: page(report, out),
    }
    try:
        make_folder(out)
        for file, text in files.items():
            replace_text(out / file, text)
    except OSError as error:
        explained = explain_write_error(error, out, "files written before it are whole")
        if explained is None:
            raise
        raise explained from error
    return out / REPORT
