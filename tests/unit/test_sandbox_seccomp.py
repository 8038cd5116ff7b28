from __future__ import annotations

import errno
import struct

import pytest

from amnesia_bench.errors import ExitCode, MissingEnvironmentError
from amnesia_bench.evals.sandbox.seccomp import filter_program

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7
THREAD_FLAGS, FORK_FLAGS = 0x003D0F00, 0x01200011  # as glibc's pthread_create and fork pass them


def verdict(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """Run a filter as the kernel does, on the parts of seccomp_data that it reads."""
    data = struct.pack("=IIQQ", number, architecture, 0, argument)
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value}
            taken[0x45] = bool(accumulator & value)
            position += if_true if taken[code] else if_false


@pytest.mark.parametrize(
    ("machine", "architecture", "refused", "allowed"),
    [
        # fork, vfork, memfd_create, shmget, socket, unshare, mount, ptrace, io_uring_setup, setns
        (
            "x86_64",
            X86,
            (57, 58, 319, 29, 41, 272, 165, 101, 425, 308),
            # read, write, mmap, execve, socketpair, futex, exit_group
            (0, 1, 9, 59, 53, 202, 231),
        ),
        (
            "aarch64",
            ARM,
            (279, 194, 198, 97, 40, 117, 425, 268),
            (63, 64, 222, 221, 199, 98, 94),
        ),
    ],
)
def test_calls_are_refused_by_number(
    machine: str, architecture: int, refused: tuple[int, ...], allowed: tuple[int, ...]
) -> None:
    program = filter_program(machine)
    for number in refused:
        assert verdict(program, architecture, number) == 0x00050000 | errno.EPERM
    for number in allowed:
        assert verdict(program, architecture, number) == ALLOW


@pytest.mark.parametrize(
    ("machine", "architecture", "clone"), [("x86_64", X86, 56), ("aarch64", ARM, 220)]
)
def test_threads_are_made_and_processes_are_not(
    machine: str, architecture: int, clone: int
) -> None:
    program = filter_program(machine)
    assert verdict(program, architecture, clone, THREAD_FLAGS) == ALLOW
    assert verdict(program, architecture, clone, FORK_FLAGS) == 0x00050000 | errno.EPERM
    assert verdict(program, architecture, 435) == 0x00050000 | errno.ENOSYS


def test_calls_by_another_numbering_kill() -> None:
    program = filter_program("x86_64")
    assert verdict(program, 0x40000003, 1) == KILL  # i386, through int 0x80
    assert verdict(program, X86, 0x40000000 | 57) == KILL  # x32


def test_an_unknown_machine_has_no_sandbox() -> None:
    with pytest.raises(MissingEnvironmentError, match="riscv64") as refused:
        filter_program("riscv64")
    assert refused.value.exit_code is ExitCode.ENVIRONMENT
