"""Compiles fla's kernels through the calls of the package for a GPU that is not there.

Run as a program, in a process of its own, since Triton and fla look at the GPU when they are
imported: python -m tests.support.triton_compiler ARCH HEADS HEAD_DIM DTYPE. It prints
the resources of each compiled kernel as JSON.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# The largest shared memory of a block in bytes: NVIDIA's tuning guides for Ampere and Hopper.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


class _Utils:
    """What Triton asks of its driver about a device and a compiled kernel."""

    compiled: ClassVar[dict[str, list[dict[str, int]]]] = {}

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_MEMORY[self._arch],
            "multiprocessor_count": 132,
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def load_binary(self, name: str, cubin: bytes, shared: int, _: int) -> tuple[int, ...]:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            command = [CUOBJDUMP, "--dump-resource-usage", file.name]
            usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        match = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage, re.DOTALL)
        registers, stack, local = (int(number) for number in match.groups())
        record = {"registers": registers, "stack": stack, "local": local, "shared": shared}
        self.compiled.setdefault(name, []).append(record)
        return 1, 1, registers, local // 4, 1024


class _Launcher:
    """Launches nothing, but checks the grid against CUDA's limits."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, x: int, y: int, z: int, *_: object, **__: object) -> None:
        assert 0 < x < 2**31
        assert 0 < y < 2**16
        assert z == 1


class _Driver:
    launcher_cls = _Launcher
    binary_ext = "cubin"

    def __init__(self, arch: int) -> None:
        self.utils = _Utils(arch)
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


def pretend(arch: int) -> None:
    """Make Triton and fla believe that there is a GPU of this compute capability."""
    driver.set_active(_Driver(arch))
    torch.cuda.get_device_name = lambda *_: "NVIDIA H100" if arch == 90 else "NVIDIA A100"
    torch.cuda.get_device_capability = lambda *_: divmod(arch, 10)
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0


def run_every_kernel(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """Call the op forward and backward: rows, packed documents, and one token, on the CPU."""
    from amnesia_bench.modeling import PackedRows, alibi_log_decay, lightning_op

    for op in (lightning_op._lightning, lightning_op._lightning_backward):
        op.register_kernel("cpu")(op._init_fn)
    for bounds in (None, (0, 500, 1100, 2048)):
        q = torch.zeros(1, 2048, heads, head_dim, dtype=dtype).requires_grad_()
        packed = None if bounds is None else PackedRows.from_bounds(bounds, q.device)
        states = 1 if bounds is None else 3
        state = torch.zeros(states, heads, head_dim, head_dim).requires_grad_()
        for initial in (None, state):
            output, end = lightning_op.lightning_by_op(
                (q, q, q), alibi_log_decay(heads), 0.1, initial, packed
            )
            (output.float().sum() + (0 if initial is None else end.sum())).backward()
    one = torch.zeros(1, 1, heads, head_dim, dtype=dtype)
    lightning_op.lightning_by_op((one, one, one), alibi_log_decay(heads), 0.1, state[:1], None)


def main() -> None:
    arch, heads, head_dim = (int(word) for word in sys.argv[1:4])
    pretend(arch)
    run_every_kernel(heads, head_dim, getattr(torch, sys.argv[4]))
    sys.stdout.write(json.dumps(_Utils.compiled))


if __name__ == "__main__":
    main()
