"""Note how well each fine-tune learned its data: a row after one that did not shows only damage."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from amnesia_bench.records.ids import AFTER_SFT
from amnesia_bench.reporting.sources import CellEntry
from amnesia_bench.reporting.table_slots import FilledSlots

_METRICS = "metrics.jsonl"  # `training.recorder` writes one line per step
_LAST = 10  # the loss at the end is the mean over this share of the steps: the last tenth


def training_losses(slots: FilledSlots) -> tuple[str, ...]:
    """Return a note with the training loss at the end of each fine-tune of a table.

    The result is empty if no fine-tune's artifact is on this machine.
    """
    losses: defaultdict[tuple[str, str], dict[str | None, float]] = defaultdict(dict)
    for (model, row, _), slot in slots.items():
        for entry in slot.cells if row.partition("@")[0] == AFTER_SFT else ():
            if entry.seed not in losses[model, row] and (path := _metrics_of(entry)) is not None:
                losses[model, row][entry.seed] = _final_loss(path)
    texts = [
        f"{model} {row} {_format_losses(list(by_seed.values()))}"
        for (model, row), by_seed in losses.items()
        if by_seed
    ]
    if not texts:
        return ()
    return (f"Training loss over the last tenth of the fine-tune: {'; '.join(texts)}",)


def _metrics_of(entry: CellEntry) -> Path | None:
    """Return the file with the losses of the checkpoint that a cell measured; None if unknown."""
    # The checkpoint itself comes before those that it was trained from.
    trained = (folder for folder, made in entry.ancestry.items() if made.kind == "trained")
    if (folder := next(trained, None)) is None or not (folder / _METRICS).is_file():
        return None
    entry.files.check_hash(folder / _METRICS, folder)
    return folder / _METRICS


def _final_loss(path: Path) -> float:
    losses = [json.loads(line)["loss"] for line in path.read_text(encoding="utf-8").splitlines()]
    last = losses[-max(1, len(losses) // _LAST) :]
    return float(sum(last) / len(last))


def _format_losses(losses: list[float]) -> str:
    mean = f"{sum(losses) / len(losses):.3f}"
    if len(losses) == 1:
        return mean
    return f"{mean} ({min(losses):.3f} to {max(losses):.3f} in {len(losses)} seeds)"
