"""fla's kernels compile for GPUs that are not there, with the tiles that the package chooses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
# NVIDIA's tuning guides for Ampere (A100) and Hopper: bytes of shared memory of a block.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
# Bytes of stack per thread, to which registers spill. In float32 one kernel needs 16 on sm_90.
STACK = {"bfloat16": 0, "float32": 16}
KERNELS = {
    "chunk_fwd_kernel_h",
    "chunk_fwd_kernel_o",
    "chunk_bwd_kernel_dh",
    "chunk_bwd_kernel_dqkwg",
    "chunk_bwd_kernel_dv",
    "fused_recurrent_fwd_kernel",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("arch", [80, 90])
def test_every_kernel_compiles_without_spills(arch, dtype, tmp_path):
    """All full-scale models have 128 numbers per head; rows and packed documents, states or not."""
    command = [sys.executable, "-m", "tests.support.triton_compiler", str(arch), "16", "128", dtype]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = json.loads(done.stdout.splitlines()[-1])
    assert set(compiled) == KERNELS
    for name, variants in compiled.items():
        for resources in variants:
            assert resources["shared"] <= SHARED_MEMORY[arch], (name, resources)
            assert resources["local"] == 0, (name, resources)
            assert resources["stack"] <= STACK[dtype], (name, resources)
