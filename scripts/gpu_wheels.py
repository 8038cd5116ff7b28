"""Download what gpu_acceptance.py needs on a machine that has PyTorch but no network.

python scripts/gpu_wheels.py FOLDER [--python 3.12]

The versions are those of constraints/gpu.txt. Torch, Triton, transformers and numpy must be there.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "annotated-types",
    "fla-core",
    "flash-linear-attention",
    "httpx",
    "hydra-core",
    "ml_dtypes",
    "omegaconf",
    "pydantic",
    "pydantic_core",
    "rich",
    "sniffio",
    "typing-inspection",
]
FROM_SOURCE = ["antlr4-python3-runtime"]  # there is no wheel of the version that hydra needs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="Python version of the GPU machine")
    arguments = parser.parse_args()
    folder = str(arguments.folder)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    pins = ["--no-deps", "--constraint", str(ROOT / "constraints" / "gpu.txt")]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={arguments.python}"]
    target += [f"--platform=manylinux{kind}_x86_64" for kind in ("2014", "_2_17", "_2_27", "_2_28")]
    subprocess.run([*pip, "download", *pins, *target, "--dest", folder, *NAMES], check=True)
    subprocess.run([*pip, "wheel", *pins, "--wheel-dir", folder, *FROM_SOURCE], check=True)
    wheels = list(arguments.folder.glob("*.whl"))
    megabytes = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels, {megabytes:.0f} MB, in {folder}")


if __name__ == "__main__":
    main()
