"""Collect the provenance of an artifact: code version, packages, machine, seeds and command.

It contains no environment variables, and secrets in the command are masked.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import amnesia_bench
from amnesia_bench.records.artifacts import Hardware, Provenance

# Packages that can change a result. The versions of the installed ones are recorded.
_PACKAGES = (
    "datasets",
    "flash-linear-attention",
    "hydra-core",
    "lm-eval",
    "math-verify",
    "ml-dtypes",
    "numpy",
    "omegaconf",
    "pydantic",
    "safetensors",
    "torch",
    "transformers",
    "triton",
    "vllm",
)
_GIT_SECONDS = 20
_SECRET_NAME = r"(?i:token|secret|password|passwd|api_?key)"
_SECRET_OPTION = re.compile(rf"--?\S*{_SECRET_NAME}")
_SECRET_ASSIGNMENT = re.compile(rf"({_SECRET_NAME}=).+", re.DOTALL)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")
_MASK = "***"


@dataclass(frozen=True, kw_only=True)
class _CodeState:
    commit: str | None = None
    dirty: bool | None = None
    diff_sha256: str | None = None


def collect_provenance(command: Sequence[str], seeds: Mapping[str, int]) -> Provenance:
    """Return the provenance of a run that starts now; `ended_now` later adds the end time.

    Args:
        command: the command line, or a Python call in the form of one; secrets in it are masked.
        seeds: every seed of the run, by its purpose.
    """
    code = _code_state(Path(amnesia_bench.__file__).parent)
    return Provenance(
        tool_version=amnesia_bench.__version__,
        commit=code.commit,
        dirty=code.dirty,
        dirty_diff_sha256=code.diff_sha256,
        python=platform.python_version(),
        packages=_installed(_PACKAGES),
        hardware=_hardware(),
        seeds=dict(seeds),
        started=_now(),
        ended=None,
        command=_masked(command),
    )


def ended_now(provenance: Provenance) -> Provenance:
    """Return a copy of the record whose end time is now."""
    return replace(provenance, ended=_now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _masked(command: Sequence[str]) -> tuple[str, ...]:
    masked = []
    for before, argument in zip(("", *command), command, strict=False):
        if _SECRET_OPTION.fullmatch(before):
            masked.append(_MASK)
        else:
            partly_masked = _SECRET_ASSIGNMENT.sub(rf"\1{_MASK}", argument)
            masked.append(_SECRET_VALUE.sub(_MASK, partly_masked))
    return tuple(masked)


def _installed(names: Sequence[str]) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _code_state(package: Path) -> _CodeState:
    # The package must be tracked by git, since a virtual environment with the package may be inside
    # the work tree of another project.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return _CodeState()
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    diff = _git(package, "diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD")
    untracked = _git(package, "ls-files", "--others", "--exclude-standard", "-z", "--", ".")
    if commit is None or diff is None or untracked is None:
        return _CodeState()
    digest = hashlib.sha256(diff)
    for name in filter(None, untracked.split(b"\0")):
        path = package / os.fsdecode(name)
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    dirty = bool(diff or untracked)
    return _CodeState(
        commit=commit.decode().strip(),
        dirty=dirty,
        diff_sha256=digest.hexdigest() if dirty else None,
    )


def _git(folder: Path, *arguments: str) -> bytes | None:
    """Return the output of a git command; None if it fails or git is not installed."""
    # Without this variable git would lock its index, which disturbs other users of the repository.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            env=environment,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _hardware() -> Hardware:
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return Hardware(
        platform=platform.platform(),
        cpu=_field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        cpu_cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        gpus=tuple(_field(path, "Model") or "unknown" for path in gpus),
        gpu_driver=_field(Path("/proc/driver/nvidia/version"), "NVRM version"),
    )


def _field(path: Path, name: str) -> str | None:
    """Return the value of the first `name : value` line in a /proc file; None if there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)
