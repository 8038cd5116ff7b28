"""Standard input and output of a program that runs as a script: two files in memory, no pipes.

So a program may read its input in any way that Python has, seek in it, ask for its size or map it,
and the grader need not read along while the program prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class ScriptFiles:
    """Descriptors: the program's two ends, the input for bwrap to copy, and what was printed."""

    programs: tuple[int, int]
    copied: int
    printed: int


@contextmanager
def script_files(text: str) -> Iterator[ScriptFiles]:
    """Make the files; the program can only read the one and only write the other."""
    opened: list[int] = []

    def again(descriptor: int, flags: int) -> int:
        # A position of its own, and not the rights of the first.
        opened.append(os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC))
        return opened[-1]

    try:
        for name in ("stdin", "stdout"):
            opened.append(os.memfd_create(name))
        source, printed = opened
        view = memoryview(text.encode("utf-8", "surrogatepass"))
        while view:
            view = view[os.write(source, view) :]
        programs = again(source, os.O_RDONLY), again(printed, os.O_WRONLY | os.O_APPEND)
        yield ScriptFiles(programs, again(source, os.O_RDONLY), printed)
    finally:
        for descriptor in opened:
            os.close(descriptor)
