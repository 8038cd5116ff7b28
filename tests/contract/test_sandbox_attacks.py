"""Hostile programs. Each must be contained, and the grader must go on and grade the next one."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.reasoning.code.grading import Grade, grade
from amnesia_bench.reasoning.code.problems import CodeProblem, ProgramTest
from amnesia_bench.records.evaluation import Outcome
from amnesia_bench.sandbox import Launcher, Limits, ProgramStoppedError, launcher
from amnesia_bench.sandbox.program import MIB
from tests.support.attacks import FRAME, HONEST, LIMITS, PROBLEM, SECRET, TESTS, attack, printed

pytestmark = pytest.mark.bubblewrap


@pytest.fixture
def namespaces_alone(sandbox: Launcher, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """The sandbox without its system call filter: what the other layers hold by themselves."""
    allow_all = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr(launcher, "filter_program", lambda: allow_all)
    return sandbox


class TestUsingTooMuch:
    @pytest.mark.parametrize(
        ("code", "detail"),
        [
            ("import os\nwhile True: os.fork()", "runtime error: PermissionError"),
            ("import subprocess\nsubprocess.run(['sh'])", "runtime error: PermissionError"),
            (
                "import threading, time\nwhile True:\n"
                "    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
                "runtime error: RuntimeError",
            ),
            ("x = bytearray(1 << 40)", "memory limit"),
            ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory limit"),
            (
                "import mmap\nx = [mmap.mmap(-1, 1 << 24) for _ in range(99)]",
                "runtime error: OSError",
            ),
            ("import os\nos.memfd_create('x')", "runtime error: PermissionError"),
            ("while True: print('x' * 1000000)", "memory limit"),
            ("print('x' * (20 << 20))", "output limit"),
            ("import ctypes\nctypes.string_at(0)", "the process ended"),
        ],
    )
    def test_it_ends_at_the_limit(self, sandbox: Launcher, code: str, detail: str) -> None:
        roomy = Limits(seconds_per_test=20.0, memory_bytes=512 * MIB)
        assert attack(sandbox, code, roomy) == Grade(Outcome.WRONG, f"test 1 of 2: {detail}")

    @pytest.mark.parametrize(
        "code",
        [
            "import os\nwhile True: os.write(1, b'x' * 100000)",
            "import sys\nwhile True: sys.stderr.write('x' * 100000)",
            "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
            "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\nwhile True: pass",
            "import threading\nthreading.Event().wait()",
        ],
    )
    def test_it_ends_with_its_time(self, sandbox: Launcher, code: str) -> None:
        start = time.monotonic()
        found = attack(sandbox, code)
        assert found == Grade(Outcome.TIME_LIMIT, "test 1 of 2: time limit")
        assert time.monotonic() - start < 60  # it did end; how fast is no matter of a test

    def test_a_flood_on_stderr_is_no_fault(self, sandbox: Launcher) -> None:
        flood = "import sys\nfor _ in range(1000): sys.stderr.write('x' * 100000)\n"
        roomy = Limits(seconds_per_test=20.0)
        assert attack(sandbox, flood + HONEST, roomy).outcome is Outcome.CORRECT

    def test_limits_cannot_be_raised(self, sandbox: Launcher) -> None:
        code = (
            "import sys\ndel sys.modules['resource']\nresource = __import__('resource')\n"
            "for name in dir(resource):\n"
            "    if name.startswith('RLIMIT_') and name != 'RLIMIT_STACK':\n"
            "        kind = getattr(resource, name)\n"
            "        soft, hard = resource.getrlimit(kind)\n"
            "        if hard == -1: continue\n"
            "        try: resource.setrlimit(kind, (hard + 1, hard + 1))\n"
            "        except ValueError: continue\n"
            "        print(name)\n"
        )
        assert printed(sandbox, code) == ""

    def test_one_at_its_limit_does_not_starve_another(self, sandbox: Launcher) -> None:
        greedy = (
            "import threading\nstarted = 0\ntry:\n    while True:\n        threading.Thread("
            "target=threading.Event().wait, daemon=True).start()\n        started += 1\n"
            "except RuntimeError: print(started)"
        )
        counts = []
        with sandbox.started(Limits(), 20) as first, sandbox.started(Limits(), 20) as second:
            for session in (first, second):
                deadline = time.monotonic() + 20
                session.ask({"code": greedy, "function": None}, deadline)
                counts.append(int(session.ask("", deadline)["printed"]))
        assert counts[0] == counts[1] > 10


class TestReading:
    def test_tokens_in_the_launchers_environment_stay_there(
        self, sandbox: Launcher, tmp_path: Path
    ) -> None:
        # A process of its own: /proc shows the environment that a process began with.
        snoop = (
            "import glob, os\nprint(dict(os.environ))\n"
            "for path in ['/proc/1/environ', *glob.glob('/proc/*/environ')]:\n"
            "    try: print(open(path, 'rb').read())\n    except OSError as error: print(error)\n"
        )
        script = (
            "from amnesia_bench.sandbox import *\nimport sys, time\n"
            "with open_launcher().started(Limits(), 20) as session:\n"
            "    deadline = time.monotonic() + 20\n"
            "    session.ask({'code': sys.argv[1], 'function': None}, deadline)\n"
            "    print(session.ask('', deadline)['printed'])\n"
        )
        environment = {**os.environ, "HF_TOKEN": SECRET, "HOME": str(tmp_path / SECRET)}
        command = [sys.executable, "-c", script, snoop]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "PYTHONHASHSEED" in found.stdout
        assert SECRET not in found.stdout

    def test_nothing_of_the_host_is_there_to_read(self, sandbox: Launcher, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text(SECRET)
        token.chmod(0o644)
        paths = [str(token), "/etc/passwd", "/root", "/home", "/proc/1/root", str(Path.cwd())]
        code = (
            f"import os\nfor path in {paths!r}:\n"
            "    for name in (path, '/tmp/../..' + path, '/dev/fd/3/..' + path):\n"
            "        if os.path.exists(name): print(name)\n"
        )
        assert printed(sandbox, code) == ""

    def test_expected_outputs_are_nowhere_to_be_found(self, sandbox: Launcher) -> None:
        code = (
            "import fcntl, gc, os, sys\nfound = [sys.argv, sys.orig_argv, dict(os.environ)]\n"
            "frame = sys._getframe()\n"
            "while frame:\n    found += [frame.f_locals, frame.f_globals]\n"
            "    frame = frame.f_back\n"
            "found += [o for o in gc.get_objects() if isinstance(o, (list, tuple, dict))]\n"
            "for descriptor in range(64):\n"
            "    try:\n        os.set_blocking(descriptor, False)\n"
            "        found.append(os.read(descriptor, 1 << 20))\n"
            "    except OSError: pass\n"
            "print(len(found), 'expected-' + '9f3c51' in repr(found))\n"
        )
        with sandbox.started(Limits(), 20) as session:
            deadline = time.monotonic() + 20
            session.ask({"code": code, "function": None}, deadline)
            count, seen = session.ask(TESTS[0].input, deadline)["printed"].split()
        assert int(count) > 100
        assert seen == "False"


class TestReachingOut:
    @pytest.fixture
    def listeners(self, tmp_path: Path) -> Iterator[list[socket.socket]]:
        """A TCP, a UDP, a unix and an abstract unix socket of the host, all open to anybody."""
        tmp_path.chmod(0o777)
        opened = [socket.socket(), socket.socket(type=socket.SOCK_DGRAM)]
        opened += [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        addresses: list[Any] = [("127.0.0.1", 0), ("127.0.0.1", 0), str(tmp_path / "s")]
        addresses.append(f"\0amnesia-{os.getpid()}")
        for sock, address in zip(opened, addresses, strict=True):
            sock.bind(address)
            sock.settimeout(0.2)
            if sock.type == socket.SOCK_STREAM:
                sock.listen()
        yield opened
        for sock in opened:
            sock.close()

    @pytest.mark.parametrize("layer", ["sandbox", "namespaces_alone"])
    def test_no_socket_of_the_host_hears_anything(
        self, layer: str, request: pytest.FixtureRequest, listeners: list[socket.socket]
    ) -> None:
        targets = [(s.family.value, s.type.value, s.getsockname()) for s in listeners]
        targets = [(f, t, n.decode() if isinstance(n, bytes) else n) for f, t, n in targets]
        code = (
            f"import socket\nfor family, kind, name in {targets!r}:\n    try:\n"
            "        s = socket.socket(family, kind)\n        s.settimeout(1)\n"
            "        s.connect(name)\n        s.send(b'hello')\n"
            "    except OSError as error: print(type(error).__name__)\n"
        )
        refusals = printed(request.getfixturevalue(layer), code).split()
        # A namespace has a loopback of its own, where a datagram to nobody is no error.
        assert len(refusals) == (4 if layer == "sandbox" else 3)
        for sock in listeners:
            with pytest.raises(TimeoutError):
                sock.accept() if sock.type == socket.SOCK_STREAM else sock.recv(10)

    @pytest.mark.parametrize("layer", ["sandbox", "namespaces_alone"])
    @pytest.mark.parametrize(
        "code",
        [
            "os.kill(os.getppid(), 9)",
            "os.kill(1, 9)",
            "os.kill(-1, 9)",
            "os.killpg(0, 9)",
            f"os.kill({os.getpid()}, 9)",
        ],
        ids=["parent", "first", "all", "group", "tests"],
    )
    def test_no_process_outside_can_be_killed(
        self, layer: str, code: str, request: pytest.FixtureRequest
    ) -> None:
        jail = request.getfixturevalue(layer)
        bystander = subprocess.Popen(["sleep", "60"])
        try:
            attack(jail, f"import os\ntry: {code}\nexcept OSError: pass")
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()

    def test_writing_outside_is_refused(self, sandbox: Launcher, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        code = (
            "import os, sys\n"
            f"places = ['/', '/dev', '/dev/shm', '/usr/lib', '/packages', {str(tmp_path)!r},"
            " os.path.dirname(sys.executable), os.path.dirname(os.__file__), '/tmp']\n"
            "for place in places:\n    try:\n"
            "        os.close(os.open(place + '/written', os.O_CREAT | os.O_WRONLY))\n"
            "        print(place)\n    except OSError: pass\n"
        )
        assert printed(sandbox, code) == ""
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("layer", ["sandbox", "namespaces_alone"])
    def test_no_namespace_mount_or_other_user(
        self, layer: str, request: pytest.FixtureRequest
    ) -> None:
        code = (
            "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
            "for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000):\n"
            "    if c.unshare(flag) == 0: print('unshare', hex(flag))\n"
            "if c.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('mount')\n"
            "if c.chroot(b'/tmp') == 0: print('chroot')\n"
            "if c.setuid(0) == 0: print('root')\n"
        )
        assert printed(request.getfixturevalue(layer), code) == ""

    def test_no_process_can_be_traced(self, sandbox: Launcher) -> None:
        code = "import ctypes\nprint(ctypes.CDLL(None).ptrace(16, 1, None, None))"
        assert printed(sandbox, code) == "-1\n"

    def test_no_other_program_can_be_executed(self, sandbox: Launcher) -> None:
        code = "import os\nfor p in ('/bin/sh', '/usr/bin/env', '/usr/bin/id'):\n"
        code += "    try: os.execv(p, [p])\n    except OSError: pass\n" + HONEST
        roomy = Limits(seconds_per_test=20.0)
        assert attack(sandbox, code, roomy).outcome is Outcome.CORRECT


class TestOutliving:
    def test_a_daemon_dies_with_its_sandbox(self, namespaces_alone: Launcher) -> None:
        code = (
            "import os, signal, time\nr, w = os.pipe()\n"
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
            "    for s in range(1, 30):\n        try: signal.signal(s, signal.SIG_IGN)\n"
            "        except (OSError, ValueError): pass\n"
            "    os.closerange(0, w)\n    os.write(w, b'x')\n    time.sleep(1000)\n"
            "os.read(r, 1)\nprint('started')"
        )
        with namespaces_alone.started(Limits(), 20) as session:
            deadline = time.monotonic() + 20
            session.ask({"code": code, "function": None}, deadline)
            assert session.ask("", deadline) == {"printed": "started\n"}
            family = descendants(session.pid)
            assert len(family) >= 3  # bwrap's init, the driver, the daemon
        assert not [pid for pid in family if alive(pid)]

    def test_programs_die_with_a_killed_grader(self, sandbox: Launcher) -> None:
        script = (
            "from amnesia_bench.sandbox import *\nimport time\n"
            "with open_launcher().started(Limits(), 100) as session:\n"
            "    deadline = time.monotonic() + 100\n"
            "    print(session.pid, flush=True)\n"
            "    session.ask({'code': 'while True: pass', 'function': 'f'}, deadline)\n"
        )
        grader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert grader.stdout is not None
        bwrap = int(grader.stdout.readline())
        family = wait_for(lambda: len(found := descendants(bwrap)) >= 2 and found)
        grader.kill()
        grader.wait()
        grader.stdout.close()
        wait_for(lambda: not [pid for pid in [bwrap, *family] if alive(pid)])


class TestForging:
    """Frames are no secret: a program may write them, but it has no right answer to put in."""

    @pytest.mark.parametrize(
        ("code", "detail"),
        [
            ("everywhere(frame({'outcome': 'correct'}))", "malformed answer"),
            ("everywhere(frame({'printed': True}))", "malformed answer"),
            ("everywhere(frame({'printed': 'guess'}))", "wrong answer: line 1"),
            ("everywhere(frame([1, 2]))", "malformed answer"),
            ("everywhere(frame(b'not json'))", "malformed answer"),
            ("everywhere(frame(b'[' * 1000000))", "malformed answer"),
            ("everywhere(frame(b'9' * 1000000))", "malformed answer"),
            ("everywhere(frame(b'\\xff\\xfe'))", "malformed answer"),
            ("everywhere(frame({'error': 'x' * 1000}))", "runtime error: " + "x" * 80),
            ("everywhere(frame({'error': ['no', 'name']}))", "malformed answer"),
            ("everywhere(b'\\xff' * 8)", "output limit"),
            ("os.closerange(3, 64)", "the process ended"),
            ("os._exit(0)", "the process ended"),
        ],
    )
    def test_it_is_a_wrong_answer(self, sandbox: Launcher, code: str, detail: str) -> None:
        roomy = Limits(seconds_per_test=20.0)
        found = attack(sandbox, f"{FRAME}\n{code}", roomy)
        assert found == Grade(Outcome.WRONG, f"test 1 of 2: {detail}")

    @pytest.mark.parametrize(
        "code",
        [
            "everywhere((100).to_bytes(8, 'big') + b'half of it')\nwhile True: pass",
            "import time\nwhile True:\n    everywhere(b'\\x00')\n    time.sleep(2)",
        ],
    )
    def test_half_a_frame_is_no_answer(self, sandbox: Launcher, code: str) -> None:
        found = attack(sandbox, f"{FRAME}\n{code}")
        assert found.outcome is Outcome.TIME_LIMIT

    def test_answers_ahead_of_the_questions_are_judged_like_others(self, sandbox: Launcher) -> None:
        ahead = f"{FRAME}\neverywhere(frame({{'printed': {SECRET!r}}}) + frame({{'printed': '5'}}))"
        roomy = Limits(seconds_per_test=20.0)
        found = attack(sandbox, ahead, roomy)
        assert found == Grade(Outcome.WRONG, "test 2 of 2: wrong answer: line 1")

    def test_a_program_that_takes_no_input_is_not_waited_for(self, sandbox: Launcher) -> None:
        tests = (TESTS[0], ProgramTest(input="x" * (4 << 20), output="y"))
        code = f"{FRAME}\neverywhere(frame({{'printed': {SECRET!r}}}))\nwhile True: pass"
        found = grade(code, PROBLEM, tests, sandbox, LIMITS)
        assert found == Grade(Outcome.TIME_LIMIT, "test 2 of 2: time limit")

    def test_an_object_that_equals_everything_equals_nothing(self, sandbox: Launcher) -> None:
        code = (
            "class Equal(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
            "class Solution:\n    def f(self, x): return [Equal(7), Equal(8)]\n"
        )
        problem = CodeProblem(
            name="", question="", starter_code="", function="f", sha256="", source=Path(), offset=0
        )
        tests = (ProgramTest(input="1", output=json.dumps([7, 9])),)
        found = grade(code, problem, tests, sandbox, Limits())
        assert found == Grade(Outcome.WRONG, "test 1 of 1: wrong answer")

    def test_nothing_answers_after_the_first_failure(self, sandbox: Launcher) -> None:
        with sandbox.started(LIMITS, 20) as session:
            deadline = time.monotonic() + 20
            session.ask({"code": "import os\nos._exit(3)", "function": None}, deadline)
            for _ in range(2):
                with pytest.raises(ProgramStoppedError):
                    session.ask("", deadline)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value
