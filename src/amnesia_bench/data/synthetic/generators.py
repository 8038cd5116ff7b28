"""The generators by name; each produces the same rows, byte for byte, on every machine."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.data.conversation import Row
from amnesia_bench.data.synthetic import instructions, problems, prose, questions

# Generators with a number of words as an argument, and generators without one.
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
    "facts": questions.fact,
    "choices": questions.choice,
}
# Generators that use the random stream of another one. Since the two instruction controls share a
# stream, their rows differ only in the order of their parts.
_STREAMS = {"long_instructions": "short_instructions"}


def synthetic_rows(source: SyntheticSource) -> Iterator[Row]:
    """Yield the rows of a source; row i depends only on the generator, the seed, `words` and i."""
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
    """Yield the rows of a source as JSON lines, in bytes."""
    for row in synthetic_rows(source):
        yield f"{json.dumps(row)}\n".encode()


def sha256_of_rows(source: SyntheticSource) -> str:
    """Return the sha256, in hex, of the file of JSON lines that the rows of a source form."""
    digest = hashlib.sha256()
    for line in lines(source):
        digest.update(line)
    return digest.hexdigest()
