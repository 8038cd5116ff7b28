from __future__ import annotations

import errno
import struct

import pytest

from amnesia_bench.errors import ExitCode, MissingEnvironmentError
from amnesia_bench.sandbox.seccomp import filter_program

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7
THREAD_FLAGS, FORK_FLAGS = 0x003D0F00, 0x01200011  # as glibc's pthread_create and fork pass them


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run a filter as the kernel does, on struct seccomp_data."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
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


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


MACHINES = pytest.mark.parametrize(
    ("machine", "architecture"), [("x86_64", X86), ("aarch64", ARM)], ids=["x86_64", "aarch64"]
)
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
ENOMEM, ENOTTY = 0x00050000 | errno.ENOMEM, 0x00050000 | errno.ENOTTY


@pytest.mark.parametrize(
    ("machine", "architecture", "refused", "allowed"),
    [
        # fork, vfork, memfd_create, shmget, socket, unshare, mount, ptrace, setns; setxattr,
        # lsetxattr, fsetxattr, splice, tee, vmsplice, inotify_init, inotify_init1, kcmp,
        # personality, modify_ldt, symlink, mkdir, mknod, sendmsg, timer_create, io_setup, flock
        (
            "x86_64",
            X86,
            _numbers(
                "57 58 319 29 41 272 165 101 308 188 189 190 275 276 278 253 294 312"
                " 135 154 88 83 133 46 222 206 73"
            ),
            # read, write, execve, futex, exit_group, openat, getrandom
            (0, 1, 59, 202, 231, 257, 318),
        ),
        (
            "aarch64",
            ARM,
            _numbers("279 194 198 97 40 117 268 5 6 7 76 77 75 26 272 92 36 34 33 211 107 0 32"),
            (63, 64, 221, 98, 94, 56, 278),
        ),
    ],
)
def test_calls_are_refused_by_number(
    machine: str, architecture: int, refused: tuple[int, ...], allowed: tuple[int, ...]
) -> None:
    program = filter_program(machine)
    for number in refused:
        assert verdict(program, architecture, number) == EPERM
    for number in allowed:
        assert verdict(program, architecture, number) == ALLOW


@MACHINES
def test_recent_calls_look_like_those_of_an_older_kernel(machine: str, architecture: int) -> None:
    program = filter_program(machine)
    # io_uring_setup, fsopen, clone3, pidfd_open, pidfd_getfd, landlock's, memfd_secret, setxattrat,
    # and some that no kernel has yet.
    for number in (425, 430, 435, 434, 438, 444, 445, 446, 447, 463, 600, 4000):
        assert verdict(program, architecture, number) == ENOSYS
    for number in (436, 439):  # close_range, faccessat2
        assert verdict(program, architecture, number) == ALLOW


@pytest.mark.parametrize(
    ("machine", "architecture", "numbers"),
    [("x86_64", X86, (9, 157, 72, 16, 53)), ("aarch64", ARM, (222, 167, 25, 29, 199))],
)
def test_some_calls_are_allowed_with_some_arguments(
    machine: str, architecture: int, numbers: tuple[int, ...]
) -> None:
    program = filter_program(machine)
    mmap, prctl, fcntl, ioctl, socketpair = numbers

    def asked(number: int, *arguments: int) -> int:
        return verdict(program, architecture, number, *arguments)

    # A private mapping, one of a file, anonymous shared memory, a huge page.
    flags = {0x22: ALLOW, 0x01: ALLOW, 0x02: ALLOW, 0x21: ENOMEM, 0x40022: ENOMEM}
    assert {flag: asked(mmap, 0, 4096, 3, flag) for flag in flags} == flags
    # PR_SET_NAME; huge pages off, on, on where advised; PR_SET_SECCOMP, PR_SET_DUMPABLE.
    calls = {(15, 9): ALLOW, (41, 1): ALLOW, (41, 0): EPERM, (41, 1, 2): EPERM}
    calls |= {(22, 2): EPERM, (4, 1): EPERM}
    assert {call: asked(prctl, *call) for call in calls} == calls
    # F_GETFL, F_DUPFD_CLOEXEC; F_SETLK, F_OFD_SETLK, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ.
    commands = {3: ALLOW, 1030: ALLOW} | dict.fromkeys((6, 37, 1024, 1026, 1031), EPERM)
    assert {command: asked(fcntl, 5, command) for command in commands} == commands
    # TCGETS, FIONBIO; TIOCSTI, FS_IOC_SETFLAGS.
    requests = {0x5401: ALLOW, 0x5421: ALLOW, 0x5412: ENOTTY, 0x40086602: ENOTTY}
    assert {request: asked(ioctl, 5, request) for request in requests} == requests
    families = {1: ALLOW, 2: EPERM, 16: EPERM, 40: EPERM}
    assert {family: asked(socketpair, family, 1) for family in families} == families


@pytest.mark.parametrize(
    ("machine", "architecture", "clone"), [("x86_64", X86, 56), ("aarch64", ARM, 220)]
)
def test_threads_are_made_and_processes_are_not(
    machine: str, architecture: int, clone: int
) -> None:
    program = filter_program(machine)
    assert verdict(program, architecture, clone, THREAD_FLAGS) == ALLOW
    assert verdict(program, architecture, clone, FORK_FLAGS) == EPERM


def test_calls_by_another_numbering_kill() -> None:
    program = filter_program("x86_64")
    assert verdict(program, 0x40000003, 1) == KILL  # i386, through int 0x80
    assert verdict(program, X86, 0x40000000 | 57) == KILL  # x32


def test_an_unknown_machine_has_no_sandbox() -> None:
    with pytest.raises(MissingEnvironmentError, match="riscv64") as refused:
        filter_program("riscv64")
    assert refused.value.exit_code is ExitCode.ENVIRONMENT
