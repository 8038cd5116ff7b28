"""Runs fla's kernels on a CPU, in Triton's interpreter, through the op of the package.

Run as a program, in a process of its own, since Triton decides to interpret when it is imported:
python -m tests.support.triton_interpreter < CASES > ERRORS. Both are JSON: a list of `Case`, and
for each case the errors of all results.
"""

import builtins
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One call. `products` is the precision of products: exact, tf32, bfloat16 or float16.

    With tf32 and bfloat16, tensors are float32 and the operands of products are rounded. The
    interpreter cannot compute with bfloat16 tensors: it takes their bits for integers. So float16
    stands in for it: then q, k, v, outputs and copies of states are float16 tensors.
    """

    rows: int
    tokens: int
    heads: int
    head_dim: int
    bounds: tuple[int, ...] | None = None
    with_state: bool = True
    products: str = "exact"


def start_interpreter() -> None:
    """Make Triton interpret, and the op run fla's kernels on a CPU."""
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.runtime.interpreter as interpreter
    from fla.ops.common import chunk_h, chunk_o, fused_recurrent

    from amnesia_bench.modeling import lightning_fla, lightning_op

    def counted(*bounds: object) -> Iterator[object]:
        # The interpreter gives kernels counters that are plain integers, and fla casts its own.
        for i in builtins.range(*(int(bound) for bound in bounds)):
            yield interpreter._implicit_cvt(i)

    for module in (chunk_h, chunk_o, fused_recurrent):
        module.range = counted
    lightning_fla._TILINGS[torch.float16] = lightning_fla._TILINGS[torch.bfloat16]
    for op in (lightning_op._lightning, lightning_op._lightning_backward):
        op.register_kernel("cpu")(op._init_fn)


def _multiply(products: str) -> None:
    """Replace the interpreter's products, so that operands are rounded as tensor cores do.

    In TF32 the last 13 bits of float32 operands are ignored.
    """
    import numpy as np
    import triton.runtime.interpreter as interpreter

    def operand(handle):  # type: ignore[no-untyped-def]
        data = np.ascontiguousarray(handle.data)
        if products == "tf32":
            return (data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        if products == "bfloat16":
            return torch.from_numpy(data).bfloat16().float().numpy()
        return data

    def create_dot(_, a, b, d, precision, imprecise):  # type: ignore[no-untyped-def]
        product = np.matmul(operand(a), operand(b), dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def errors(case: Case) -> dict[str, dict[str, float]]:
    """Return the errors of the outputs, the last states and the gradients.

    `relative` is the norm of the difference to float64 over the norm; `allowance` is the largest
    difference over 1 + the exact number, which a tolerance in `test_cuda.py` has to exceed.
    """
    from amnesia_bench.modeling import PackedRows, alibi_log_decay, lightning_attention
    from amnesia_bench.modeling.lightning_op import lightning_by_op

    generator = torch.Generator().manual_seed(0)
    shape = (case.rows, case.tokens, case.heads, case.head_dim)
    count = case.rows if case.bounds is None else len(case.bounds) - 1
    random = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    dtype = torch.float16 if case.products == "float16" else torch.float32
    inputs = [torch.nn.functional.normalize(random(*shape), dim=-1).to(dtype) for _ in range(3)]
    end_weights = random(count, case.heads, case.head_dim, case.head_dim)
    weights = random(*shape).to(dtype).double()
    if case.with_state:
        inputs.append(0.1 * random(*end_weights.shape))
    results = []
    for exact in (False, True):
        leaves = [(x.double() if exact else x).requires_grad_() for x in inputs]
        state = leaves[3] if case.with_state else None
        decay = alibi_log_decay(case.heads)
        if exact:
            output, end = lightning_attention(*leaves[:3], decay, None, state, case.bounds)
        else:
            packed = case.bounds and PackedRows.from_bounds(case.bounds, torch.device("cpu"))
            scale = case.head_dim**-0.5
            output, end = lightning_by_op(tuple(leaves[:3]), decay, scale, state, packed)
        loss = (output.double() * weights).sum() + (end.double() * end_weights.double()).sum()
        results.append([output, end, *torch.autograd.grad(loss, leaves)])
    names = ("output", "end", "dq", "dk", "dv", "dstate")
    found = {}
    for name, ours, exact in zip(names, *results, strict=False):
        difference = ours.detach().double() - exact.detach()
        found[name] = {
            "relative": float(difference.norm() / exact.norm()),
            "allowance": float((difference.abs() / (1 + exact.abs())).max()),
        }
    return found


def main() -> None:
    cases = [Case(**values) for values in json.load(sys.stdin)]
    start_interpreter()
    found = []
    for case in cases:
        _multiply(case.products)
        found.append(errors(case))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
