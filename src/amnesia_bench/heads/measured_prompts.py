"""Store what was measured on each prompt next to the output, so that a killed ranking resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from amnesia_bench.analysis.retrieval_heads import CopiedTokens
from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.head_ranking import HeadRanking
from amnesia_bench.store.files import explaining_write_errors, make_folder, replace_text
from amnesia_bench.store.lease import Lease, holding_lease
from amnesia_bench.store.sealed_json import seal, sealed_text, unseal


class MeasuredPrompts:
    """The measurements of prompts by index, in a file of sealed lines; its first line is the plan.

    A line that does not match its checksum, as the last one of a killed process, counts as missing.

    Args:
        path: the file; None stores nothing.
        plan: the record of the ranking, with empty `heads`.

    Raises:
        UserError: the file belongs to another ranking.
    """

    def __init__(self, path: Path | None, plan: HeadRanking) -> None:
        self._path = path
        self._rows: dict[int, Any] = {}
        if path is None:
            return
        first, *others = [seal({"plan": codec.to_json(plan)}), *_intact_lines(path)]
        if others and others[0] != first:
            raise UserError(
                f"{path}: holds measurements of another ranking: another checkpoint, other prompts "
                "or another fine-tune",
                hint="Remove the file, or choose another --out.",
            )
        rows = others[1:]
        self._rows = {row["prompt"]: row for row in map(unseal, rows)}
        replace_text(path, "".join(f"{line}\n" for line in (first, *rows)))

    def of(self, prompt: int, measure: Callable[[int], CopiedTokens]) -> CopiedTokens:
        """Return the measurement of a prompt; `measure` is called if it is not in the file."""
        if prompt not in self._rows:
            copied = measure(prompt)
            self._rows[prompt] = {
                "prompt": prompt,
                "copyable": copied.copyable,
                "recalled": copied.recalled,
                "layers": [[layer, counts.tolist()] for layer, counts in copied.by_layer.items()],
            }
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(f"{seal(self._rows[prompt])}\n")
        row = self._rows[prompt]
        return CopiedTokens(
            by_layer={layer: np.array(counts) for layer, counts in row["layers"]},
            copyable=row["copyable"],
            recalled=row["recalled"],
        )


@contextmanager
def ranking_file(
    out: Path | None, plan: HeadRanking
) -> Iterator[tuple[MeasuredPrompts, Callable[[HeadRanking], None]]]:
    """Hold the lease of a ranking's file; provide its measurements, and a function to write it.

    If `out` is None, nothing is stored or written.

    Raises:
        UserError: the measurements next to `out` belong to another ranking.
        BusyError: another process is writing the ranking.
        StageFailedError: the disk is full; finished prompts are kept.
    """
    if out is None:
        yield MeasuredPrompts(None, plan), lambda _: None
        return
    path = out.with_name(f".{out.name}.measured")
    with explaining_write_errors(out, "finished prompts are kept"):
        make_folder(out.parent)
        with holding_lease(out) as lease:
            yield MeasuredPrompts(path, plan), lambda ranking: _finish(ranking, out, path, lease)


def _finish(ranking: HeadRanking, out: Path, path: Path, lease: Lease) -> None:
    lease.check()
    replace_text(out, sealed_text(codec.to_json(ranking)))
    path.unlink()


def _intact_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            unseal(line)
        except ValueError:
            continue
        lines.append(line)
    return lines
