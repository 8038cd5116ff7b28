"""Check one GPU in ten minutes: kernels, training, inference and memory, as JSON.

python scripts/gpu_acceptance.py --out FOLDER                     # all steps
python scripts/gpu_acceptance.py --out FOLDER --steps 1,2,4       # some of them
python scripts/gpu_acceptance.py --out FOLDER --wheels .wheels    # a machine without a network
python scripts/gpu_acceptance.py --out FOLDER --device cpu --small    # the same code, tiny sizes

Each step runs in a process of its own, so a step that fails or hangs takes no other with it, and
is ended after 90 seconds (--seconds); compiled kernels stay in caches for the next run.
FOLDER/report.json is written again after each step. It has the measured values next to the
expected ones; `holds` says whether a value is within its limit. FOLDER/log.txt has the output of
all steps. The exit code is 1 if a step failed, timed out or measured a value outside its limit.
For --wheels see scripts/gpu_wheels.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acceptance.setup import Setup

ROOT = Path(__file__).resolve().parents[1]


def install_wheels(wheels: Path) -> None:
    """Install wheels without a network, and start this script again with them in its path."""
    site = tempfile.mkdtemp(prefix="wheels-")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*command, "--target", site, *map(str, sorted(wheels.glob("*.whl")))], check=True
    )
    path = os.pathsep.join([str(ROOT / "src"), site, os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONPATH"] = path
    kept = [word for word in sys.argv if word != "--wheels" and word != str(wheels)]
    os.execv(sys.executable, [sys.executable, *kept])


def run_step(name: str, setup: Setup, out: Path, seconds: float) -> dict[str, Any]:
    """Run one step in a process forked from this one, which has imported everything but CUDA."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(name, setup, sender, out / "log.txt"))
    started = time.monotonic()
    process.start()
    sender.close()
    assert process.pid is not None
    result: dict[str, Any] = {"status": "timeout", "values": {}}
    try:
        while receiver.poll(started + seconds - time.monotonic()):
            kind, content = receiver.recv()
            if kind == "value":
                result["values"].update(content)
            else:
                result.update(content)
                break
    except EOFError:
        process.join(10)
        result["status"] = f"died with exit code {process.exitcode}"
    for stop in (signal.SIGTERM, signal.SIGKILL):
        process.join(0 if result["status"] == "timeout" else 10)
        if process.is_alive():
            os.killpg(process.pid, stop)
            process.join(3)
    if result["status"] == "ok" and not all(
        v.get("holds", True) for v in result["values"].values()
    ):
        result["status"] = "a value is outside its limit"
    return result | {"seconds": round(time.monotonic() - started, 1)}


def _in_child(name: str, setup: Setup, sender: Connection, log: Path) -> None:
    from acceptance import STEPS
    from acceptance.setup import (
        NotHereError,
        Values,
        support_older_torch,
        support_older_triton,
    )

    os.setpgid(0, 0)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    print(f"== {name}: {STEPS[name].__name__}", flush=True)
    try:
        support_older_torch()
        support_older_triton()
        STEPS[name](setup, Values(lambda values: sender.send(("value", values))))
        sender.send(("end", {"status": "ok"}))
    except NotHereError as error:
        sender.send(("end", {"status": f"not run: {error}"}))
    except Exception as error:
        traceback.print_exc()
        details = traceback.format_exc()[-4000:]
        sender.send(("end", {"status": "failed", "error": repr(error)[:500], "traceback": details}))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of report.json and log.txt")
    parser.add_argument("--steps", help="numbers of the steps, separated by commas (default: all)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny models and few tokens")
    parser.add_argument("--seconds", type=float, default=90, help="end a step after this time")
    parser.add_argument("--wheels", type=Path, help="install these wheels first, without a network")
    arguments = parser.parse_args()
    if arguments.wheels and not list(arguments.wheels.glob("*.whl")):
        parser.error(f"--wheels {arguments.wheels}: no wheels there; see scripts/gpu_wheels.py")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}")
    if arguments.wheels:
        install_wheels(arguments.wheels.resolve())
    from acceptance import STEPS
    from acceptance.setup import Setup

    names = arguments.steps.split(",") if arguments.steps else list(STEPS)
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"--steps: no step {unknown[0]}; steps are {', '.join(STEPS)}")
    report: dict[str, Any] = {"command": sys.argv, "steps": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            setup = Setup(arguments.device, arguments.small, Path(scratch), report["steps"])
            result = run_step(name, setup, arguments.out, arguments.seconds)
            report["steps"][name] = {"name": STEPS[name].__name__, **result}
            text = json.dumps(report, indent=1) + "\n"
            (arguments.out / "report.json").write_text(text)
            print(f"{name:3} {report['steps'][name]['name']:24} {result['seconds']:5} s  ", end="")
            print(result["status"], result.get("error", ""), flush=True)
    statuses = [step["status"] for step in report["steps"].values()]
    return int(not all(status == "ok" or status.startswith("not run") for status in statuses))


if __name__ == "__main__":
    sys.exit(main())
