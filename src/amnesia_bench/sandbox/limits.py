"""What a program may use. Reaching a limit ends the program, never the grader."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one program; all are hard, and of the kernel except the times and the output.

    `seconds_per_test` is CPU time, since a verdict must not depend on what else the machine does;
    `wall_factor` times as much of wall-clock time ends programs that sleep or wait. Memory counts
    address space, as RLIMIT_AS does. `threads` includes the first one and that of bwrap; processes
    cannot be made at all. `output_bytes` bounds one answer on its way out.
    """

    seconds_per_test: float = 6.0
    wall_factor: float = 10.0
    memory_bytes: int = 4096 * MIB
    threads: int = 16
    file_bytes: int = 16 * MIB
    open_files: int = 64
    signals: int = 128
    output_bytes: int = 16 * MIB

    @property
    def wall_seconds_per_test(self) -> float:
        return self.wall_factor * self.seconds_per_test

    def total_seconds(self, tests: int) -> float:
        """Return the CPU time for all tests of a program; LiveCodeBench's formula."""
        return (self.seconds_per_test + 1) * tests + 5
