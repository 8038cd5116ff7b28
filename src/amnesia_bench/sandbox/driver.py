"""Runs inside the sandbox: loads one program, passes it the test inputs, returns its answers.

The launcher passes this source file to `python -c`, so it imports only the standard library. The
program can read all memory of this process, which therefore never receives expected outputs.

In both directions a frame is an 8-byte length followed by JSON. The driver receives the limits, the
program, and one input per test; it sends a greeting, then one answer to each request. Forging
frames gains a program no more than printing does, since all judging happens outside the sandbox.

Loading and calling follow LiveCodeBench's checker (lcb_runner/evaluation/testing_util.py at
28fef95), including its oddities: a stdin program becomes the body of a function in a module that
begins with star imports; `sys.stdin` cannot be iterated over, and its `read`, `readlines` and
`buffer` never advance. Unlike the checker, the driver joins the threads that a program left
running, as Python does at exit; the checker's verdict on such a program depends on a race.

If the driver gets two file descriptors as arguments, it runs the program as a script (`__main__`)
with these as standard input and output. The exit status of the process is then the answer.
"""

from __future__ import annotations

import ast
import builtins
import gc
import io
import json
import os
import resource
import sys
import threading
from contextlib import suppress
from fractions import Fraction
from types import ModuleType
from typing import Any

PLAIN_IMPORTS = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json"),
)
STAR_IMPORTS = (*PLAIN_IMPORTS, "builtins", "typing")
RECURSION_LIMIT = 50000
MAX_INT_DIGITS = 50000
STACK_BYTES = 8 << 20
SET_THP_DISABLE = 41  # linux/prctl.h
SCRIPT_NAME = "program.py"
NO_MEMORY, TOO_LONG = b'{"error": "MemoryError"}', b'{"error": "OutputLimit"}'


class Channel:
    """The two pipes to the launcher, moved away from the program's standard input and output."""

    def __init__(self) -> None:
        self._requests, self._replies = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)

    def receive(self) -> Any:
        return json.loads(self._read(int.from_bytes(self._read(8), "big")))

    def send(self, reply: dict[str, Any]) -> None:
        self.send_bytes(json.dumps(reply).encode())

    def send_bytes(self, data: bytes) -> None:
        view = memoryview(len(data).to_bytes(8, "big") + data)
        while view:
            view = view[os.write(self._replies, view) :]

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = os.read(self._requests, min(count, 1 << 20))
            if not part:
                os._exit(0)  # the launcher closed its end
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def error_answer(error: BaseException) -> bytes:
    """Return an answer that names an exception; for a MemoryError it needs no new memory."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    return json.dumps({"error": type(error).__name__}).encode()


class MockedBuffer:
    """Mimics the checker's mock of `sys.stdin.buffer`: every call starts at the first byte."""

    def __init__(self, text: str) -> None:
        self._data = text.encode("utf-8")

    def read(self, *_: object) -> bytes:
        return self._data

    def readline(self, *_: object) -> bytes:
        return self._data.split(b"\n")[0] + b"\n"


class MockedStdin:
    """Mimics the checker's mock of `sys.stdin`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._rest = io.StringIO(text)
        self.buffer = MockedBuffer(text)

    def read(self, *_: object) -> str:
        return self._text

    def readline(self, size: int = -1, /) -> str:
        return self._rest.readline(size)

    def readlines(self, *_: object) -> list[str]:
        return self._text.split("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rest, name)


def set_limits(limits: dict[str, int]) -> None:
    """Set hard resource limits (rlimits), which an unprivileged process cannot raise."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    stack = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))


def disable_huge_pages() -> None:
    """Disable transparent huge pages; a comment in `sandbox.seccomp` explains why."""
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        number = ctypes.c_ulong
        ctypes.CDLL(None).prctl(SET_THP_DISABLE, number(1), number(0), number(0), number(0))


def prepare_interpreter(packages: list[str]) -> None:
    """Define the names and add the packages that Python's `site` module normally provides."""
    import random
    import site

    site.setquit()  # defines `exit` and `quit`, which are missing under python -S
    sys.path.extend(packages)
    sys.set_int_max_str_digits(MAX_INT_DIGITS)
    random.seed(0)  # so that every run gives the same verdict


def remove_names() -> None:
    """Remove the names and modules that LiveCodeBench's checker removes."""
    builtins.quit = None  # type: ignore[assignment]
    sys.modules.update(dict.fromkeys(("ipdb", "joblib", "resource", "psutil", "tkinter")))  # type: ignore[arg-type]


def prelude() -> str:
    stars = [f"from {name} import *" for name in STAR_IMPORTS]
    plain = [f"import {name}" for name in PLAIN_IMPORTS]
    return "\n".join([*stars, *plain, f"sys.setrecursionlimit({RECURSION_LIMIT})", ""])


def as_function(code: str) -> str:
    """Return a module's source whose `wrapped_function` contains a stdin program minus imports."""
    try:
        body = ast.parse(code).body
    except Exception:
        return code  # loading this code will raise the error, as intended
    if body and _is_main_block(body[-1]):
        *before, last = body
        # Unparse and parse again, so that imports in the `__main__` block become top-level ones.
        code = "\n".join(ast.unparse(statement) for statement in [*before, *last.body])  # type: ignore[attr-defined]
        body = ast.parse(code).body
    imports = [s for s in body if isinstance(s, ast.Import | ast.ImportFrom)]
    others = [s for s in body if not isinstance(s, ast.Import | ast.ImportFrom)]
    function = ast.parse("def wrapped_function(): pass").body[0]
    function.body = others  # type: ignore[attr-defined]
    return "\n".join([prelude(), *map(ast.unparse, imports), ast.unparse(function), ""])


