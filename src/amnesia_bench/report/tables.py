"""A table in the paper's layout: ours next to theirs, and each row against that after SFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.records.report import (
    CellStatus,
    Column,
    PairedTest,
    ReportedCell,
    ReportTable,
)
from amnesia_bench.report.places import Place, Placed
from amnesia_bench.report.published import published_value, remarks_on
from amnesia_bench.statistics import sign_flip_p_value

AFTER_SFT = "post"


def build_table(
    name: str, config: TableConfig, columns: Sequence[Column], places: Mapping[Place, Placed]
) -> ReportTable:
    """Lay out a table; every place is there, whether it was measured or not."""
    cells = tuple(
        _cell((model, method, column.key), config, places)
        for model in config.models
        for method in config.methods
        for column in columns
    )
    return ReportTable(
        name=name,
        title=config.title,
        models=config.models,
        methods=config.methods,
        columns=tuple(columns),
        cells=cells,
        remarks=remarks_on(config.published[0]) if config.published else (),
    )


def paired_test(first: Placed, second: Placed) -> PairedTest | None:
    """Compare two rows on the answers that both gave; None where there are none in common."""
    common = sorted(first.answers.keys() & second.answers.keys(), key=str)
    if not common or first.repeats != second.repeats:
        return None
    ours = [first.answers[key] for key in common]
    theirs = [second.answers[key] for key in common]
    return PairedTest(
        difference=(sum(ours) - sum(theirs)) / len(common),
        p_value=sign_flip_p_value(ours, theirs, first.repeats),
        n=len(common),
    )


def _cell(place: Place, config: TableConfig, places: Mapping[Place, Placed]) -> ReportedCell:
    model, method, column = place
    placed = places.get(place)
    theirs = published_value(config.published, model, method, column)
    value = None if placed is None else placed.value
    after_sft = places.get((model, AFTER_SFT, column))
    compared = placed is not None and after_sft is not None and method != AFTER_SFT
    return ReportedCell(
        model=model,
        method=method,
        column=column,
        status=_status(placed),
        reason=None if placed is None else placed.incomplete,
        value=value,
        interval=None if placed is None else placed.interval,
        n=0 if placed is None else placed.n,
        repeats=1 if placed is None else placed.repeats,
        by_seed={} if placed is None else placed.by_seed,
        theirs=theirs,
        difference=None if value is None or theirs is None else value - theirs,
        against_post=paired_test(placed, after_sft) if compared and placed and after_sft else None,
        origins=() if placed is None else tuple(found.origin for found in placed.cells),
    )


def _status(placed: Placed | None) -> CellStatus:
    if placed is None:
        return CellStatus.MISSING
    return CellStatus.DONE if placed.incomplete is None else CellStatus.INCOMPLETE
