"""What tests of several folders need."""

from __future__ import annotations

import pytest

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.evals.sandbox import Launcher, open_launcher


@pytest.fixture(scope="session")
def sandbox() -> Launcher:
    """A sandbox that was tried and held; without one, the tests of code execution skip."""
    try:
        return open_launcher()
    except MissingEnvironmentError as error:
        pytest.skip(str(error))
