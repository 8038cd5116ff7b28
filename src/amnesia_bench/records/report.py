"""The content of a report: the cells of tables next to the paper's values, and the claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.recall import HeatMap


class CellStatus(StrEnum):
    """Whether a cell of a table has its value."""

    DONE = "done"
    INCOMPLETE = "incomplete"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of one measured value.

    `stage` is the published folder, `path` its manifest and `manifest_sha256` the manifest's hash.
    For a cell outside a published folder, `path` is the file of the cell, without a hash. `commit`
    is that of its own manifest; `dirty` names every manifest, its own or a parent's, whose code had
    uncommitted changes. Paths are relative, as written by `reporting.paths`.
    """

    seed: str | None
    path: str
    manifest_sha256: str | None
    stage: str
    commit: str | None
    dirty: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A method minus the row after its SFT, on the `n` prompts or problems that both answered.

    `p_value` is that of the two-sided exact sign-flip test, which is McNemar's test for binary
    values if no two seeds share a prompt. `prompts` counts each prompt once, even if several seeds
    share it.
    """

    difference: float
    p_value: float
    n: int
    prompts: int


@dataclass(frozen=True, kw_only=True)
class ReportedCell:
    """One cell of a table.

    Values are fractions; `theirs` is the value of the paper, `difference` ours minus that. `reason`
    explains why an incomplete cell has no value. With several seeds, `value` is their mean,
    weighted by n, and `by_seed` has the value of each; `n` counts the answers of all seeds,
    `prompts` the distinct prompts.
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
        """Whether our interval contains the paper's value."""
        if self.theirs is None or self.interval is None:
            return None
        return self.interval.low <= self.theirs <= self.interval.high


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: key, group heading, label, and its context length if any."""

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

    `methods` without `@` in their key are rows after the fine-tune `sft`.
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


class ClaimVerdict(StrEnum):
    """The verdict on an inequality: its 95 % interval is above, below or across the bound."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A claim for one model in one column.

    `estimate` must be above the bound of the claim; it is None if cells are missing, which
    `missing` lists. `paired`: the answers were compared pairwise, not only the cells; then
    `by_seed` has the estimate of each seed. `theirs` is the estimate from the paper's values.
    """

    model: str
    column: str
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    prompts: int
    by_seed: Mapping[str, float]
    paired: bool
    missing: tuple[str, ...]
    verdict: ClaimVerdict
    theirs: float | None


@dataclass(frozen=True, kw_only=True)
class DecidedClaim:
    """A claim, its verdict from the measured values, and whether it holds in the paper.

    `holds_in_paper` is None if the paper has no value for it.
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
        """Whether the point values in the paper satisfy the claim; "-" for aims of this project."""
        if self.aim or self.holds_in_paper is None:
            return "-"
        return "hold" if self.holds_in_paper else "do not hold"


@dataclass(frozen=True, kw_only=True)
class LayerDrift:
    """How far one role's weights moved in one layer: |b - a| / |a|, Frobenius."""

    layer: int
    role: str
    drift: float


@dataclass(frozen=True, kw_only=True)
class DriftCurve:
    """The drift of a fine-tune by layer, and the file from which it was read."""

    label: str
    source: str
    layers: tuple[LayerDrift, ...]


@dataclass(frozen=True, kw_only=True)
class TaskHeatMap:
    """Recall of one row of a table by depth and length, on one task; `map.role` is the method."""

    model: str
    task: str
    map: HeatMap


@dataclass(frozen=True, kw_only=True)
class TradeOffPoint:
    """One row of a table as a point: its recall and its reasoning score, with intervals."""

    row: str
    label: str
    recall: ReportedCell
    score: ReportedCell


@dataclass(frozen=True, kw_only=True)
class TradeOffCurve:
    """Recall against reasoning of one model; each of `lines` lists the rows that it connects."""

    model: str
    recall: Column
    score: Column
    points: tuple[TradeOffPoint, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """A table, the claims that depend on it, the data of its figures, and notes on its cells."""

    table: ReportTable
    claims: tuple[DecidedClaim, ...]
    heat_maps: tuple[TaskHeatMap, ...]
    trade_offs: tuple[TradeOffCurve, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReportProvenance:
    """The code version and command that wrote a report, and the time (UTC)."""

    tool_version: str
    command: tuple[str, ...]
    commit: str | None
    dirty: bool | None
    created: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Tables, weight drift, and notes on unusable inputs with the reasons."""

    made: ReportProvenance
    tables: tuple[TableReport, ...]
    drift: tuple[DriftCurve, ...]
    notes: tuple[str, ...]