def _is_main_block(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.If)
        and ast.unparse(statement.test).strip() == "__name__ == '__main__'"
    )


def load(code: str, function: str | None, *, lenient: bool = False) -> Any:
    """Execute the program's source and return the callable to be called for each test.

    In lenient mode each call uses a new `Solution` object, and the program may begin with an import
    from `__future__`.

    Raises:
        Exception: any exception that the program raises; AttributeError if it lacks the function.
    """
    module = ModuleType("tmp_sol", "")
    if lenient:
        run_code(prelude(), module)
    elif function is None:
        code = as_function(code)
    else:
        code = prelude() + "\n\n" + code
    run_code(code, module)
    if not lenient:
        owner = module.Solution() if "class Solution" in code else module
        return getattr(owner, function or "wrapped_function")
    assert function is not None
    solution = getattr(module, "Solution", None)
    if solution is None:
        return getattr(module, function)
    getattr(solution, function)  # so that a missing method fails now, not in the first test
    return lambda *arguments: getattr(solution(), function)(*arguments)


def run_code(code: str, module: ModuleType) -> None:
    exec(compile(code, SCRIPT_NAME, "exec", dont_inherit=True), module.__dict__)


def run_on_stdin(program: Any, text: str) -> dict[str, Any]:
    """Run the program with `text` as its standard input and return its printed output."""
    printed = io.StringIO()
    printed.close = None  # type: ignore[assignment]  # closing stdout is an error in the checker
    stdin, stdout = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = MockedStdin(text), printed
    try:
        with suppress(SystemExit):
            program()
        join_threads()
    finally:
        sys.stdin, sys.stdout = stdin, stdout
    return {"printed": printed.getvalue()}


def join_threads() -> None:
    """Join the threads that Python would join at exit."""
    if "concurrent.futures.thread" in sys.modules:
        from concurrent.futures import ThreadPoolExecutor

        for pool in [item for item in gc.get_objects() if isinstance(item, ThreadPoolExecutor)]:
            pool.shutdown()
    current = threading.current_thread()
    while threads := [t for t in threading.enumerate() if t is not current and not t.daemon]:
        for thread in threads:
            thread.join()


def run_script(channel: Channel, code: str, source: int, sink: int) -> None:
    """Run the program as `__main__`; Python then joins threads, flushes buffers and exits."""
    for descriptor, standard in ((source, 0), (sink, 1)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin = sys.__stdin__ = text_file(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = text_file(1, "w")  # type: ignore[misc]
    sys.argv = [SCRIPT_NAME]
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = SCRIPT_NAME
    try:
        program = compile(code, SCRIPT_NAME, "exec", dont_inherit=True)
        run_code(prelude(), module)
    except BaseException as error:
        channel.send_bytes(error_answer(error))
        return
    channel.send({"loaded": True})
    try:
        exec(program, module.__dict__)
    except SystemExit:
        pass
    except BaseException as error:
        channel.send_bytes(error_answer(error))


def text_file(descriptor: int, mode: str) -> Any:
    return open(descriptor, mode, encoding="utf-8", errors="surrogateescape", closefd=False)


def run_call(program: Any, text: str, *, lenient: bool = False) -> dict[str, Any]:
    """Call the program's function with one JSON argument per line of `text`; return its result."""
    returned = program(*[json.loads(line) for line in text.split("\n")])
    if isinstance(returned, tuple):
        returned = list(returned)
    return {"returned": json_value(returned, tuples=lenient)}


def json_value(value: Any, *, tuples: bool = False) -> Any:
    """Convert a value to JSON that preserves Python's equality: 1 equals 1.0, (1,) is not [1].

    With `tuples`, tuples become lists.
    """
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) < value < 2**63 else {"ratio": [hex(value), "0x1"]}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list) or (tuples and isinstance(value, tuple)):
        return [json_value(item, tuples=tuples) for item in value]
    if isinstance(value, dict):
        pairs = [[json_value(key), json_value(item, tuples=tuples)] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, Fraction) or type(value).__name__ == "Decimal":
        with suppress(ValueError, OverflowError):  # raised for NaN and infinity
            return {"ratio": [hex(part) for part in value.as_integer_ratio()]}
    return {"other": type(value).__name__}


def run_programs() -> None:
    script = [int(descriptor) for descriptor in sys.argv[1:]]
    channel = Channel()
    channel.send({"python": ".".join(map(str, sys.version_info[:3]))})
    setup = channel.receive()
    set_limits(setup["limits"])
    disable_huge_pages()
    prepare_interpreter(setup["packages"])
    channel.send({"prepared": True})
    job = channel.receive()
    if script:
        return run_script(channel, job["code"], *script)
    return run_tests(channel, job, setup["output_bytes"])


def run_tests(channel: Channel, job: dict[str, Any], max_bytes: int) -> None:
    """Load the program, then run it on each test input that the launcher sends."""
    function, lenient = job["function"], job.get("lenient", False)
    if not lenient:
        remove_names()
    try:
        program = load(job["code"], function, lenient=lenient)
    except BaseException as error:
        channel.send_bytes(error_answer(error))
        return
    channel.send({"loaded": True})
    while True:
        text = channel.receive()
        try:
            if function is None:
                data = json.dumps(run_on_stdin(program, text)).encode()
            else:
                data = json.dumps(run_call(program, text, lenient=lenient)).encode()
        except BaseException as error:
            data = error_answer(error)
        channel.send_bytes(data if len(data) <= max_bytes else TOO_LONG)


if __name__ == "__main__":
    run_programs()
