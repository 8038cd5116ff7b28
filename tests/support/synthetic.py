"""Rows of the generators, for tests of generated data."""

from __future__ import annotations

import json
from typing import Any

from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.data.synthetic.generators import SIZED, synthetic_rows


def source_of(generator: str, rows: int, *, words: int = 120, seed: int = 0) -> SyntheticSource:
    values = {"generator": generator, "rows": rows, "seed": seed}
    return SyntheticSource.model_validate(values | {"words": words if generator in SIZED else None})


def rows_of(generator: str, rows: int, *, words: int = 120, seed: int = 0) -> list[Any]:
    source = source_of(generator, rows, words=words, seed=seed)
    return [json.loads(json.dumps(row)) for row in synthetic_rows(source)]
