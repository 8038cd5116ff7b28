"""Programs that want more than they may have. Each ends, and takes no more of the host's memory."""

from __future__ import annotations

import pytest

from amnesia_bench.records.evaluation import Outcome
from amnesia_bench.records.reasoning import Checker
from amnesia_bench.sandbox import Launcher, Limits
from amnesia_bench.sandbox.program import MIB
from tests.support.attacks import attack, host_growth

pytestmark = pytest.mark.bubblewrap

LIMITS = Limits(seconds_per_test=3.0, wall_factor=2.0, memory_bytes=256 * MIB)
# Each attack wants at least a GiB. What the limits allow, and as much again for the rest of the
# machine, which shares the measured memory.
MOST_GROWTH = 2 * LIMITS.memory_bytes
# The kernel's limit of 65,530 mappings, two pages of tables each where they lie far apart: the
# only memory beyond RLIMIT_AS that is left.
MOST_PAGE_TABLES = 65530 * 2 * 4096
TRIES = 4
# An attack that ends in one of these was none.
MISTAKES = ("SyntaxError", "NameError", "AttributeError", "TypeError", "ModuleNotFoundError")

TOOLS = """
import ctypes, fcntl, mmap, os, resource, signal, socket, struct, sys, threading, time
MIB = 1 << 20
GIB = 1 << 30
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
end = time.monotonic() + 2
READ_WRITE, SHARED, PRIVATE, ANONYMOUS = 3, 1, 2, 0x20
def mapped(size, flags, fd=-1):
    address = libc.mmap(None, size, READ_WRITE, flags, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value): raise OSError(ctypes.get_errno(), 'mmap')
    return address
def call(x86_64, aarch64, *arguments):
    number = {'x86_64': x86_64, 'aarch64': aarch64}[os.uname().machine]
    if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), 'syscall')
def until_the_end(step):
    number = 0
    while time.monotonic() < end and number < 400000:
        step(number)
        number += 1
    print(number)
"""

