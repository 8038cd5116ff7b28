"""The generators by name; their rows are the same bytes on every machine."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.data.conversation import Row
from amnesia_bench.data.synthetic import instructions, problems, prose

# Generators that take a number of words.
SIZED: Mapping[str, Callable[[np.random.Generator, int], Row]] = {
    "prose": prose.document,
    "haystack": prose.haystack,
    "mathematics": problems.mathematics,
    "short_instructions": instructions.short_range,
    "long_instructions": instructions.long_range,
}
UNSIZED: Mapping[str, Callable[[np.random.Generator], Row]] = {
    "copies": prose.copies,
    "varied_copies": prose.varied_copies,
    "word_problems": problems.word_problem,
    "conversations": problems.draw_conversation,
    "programs": problems.program,
    "test_problems": problems.test_problem,
}
# Both controls share a random stream, so their rows differ only in the order of their parts.
_STREAMS = {"long_instructions": "short_instructions"}


def synthetic_rows(source: SyntheticSource) -> Iterator[Row]:
    """Yield the rows of a source. Row i depends only on generator, seed, words and i."""
    name = source.generator
    stream = zlib.crc32(_STREAMS.get(name, name).encode())
    for i in range(source.rows):
        rng = np.random.default_rng([source.seed, stream, i])
        if name in SIZED:
            assert source.words is not None
            yield SIZED[name](rng, source.words)
        else:
            yield UNSIZED[name](rng)


def lines(source: SyntheticSource) -> Iterator[bytes]:
    """Yield the rows as lines of JSON."""
    for row in synthetic_rows(source):
        yield f"{json.dumps(row)}\n".encode()


def sha256_of_rows(source: SyntheticSource) -> str:
    """Return the sha256, in hex, of the rows as a file of JSON lines."""
    digest = hashlib.sha256()
    for line in lines(source):
        digest.update(line)
    return digest.hexdigest()
