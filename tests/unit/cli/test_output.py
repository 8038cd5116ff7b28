"""What strangers named reaches the terminal as text, never as a command to it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.cli.main import main
from amnesia_bench.printable import LONGEST_LINE, counted, message, printable
from tests.support.checkpoints import drifted, random_model, save

HOSTILE = ["\x1b[2J\x1b]0;pwned\x07x", "\x9b2Jx", "\u202egnp.exe", "[red]x[/red]", "a\r\x08b"]


def test_controls_are_spelled_and_everything_else_is_untouched() -> None:
    assert printable("\x1b[31mred\x07") == r"\x1b[31mred\x07"
    assert printable("\u202eevil\r") == r"\u202eevil\r"
    assert printable("half \ud83d") == r"half \ud83d"
    assert printable("naïve Ω 数\u00a0\n\t[bold] 😀") == "naïve Ω 数\u00a0\n\t[bold] 😀"


@given(st.text())
def test_nothing_that_is_printed_moves_a_cursor(text: str) -> None:
    assert all(c in "\n\t" or c.isprintable() or c.isspace() for c in printable(text) if c < "\xa0")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("in_both", [True, False])
def test_the_name_of_a_tensor_cannot_command_the_terminal(
    name: str, in_both: bool, tmp_path: Path
) -> None:
    pre = random_model(1)
    post = {**drifted(pre, 2), name: np.ones(4, np.float32)}
    save(tmp_path / "pre", {**pre, name: np.zeros(4, np.float32)} if in_both else pre)
    save(tmp_path / "post", post)
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "diff"]
    shown = subprocess.run(
        [*command, str(tmp_path / "pre"), str(tmp_path / "post")], check=True, capture_output=True
    )
    assert printable(name) in shown.stdout.decode()
    assert not any(byte in shown.stdout for byte in (b"\x1b", b"\x07", b"\r", b"\x08", b"\xc2\x9b"))


@pytest.mark.parametrize("name", HOSTILE)
def test_the_notes_of_a_restore_cannot_command_the_terminal(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pre = random_model(1)
    save(tmp_path / "pre", {**pre, name: np.zeros(4, np.float32)})
    save(tmp_path / "post", drifted(pre, 2))
    command = ["restore", "--pre", str(tmp_path / "pre"), "--post", str(tmp_path / "post")]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert f"note: Only in pre, not needed for the repair: {printable(name)} (1 tensor)." in said
    assert printable(said) == said


def test_a_value_as_long_as_its_file_does_not_fill_the_screen() -> None:
    assert message(f"a: {'x' * LONGEST_LINE}\nhint\n") == (
        f"a: {'x' * (LONGEST_LINE - 3)}... (2,003 characters)\nhint\n"
    )
    assert message("\x1b[2J\n") == "\\x1b[2J\n"


def test_one_is_no_plural() -> None:
    assert [counted(n, "shard") for n in (0, 1, 1500)] == ["0 shards", "1 shard", "1,500 shards"]
