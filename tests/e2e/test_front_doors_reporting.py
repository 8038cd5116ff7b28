"""A report made from Python is the one that the command writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.requests.experiments import LabelledCells, ReportRequest
from tests.support.report_cells import METHODS, tiny_overrides, write_all


def without_making(path: Path) -> Any:
    """Return what a file holds, but for when and by which command it was made."""
    data = json.loads(path.read_text())
    del data["made"]
    return data


def test_python_and_the_command_write_the_same_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = write_all(tmp_path / "cells")
    sources = [
        LabelledCells(folder=tmp_path / "cells" / folder, model="tiny", method=method)
        for method in METHODS
        for folder in (method, f"{method}_scores")
    ]
    request = ReportRequest(
        tables=("table1",), sources=tuple(sources), overrides=tuple(tiny_overrides())
    )
    written = ab.report(request, tmp_path / "python")
    cells = [part for text in labelled for part in ("--cells", text)]
    command = ["report", "--table", "table1", "--out", str(tmp_path / "command"), *cells]
    assert main([*command, *tiny_overrides()]) == 0

    names = sorted(path.name for path in written.files)
    assert names == sorted(path.name for path in (tmp_path / "command").iterdir())
    for name in names:
        ours, theirs = tmp_path / "python" / name, tmp_path / "command" / name
        if name.endswith((".csv", ".tex", ".svg")):
            assert ours.read_bytes() == theirs.read_bytes(), name
        elif name.endswith(".json"):
            assert without_making(ours) == without_making(theirs)
    assert written.files[-1] == tmp_path / "python" / "report.html"
    (table,) = written.report.tables
    values = {cell.column: cell.value for cell in table.table.cells if cell.method == "pre"}
    assert values["niah_single_1@1024"] == 1.0
    assert "table1: 30 of 36 cells measured" in capsys.readouterr().out
