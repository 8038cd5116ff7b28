"""Read and write problems.jsonl, the metric values of each problem.

The cells in the same folder record the hash of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.reasoning import ProblemValues
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.json_rows import read_records

PROBLEMS = "problems.jsonl"
_ROLE = "problem_values"
_HINT = "Score the answers again: amnesia score DIR."


def problems_text(problems: Sequence[ProblemValues]) -> str:
    """Return the content of problems.jsonl for these values, one line per problem."""
    return "".join(json.dumps(codec.to_json(p), allow_nan=False) + "\n" for p in problems)


def problems_parent(text: str) -> Parent:
    """Return the parent record with which cells refer to a problems.jsonl with this content."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Parent(role=_ROLE, location=PROBLEMS, identity=f"sha256:{digest}")


def read_problems(folder: Path, cells: Sequence[Cell]) -> tuple[ProblemValues, ...]:
    """Read the metric values of each problem from `folder`, which also contains their `cells`.

    Raises:
        UserError: the file is missing, or its hash is not the one that the cells record.
        MissingEnvironmentError: the file cannot be read.
    """
    path = folder / PROBLEMS
    problems = tuple(read_records(ProblemValues, path, _HINT))
    if not check_problems(path, cells):
        raise UserError(f"{path}: its cells do not record its hash", hint=_HINT)
    return problems


def check_problems(path: Path, cells: Sequence[Cell]) -> bool:
    """Return whether the cells record a hash of the file; cells of old versions do not.

    Raises:
        UserError: the recorded hash is not that of the file.
    """
    identities = {p.identity for cell in cells for p in cell.parents if p.role == _ROLE}
    if identities and identities != {f"sha256:{sha256_of(path)}"}:
        raise UserError(f"{path}: was changed since its cells were written", hint=_HINT)
    return bool(identities)
