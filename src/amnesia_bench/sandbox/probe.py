"""The program of the self-test: it tries each way out of the sandbox and returns what it met.

Like the driver it runs as text, after the star imports that the driver puts before it, so it
imports the standard library alone and nothing from __future__.
"""

import contextlib
import mmap
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

Finding = tuple[bool, str]
MIB = 1 << 20


def refused(attempt: Callable[[], object], *errors: type[BaseException]) -> Finding:
    """Return whether the attempt ended in one of these errors, and what happened."""
    try:
        got = attempt()
    except errors as error:
        return True, f"{type(error).__name__}: {error}"
    return False, f"got {got!r}"[:100]


def network() -> Finding:
    return refused(lambda: socket.create_connection(("1.1.1.1", 53), 1), OSError)


def local_socket() -> Finding:
    return refused(lambda: socket.socket(socket.AF_UNIX), OSError)


def host_files() -> Finding:
    places = ("/etc", "/home", "/root", "/proc", "/sys", "/var", "/run", "/mnt", "/usr/bin/env")
    seen = [place for place in places if os.path.lexists(place)]
    return not seen, f"visible: {' '.join(seen) or 'none of them'}"


def writing() -> Finding:
    written = []
    places = ("/", "/tmp", "/dev", "/dev/shm", "/usr/lib", str(Path(os.__file__).parent))
    for folder in places:
        with contextlib.suppress(OSError):
            (Path(folder) / "written").touch()
            written.append(folder)
    return not written, f"written: {' '.join(written) or 'nowhere'}"


def environment() -> Finding:
    # The first two are the launcher's, the others bwrap's and Python's own.
    known = {"PYTHONHASHSEED", "OPENBLAS_NUM_THREADS", "PWD", "LC_CTYPE"}
    others = sorted(set(os.environ) - known)
    return not others, f"names: {' '.join(others) or 'only our own'}"


def user() -> Finding:
    return os.getuid() != 0, f"uid {os.getuid()}"


def second_process() -> Finding:
    def fork() -> int:
        if (child := os.fork()) == 0:
            os._exit(0)
        return child

    return refused(fork, OSError)


def threads() -> Finding:
    enough = threading.Event()

    def start_many() -> int:
        for _ in range(500):
            threading.Thread(target=enough.wait, daemon=True).start()
        return 500

    try:
        return refused(start_many, RuntimeError)
    finally:
        enough.set()


def memory() -> Finding:
    return refused(lambda: len(bytearray(1024 * MIB)), MemoryError)


def uncounted_memory() -> Finding:
    return refused(lambda: os.memfd_create("probe"), OSError)


def shared_memory() -> Finding:
    return refused(lambda: mmap.mmap(-1, MIB), OSError)


def namespaces() -> Finding:
    import ctypes

    calls = ctypes.CDLL(None, use_errno=True)
    new_user = 0x10000000
    if calls.unshare(new_user) == 0:
        return False, "a user namespace of its own"
    return True, os.strerror(ctypes.get_errno())


def probe(_: object) -> list[list[object]]:
    """Return the name, whether it is contained, and what was found, for each way out."""
    ways = (network, local_socket, host_files, writing, environment, user, second_process)
    more = (threads, memory, uncounted_memory, shared_memory, namespaces)
    return [[way.__name__.replace("_", " "), *way()] for way in (*ways, *more)]
