"""Build a report from folders of cells and write it to a folder; the entry point is `report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.files import config_name
from amnesia_bench.config.load import load_option
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.drawing.svg import standalone
from amnesia_bench.errors import UserError
from amnesia_bench.printable import counted
from amnesia_bench.records.artifacts import Provenance
from amnesia_bench.records.report import DecidedClaim, Report, ReportProvenance, TableReport
from amnesia_bench.reporting.analyses import read_analysis
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.cause_texts import causes_markdown
from amnesia_bench.reporting.causes import decide_causes
from amnesia_bench.reporting.claims import decide
from amnesia_bench.reporting.cost import cost_of_cells
from amnesia_bench.reporting.drift import read_drift
from amnesia_bench.reporting.figures import figures_of
from amnesia_bench.reporting.overview import overview_markdown
from amnesia_bench.reporting.page import page
from amnesia_bench.reporting.paths import portable
from amnesia_bench.reporting.sources import read_source
from amnesia_bench.reporting.table_slots import (
    FilledSlots,
    differing_settings,
    engine_notes,
    fill_slots,
    refuse_ambiguous,
    unused_cells,
    without_column,
)
from amnesia_bench.reporting.tables import build_table, build_trade_offs, heat_maps_of
from amnesia_bench.reporting.text_formats import csv_text, json_text, latex, table_markdown
from amnesia_bench.reporting.training_losses import training_losses
from amnesia_bench.requests.experiments import ReportRequest
from amnesia_bench.store.files import explaining_write_errors, make_folder, replace_text
from amnesia_bench.store.provenance import collect_provenance

OVERVIEW, REPORT = "report.md", "report.html"


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A report and the paths of its files; the last path is that of the HTML page."""

    report: Report
    files: tuple[Path, ...]


def report(request: ReportRequest, out: Path) -> WrittenReport:
    """Fill the paper's tables with cells, decide the paper's claims, and write the report.

    Each file is replaced atomically, the HTML page last, so readers never see a half-written file.

    Args:
        request: the tables, the folders of cells and the drift files.
        out: the folder to which the report is written.

    Raises:
        UserError: a table, folder or file is missing or damaged, two cells belong to the same slot,
            a cell may belong to several fine-tunes, or `out` or a parent of it is a file.
        StageFailedError, MissingEnvironmentError: the report cannot be written to `out`.
    """
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    built = _build(request, out, provenance)
    return WrittenReport(report=built, files=_write(built, out))


def _build(request: ReportRequest, out: Path, provenance: Provenance) -> Report:
    names = tuple(dict.fromkeys(request.tables))
    tables = {config_name(table): load_table(table, request.overrides) for table in names}
    if len(tables) < len(names):
        raise UserError(f"two tables have the same name: {', '.join(names)}")
    files = ArtifactFiles()
    sources = [read_source(source, out, files) for source in request.sources]
    entries = [entry for source_entries, _ in sources for entry in source_entries]
    refuse_ambiguous(entries, tables)
    analyses = [read_analysis(source, files) for source in request.analyses]
    slots = {name: fill_slots(entries, table) for name, table in tables.items()}
    unused = unused_cells(entries, list(slots.values()), tables)
    if entries and not any(slots.values()):
        raise UserError(
            f"no column of {', '.join(tables)} matches the {counted(len(entries), 'cell')} given",
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
        cost=cost_of_cells(entries),
        tables=tuple(_report_on(name, tables[name], slots[name]) for name in tables),
        drift=tuple(read_drift(source, out) for source in request.drift),
        notes=(
            *request.notes,
            *(note for _, notes in sources for note in notes),
            *unused,
            *without_column(entries, list(slots.values()), tables),
        ),
        causes=decide_causes(analyses, entries) if analyses else None,
    )


def _write(report: Report, out: Path) -> tuple[Path, ...]:
    files: dict[str, str] = {}
    for table_report in report.tables:
        name = table_report.table.name
        files |= {
            f"{name}.md": table_markdown(table_report, report),
            f"{name}.csv": csv_text(table_report.table),
            f"{name}.tex": latex(table_report.table),
            f"{name}.json": json_text(table_report, made=report.made),
        }
    if report.drift:
        files["drift.json"] = json_text(report.drift)
    if report.causes is not None:
        files["why.md"] = causes_markdown(report.causes)
        files["why.json"] = json_text(report.causes, made=report.made)
    files |= {f"{figure}.svg": standalone(drawn) for figure, drawn in figures_of(report).items()}
    files[OVERVIEW] = overview_markdown(report)
    files[REPORT] = page(report)
    with explaining_write_errors(out, "the files written before it are complete"):
        make_folder(out)
        for file, text in files.items():
            replace_text(out / file, text)
    return tuple(out / file for file in files)


def load_table(name: str, overrides: Sequence[str]) -> TableConfig:
    """Load a table config by its name in configs/report or by the path of its file.

    Raises:
        UserError: there is no such config, or it is not valid.
    """
    return load_option("report", name, overrides, TableConfig)


def _report_on(name: str, table: TableConfig, slots: FilledSlots) -> TableReport:
    return TableReport(
        table=build_table(name, table, slots),
        claims=_claims(table, slots),
        heat_maps=heat_maps_of(table, slots),
        trade_offs=build_trade_offs(table, slots),
        notes=(
            *table.notes,
            *training_losses(slots),
            *engine_notes(slots),
            *differing_settings(slots),
        ),
    )


def _claims(table: TableConfig, slots: FilledSlots) -> tuple[DecidedClaim, ...]:
    """Decide a table's claims.

    If the table stands for a table of the paper, `holds_in_paper` is decided on that table.
    """
    decided = decide(table, slots)
    if table.stands_for is None:
        return decided
    paper_claims = decide(load_table(table.stands_for, ()), {})
    paper = {claim.id: claim.holds_in_paper for claim in paper_claims}
    return tuple(replace(claim, holds_in_paper=paper.get(claim.id)) for claim in decided)
