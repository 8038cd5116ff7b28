"""The content of a report: measured cells with the paper's values, claims, and data of figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from amnesia_bench.records.causes import Causes
from amnesia_bench.records.claim_verdict import ClaimVerdict as ClaimVerdict
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.recall import HeatMap


class CellStatus(StrEnum):
    """Whether a cell of a table has a value, is incomplete, or was not measured."""

    DONE = "done"
    INCOMPLETE = "incomplete"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of one measured value.

    `stage` is the name of the artifact's folder, `path` the path of its manifest, and
    `manifest_sha256` the manifest's hash. For a cell outside a finished artifact, `path` is the
    file with the cell, and there is no hash. `commit` is the commit in the artifact's own manifest.
    `dirty` lists the manifests, of the artifact and of all its ancestors, that were written by code
    with uncommitted changes. Paths are relative, as written by `reporting.paths`.
    """

    seed: str | None
    path: str
    manifest_sha256: str | None
    stage: str
    commit: str | None
    dirty: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A test of one row of a table against the `post` row of its fine-tune.

    It covers the prompts or problems that both answered: `n` counts each once per seed, and
    `prompts` counts it once. `difference` is the mean of the row minus that of the `post` row.
    `p_value` is that of the two-sided exact sign-flip test of the differences: of those of the
    seeds if there are several, else of those of the prompts, which for values 0 and 1 is McNemar's
    exact test. `seeds` is the number of seeds that both rows have, at least 1.
    """

    difference: float
    p_value: float
    n: int
    prompts: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class ReportedCell:
    """One cell of a table.

    Values are fractions. `theirs` is the paper's value, and `difference` is `value` minus `theirs`.
    `reason` explains why an incomplete cell has no value. With several seeds, `value` is the mean
    over the seeds, and `by_seed` has the value of each seed. `n` counts a prompt once per seed,
    `prompts` counts it once.
    """

    model: str
    method: str
    column: str
    status: CellStatus
    reason: str | None
    value: float | None
    interval: Interval | None
    n: int
    prompts: int
    repeats: int
    by_seed: Mapping[str, float]
    theirs: float | None
    difference: float | None
    against_post: PairedTest | None
    origins: tuple[Origin, ...]

    @property
    def dirty(self) -> bool:
        """Whether the value depends on code with uncommitted changes."""
        return any(origin.dirty for origin in self.origins)

    @property
    def theirs_inside(self) -> bool | None:
        """Whether our interval contains the paper's value; None if one of them is missing."""
        if self.theirs is None or self.interval is None:
            return None
        return self.interval.low <= self.theirs <= self.interval.high


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: its key, group heading and label, and which cells it shows."""

    key: str
    group: str
    label: str
    task: str
    metric: str
    scorer: str | None
    context_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table in the layout of the paper; `cells` are ordered by model, method and column.

    `methods` maps the key of each row, `METHOD` or `METHOD@SFT`, to its label. A row without `@SFT`
    belongs to the fine-tune `sft`.
    """

    name: str
    title: str
    sft: str
    models: tuple[str, ...]
    methods: Mapping[str, str]
    columns: tuple[Column, ...]
    cells: tuple[ReportedCell, ...]
    remarks: tuple[str, ...]

    def cell(self, model: str, method: str, column: str) -> ReportedCell:
        """Return the cell of a model, method and column."""
        return next(
            cell
            for cell in self.cells
            if (cell.model, cell.method, cell.column) == (model, method, column)
        )


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A claim for one model in one column.

    The claim is that `estimate` is above the bound of the claim. `low` and `high` are its 95 %
    interval. `estimate` is None if cells are missing; `missing` lists them. `paired` is true if
    individual answers were compared, not only cells. `by_seed` has the estimate of each seed.
    `p_value` is that of the exact sign-flip test over seeds, against the bound; None if there are
    not several seeds. `theirs` is the estimate from the paper's values.
    """

    model: str
    column: str
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    prompts: int
    by_seed: Mapping[str, float]
    p_value: float | None
    paired: bool
    missing: tuple[str, ...]
    verdict: ClaimVerdict
    theirs: float | None


@dataclass(frozen=True, kw_only=True)
class DecidedClaim:
    """A claim, the verdict of the measured values on it, and whether the paper's values satisfy it.

    `holds_in_paper` is None if the paper has no values for the claim. `aim` is true if the claim is
    an aim of this project instead of a claim of the paper.
    """

    id: str
    text: str
    place: str
    formula: str
    above: float
    aim: bool
    verdict: ClaimVerdict
    holds_in_paper: bool | None
    conditions: tuple[Condition, ...]

    @property
    def in_paper(self) -> str:
        """Whether the paper's values satisfy the claim, as a text for tables.

        It is "-" for aims of this project, and for claims without values in the paper.
        """
        if self.aim or self.holds_in_paper is None:
            return "-"
        return "hold" if self.holds_in_paper else "do not hold"


@dataclass(frozen=True, kw_only=True)
class LayerDrift:
    """The drift of one role's weights in one layer: |b - a| / |a| in Frobenius norms."""

    layer: int
    role: str
    drift: float


@dataclass(frozen=True, kw_only=True)
class DriftCurve:
    """The weight drift of a fine-tune by layer; `source` is the file from which it was read."""

    label: str
    source: str
    layers: tuple[LayerDrift, ...]


@dataclass(frozen=True, kw_only=True)
class TaskHeatMap:
    """The heat map of one row of a table on one task; `map.role` is the method of the row."""

    model: str
    task: str
    map: HeatMap


@dataclass(frozen=True, kw_only=True)
class TradeOffPoint:
    """The point of one table row in a plot of reasoning score against recall.

    A point without a label has an empty one.
    """

    row: str
    label: str
    recall: ReportedCell
    score: ReportedCell


@dataclass(frozen=True, kw_only=True)
class TradeOffCurve:
    """The trade-off of one model between recall and reasoning, as a plot of table rows.

    Each item of `lines` lists the rows that a line connects.
    """

    model: str
    recall: Column
    score: Column
    points: tuple[TradeOffPoint, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """A table, the claims about its cells, the data of its figures, and notes on its cells."""

    table: ReportTable
    claims: tuple[DecidedClaim, ...]
    heat_maps: tuple[TaskHeatMap, ...]
    trade_offs: tuple[TradeOffCurve, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReportProvenance:
    """The version of the code and the command that wrote a report, and the UTC time."""

    tool_version: str
    command: tuple[str, ...]
    commit: str | None
    dirty: bool | None
    created: str


@dataclass(frozen=True, kw_only=True)
class ReportCost:
    """The cost of a report's cells: of their artifacts and the artifacts that these were made from.

    `artifacts` is the number of those whose manifests are on this machine, `seconds` the sum of
    their run times. Of an evaluation that was resumed, only the last process counts. `machines`
    lists the machines on which they were made.
    """

    artifacts: int
    seconds: float
    machines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report: its tables, weight drift curves, and notes on why some inputs are unusable.

    `causes` has the analyses of why recall is lost; None without analyses.
    """

    made: ReportProvenance
    cost: ReportCost
    tables: tuple[TableReport, ...]
    drift: tuple[DriftCurve, ...]
    notes: tuple[str, ...]
    causes: Causes | None = None
