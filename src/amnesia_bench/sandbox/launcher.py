"""Start programs in a bubblewrap sandbox or, with --unsafe-no-sandbox, without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.sandbox.program import (
    NOBODY,
    Interpreter,
    Limits,
    ScriptFiles,
    find_interpreter,
    script_files,
)
from amnesia_bench.sandbox.seccomp import filter_program
from amnesia_bench.sandbox.session import ProgramStoppedError, SandboxError, Session

PACKAGES = "/packages"  # folder inside the sandbox that contains numpy
# All environment variables of a program. The hash seed fixes the iteration order of string sets.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
START_SECONDS = 60.0  # long enough for a busy machine; on an idle one a start takes 0.05 s

Process = subprocess.Popen[bytes]

INSTALL = (
    "Install bubblewrap 0.8 or later (Debian: apt install bubblewrap) and allow unprivileged user "
    "namespaces, or type --unsafe-no-sandbox inside a container without network or secrets."
)


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts programs in a sandbox created by `bwrap`, or without a sandbox if `bwrap` is None."""

    interpreter: Interpreter
    bwrap: Path | None

    @property
    def settings(self) -> dict[str, str]:
        """The sandbox settings that verdicts may depend on."""
        return {
            "sandbox": "none" if self.bwrap is None else "bubblewrap",
            "sandbox_python": self.interpreter.executable.name,
            "sandbox_numpy": "no" if not self.interpreter.numpy else "yes",
        }

    @contextmanager
    def started(
        self, limits: Limits, cpu_seconds: float, *, script_input: str | None = None
    ) -> Iterator[Session]:
        """Start the driver for one program; all its processes are killed when the block ends.

        Args:
            limits: the limits of the program.
            cpu_seconds: CPU time limit of the process, over all tests.
            script_input: standard input of a program that runs as a script; None if the caller
                sends the test inputs one by one.

        Raises:
            SandboxError: the driver did not start.
        """
        source = files(__package__).joinpath("driver.py").read_text("utf-8")
        # -s -S: do not add the user's or the global site-packages to sys.path.
        python = [str(self.interpreter.executable), "-s", "-S", "-B", "-c", source]
        threads = limits.threads if self.bwrap is not None else _other_threads() + limits.threads
        setup = _setup(limits, threads, cpu_seconds, self._packages())
        with ExitStack() as stack:
            script = None
            if script_input is not None:
                script = stack.enter_context(script_files(script_input))
                python += map(str, script.programs)
            session = stack.enter_context(closing(self._session(stack, python, setup, script)))
            if script is not None:
                session.printed = script.printed
            yield session

    def _packages(self) -> list[str]:
        if self.bwrap is not None:
            return [PACKAGES] if self.interpreter.numpy else []
        return sorted({str(folder.parent) for folder in self.interpreter.numpy})

    def _session(
        self, stack: ExitStack, python: list[str], setup: dict[str, Any], script: ScriptFiles | None
    ) -> Session:
        inherited = () if script is None else script.programs
        if self.bwrap is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            if os.geteuid() == 0:
                os.chown(folder, NOBODY, NOBODY)
            process = _spawn(python, folder, inherited)
            session = _prepare_session(process, setup)
            session.driver = process.pid
            return session
        with _pipe() as (info, info_out), _pipe() as (calls, calls_out):
            calls_out.write(filter_program())
            calls_out.close()
            command = self._bwrap_command(info_out.fileno(), calls.fileno())
            if script is not None:
                command += ["--ro-bind-data", str(script.copied), "/dev/stdin"]
                for other in ("/dev/fd/0", "/proc/self/fd/0"):
                    command += ["--symlink", "/dev/stdin", other]
                inherited = (*inherited, script.copied)
            # These options come last, since bwrap must write its own files before the remount.
            # Nothing may be writable: no limit covers the kernel memory that files, links, their
            # names and their attributes occupy.
            command += ["--remount-ro", "/", "--chdir", "/tmp", "--"]
            process = _spawn(command + python, "/", (info_out.fileno(), calls.fileno(), *inherited))
            session = _prepare_session(process, setup)
            # bwrap writes `info` before the driver starts; if it is empty, bwrap failed.
            os.set_blocking(info.fileno(), False)
            first = _first_process(info.read() or b"", process)
            if first is not None:
                session.init, session.driver = first
            return session

    def _bwrap_command(self, info: int, seccomp: int) -> list[str]:
        command = [str(self.bwrap), "--unshare-all", "--unshare-user", "--disable-userns"]
        command += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        command += ["--hostname", "sandbox", "--info-fd", str(info), "--seccomp", str(seccomp)]
        command += ["--dir", "/tmp"]
        for folder in self.interpreter.folders:
            # A symbolic link, such as /lib to /usr/lib, is a symbolic link in the sandbox too.
            if folder.is_symlink():
                command += ["--symlink", str(folder.readlink()), str(folder)]
            else:
                command += ["--ro-bind", str(folder), str(folder)]
        executable = str(self.interpreter.executable)
        command += ["--ro-bind", executable, executable]
        for folder in self.interpreter.numpy:
            command += ["--ro-bind", str(folder), f"{PACKAGES}/{folder.name}"]
        # No /proc, since /proc/1/environ would expose the launcher's environment. No /dev/zero and
        # no terminals, since no limit covers the kernel memory that they can use.
        for device in ("/dev/null", "/dev/random", "/dev/urandom"):
            command += ["--dev-bind", device, device]
        return command


