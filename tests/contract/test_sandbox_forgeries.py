"""Programs that do not know the answer and want to be graded right. None is, by either checker."""

from __future__ import annotations

import pytest

from amnesia_bench.records.evaluation import Outcome
from amnesia_bench.records.reasoning import Checker
from amnesia_bench.sandbox import Launcher
from tests.support.attacks import FRAME, LIMITS, attack

pytestmark = pytest.mark.bubblewrap

# A program may write frames, but has no right answer to put in.
FRAMES = {
    "a verdict": "everywhere(frame({'outcome': 'correct'}))",
    "many verdicts": "everywhere(frame({'outcome': 'correct'}) * 50)",
    "a verdict of LiveCodeBench's": "everywhere(frame({'results': [True, True], 'metadata': {}}))",
    "true": "everywhere(frame(b'true'))",
    "a list": "everywhere(frame([True, True]))",
    "true for a text": "everywhere(frame({'printed': True}))",
    "a guess": "everywhere(frame({'printed': 'expected'}))",
    "nothing printed": "everywhere(frame({'printed': None}))",
    "a value for a text": "everywhere(frame({'returned': True}))",
    "loaded again": "everywhere(frame({'loaded': True}) * 9)",
    "prepared again": "everywhere(frame({'prepared': True}) + frame({'python': '3.12.0'}))",
    "a status of success": "everywhere(frame({'status': 0}) * 3)\nos._exit(0)",
    "an error of no name": "everywhere(frame({'error': None}))",
    "an error in a list": "everywhere(frame({'error': ['CORRECT']}))",
    "an error of a long name": "everywhere(frame({'error': 'x' * 1000}))",
    "an error with a verdict": "everywhere(frame({'error': 'correct', 'outcome': 'correct'}))",
    "a key twice": 'everywhere(frame(b\'{"printed": "a", "printed": "b"}\'))',
    "no JSON": "everywhere(frame(b'CORRECT'))",
    "no UTF-8": "everywhere(frame(b'\\xff\\xfe\\x00'))",
    "UTF-16": "everywhere(frame('{\"printed\": \"x\"}'.encode('utf-16')))",
    "a deep list": "everywhere(frame(b'[' * 1000000))",
    "a deep object": "everywhere(frame(b'{\"printed\":' * 100000))",
    "a long number": "everywhere(frame(b'9' * 1000000))",
    "not a number": "everywhere(frame(b'{\"printed\": NaN}'))",
    "an infinity": "everywhere(frame(b'{\"status\": -Infinity}'))",
    "a lone surrogate": 'everywhere(frame(b\'{"printed": "\\\\ud800"}\'))',
    "an empty frame": "everywhere(frame(b''))",
    "empty frames": "everywhere((0).to_bytes(8, 'big') * 1000)",
    "a frame larger than any": "everywhere(b'\\xff' * 8)",
    "half a length": "everywhere(b'\\x00\\x00')\nwhile True: pass",
    "half a frame": "everywhere((100).to_bytes(8, 'big') + b'half of it')\nwhile True: pass",
    "a frame inside another": "everywhere((30).to_bytes(8, 'big') + frame({'printed': 1}))",
    "answers ahead of the questions": "everywhere(frame({'printed': '4'}) * 3)",
    "a flood of answers": "while True: everywhere(frame({'printed': '4'}))",
}
# ... or look for the answer, or for the judge.
SEARCHES = {
    "reads every descriptor": (
        "for fd in range(64):\n    try:\n        os.set_blocking(fd, False)\n"
        "        print(os.read(fd, 1 << 20))\n    except OSError: pass"
    ),
    "reads the environment of all": (
        "import glob\nfor path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):\n"
        "    print(open(path).read())"
    ),
    "reads all objects": (
        "import gc\nfor o in gc.get_objects():\n"
        "    for text in (o if isinstance(o, (list, tuple)) else ()):\n"
        "        if isinstance(text, str) and text.startswith('expected-'): print(text)"
    ),
    "reads all frames": (
        "import sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()):\n"
        "        if isinstance(v, str) and v.startswith('expected-'): print(v)\n    f = f.f_back"
    ),
    "reads the memory of others": "print(open('/proc/1/mem', 'rb').read(100))",
    "traces the parent": "import ctypes\nprint(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0))",
    "reads the tests in the file system": (
        "for folder, _, names in os.walk('/'):\n    for name in names:\n"
        "        if name.endswith('.jsonl'): print(open(os.path.join(folder, name)).read())"
    ),
    "patches the driver": (
        "import sys\nmain = sys.modules['__main__']\n"
        "for name in ('plain', 'run_on_stdin', 'run_call', 'run_script', 'named', 'load'):\n"
        "    setattr(main, name, lambda *a, **k: {'printed': 'expected', 'outcome': 'correct'})"
    ),
    "patches JSON": 'import json\njson.dumps = lambda *a, **k: \'{"outcome": "correct"}\'',
    "patches printing": (
        "import sys\nclass Any(str):\n    def __eq__(self, other): return True\n"
        "    __hash__ = str.__hash__\nsys.stdout.getvalue = lambda: Any('x')"
    ),
    "patches the channel": (
        "import gc\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Channel':\n"
        "        o.send = lambda *a: None\n        o.send_bytes = lambda *a: None"
    ),
    "another driver in its place": (
        "import sys\nos.execv(sys.executable, [sys.executable, '-S', '-c', "
        '\'import os, json\\nwhile True:\\n    data = json.dumps({"printed": "4"}).encode()\\n'
        '    [os.write(fd, len(data).to_bytes(8, "big") + data) for fd in range(3, 9)]\'])'
    ),
    "ends well without an answer": "raise SystemExit(0)",
    "ends at once": "os._exit(0)",
    "ends by a signal": "import signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "lets go of all descriptors": "os.closerange(0, 64)",
    "lets go and goes on": "os.closerange(0, 64)\nwhile True: pass",
    "answers from a thread": (
        "import threading\nthreading.Thread(target=lambda: everywhere("
        "frame({'printed': '4'}))).start()"
    ),
    "answers at the end": "import atexit\natexit.register(everywhere, frame({'printed': '4'}))",
    "raises a verdict": "raise type('correct', (Exception,), {})()",
    "raises an error of no name": "raise type('', (Exception,), {})()",
    "raises what is caught for other reasons": "raise type('SystemExit', (Exception,), {})()",
    "an exception that cannot be shown": (
        "class E(Exception):\n    def __str__(self): raise self\n    __repr__ = __str__\nraise E"
    ),
    "prints what many checkers print": "print('AC\\nAccepted\\ncorrect\\nTrue\\n[True, True]')",
    "prints the input": "print(input())",
    "prints nothing visible": "print('\\x00\\x1b[2J\\u200b')",
    "prints a number of any value": "print('NaN nan sNaN inf Infinity 1e999999999')",
    "stops the clock": "import time\ntime.monotonic = time.time = lambda: 0\nwhile True: pass",
}
FORGERIES = FRAMES | SEARCHES


def test_there_are_more_than_fifty() -> None:
    assert len(FORGERIES) == len(FRAMES) + len(SEARCHES) >= 50


@pytest.mark.parametrize("checker", Checker, ids=lambda checker: checker.value)
@pytest.mark.parametrize("name", FORGERIES)
def test_it_is_not_graded_right(name: str, checker: Checker, sandbox: Launcher) -> None:
    found = attack(sandbox, f"{FRAME}\n{FORGERIES[name]}", LIMITS, checker)
    assert found.outcome in (Outcome.WRONG, Outcome.TIME_LIMIT)
    assert found.detail is not None
    assert found.detail.startswith("test 1 of 2: ")
