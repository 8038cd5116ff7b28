"""The front door `analyze`: measure why recall is lost, and draw it (Figures 3, 4 and 7)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import assert_never

from amnesia_bench.analysis.measurements import (
    Analysis,
    MeasurementProgress,
    Silence,
    draw_maps,
    measure_autocorrelation,
    measure_distances,
    measure_divergence,
    measure_gradients,
)
from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.requests.analysis import (
    AnalyzeRequest,
    AttentionMaps,
    Autocorrelations,
    Distances,
    Divergence,
    Gradients,
)
from amnesia_bench.store.files import write_json
from amnesia_bench.store.layout import check_final
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing

KIND = "analysis"
_SILENCE = Silence()


def analyze(
    request: AnalyzeRequest, out: Path, *, progress: MeasurementProgress = _SILENCE
) -> Analysis:
    """Measure attention, gradients or texts, and write a folder of records and figures.

    Args:
        request: what to measure, on which checkpoints and texts.
        out: the folder to write: NAME.json per record, NAME.svg per figure.
        progress: shows lines of text, and the number of finished texts.

    Raises:
        UserError: an input is wrong, a model cannot be measured, or `out` exists; nothing is
            written.
        StageFailedError: gradients are not finite, or the disk is full.
    """
    check_final(out)
    if out.exists():
        raise UserError(f"{out}: already exists", hint="Choose another --out.")
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={"resampling": request.seed})
    measured = _measured(request, progress)
    with publishing(out) as work:
        for name, record in measured.records.items():
            write_json(work.folder / f"{name}.json", codec.to_json(record))
        for name, drawing in measured.figures.items():
            (work.folder / f"{name}.svg").write_text(drawing, encoding="utf-8")
        work.finish(KIND, dict.fromkeys(measured.parents), provenance)
    return measured


def _measured(request: AnalyzeRequest, progress: MeasurementProgress) -> Analysis:
    analysis, seed = request.analysis, request.seed
    match analysis:
        case Gradients():
            return measure_gradients(analysis, seed, progress)
        case Autocorrelations():
            return measure_autocorrelation(analysis, seed, progress)
        case Distances():
            return measure_distances(analysis, seed, progress)
        case AttentionMaps():
            return draw_maps(analysis, seed, progress)
        case Divergence():
            return measure_divergence(analysis, seed, progress)
        case _:
            assert_never(analysis)
