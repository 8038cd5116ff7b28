"""Compare the installed packages with what each extra of this package requires."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from amnesia_bench.pipeline.doctor.result import HealthCheck, broken, lacking, ok

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_DISTRIBUTION = "amnesia-bench"
# The extras for users, and what each is for; the first is the installation without extras.
_EXTRAS = {
    "": "restore, diff, verify, plan",
    "eval": "check, evaluate, generate, score",
    "train": "prepare, convert, train",
    "gguf": "use models in GGUF files",
    "vllm": "vLLM, in an environment of its own",
    "wandb": "log to W&B",
    "trackio": "compare runs on this machine",
}


def package_checks() -> Iterator[HealthCheck]:
    """Yield a check for Python, and one for each extra."""
    yield ok("python", f"{sys.version.split()[0]}, {sys.executable}")
    from packaging.requirements import Requirement  # here, because it may be missing

    try:
        lines = metadata.requires(_DISTRIBUTION) or []
        requirements = [Requirement(line) for line in lines]
        yield ok(_DISTRIBUTION, metadata.version(_DISTRIBUTION))
    except Exception as error:  # metadata of any kind may be damaged
        yield broken(
            _DISTRIBUTION, f"its metadata cannot be read ({error})", f"pip install {_DISTRIBUTION}"
        )
        return
    for extra, use in _EXTRAS.items():
        yield _extra(extra, use, [r for r in requirements if _is_of(r, extra)])


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if marker is None:
        return extra == ""
    return marker.evaluate({"extra": extra}) and not (extra and marker.evaluate({"extra": ""}))


def _extra(extra: str, use: str, requirements: Iterable[Requirement]) -> HealthCheck:
    installed, missing, wrong = [], [], []
    for requirement in requirements:
        version = _version(requirement.name)
        if version is None:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
        else:
            installed.append(f"{requirement.name} {version}")
    topic = f"packages [{extra}]" if extra else "packages"
    fix = f'pip install "{_DISTRIBUTION}[{extra}]"' if extra else f"pip install {_DISTRIBUTION}"
    if wrong:
        return broken(topic, f"wrong versions: {', '.join(wrong)}", fix)
    if missing and not extra:
        return broken(topic, f"missing: {', '.join(missing)}", fix)
    if missing:
        return lacking(topic, f"for {use}: without {', '.join(missing)}", fix)
    return ok(topic, ", ".join(installed))


def _version(name: str) -> str | None:
    """Return the version of an installed package; "damaged" if its metadata states none."""
    try:
        version: str | None = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    except Exception:
        version = None
    return version or "0+damaged"
