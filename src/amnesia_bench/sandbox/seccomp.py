"""Build the seccomp filter that allows the system calls a sandboxed program needs.

Namespaces and rlimits leave gaps that only a filter closes. The kernel allocates memory for a
program in many ways that no rlimit counts (memfd_create, System V segments, pages spliced into
pipes, inotify watches, file locks, Landlock rules, ...), new kernel versions add more ways, and a
program with N processes would have N times the limits. The filter therefore allows only the calls
that Python needs. It allows threads but no second process, so RLIMIT_AS bounds the memory of the
program.
"""

from __future__ import annotations

import errno
import platform
import struct

from amnesia_bench.errors import MissingEnvironmentError

# System call numbers on x86_64 and aarch64, from the kernel's unistd headers; None if the machine
# has no such call.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files, all of which are mounted read-only
    "open": (2, None),
    "openat": (257, 56),
    "close": (3, 57),
    "close_range": (436, 436),
    "read": (0, 63),
    "readv": (19, 65),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "write": (1, 64),
    "writev": (20, 66),
    "pwrite64": (18, 68),
    "pwritev": (296, 70),
    "lseek": (8, 62),
    "ftruncate": (77, 46),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fadvise64": (221, 223),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "umask": (95, 166),
    # waiting, and the socket pair with which asyncio wakes its event loop
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    # memory, all of which RLIMIT_AS counts
    "brk": (12, 214),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "msync": (26, 227),
    "mincore": (27, 232),
    # threads
    "arch_prctl": (158, None),
    "set_tid_address": (218, 96),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    # start and exit; bwrap itself runs under this filter when it starts the driver and waits for it
    "execve": (59, 221),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "restart_syscall": (219, 128),
    # signals
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "pause": (34, None),
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    # time
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    # identity and resources
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "getrusage": (98, 165),
    "getpriority": (140, 141),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getrandom": (318, 278),
}
_CLONE, _FCNTL, _IOCTL = (56, 220), (72, 25), (16, 29)
_PRCTL, _MMAP, _SOCKETPAIR = (157, 167), (9, 222), (53, 199)
# Old kernels lack the calls numbered from here on, so libc and Python fall back to older calls if
# one of these fails with ENOSYS.
_FIRST_RECENT = 424

_CLONE_THREAD = 0x00010000
# fcntl.h: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. The commands
# for locks and larger pipes are refused because these occupy kernel memory.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030, 1032)
# ioctls.h: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS2.
_IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
_SET_NAME, _GET_NAME, _SET_THP_DISABLE = 15, 16, 41
_AF_UNIX = 1
# After a program unmaps all but one page of shared anonymous memory, the kernel keeps the rest
# allocated without counting it. MAP_HUGETLB pages come from a pool that the machine shares.
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_HUGETLB = 0x01, 0x20, 0x40000
# For each machine: its column in `_ALLOWED`, and its AUDIT_ARCH value (linux/audit.h).
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32_CALLS = 0x40000000  # first call number of x86_64's x32 ABI, which duplicates every call

# Byte offsets in struct seccomp_data: call number 0, architecture 4, 64-bit arguments from 16 on.
# The filter only checks arguments that are 32-bit in the kernel, or flags in the lower 32 bits.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def filter_program(machine: str | None = None) -> bytes:
    """Return the filter as an array of struct sock_filter, the input format of `bwrap --seccomp`.

    Raises:
        MissingEnvironmentError: the table lacks the call numbers of this machine.
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
        _return(_KILL),
        _instruction(_LOAD, 0),
        _instruction(_AT_LEAST, _X32_CALLS, if_false=1),
        _return(_KILL),
    ]
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            program += _of_call(number, [_return(_ALLOW)])
    for numbers, rule in _conditions():
        program += _of_call(numbers[column], rule)
    program += [
        _instruction(_AT_LEAST, _FIRST_RECENT, if_false=1),
        _refuse(errno.ENOSYS),
        _refuse(errno.EPERM),
    ]
    return b"".join(program)


def _conditions() -> list[tuple[tuple[int, int], list[bytes]]]:
    """Return the calls that are allowed only with certain arguments, each with its BPF rule."""
    threads = [
        _load_argument(0),
        _instruction(_ANY_BIT, _CLONE_THREAD, if_false=1),
        _return(_ALLOW),
        _refuse(errno.EPERM),
    ]
    mmap = [
        _load_argument(3),
        _instruction(_ANY_BIT, _MAP_HUGETLB, if_true=3),
        _instruction(_ANY_BIT, _MAP_ANONYMOUS, if_false=1),
        _instruction(_ANY_BIT, _MAP_SHARED, if_true=1),
        _return(_ALLOW),
        _refuse(errno.ENOMEM),
    ]
    # The driver disables huge pages before it loads the program, and the program may not enable
    # them: while any part of a huge page is mapped, the kernel keeps all of the page allocated,
    # but RLIMIT_AS counts only the mapped part.
    prctl = [
        _load_argument(0),
        _instruction(_EQUAL, _SET_NAME, if_true=6),
        _instruction(_EQUAL, _GET_NAME, if_true=5),
        _instruction(_EQUAL, _SET_THP_DISABLE, if_false=5),
        _load_argument(1),
        _instruction(_EQUAL, 1, if_false=3),
        _load_argument(2),
        _instruction(_EQUAL, 0, if_false=1),
        _return(_ALLOW),
        _refuse(errno.EPERM),
    ]
    return [
        (_CLONE, threads),
        (_MMAP, mmap),
        (_PRCTL, prctl),
        (_FCNTL, _one_of(1, _FCNTL_COMMANDS, errno.EPERM)),
        (_IOCTL, _one_of(1, _IOCTL_REQUESTS, errno.ENOTTY)),
        (_SOCKETPAIR, _one_of(0, (_AF_UNIX,), errno.EPERM)),
    ]


def _of_call(number: int, rule: list[bytes]) -> list[bytes]:
    """Return the instructions that apply `rule` to one call and skip it for all other calls.

    Every path through `rule` must return.
    """
    return [_instruction(_EQUAL, number, if_false=len(rule)), *rule]


def _one_of(argument: int, values: tuple[int, ...], error: int) -> list[bytes]:
    rule = [_load_argument(argument)]
    for value in values:
        rule += [_instruction(_EQUAL, value, if_false=1), _return(_ALLOW)]
    return [*rule, _refuse(error)]


def _load_argument(position: int) -> bytes:
    """Return the BPF instruction that loads an argument's lower 32 bits.

    The offset is the same on both machines because both are little-endian.
    """
    return _instruction(_LOAD, 16 + 8 * position)


def _refuse(error: int) -> bytes:
    return _return(_ERRNO | error)


def _return(value: int) -> bytes:
    return _instruction(_RETURN, value)


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one struct sock_filter.

    If the instruction compares, `if_true` and `if_false` are the numbers of instructions to skip.
    """
    return struct.pack("=HBBI", code, if_true, if_false, value)
