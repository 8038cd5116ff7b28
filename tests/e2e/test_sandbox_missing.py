"""What happens where there is no sandbox, or one that leaks."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError
from amnesia_bench.reasoning.code.livecodebench import score_programs
from amnesia_bench.reasoning.code.problems import load_problems
from amnesia_bench.records.evaluation import Outcome
from amnesia_bench.sandbox import Launcher, Limits, SandboxError, open_launcher
from amnesia_bench.sandbox.program import Interpreter
from tests.support.lcb import INDEX, ROWS, attempt, write_rows

RIGHT = "print(2 * int(input()))"


@pytest.fixture
def unsafe() -> Launcher:
    return open_launcher(unsafe_no_sandbox=True)


def fake_bwrap(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another bwrap first in PATH, readable for all as a real one is."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(0o755)
    program = folder / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


class TestRefusing:
    def test_without_bubblewrap(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert main(["sandbox"]) == ExitCode.ENVIRONMENT
        message = capsys.readouterr().err
        assert "bwrap is not in PATH" in message
        assert "apt install bubblewrap" in message
        assert "--unsafe-no-sandbox" in message

    def test_where_the_kernel_refuses_says_what_bubblewrap_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_bwrap(
            tmp_path, "echo 'No permissions to create new namespace' >&2; exit 1", monkeypatch
        )
        with pytest.raises(MissingEnvironmentError, match="No permissions to create new namespace"):
            open_launcher()

    def test_where_the_sandbox_does_not_hold(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        leaky = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
        fake_bwrap(tmp_path, leaky, monkeypatch)
        with pytest.raises(MissingEnvironmentError, match="the sandbox leaks") as refused:
            open_launcher()
        assert "host files (visible: /etc" in str(refused.value)
        assert "second process" in str(refused.value)

    @pytest.mark.bubblewrap
    def test_a_sandbox_that_breaks_later_leaves_programs_unscored(
        self, sandbox: Launcher, tmp_path: Path
    ) -> None:
        missing = Interpreter(executable=Path("/nowhere/python3"), folders=(), numpy=())
        broken = Launcher(interpreter=missing, bwrap=sandbox.bwrap)
        with pytest.raises(SandboxError), broken.started(Limits(), 5):
            pass
        problems = load_problems(369, path=write_rows(tmp_path / "p", ROWS))
        (verdict,) = score_programs(problems, [attempt(0, RIGHT, INDEX["double"])], broken)
        assert verdict.outcome is Outcome.UNSCORED
        assert verdict.detail is not None
        assert verdict.detail.startswith("no sandbox: ")

    @pytest.mark.bubblewrap
    def test_the_command_lists_what_is_contained(
        self, sandbox: Launcher, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["sandbox"]) == ExitCode.DONE
        listed = capsys.readouterr().out
        for name in (
            "network",
            "host files",
            "environment",
            "second process",
            "memory",
            "shared memory",
        ):
            assert name in listed
        assert "sandbox: bubblewrap" in listed


class TestUnsafeOverride:
    def test_programs_still_have_limits_and_no_environment(
        self, unsafe: Launcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "secret")
        assert unsafe.settings["sandbox"] == "none"
        code = "import os\nprint(sorted(os.environ))\ntry: bytearray(1 << 40)\n"
        code += "except MemoryError: print('memory')"
        with unsafe.started(Limits(), 20) as session:
            deadline = time.monotonic() + 20
            session.ask({"code": code, "function": None}, deadline)
            printed = session.ask("", deadline)["printed"]
        assert "HF_TOKEN" not in printed
        assert "memory" in printed

    def test_verdicts_are_the_same(self, unsafe: Launcher, tmp_path: Path) -> None:
        problems = load_problems(369, path=write_rows(tmp_path / "p", ROWS))
        codes = [RIGHT, "print(6)", "while True: pass", "1/0"]
        answers = [attempt(i, code, INDEX["double"]) for i, code in enumerate(codes)]
        limits = Limits(seconds_per_test=1.5)
        found = [
            verdict.outcome for verdict in score_programs(problems, answers, unsafe, limits=limits)
        ]
        assert found == [Outcome.CORRECT, Outcome.WRONG, Outcome.TIME_LIMIT, Outcome.WRONG]


@pytest.mark.programs
class TestScoring:
    def test_answers_without_a_program_are_told_from_wrong_ones(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        problems = load_problems(369, path=write_rows(tmp_path / "p", ROWS))
        unfinished = replace(attempt(0, RIGHT, 0), text=None)
        (verdict,) = score_programs(problems, [unfinished], launcher)
        assert (verdict.outcome, verdict.answer) == (Outcome.NO_ANSWER, None)

    def test_verdicts_come_in_the_order_of_keys_however_many_workers(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        problems = load_problems(369, path=write_rows(tmp_path / "p", ROWS))
        codes = [RIGHT, "print(6)"] * 3
        answers = [attempt(i, code, i % 3) for i, code in enumerate(codes)]
        one = score_programs(problems, answers, launcher, workers=1)
        assert one == score_programs(problems, answers[::-1], launcher)
        assert [verdict.key for verdict in one] == sorted(answer.key for answer in answers)

    def test_a_key_beyond_the_problems_is_refused(self, launcher: Launcher, tmp_path: Path) -> None:
        problems = load_problems(369, path=write_rows(tmp_path / "p", ROWS))
        with pytest.raises(UserError, match=f"out of range for {len(ROWS)} problems"):
            score_programs(problems, [attempt(0, RIGHT, len(ROWS))], launcher)

    @pytest.mark.parametrize("workers", [0, 10000])
    def test_more_programs_than_cores_are_refused(self, launcher: Launcher, workers: int) -> None:
        with pytest.raises(UserError, match=f"workers={workers}"):
            score_programs([], [], launcher, workers=workers)