ATTACKS = {
    "processes": "while True: os.fork()",
    "processes by vfork": "import subprocess\nsubprocess.run([sys.executable, '-c', 'pass'])",
    "processes by multiprocessing": "import multiprocessing\nmultiprocessing.Pool(8)",
    "threads": "while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
    "one large block": "x = bytearray(4 * GIB)",
    "many blocks": "x = []\nwhile True: x.append(bytearray(MIB))",
    "many small objects": "x = []\nwhile True: x.append(object())",
    "blocks by threads": (
        "def eat():\n    x = []\n    while True: x.append(bytearray(MIB))\n"
        "for _ in range(2): threading.Thread(target=eat).start()"
    ),
    "a long text": "x = 'x'\nwhile True: x += x",
    "a long integer": "x = 3\nwhile True: x *= x",
    "deep recursion": "sys.setrecursionlimit(1 << 30)\ndef f(): f()\nf()",
    "private mappings": "x = [mapped(16 * MIB, PRIVATE | ANONYMOUS) for _ in range(99)]",
    "shared mappings": "x = [mmap.mmap(-1, 16 * MIB) for _ in range(99)]",
    # The kernel keeps all pages of a shared mapping while one of them is mapped.
    "shared mappings cut down": (
        "def step(_):\n    address = mapped(64 * MIB, SHARED | ANONYMOUS)\n"
        "    ctypes.memset(address, 1, 64 * MIB)\n"
        "    libc.munmap(address + 4096, 64 * MIB - 4096)\nfor i in range(16): step(i)"
    ),
    "shared mappings of /dev/zero": (
        "zero = os.open('/dev/zero', os.O_RDWR)\nfor _ in range(16):\n"
        "    address = mapped(64 * MIB, SHARED, zero)\n    ctypes.memset(address, 1, 64 * MIB)\n"
        "    libc.munmap(address + 4096, 64 * MIB - 4096)"
    ),
    # A huge page is kept while four KiB of it are mapped.
    "huge pages cut down": (
        "huge = 2 * MIB\nfor _ in range(600):\n"
        "    address = mapped(2 * huge, PRIVATE | ANONYMOUS)\n"
        "    first = (address + huge - 1) // huge * huge\n    libc.madvise(first, huge, 14)\n"
        "    ctypes.memset(first, 1, 8)\n    libc.munmap(address, first - address)\n"
        "    libc.munmap(first + 4096, address + 2 * huge - first - 4096)\n"
        "time.sleep(0.5)"
    ),
    "huge pages switched on again": (
        "if libc.prctl(41, 0, 0, 0, 0) < 0: raise OSError('prctl')\n"
        "if libc.prctl(41, 1, 2, 0, 0) == 0: print('except advised')"
    ),
    "page tables": (
        "for i in range(1, 99999):\n    address = libc.mmap(i << 31, 4096, 3, 0x100022, -1, 0)\n"
        "    if address in (None, ctypes.c_void_p(-1).value): break\n"
        "    ctypes.memset(address, 1, 1)\ntime.sleep(0.5)"
    ),
    "pages of the machine's pool of huge ones": "mapped(2 * MIB, PRIVATE | ANONYMOUS | 0x40000)",
    "files in memory": "x = [os.memfd_create(str(i)) for i in range(9)]",
    "secret files in memory": "call(447, 447, 0)",
    "segments of System V": "if libc.shmget(0, 64 * MIB, 0o1600) < 0: raise OSError('shmget')",
    "queues of System V": "if libc.msgget(0, 0o1600) < 0: raise OSError('msgget')",
    "semaphores of System V": "if libc.semget(0, 30000, 0o1600) < 0: raise OSError('semget')",
    "queues of POSIX": (
        "if libc.mq_open(b'/q', os.O_CREAT | os.O_RDWR, 0o600, None) < 0: raise OSError('mq_open')"
    ),
    "disk": "with open('/tmp/f', 'wb') as f:\n    while True: f.write(bytes(MIB))",
    "empty files": "until_the_end(lambda n: os.close(os.open(f'/tmp/{n}', os.O_CREAT)))",
    "folders": "until_the_end(lambda n: os.mkdir(f'/tmp/{n}'))",
    "symbolic links": "until_the_end(lambda n: os.symlink('x' * 100, f'/tmp/{n}'))",
    "hard links": "until_the_end(lambda n: os.link(sys.executable, f'/tmp/{n}'))",
    "named pipes": "until_the_end(lambda n: os.mkfifo(f'/tmp/{n}'))",
    "extended attributes": (
        "until_the_end(lambda n: os.setxattr('/tmp', f'user.{n}', bytes(60000)))"
    ),
    "extended attributes by descriptor": "os.setxattr(os.open('/', os.O_RDONLY), 'user.x', b'x')",
    "shared memory of /dev/shm": "open('/dev/shm/x', 'wb').write(bytes(GIB // 8))",
    "pages in pipes": (
        "class Part(ctypes.Structure):\n"
        "    _fields_ = [('at', ctypes.c_void_p), ('size', ctypes.c_size_t)]\n"
        "reading, writing = os.pipe()\n"
        "part = Part(mapped(MIB, PRIVATE | ANONYMOUS), 4096)\n"
        "if libc.vmsplice(writing, ctypes.byref(part), 1, 0) < 0: raise OSError('vmsplice')"
    ),
    "files spliced into pipes": "os.splice(os.open(sys.executable, 0), os.pipe()[1], 4096)",
    "pipes doubled": (
        "(a, b), (c, d) = os.pipe(), os.pipe()\nos.write(b, b'x')\n"
        "if libc.tee(a, d, 1, 0) < 0: raise OSError('tee')"
    ),
    "large pipes": "fcntl.fcntl(os.pipe()[1], 1031, MIB)",
    "full pipes": (
        "pipes = []\ntry:\n    while True: pipes.append(os.pipe())\nexcept OSError: pass\n"
        "for _, writing in pipes:\n    os.set_blocking(writing, False)\n"
        "    try: os.write(writing, bytes(2 * MIB))\n    except OSError: pass\nprint(len(pipes))"
    ),
    "full sockets": (
        "pairs = []\ntry:\n    while True: pairs.append(socket.socketpair())\n"
        "except OSError: pass\n"
        "for pair in pairs:\n    for end in pair:\n        end.setblocking(False)\n"
        "        try:\n            while True: end.send(bytes(MIB))\n        except OSError: pass\n"
        "print(len(pairs))"
    ),
    "files on their way through sockets": (
        "a, b = socket.socketpair()\n"
        "until_the_end(lambda n: socket.send_fds(a, [b'x'], [os.pipe()[0]]))"
    ),
    "larger buffers of sockets": (
        "a, b = socket.socketpair()\na.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, GIB)"
    ),
    "sockets of other families": (
        "for family in range(2, 46):\n"
        "    pair = (ctypes.c_int * 2)()\n"
        "    if libc.socketpair(family, 1, 0, pair) == 0: sys.exit(0)\nraise OSError('socketpair')"
    ),
    "watches": (
        "fd = libc.inotify_init1(0)\nif fd < 0: raise OSError('inotify')\n"
        "until_the_end(lambda n: libc.inotify_add_watch(fd, b'/tmp', 0xFFF))"
    ),
    "watches of whole file systems": ("if libc.fanotify_init(0, 0) < 0: raise OSError('fanotify')"),
    "locks": (
        "f = os.open(sys.executable, os.O_RDONLY)\n"
        "until_the_end(lambda n: fcntl.fcntl(f, fcntl.F_SETLK, struct.pack("
        "'hhqqi', fcntl.F_RDLCK, 0, (1 << 40) - 2 * n, 1, 0) + bytes(4)))"
    ),
    "locks of open files": (
        "f = os.open(sys.executable, os.O_RDONLY)\n"
        "until_the_end(lambda n: fcntl.fcntl(f, 37, struct.pack("
        "'hhqqi', fcntl.F_RDLCK, 0, (1 << 40) - 2 * n, 1, 0) + bytes(4)))"
    ),
    "leases": "fcntl.fcntl(os.open(sys.executable, os.O_RDONLY), 1024, fcntl.F_RDLCK)",
    "interest in many descriptors": (
        "import select\npolls = [select.epoll() for _ in range(20)]\n"
        "ends = [end for _ in range(15) for end in os.pipe()]\n"
        "for poll in polls:\n    for end in ends: poll.register(end)\nprint(len(polls))"
    ),
    "timers": (
        "timer = ctypes.c_void_p()\n"
        "until_the_end(lambda n: call(222, 107, 1, 0, ctypes.byref(timer)))"
    ),
    "queued signals": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 64))\n"
        "def step(n):\n"
        "    if libc.sigqueue(os.getpid(), 34 + n % 30, 0) < 0: raise OSError('queue')\n"
        "until_the_end(step)"
    ),
    "requests of asynchronous reading": (
        "context = ctypes.c_ulong()\ncall(206, 0, 60000, ctypes.byref(context))"
    ),
    "rings": "call(425, 425, 4096, (ctypes.c_char * 120)())",
    "programs of the kernel": "call(321, 280, 0, (ctypes.c_char * 128)(), 128)",
    "keys": "call(248, 217, b'user', b'x', b'y' * 10000, 10000, -3)",
    "rules of Landlock": "call(444, 444, (ctypes.c_ulong * 2)(0x1FFF, 0), 16, 0)",
    "filters of system calls": "call(317, 277, 1, 0, None)",
    "counters": "call(298, 241, (ctypes.c_char * 128)(), 0, -1, -1, 0)",
    "faults handled by the program": "call(323, 282, 0)",
    "locked memory": "if libc.mlockall(3) < 0: raise OSError('mlockall')",
    "terminals": "os.open('/dev/ptmx', os.O_RDWR)",
    "segment descriptors": "call(154, 1000, 1, (ctypes.c_char * 16)(), 16)",
    "handles of processes": "os.pidfd_open(os.getpid())",
    "other personalities": "if libc.personality(0xFFFFFFFF) < 0: raise OSError('personality')",
    "names that are not there": (
        "def step(n):\n    try: os.stat(f'/usr/lib/{n}' + 'x' * 200)\n    except OSError: pass\n"
        "until_the_end(step)"
    ),
    "higher limits": (
        "for name in ('AS', 'NPROC', 'NOFILE', 'FSIZE', 'CPU', 'SIGPENDING', 'MEMLOCK'):\n"
        "    kind = getattr(resource, 'RLIMIT_' + name)\n"
        "    hard = resource.getrlimit(kind)[1]\n"
        "    try: resource.setrlimit(kind, (hard + 1, hard + 1))\n"
        "    except (OSError, ValueError): pass\n    else: sys.exit(0)\nraise OSError('none')"
    ),
    "limits after another start": (
        "os.execv(sys.executable, [sys.executable, '-S', '-c', 'x = bytearray(1 << 30)'])"
    ),
    "output": "while True: print('x' * MIB)",
    "output by descriptor": (
        "while True:\n    for fd in range(64):\n"
        "        try: os.write(fd, bytes(MIB))\n        except OSError: pass"
    ),
    "output made larger": "os.ftruncate(1, 8 * GIB)",
    "output on stderr": "while True: sys.stderr.write('x' * MIB)",
    "time": "while True: pass",
    "time in threads": (
        "def spin():\n    while True: pass\n"
        "for _ in range(2): threading.Thread(target=spin).start()"
    ),
    "time against all signals": (
        "for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "sleep": "time.sleep(1000)",
    "a stop": "os.kill(os.getpid(), signal.SIGSTOP)",
    "a lock that nobody opens": "l = threading.Lock()\nl.acquire()\nl.acquire()",
}


