"""What tests of several folders need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from amnesia_bench.errors import MissingEnvironmentError

if TYPE_CHECKING:
    from amnesia_bench.evals.sandbox import Launcher


@pytest.fixture(scope="session")
def sandbox() -> Launcher:
    """A sandbox that was tried and held; without one, the tests of code execution skip."""
    from amnesia_bench.evals.sandbox import open_launcher

    try:
        return open_launcher()
    except MissingEnvironmentError as error:
        pytest.skip(str(error))
