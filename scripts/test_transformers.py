"""Test with the oldest transformers that is allowed, and with the one for GPUs.

python scripts/test_transformers.py [PYTEST ARGUMENTS]

The environment itself has the newest release (constraints/cpu.txt). The others are installed into
.transformers/VERSION, which PYTHONPATH places before the environment's own packages.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# What depends on transformers: models, their caches, checkpointed activations, saved checkpoints.
TESTS = [
    "tests/numerics",
    "tests/unit/conversion",
    "tests/unit/inference",
    "tests/unit/modeling",
    "tests/unit/training",
    "tests/contract/test_families.py",
    "tests/e2e/test_check_models.py",
    "tests/e2e/test_train_stages.py",
]


def oldest_allowed() -> str:
    """Return the lower bound of transformers in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {
        specifier.version
        for extra in project["optional-dependencies"].values()
        for requirement in map(Requirement, extra)
        if requirement.name == "transformers"
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    (version,) = bounds  # all extras must have the same bound
    return version


def pinned_for_gpus() -> str:
    """Return the version of transformers in constraints/gpu.txt."""
    pins = (ROOT / "constraints" / "gpu.txt").read_text()
    (version,) = re.findall(r"^transformers==(.+)$", pins, re.MULTILINE)
    return version


def install(version: str) -> Path:
    """Install transformers, and whatever else it needs in another version, into a folder."""
    folder = ROOT / ".transformers" / version
    if folder.is_dir():
        return folder
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = f"transformers=={version}"
    # Without --ignore-installed, the report lists only the packages that would change.
    report = subprocess.run([*pip, "--dry-run", "--report", "-", wanted],
                            check=True, stdout=subprocess.PIPE).stdout  # fmt: skip
    changed = [item["metadata"] for item in json.loads(report)["install"]]
    pins = [f"{package['name']}=={package['version']}" for package in changed]
    unfinished = folder.with_name(f"{version}.unfinished")
    subprocess.run([*pip, "--no-deps", "--upgrade", "--target", str(unfinished), *pins], check=True)
    return unfinished.rename(folder)


def main() -> None:
    failed = []
    for version in (oldest_allowed(), pinned_for_gpus()):
        path = os.pathsep.join([str(install(version)), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path}
        show = "import transformers; print('transformers', transformers.__version__)"
        subprocess.run([sys.executable, "-c", show], check=True, env=environment)
        command = [sys.executable, "-m", "pytest", *TESTS, *sys.argv[1:]]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            failed.append(version)
    if failed:
        sys.exit(f"failed with transformers {', '.join(failed)}")


if __name__ == "__main__":
    main()