def test_there_are_more_than_twenty_five() -> None:
    assert len(ATTACKS) >= 25


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_contained(name: str, sandbox: Launcher) -> None:
    code = TOOLS + ATTACKS[name]
    allowed = MOST_GROWTH + (MOST_PAGE_TABLES if name == "page tables" else 0)
    growths = []
    for _ in range(TRIES):
        found, growth = host_growth(lambda: attack(sandbox, code, LIMITS, Checker.LENIENT))
        assert found.outcome in (Outcome.WRONG, Outcome.TIME_LIMIT)
        if "raise OSError" in code.removeprefix(TOOLS) or "call(" in code.removeprefix(TOOLS):
            assert "Error" in str(found.detail), "the kernel should have said no"
        assert not any(mistake in str(found.detail) for mistake in MISTAKES)
        growths.append(growth >> 20)
        if growth < allowed:
            print(f"{name}: {found.detail}; the host had {growths[-1]} MiB less")  # noqa: T201
            return
    pytest.fail(f"{name}: the host had {growths} MiB less, allowed {allowed >> 20}")


def test_what_the_limits_allow_is_seen_on_the_host(sandbox: Launcher) -> None:
    code = f"import time\nx = bytearray({3 * MOST_GROWTH})\nx[::4096] = b'x' * len(x[::4096])\n"
    roomy = Limits(memory_bytes=4 * MOST_GROWTH)
    _, growth = host_growth(lambda: attack(sandbox, code + "time.sleep(0.3)", roomy))
    assert growth > MOST_GROWTH
