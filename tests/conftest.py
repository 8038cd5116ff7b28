"""What tests of several folders need, and what becomes of those that lack an installed program.

Tests that need bubblewrap, Chromium or SLURM are marked so. Without it they skip, and say what to
install; with --fail-on-missing they fail. Tests marked `programs` run harmless programs of their
own: in a sandbox where there is one, else as plain processes with limits of time and memory.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from functools import cache
from typing import TYPE_CHECKING

import pytest

from amnesia_bench.errors import MissingEnvironmentError
from tests.support.mini_slurm import lacking_slurm

if TYPE_CHECKING:
    from amnesia_bench.sandbox import Launcher


def pytest_configure() -> None:
    if importlib.util.find_spec("torch") is not None:
        import torch

        # Tests build models of transformers themselves: see modeling/torch_forms.py.
        if not torch.cuda.is_available():
            sys.modules.setdefault("fla", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-missing",
        action="store_true",
        help="fail where a test would skip because bubblewrap, Chromium or SLURM is not installed",
    )


def pytest_collection_finish() -> None:
    # What was imported until now stays: no garbage collection needs to look at it again. With torch
    # and lm-eval imported, a full one takes 0.2 s, and some code under test asks for many.
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, lacking in (
        ("bubblewrap", no_sandbox),
        ("chromium", no_chromium),
        ("slurm", lacking_slurm),
    ):
        if item.get_closest_marker(mark) and (reason := lacking()):
            give_up = pytest.fail if item.config.getoption("--fail-on-missing") else pytest.skip
            give_up(reason)


@cache
def no_sandbox() -> str | None:
    """Return why there is no sandbox that holds, and what to install; None if there is one."""
    from amnesia_bench.sandbox import open_launcher

    try:
        open_launcher()
    except MissingEnvironmentError as error:
        return f"{str(error).splitlines()[0]}: apt-get install bubblewrap"
    return None


def no_chromium() -> str | None:
    """Return what to install; None if there is a Chromium."""
    from tests.support.browser import CHROMIUM

    return None if CHROMIUM else "no Chromium in PATH: apt-get install chromium"


@pytest.fixture(scope="session")
def sandbox() -> Launcher:
    """A sandbox that was tried and held; for tests marked `bubblewrap`."""
    from amnesia_bench.sandbox import open_launcher

    return open_launcher()


@pytest.fixture(scope="session")
def launcher() -> Launcher:
    """A sandbox if there is one, else plain processes; for tests marked `programs`."""
    from amnesia_bench.sandbox import open_launcher

    return open_launcher(unsafe_no_sandbox=no_sandbox() is not None)
