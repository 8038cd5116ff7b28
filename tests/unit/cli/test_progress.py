"""Progress of evaluations on stderr, as a terminal and as a log sees it."""

import io
import sys

import pytest

from amnesia_bench.cli import progress
from amnesia_bench.cli.progress import TerminalProgress


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def written(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    seconds = iter([100.0, 110.0, 111.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal))
    shown = TerminalProgress()
    shown.say("begins")
    for done in range(4):
        shown.count(done, 3)
    shown.say("ends")
    return stream.getvalue()


def test_a_log_gets_whole_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(monkeypatch, terminal=False) == "begins\nends\n"


def test_a_terminal_is_told_what_is_left_and_left_with_whole_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = written(monkeypatch, terminal=True)
    assert "1 of 3 answers, 0:20 left" in shown
    lines = [line.rsplit("\x1b[K", 1)[-1] for line in shown.split("\n")[:-1]]
    assert lines == ["begins", "ends"]


def test_a_reader_of_stderr_who_leaves_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Stream):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed(terminal=False))
    TerminalProgress().say("nobody listens")
