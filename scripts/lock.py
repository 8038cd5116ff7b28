"""Resolve one environment and write its constraints: python scripts/lock.py NAME.

Resolves for the Python and the platform it runs on; local versions (+cpu) are dropped, so that
the same file serves CPU and CUDA builds of torch.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = {
    "cpu": ("dev", "checks and the normal test suite, on a CPU"),
    "gpu": ("train,eval,vllm,wandb", "training, evaluation and vLLM on GPUs, Linux"),
}


def resolve(name: str, extras: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", "-", f"{ROOT}[{extras}]"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}
    found.pop("amnesia-bench", None)
    # torch's CPU build (2.13.0+cpu) needs neither CUDA's libraries nor a particular Triton.
    if name == "gpu" and "+cpu" in found["torch"]:
        sys.exit("pip chose a torch without CUDA: lock without PIP_FIND_LINKS and extra indexes")
    return sorted(f"{name}=={version.split('+')[0]}" for name, version in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ENVIRONMENTS)
    name = parser.parse_args().name
    extras, purpose = ENVIRONMENTS[name]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    head = f"# For {purpose}. Extras: {extras}. Made on Python {python} by `make lock`.\n"
    path = ROOT / "constraints" / f"{name}.txt"
    path.write_text(head + "\n".join(resolve(name, extras)) + "\n")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
