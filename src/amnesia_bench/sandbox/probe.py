"""The program of the self-test: it attempts each known escape from the sandbox.

The driver executes the source of this file after its own star imports, so the file imports only
the standard library and nothing from `__future__`.
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
    """Return whether the attempt raised one of `errors`, and a description of its result."""
    try:
        result = attempt()
    except errors as error:
        return True, f"{type(error).__name__}: {error}"
    return False, f"got {result!r}"[:100]


def network() -> Finding:
    return refused(lambda: socket.create_connection(("1.1.1.1", 53), 1), OSError)


def local_socket() -> Finding:
    return refused(lambda: socket.socket(socket.AF_UNIX), OSError)


def host_files() -> Finding:
    paths = ("/etc", "/home", "/root", "/proc", "/sys", "/var", "/run", "/mnt", "/usr/bin/env")
    visible = [path for path in paths if os.path.lexists(path)]
    return not visible, f"visible: {' '.join(visible) or 'none'}"


def writing() -> Finding:
    written = []
    folders = ("/", "/tmp", "/dev", "/dev/shm", "/usr/lib", str(Path(os.__file__).parent))
    for folder in folders:
        with contextlib.suppress(OSError):
            (Path(folder) / "written").touch()
            written.append(folder)
    return not written, f"written: {' '.join(written) or 'nowhere'}"


def environment() -> Finding:
    # The launcher sets the first two variables; bwrap and Python set the others.
    expected = {"PYTHONHASHSEED", "OPENBLAS_NUM_THREADS", "PWD", "LC_CTYPE"}
    leaked = sorted(set(os.environ) - expected)
    return not leaked, f"variables: {' '.join(leaked) or 'only those of the sandbox'}"


def user() -> Finding:
    return os.getuid() != 0, f"uid {os.getuid()}"


def second_process() -> Finding:
    def fork() -> int:
        if (child := os.fork()) == 0:
            os._exit(0)
        return child

    return refused(fork, OSError)


def threads() -> Finding:
    release = threading.Event()

    def start_many() -> int:
        for _ in range(500):
            threading.Thread(target=release.wait, daemon=True).start()
        return 500

    try:
        return refused(start_many, RuntimeError)
    finally:
        release.set()


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
    """Return the name of each attempted escape, whether it was refused, and its result."""
    attempts = (
        *(network, local_socket, host_files, writing, environment, user, second_process),
        *(threads, memory, uncounted_memory, shared_memory, namespaces),
    )
    return [[attempt.__name__.replace("_", " "), *attempt()] for attempt in attempts]
