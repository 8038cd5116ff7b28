"""Real inputs that lie outside the repository; a test that wants them skips where they are not."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_path(*parts: str) -> Path:
    """Return a path of the shared folder ($AMNESIA_SHARED, or ../shared beside the repository)."""
    folder = Path(os.environ.get("AMNESIA_SHARED") or ROOT.parent / "shared")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not here: set AMNESIA_SHARED to the folder of shared inputs")
    return path
