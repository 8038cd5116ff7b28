"""What `amnesia tune` tells to type."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from amnesia_bench.cli import tune


@pytest.mark.parametrize("cast", [False, True])
def test_the_command_that_writes_the_checkpoint_again_has_the_options_it_needs(cast: bool) -> None:
    args = argparse.Namespace(pre=Path("a"), post=Path("b c"), out=Path("out"), cast=cast)
    command = tune._restore_command(args)
    assert "--variant out/tuned.yaml" in command
    assert "'b c'" in command
    assert ("--cast" in command) is cast
