"""TerminalProgress of evaluations on stderr, as a terminal and as a log sees it."""

import io
import sys
import time

import pytest

from amnesia_bench.cli.progress import TerminalProgress

HIDE_CURSOR, SHOW_CURSOR, ERASE_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=True))
    return stream


def wait_for(stream: Stream, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_a_log_gets_whole_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=False))
    shown = TerminalProgress()
    with shown:
        shown.say("begins")
        for done in range(4):
            shown.count(done, 3)
        shown.say("ends")
    assert stream.getvalue() == "begins\nends\n"


def test_a_terminal_sees_a_bar_and_is_left_with_whole_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, shown = terminal(monkeypatch), TerminalProgress()
    with shown:
        shown.say("begins")
        shown.count(0, 3)
        shown.count(1, 3)
        wait_for(stream, "1 of 3 answers")
        shown.count(3, 3)
        shown.say("ends")
    first, *_, last = stream.getvalue().split("\n")[:-1]
    assert first == "begins"
    assert last.endswith(f"{ERASE_LINE}ends")
    assert stream.getvalue().count(HIDE_CURSOR) == stream.getvalue().count(SHOW_CURSOR) == 1


def test_a_failure_while_counting_gives_the_terminal_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, shown = terminal(monkeypatch), TerminalProgress("texts")

    def fail() -> None:
        with shown:
            shown.count(0, 3)
            wait_for(stream, "0 of 3 texts")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert sys.stderr is stream
    assert stream.getvalue().endswith(ERASE_LINE)
    assert SHOW_CURSOR in stream.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_reader_of_stderr_who_leaves_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool
) -> None:
    class Closed(Stream):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed(is_terminal))
    shown = TerminalProgress()
    with shown:
        shown.say("nobody listens")
        for done in range(4):
            shown.count(done, 3)
