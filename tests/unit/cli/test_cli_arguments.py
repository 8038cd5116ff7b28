"""What is typed: names with dashes, bytes that are no text, numbers without end, late signals."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from amnesia_bench.cli import main as cli
from amnesia_bench.cli.main import COMMANDS, main
from amnesia_bench.cli.niah_options import lengths_of
from amnesia_bench.cli.output import typed
from amnesia_bench.cli.restore import _layers
from amnesia_bench.config.load import load_variant
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.requests.checkpoints import RankedLayers
from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.surgery.ranked_layers import read_ranking

ROOT = Path(__file__).resolve().parents[3]
LONG = "9" * 5000


def parser_of(name: str, arguments: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of a command or sub-command, and the words that are left for it."""
    module = import_module(f"amnesia_bench.cli.{name.replace('-', '_')}")
    _, command, rest = cli._command(module, f"amnesia {name}", arguments)
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.add_arguments(parser)
    return parser, rest


def examples() -> Iterator[tuple[str, str]]:
    """Every command that the help texts and the documents show, and where."""
    texts = {
        f"amnesia {name} --help": import_module(
            f"amnesia_bench.cli.{name.replace('-', '_')}"
        ).__doc__
        for name in COMMANDS
    }
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        texts[path.name] = "\n".join(blocks)
    for where, text in texts.items():
        for line in re.sub(r"\\\n *", "", text).splitlines():
            # What follows many spaces is a remark; "..." is no whole command.
            if re.match(r"\s*amnesia [a-z]", line) and "..." not in line:
                yield where, re.split(r" {3,}", line.strip())[0]


@pytest.mark.parametrize(("where", "line"), sorted(set(examples())))
def test_every_command_that_is_shown_can_be_typed(where: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    parser, rest = parser_of(words[1], words[2:])
    given = parser.parse_intermixed_args(rest)
    required = {action.dest for action in parser._actions if action.required}
    assert all(getattr(given, name) is not None for name in required)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_text_has_no_line_that_the_source_joined(command: str) -> None:
    text = import_module(f"amnesia_bench.cli.{command.replace('-', '_')}").__doc__
    assert max(map(len, text.splitlines())) <= 100


def test_a_name_with_a_dash_is_given_behind_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "--", "-o"]) == 2
    assert "-o: no such folder." in capsys.readouterr().err
    assert main(["diff", "--json", "--", "-o", "post"]) == 2
    assert "amnesia diff: -o" in capsys.readouterr().err
    assert main(["score", "--", "--json"]) == 2
    assert "--json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["restore", "--pre", "a", "--post", "b", "--out", "\udcff"],
        ["verify", "\udcffx"],
        ["plan", "experiment=\udcff"],
    ],
)
def test_a_name_that_is_not_utf_8_is_one_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert r"\udcff" in (said := capsys.readouterr().err)
    assert "not a name in UTF-8" in said


def test_a_folder_that_is_not_utf_8_is_one_message(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    Path(folder).mkdir()
    command = [sys.executable, "-m", "amnesia_bench.cli.main", "verify", "x"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert "not a name in UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("layers", [LONG, f"2,{LONG}", f"top{LONG}", f"top{LONG}@x", "٣", "top٣"])
def test_layers_of_thousands_of_digits_are_one_message(layers: str) -> None:
    with pytest.raises(UserError, match=r"--layers '.*': expected all") as caught:
        _layers(layers)
    assert len(caught.value.what) < 300


def test_layers_are_read_as_they_were_meant() -> None:
    assert _layers("2,03 6") == (["restore.select.layers=[2,3,6]"], None)
    assert _layers("top7") == (["restore.select.layers={top_drift: 7}"], None)
    assert _layers("top7@a@b") == ([], RankedLayers(count=7, file=Path("a@b")))


def test_a_ranking_without_end_is_one_message() -> None:
    with pytest.raises(UserError, match="/dev/zero: not JSON"):
        read_ranking(Path("/dev/zero"))


@pytest.mark.parametrize("lengths", [LONG, f"1024,{LONG}", "0", "-1", "١٠٢٤", "", ","])
def test_lengths_that_are_no_numbers_are_one_message(lengths: str) -> None:
    with pytest.raises(UserError, match="not a list of lengths"):
        lengths_of(lengths)


@pytest.mark.parametrize(
    "override",
    [f"restore.select.layers=[{LONG}]", f"restore.select.layers={'[' * 3000}{']' * 3000}"],
)
def test_values_without_end_are_one_message(override: str) -> None:
    with pytest.raises(UserError):
        load_variant("qk", [override])


def test_advice_can_be_typed_whatever_the_names_are() -> None:
    assert typed("verify", Path("a b;$(id)")) == "amnesia verify 'a b;$(id)'"
    assert typed("score", "answers/sft") == "amnesia score answers/sft"


def test_a_misspelled_action_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "estimat", "--config", "sft_miromind_2b"]) == 2
    said = capsys.readouterr().err
    assert "train estimat: neither a sub-command nor KEY=VALUE" in said
    assert "Did you mean estimate?" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("before", [False, True])
def test_a_signal_after_the_folder_was_published_is_no_failure(
    tmp_path: Path,
    number: signal.Signals,
    before: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    if before:
        out.mkdir()
        (out / MANIFEST).touch()

    def publish_and_be_ended(_: argparse.Namespace) -> ExitCode:
        out.mkdir(exist_ok=True)
        (out / MANIFEST).touch()
        signal.raise_signal(number)
        return ExitCode.DONE

    monkeypatch.setattr("amnesia_bench.cli.init.run", publish_and_be_ended)
    # A shell that runs the tests in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = main(["init", "--model", "x", "--tokenizer", "x", "--out", str(out)])
    said = capsys.readouterr().err
    if before:
        assert code == 128 + number
        return
    assert code == 0
    assert f"but {out} was complete already" in said


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["export", "--format", "lm-eval", "", "--out", "x"], "lm-eval"),
        (["plan", "experiment=table1", "--why", ""], "--why"),
        (["run", "experiment=table1", "--store", ""], "--store"),
        (["run", "experiment=table1", "--store="], "--store"),
        (["logs", ""], "logs"),
        (["restore", "--pre", "", "--post", "b", "--out", "c"], "--pre"),
    ],
)
def test_an_empty_word_does_not_mean_the_working_directory(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == ExitCode.USER_ERROR
    assert f"the argument after {option} is empty\nIs a variable" in capsys.readouterr().err


def test_the_way_to_a_traceback_is_told() -> None:
    assert "AMNESIA_DEBUG=1" in cli.EXIT_CODES


def test_a_folder_that_was_removed_under_the_caller_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["diff", "a", "b"]) == ExitCode.USER_ERROR
    assert "The working directory was removed.\ncd to another directory." in capsys.readouterr().err
