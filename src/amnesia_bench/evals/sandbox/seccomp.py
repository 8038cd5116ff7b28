"""The system calls that a sandboxed program may not make, as a seccomp filter.

Namespaces and rlimits leave holes that only a filter closes: memory of memfd_create and of System
V segments counts in no rlimit, and as many processes as are allowed multiply every limit there is.
So there are threads, but never a second process: RLIMIT_AS then bounds the memory of all of it.
"""

from __future__ import annotations

import errno
import platform
import struct

from amnesia_bench.errors import MissingEnvironmentError

# Numbers by machine (x86_64, aarch64), from the kernel's unistd headers; None: no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # a second process
    "fork": (57, None),
    "vfork": (58, None),
    # memory that no rlimit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # the network, whatever the network namespace holds
    "socket": (41, 198),
    # other namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # other processes' memory
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # parts of the kernel with a history of holes, which no solution of a puzzle needs
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_CLONE_THREAD = 0x00010000
# AUDIT_ARCH of linux/audit.h.
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32_CALLS = 0x40000000  # x86_64 reaches every call under a second number from here on

# struct seccomp_data: the number at 0, the architecture at 4, the first argument at 16.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def filter_program(machine: str | None = None) -> bytes:
    """Return the filter as an array of struct sock_filter, which `bwrap --seccomp` reads.

    Raises:
        MissingEnvironmentError: the numbers of this machine's calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise MissingEnvironmentError(
            f"no system call filter for {machine}; known: {', '.join(_MACHINES)}",
            hint="Score code on one of these machines.",
        )
    column, architecture = _MACHINES[machine]
    program = [
        _instruction(_LOAD, 4),
        _instruction(_EQUAL, architecture, if_true=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, 0),
        _instruction(_AT_LEAST, _X32_CALLS, if_false=1),
        _instruction(_RETURN, _KILL),
    ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            program += _refuse(number, errno.EPERM)
    # glibc falls back to clone, whose flags a filter can read.
    program += _refuse(_CLONE3[column], errno.ENOSYS)
    program += [
        _instruction(_EQUAL, _CLONE[column], if_false=3),
        _instruction(_LOAD, 16),
        _instruction(_ANY_BIT, _CLONE_THREAD, if_true=1),
        _instruction(_RETURN, _ERRNO | errno.EPERM),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def _refuse(number: int, error: int) -> list[bytes]:
    return [_instruction(_EQUAL, number, if_false=1), _instruction(_RETURN, _ERRNO | error)]


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """One struct sock_filter; the jumps count the instructions to leave out."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
