"""Real inputs that are not part of the repository: essays, a tokenizer, the paper."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_path(*parts: str) -> Path:
    """Return a path under the folder of shared inputs; skip the test where it is absent.

    The folder is `shared` beside the repository, or what AMNESIA_SHARED names.
    """
    beside = Path(__file__).resolve().parents[3] / "shared"
    path = Path(os.environ.get("AMNESIA_SHARED", beside)).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}: set AMNESIA_SHARED to the folder of shared inputs")
    return path
