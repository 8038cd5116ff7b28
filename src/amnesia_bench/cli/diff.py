"""Compare two checkpoints tensor by tensor, and print the drift of each layer and role.

  amnesia diff PRE POST            drift caused by a fine-tune
  amnesia diff POST RESTORED       changes made by a restore

Drift is |B - A| / |A| in the Frobenius norm. Tensors are paired by their position in the model, so
a name prefix in only one checkpoint (`model.language_model.`, `_orig_mod.`) does not count as
a difference. A projection with several roles (q and gate, or q, k and v) has one table row for each
role.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import percent, print_json, say, show, table
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.printable import counted
from amnesia_bench.records.difference import CheckpointDifference, TensorDifference
from amnesia_bench.requests.checkpoints import DiffRequest
from amnesia_bench.weights.names import grouped_names

# Maximum number of tensors without a role to list; the others are summarized in one row.
NAMED_TENSORS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="folder of the first checkpoint")
    parser.add_argument("b", type=Path, metavar="B", help="folder of the second checkpoint")
    parser.add_argument("--json", action="store_true", help="print every tensor, as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    difference = amnesia_bench.diff(make(DiffRequest, {"a": "A", "b": "B"}, a=args.a, b=args.b))
    if args.json:
        print_json(difference)
    else:
        _print(difference)
    return ExitCode.DONE


def _print(difference: CheckpointDifference) -> None:
    _print_softmax_layers(difference)
    others = [d for d in difference.different if d.role is None]
    if others:
        grid = table("other tensors, largest drift first", ("tensor", "values changed", "drift"))
        ranked = sorted(others, key=lambda d: -(d.relative_drift or math.inf))
        for d in ranked[:NAMED_TENSORS]:
            grid.add_row(d.name, _changed([d]), percent(d.relative_drift))
        if len(ranked) > NAMED_TENSORS:
            rest = ranked[NAMED_TENSORS:]
            grid.add_row(f"({len(rest)} more)", _changed(rest), percent(_drift(rest)))
        show(grid)
    for folder, names in (
        (difference.a, difference.only_in_a),
        (difference.b, difference.only_in_b),
    ):
        if names:
            say(f"only in {folder}: {grouped_names(names)}")
    if difference.renamed:
        say(
            f"{difference.renamed} tensors have another name in B; they were paired by their "
            "position in the model."
        )
    if difference.family is None:
        say("This architecture is not in the attention table: tensors are listed without roles.")
    differing = len({d.name for d in difference.different})
    say(
        f"{counted(differing, 'tensor')} {'differs' if differing == 1 else 'differ'}, "
        f"{difference.identical} are identical byte for byte."
    )


def _print_softmax_layers(difference: CheckpointDifference) -> None:
    groups: dict[tuple[int | None, str], list[TensorDifference]] = {}
    for d in difference.different:
        if d.role is not None:
            groups.setdefault((d.layer, d.role), []).append(d)
    if groups:
        grid = table(
            f"softmax layers of {difference.family}: |B - A| / |A|",
            ("layer", "role", "tensors", "values changed", "drift"),
            left=2,
        )
        for (layer, role), group in groups.items():
            cells = (str(layer), role, str(len(group)))
            grid.add_row(*cells, _changed(group), percent(_drift(group)))
        show(grid)


def _changed(group: Iterable[TensorDifference]) -> str:
    counts = [(d.changed_values, d.values) for d in group]
    if any(changed is None for changed, _ in counts):
        return "shape or dtype"
    changed, values = (sum(n or 0 for n in column) for column in zip(*counts, strict=True))
    return f"{changed:,} of {values:,}"


def _drift(group: Iterable[TensorDifference]) -> float | None:
    """Return the drift of the concatenation of several tensors; None if one has no drift."""
    norms = [(d.norm_b_minus_a, d.norm_a) for d in group]
    if any(change is None for change, _ in norms):
        return None
    change, scale = (math.hypot(*(n or 0.0 for n in column)) for column in zip(*norms, strict=True))
    return change / scale if scale else math.inf
