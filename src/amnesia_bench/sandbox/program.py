"""The interpreter and limits of a program, and the standard input and output files of a script."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError

MIB = 1 << 20
NOBODY = 65534  # uid and gid under which programs run if the launcher is root
_SHARED_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib64")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Hard limits of one program; the kernel enforces all except the time and output limits.

    `seconds_per_test` limits CPU time, since a verdict must not depend on how busy the machine is;
    programs that sleep or wait are stopped after `wall_factor` times as much wall-clock time.
    `memory_bytes` limits the address space (RLIMIT_AS). `threads` includes the main thread and
    bwrap's thread; a program cannot start processes. `file_bytes` is the maximum size of a file,
    `open_files` the maximum number of open file descriptors, `signals` the maximum number of queued
    signals, and `output_bytes` the maximum size of one answer.
    """

    seconds_per_test: float = 6.0
    wall_factor: float = 10.0
    memory_bytes: int = 4096 * MIB
    threads: int = 16
    file_bytes: int = 16 * MIB
    open_files: int = 64
    signals: int = 128
    output_bytes: int = 16 * MIB

    @property
    def wall_seconds_per_test(self) -> float:
        return self.wall_factor * self.seconds_per_test

    def total_seconds(self, tests: int) -> float:
        """Return the CPU time limit for all tests together, by LiveCodeBench's formula."""
        return (self.seconds_per_test + 1) * tests + 5


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python executable; `folders` contain its standard library and the shared libraries.

    `numpy` lists numpy's folders and is empty if numpy is not installed for this Python. Programs
    may import numpy because LiveCodeBench's own environment contains it, and answers use it.
    """

    executable: Path
    folders: tuple[Path, ...]
    numpy: tuple[Path, ...]


def find_interpreter() -> Interpreter:
    """Return the running Python, or the system's Python if programs may not read the running one.

    Raises:
        MissingEnvironmentError: programs may read neither of them.
    """
    candidates = [Path(sys.executable).resolve(), Path("/usr/bin/python3").resolve()]
    for executable in candidates:
        library = executable.parent.parent / "lib"
        if os.access(executable, os.X_OK) and _readable(executable) and _readable(library):
            folders = [path for path in map(Path, _SHARED_LIBRARIES) if path.is_dir()]
            if not library.is_relative_to("/usr/lib"):
                folders.append(library)
            return Interpreter(
                executable=executable, folders=tuple(folders), numpy=_numpy_folders(executable)
            )
    raise MissingEnvironmentError(
        f"no Python that an unprivileged user may run: tried {', '.join(map(str, candidates))}",
        hint="Install one for all users (Debian: apt install python3), or score as another user.",
    )


def _readable(path: Path) -> bool:
    """Return whether programs may read a path; they run as `nobody` if the launcher is root."""
    if os.geteuid() != 0:
        return os.access(path, os.R_OK)
    return all(folder.stat().st_mode & 0o001 for folder in path.parents) and bool(
        path.stat().st_mode & 0o004
    )


def _numpy_folders(executable: Path) -> tuple[Path, ...]:
    running = Path(sys.executable).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if executable != running and executable.name != version:
        return ()  # the installed numpy is compiled for another Python version
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return ()
    package = Path(spec.origin).parent
    folders = [package, package.with_name("numpy.libs")]  # the latter has the shared libraries
    return tuple(folder for folder in folders if folder.is_dir() and _readable(folder))


@dataclass(frozen=True)
class ScriptFiles:
    """File descriptors of a script's standard input and output.

    `programs` are the two descriptors that the program gets. bwrap copies the input from `copied`,
    and the grader reads the output from `printed`.
    """

    programs: tuple[int, int]
    copied: int
    printed: int


@contextmanager
def script_files(text: str) -> Iterator[ScriptFiles]:
    """Create an input file that a program can only read and an output file that it can only write.

    These are in-memory files, not pipes, so a program may seek in its input, query its size or map
    it, and the grader need not read the output while the program prints.
    """
    opened: list[int] = []

    def reopen(descriptor: int, flags: int) -> int:
        # Unlike a duplicate, a reopened descriptor has its own position and access mode.
        opened.append(os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC))
        return opened[-1]

    try:
        for name in ("stdin", "stdout"):
            opened.append(os.memfd_create(name))
        source, printed = opened
        view = memoryview(text.encode("utf-8", "surrogatepass"))
        while view:
            view = view[os.write(source, view) :]
        programs = reopen(source, os.O_RDONLY), reopen(printed, os.O_WRONLY | os.O_APPEND)
        yield ScriptFiles(programs, reopen(source, os.O_RDONLY), printed)
    finally:
        for descriptor in opened:
            os.close(descriptor)
