"""Write the output folder of an analysis: records as JSON files, and figures as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent, Provenance
from amnesia_bench.store.files import write_json
from amnesia_bench.store.publish import publishing

KIND = "analysis"


def write_analysis(
    out: Path,
    records: Mapping[str, object],
    figures: Mapping[str, str],
    parents: Sequence[Parent],
    provenance: Provenance,
) -> None:
    """Write the folder `out` atomically: NAME.json per record, and NAME.svg per figure.

    Raises:
        UserError: `out` exists.
    """
    with publishing(out) as work:
        for name, record in records.items():
            write_json(work.folder / f"{name}.json", codec.to_json(record))
        for name, drawing in figures.items():
            (work.folder / f"{name}.svg").write_text(drawing, encoding="utf-8")
        work.finish(KIND, dict.fromkeys(parents), provenance)
