"""Write and read `run.json`: the settings that the answers to a reasoning benchmark depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.inference.generation import RUN, read_run_record
from amnesia_bench.records import codec
from amnesia_bench.records.reasoning import ReasoningRun


def run_identity(run: ReasoningRun) -> dict[str, str]:
    """Convert a run to the flat mapping of strings that `run.json` stores."""
    flat = codec.to_json(run)
    if run.checker is None:
        del flat["checker"]  # matches records written before the checker became a setting
    return {n: v if isinstance(v, str) else json.dumps(v) for n, v in flat.items()}


def read_run(folder: Path) -> tuple[ReasoningRun, Mapping[str, str]]:
    """Read the settings that the answers in a folder depend on.

    Returns:
        The run, and the settings of the inference engine.

    Raises:
        UserError: the record is missing, or does not belong to a reasoning task.
    """
    path = folder / RUN
    if not path.is_file():
        raise UserError(
            f"{folder}: {RUN} is missing", hint="Pass a folder that `amnesia generate` wrote."
        )
    raw = read_run_record(folder).depends
    hints = {field.name: str(field.type) for field in fields(ReasoningRun)}
    flat = {n: _value(v, hints[n], f"{path}: {n}") for n, v in raw.items() if n in hints}
    engine = {name: value for name, value in raw.items() if name not in hints}
    return codec.from_json(ReasoningRun, {"checker": None, **flat}, str(path)), engine


def _value(text: str, hint: str, where: str) -> Any:
    if hint == "str" or (hint == "str | None" and text != "null"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: expected {hint}, got {text!r:.60}") from error
