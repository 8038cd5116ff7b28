"""Examine torch, its GPUs and kernels, and the programs that stages start.

torch is imported in another process, because the import may crash or take minutes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from amnesia_bench.pipeline.doctor.result import HealthCheck, broken, lacking, ok, output_of
from amnesia_bench.sandbox import find_launcher, refuse_leaks, run_checks

_IMPORT_SECONDS, _SECONDS = 300.0, 30.0
_DRIVER = Path("/proc/driver/nvidia/version")
_PROBE = """\
import json, torch
answer = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": [], "kernels": {}}
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        answer["gpus"].append([gpu.name, gpu.total_memory, gpu.major, gpu.minor])
    for name in ("triton", "fla"):
        try:
            answer["kernels"][name] = getattr(__import__(name), "__version__", "?")
        except Exception as error:
            answer["kernels"][name] = f"! {type(error).__name__}: {error}".partition(chr(10))[0]
print(json.dumps(answer))
"""
_PING = "Does its controller answer? scontrol ping"
_DRIVER_FIX = "Install a build of torch for this driver: https://pytorch.org/get-started/locally"


def gpu_checks() -> Iterator[HealthCheck]:
    """Yield checks of the driver, of torch's build, of each GPU, and of triton and fla."""
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    listed = output_of(["nvidia-smi", *query], _SECONDS, "Reinstall the NVIDIA driver.")
    has_driver = listed is not None or _DRIVER.exists()
    if listed is not None:
        for line in listed.strip().splitlines():
            yield ok("GPU", line)
    elif has_driver:
        yield broken("GPU", "a driver without nvidia-smi", "Reinstall the NVIDIA driver.")
    else:
        yield lacking("GPU", "no NVIDIA driver; models run on the CPU")
    yield from _torch_checks(has_driver=has_driver)


def _torch_checks(*, has_driver: bool) -> Iterator[HealthCheck]:
    if find_spec("torch") is None:
        yield lacking("torch", "not installed", 'pip install "amnesia-bench[train,eval]"')
        return
    fix = 'pip install "amnesia-bench[train,eval]"'
    printed = output_of([sys.executable, "-P", "-c", _PROBE], _IMPORT_SECONDS, fix)
    answer = json.loads((printed or "").splitlines()[-1])
    cuda = answer["cuda"]
    text = f"{answer['version']}, {f'for CUDA {cuda}' if cuda else 'for CPUs'}"
    if has_driver and not answer["gpus"]:
        reason = "it finds no GPU" if cuda else "it cannot use the GPU"
        yield broken("torch", f"{text}: {reason}", _DRIVER_FIX)
    else:
        yield ok("torch", text)
    for name, memory, major, minor in answer["gpus"]:
        yield ok("torch GPU", f"{name}, {memory / 1e9:.0f} GB, compute capability {major}.{minor}")
    for name, version in answer["kernels"].items():
        if version.startswith("!"):
            fix = 'pip install "amnesia-bench[train]"'
            yield broken(name, f"cannot be imported ({version[2:]})", fix)
        else:
            yield ok(name, version)


def sandbox_checks() -> Iterator[HealthCheck]:
    """Yield a check of the sandbox for programs that models write."""
    version = output_of(["bwrap", "--version"], _SECONDS)
    if version is None:
        yield lacking("sandbox", "no bubblewrap: LiveCodeBench cannot be scored",
                     "apt-get install bubblewrap")  # fmt: skip
        return
    checks = run_checks(find_launcher())
    refuse_leaks(checks)
    yield ok("sandbox", f"{version.strip()}, {len(checks)} escapes contained")


def slurm_checks() -> Iterator[HealthCheck]:
    """Yield a check of SLURM, with its partitions."""
    partitions = output_of(["sinfo", "--noheader", "--format=%P %a %l %D %G"], _SECONDS, _PING)
    if partitions is None:
        yield lacking("SLURM", "not installed; experiments run on this machine")
        return
    lines = partitions.strip().splitlines()
    if not lines:
        yield broken("SLURM", "it has no partition that you may use", "Ask its administrator.")
    for line in lines:
        name, state, limit, nodes, *resources = line.split()
        text = f"partition {name}: {state}, {nodes} nodes, limit {limit}, {' '.join(resources)}"
        yield ok("SLURM", text)
