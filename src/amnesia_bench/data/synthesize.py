"""Write synthetic rows, or a tokenizer for such rows, to a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from amnesia_bench.data.synthetic.generators import lines
from amnesia_bench.data.synthetic.tokenizer import write_tokenizer
from amnesia_bench.requests.data import SynthesizeRowsRequest, SynthesizeTokenizerRequest
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing

ROWS = "rows.jsonl"


def synthesize_rows(request: SynthesizeRowsRequest, out: Path) -> None:
    """Write the rows of a synthetic source to `out`/rows.jsonl, atomically.

    Raises:
        UserError: `out` exists.
        StageFailedError: the disk is full.
    """

    def write(folder: Path) -> None:
        with (folder / ROWS).open("wb") as file:
            file.writelines(lines(request.source))

    _publish("rows", request.source.seed, write, out)


def synthesize_tokenizer(request: SynthesizeTokenizerRequest, out: Path) -> None:
    """Train a tokenizer for synthetic texts and write it to `out`, atomically.

    Raises:
        UserError: `out` exists.
        MissingEnvironmentError: transformers is not installed.
    """
    seed = request.seed
    _publish("tokenizer", seed, lambda folder: write_tokenizer(folder, seed), out)


def _publish(kind: str, seed: int, write: Callable[[Path], None], out: Path) -> None:
    provenance = collect_provenance(sys.argv, seeds={"rows": seed})
    with publishing(out) as work:
        write(work.folder)
        work.finish(kind, (), provenance)