def find_launcher(*, unsafe_no_sandbox: bool = False) -> Launcher:
    """Return a launcher for this machine without running the self-test of its sandbox.

    Raises:
        MissingEnvironmentError: bubblewrap, a Python that programs may use, or a system call filter
            for this machine is missing.
    """
    interpreter = find_interpreter()
    if unsafe_no_sandbox:
        return Launcher(interpreter=interpreter, bwrap=None)
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise MissingEnvironmentError("no sandbox: bwrap is not in PATH", hint=INSTALL)
    filter_program()  # raises if this machine has no filter
    return Launcher(interpreter=interpreter, bwrap=Path(bwrap).resolve())


def _setup(limits: Limits, threads: int, cpu_seconds: float, packages: list[str]) -> dict[str, Any]:
    """Return the setup that the driver applies before it receives the program."""
    return {
        "limits": {
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_CPU": int(cpu_seconds) + 1,
            "RLIMIT_NPROC": threads,
            "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_SIGPENDING": limits.signals,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_CORE": 0,
            "RLIMIT_MSGQUEUE": 0,
        },
        "output_bytes": limits.output_bytes,
        "packages": packages,
    }


def _other_threads() -> int:
    """Return an upper bound on how many other threads run as the user that runs programs.

    Outside a user namespace, RLIMIT_NPROC counts all threads of a user.
    """
    user, threads = (os.geteuid() or NOBODY), 0
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdecimal() and process.stat().st_uid == user:
                threads += len(list((process / "task").iterdir()))
    return threads + Limits().threads * len(os.sched_getaffinity(0))


def _prepare_session(process: Process, setup: dict[str, Any]) -> Session:
    """Return a session whose driver has sent its greeting and set its limits.

    Raises:
        SandboxError: the driver failed to do so; the message is its stderr output.
    """
    session = Session(process, setup["output_bytes"])
    deadline = time.monotonic() + START_SECONDS
    try:
        session.answer(deadline)
        session.ask(setup, deadline)
    except BaseException as error:
        session.kill()
        stderr = session.diagnostics()
        session.close()
        if isinstance(error, ProgramStoppedError):
            raise SandboxError(stderr or str(error)) from error
        raise
    return session


def _spawn(command: list[str], folder: str, inherited: tuple[int, ...] = ()) -> Process:
    options: dict[str, Any] = {}
    if os.geteuid() == 0:
        options = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=ENVIRONMENT,
        cwd=folder,
        pass_fds=inherited,
        start_new_session=True,
        bufsize=0,
        **options,
    )


@contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        yield source, sink


def _first_process(info: bytes, process: Process) -> tuple[int, int | None] | None:
    """Return a pidfd of the sandbox's first process, and the pid of its child, the driver.

    Return None if bwrap failed before it started the first process.
    """
    try:
        pid = int(json.loads(info)["child-pid"])
        descriptor = os.pidfd_open(pid)
    except (ValueError, KeyError, ProcessLookupError):
        return None
    # bwrap has not been reaped, so if this process is still its child, its pid was not reused.
    if _parent_of(pid) == process.pid:
        return descriptor, _child_of(pid)
    os.close(descriptor)
    return None


def _child_of(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    except FileNotFoundError:  # some kernels lack this file
        pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        children = [str(candidate) for candidate in pids if _parent_of(candidate) == pid]
    return int(children[0]) if children else None


def _parent_of(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1])
