"""The Python that runs programs, and the folders it needs to be seen inside a sandbox."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError

NOBODY = 65534  # user and group of programs when the launcher is root


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python executable. `folders` hold its standard library and the shared libraries.

    `numpy` are the folders of numpy, where there is one for this Python: LiveCodeBench's own
    environment has it, and answers use it.
    """

    executable: Path
    folders: tuple[Path, ...]
    numpy: tuple[Path, ...]


def find_interpreter() -> Interpreter:
    """Return our own Python, or the system's where programs may not read ours.

    Raises:
        MissingEnvironmentError: neither can be used.
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


_SHARED_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib64")


def _readable(path: Path) -> bool:
    """Whether programs may read this; those of a root launcher run as nobody."""
    if os.geteuid() != 0:
        return os.access(path, os.R_OK)
    return all(folder.stat().st_mode & 0o001 for folder in path.parents) and bool(
        path.stat().st_mode & 0o004
    )


def _numpy_folders(executable: Path) -> tuple[Path, ...]:
    ours = Path(sys.executable).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if executable != ours and executable.name != version:
        return ()  # compiled for another version
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return ()
    package = Path(spec.origin).parent
    folders = [package, package.with_name("numpy.libs")]  # the second: its shared libraries
    return tuple(folder for folder in folders if folder.is_dir() and _readable(folder))
