"""What a report holds: the cells of a table next to the paper's, and the claims they decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.recall import HeatMap


class CellStatus(StrEnum):
    """Whether a place in a table has its number."""

    DONE = "done"
    INCOMPLETE = "incomplete"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where one measured number comes from.

    `stage` is the folder that was published and `path` its manifest, with the sha256 of that; of
    a cell that nothing published `path` is its own file, and there is no hash. `dirty` names every
    manifest, its own or a parent's, whose code had uncommitted changes; `commit` is that of its
    own. Paths are as `report.paths` writes them.
    """

    seed: str | None
    path: str
    manifest_sha256: str | None
    stage: str
    commit: str | None
    dirty: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A method less the row after its SFT, on the `n` prompts or problems that both answered.

    `p_value` is two-sided, of the exact sign-flip test: McNemar's where answers are right or
    wrong and no two seeds share a prompt. `prompts` counts each once, whatever seeds share it.
    """

    difference: float
    p_value: float
    n: int
    prompts: int


@dataclass(frozen=True, kw_only=True)
class ReportedCell:
    """One place in a table.

    Values are fractions; `theirs` is the paper's, `difference` ours less theirs. `reason` says
    why an incomplete cell has no value. With several seeds `value` is their mean, weighted by n,
    and `by_seed` holds each; `n` counts all their answers, `prompts` those that differ.
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
        """Whether code with uncommitted changes had a part in it."""
        return any(origin.dirty for origin in self.origins)

    @property
    def theirs_inside(self) -> bool | None:
        """Whether the paper's value lies in our interval."""
        if self.theirs is None or self.interval is None:
            return None
        return self.interval.low <= self.theirs <= self.interval.high


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its key, the heading it stands under, and its own; the length in tokens if any."""

    key: str
    group: str
    label: str
    task: str
    metric: str
    scorer: str | None
    context_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table in the paper's layout; `cells` by model, then method, then column.

    Of `methods` those without `@` are after the fine-tune `sft`.
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
        """Return the cell of a place."""
        return next(
            cell
            for cell in self.cells
            if (cell.model, cell.method, cell.column) == (model, method, column)
        )


class ClaimVerdict(StrEnum):
    """What the numbers say about an inequality: its 95 % interval lies above, below, or across."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A claim for one model in one column.

    `estimate` is what must be above the claim's bound; None where a cell is missing, then
    `missing` names it. `paired` says whether the answers themselves were compared, or only cells;
    if so `by_seed` holds the estimate of each seed. `theirs` is that of the paper's numbers.
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
    """A claim and what the measured numbers, and the paper's own, say about it.

    `holds_in_paper` is None when the paper lacks a number for it.
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
        """Whether the numbers that the paper prints show it, as point values; "-" of our aims."""
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
    """The drift of a fine-tune by layer, and the file that it was read from."""

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
    """One row of a table as a point: its recall and its reasoning, with their intervals."""

    row: str
    label: str
    recall: ReportedCell
    score: ReportedCell


@dataclass(frozen=True, kw_only=True)
class TradeOffCurve:
    """Recall against reasoning of one model; each of `lines` names the rows that it joins."""

    model: str
    recall: Column
    score: Column
    points: tuple[TradeOffPoint, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """A table, the claims that it decides, the data of its figures, and notes on its cells."""

    table: ReportTable
    claims: tuple[DecidedClaim, ...]
    heat_maps: tuple[TaskHeatMap, ...]
    trade_offs: tuple[TradeOffCurve, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReportProvenance:
    """Which code wrote a report, by which command, and when (UTC)."""

    tool_version: str
    command: tuple[str, ...]
    commit: str | None
    dirty: bool | None
    created: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Tables, the drift of weights, and what was given and could not be used, and why."""

    made: ReportProvenance
    tables: tuple[TableReport, ...]
    drift: tuple[DriftCurve, ...]
    notes: tuple[str, ...]
