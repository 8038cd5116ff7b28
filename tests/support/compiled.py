"""Libraries for LD_PRELOAD that make the world of a process worse than it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def compiled(name: str, folder: Path) -> Path:
    """Compile `tests/support/NAME.c` to a shared library in a folder; skip without a compiler."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")
    library = folder / f"{name}.so"
    source = Path(__file__).parent / f"{name}.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-o", library, source], check=True)
    return library
