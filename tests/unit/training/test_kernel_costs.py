"""FLOPs and bytes of kernels in graphs that are small enough to count by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from amnesia_bench.costs.gpus import GPUS, KERNEL_RATES
from amnesia_bench.modeling import PackedRows
from amnesia_bench.modeling.gated_delta import gated_delta_rule
from amnesia_bench.modeling.gated_delta_torch import DeltaInputs
from amnesia_bench.modeling.lightning_attention import (
    fla_ops_on_every_device,
    lightning_attention,
)
from amnesia_bench.modeling.mixers import HypeNetRMSNorm
from amnesia_bench.modeling.packed_attention_op import packed_attention_by_op
from amnesia_bench.training.dry_run.compiled_kernels import CompiledGraph, counted_compilation
from amnesia_bench.training.dry_run.kernel_costs import Kernel, KernelCounter, KernelKind
from amnesia_bench.training.dry_run.meter import Meter
from amnesia_bench.training.dry_run.phases import PhaseTracker

ROWS, WIDTH = 512, 2048
BF16, FP32 = 2, 4
X = ROWS * WIDTH  # elements of the tensor that the operations below read


def _eager(function: Callable[..., object], *shapes: tuple[int, ...]) -> list[Kernel]:
    with FakeTensorMode(), KernelCounter(lambda: "") as counter:
        tensors = [torch.empty(shape, dtype=torch.bfloat16) for shape in shapes]
        function(*tensors)
    return [kernel for (_, kernel), times in counter.kernels.items() for _ in range(times)]


def _compiled(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> list[CompiledGraph]:
    graphs: list[CompiledGraph] = []
    with counted_compilation(graphs.append), FakeTensorMode():
        tensors = [torch.empty(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        torch._dynamo.reset()
        torch.compile(function, fullgraph=True, dynamic=False)(*tensors).sum().backward()
    return graphs


def _bytes(kernels: list[Kernel] | tuple[Kernel, ...]) -> list[int]:
    return [kernel.num_bytes for kernel in kernels]


def test_a_matrix_product() -> None:
    (kernel,) = _eager(torch.mm, (64, 32), (32, 16))
    elements = 64 * 32 + 32 * 16 + 64 * 16
    assert kernel == Kernel(KernelKind.MATMUL, "mm", 2 * 64 * 32 * 16, BF16 * elements)


def test_elementwise_kernels_read_their_operands_and_write_their_result() -> None:
    assert _bytes(_eager(torch.add, (ROWS, WIDTH), (ROWS, WIDTH))) == [3 * BF16 * X]
    assert _bytes(_eager(lambda x: x.float(), (ROWS, WIDTH))) == [(BF16 + FP32) * X]
    assert _bytes(_eager(lambda x, y: x.copy_(y), (ROWS, WIDTH), (ROWS, WIDTH))) == [2 * BF16 * X]
    assert _bytes(_eager(lambda x, y: x.add_(y), (ROWS, WIDTH), (ROWS, WIDTH))) == [3 * BF16 * X]
    assert _bytes(_eager(lambda x: x.new_full((4,), 1.0), (ROWS, WIDTH))) == [4 * BF16]


def test_views_and_allocations_are_no_kernels() -> None:
    assert _eager(lambda x: x.view(-1)[3:].unsqueeze(0), (ROWS, WIDTH)) == []
    assert _eager(torch.empty_like, (ROWS, WIDTH)) == []


def test_an_expanded_operand_is_read_once() -> None:
    (kernel,) = _eager(lambda x, w: x * w.expand(ROWS, WIDTH), (ROWS, WIDTH), (WIDTH,))
    assert kernel.num_bytes == BF16 * (2 * X + WIDTH)


def test_an_embedding_reads_only_the_rows_that_it_writes() -> None:
    def look_up(table: Tensor) -> None:
        torch.nn.functional.embedding(torch.zeros(3, dtype=torch.int64), table)

    kernels = {kernel.name: kernel for kernel in _eager(look_up, (ROWS, WIDTH))}
    assert kernels["embedding"].num_bytes == 2 * BF16 * 3 * WIDTH + 3 * 8


def test_a_norm_is_eight_kernels_eager_and_one_compiled() -> None:
    norm = HypeNetRMSNorm(WIDTH, 1e-6)

    def normalise(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    eager = _eager(normalise, (ROWS, WIDTH), (WIDTH,))
    forward, backward = _compiled(normalise, (ROWS, WIDTH), (WIDTH,))
    assert len(eager) == 8  # cast, square, mean, + eps, rsqrt, product, cast, product
    (fused,) = forward.kernels
    # It reads x and the weight, and writes y and one 1 / rms per row.
    assert fused.num_bytes == BF16 * (2 * X + WIDTH) + FP32 * ROWS
    assert sum(_bytes(eager)) > 6 * fused.num_bytes
    assert backward.is_backward
    # One kernel reads x and the gradient (here one expanded number), and writes that of x.
    assert max(_bytes(backward.kernels)) < 1.1 * BF16 * 3 * X


def test_bytes_of_compiled_code_grow_exactly_with_the_number_of_rows() -> None:
    def gated(x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.silu(x) * y

    small, large = (
        [_bytes(graph.kernels) for graph in _compiled(gated, (rows, WIDTH), (rows, WIDTH))]
        for rows in (ROWS, 4 * ROWS)
    )
    # Forward: x, y and the result. Backward: the three gradients, and x and y again.
    assert small == [[3 * BF16 * X], [5 * BF16 * X]]
    assert large == [[4 * num_bytes for num_bytes in graph] for graph in small]


def test_compiled_products_stay_products_and_return_what_backward_needs() -> None:
    def multiply(x: Tensor, w: Tensor) -> Tensor:
        return torch.sigmoid(x @ w)

    forward, backward = _compiled(multiply, (ROWS, 256), (256, WIDTH))
    flops = 2 * ROWS * 256 * WIDTH
    products = [k.flops for k in forward.kernels if k.kind is KernelKind.MATMUL]
    assert products == [flops]
    assert [k.flops for k in backward.kernels if k.kind is KernelKind.MATMUL] == [flops, flops]
    assert forward.returned_bytes == BF16 * X  # the result; its operands are not copied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lightning_attention_moves_operands_and_a_state_per_chunk(dtype: torch.dtype) -> None:
    heads, width, tokens = 4, 128, 256
    with FakeTensorMode(), fla_ops_on_every_device():
        qkv = [torch.empty(1, tokens, heads, width, dtype=dtype, requires_grad=True) for _ in "qkv"]
        decay = torch.empty(heads)
        with KernelCounter(lambda: "") as counter:
            lightning_attention(*qkv, decay)[0].sum().backward()
    kernels = {kernel.name: kernel for _, kernel in counter.kernels}
    x, state = tokens * heads * width, tokens // 64 * heads * width * width
    assert kernels["lightning"].num_bytes == dtype.itemsize * (6 * x + 2 * state)
    assert kernels["lightning_backward"].num_bytes == dtype.itemsize * (14 * x + 5 * state)
    assert all(kernels[n].kind is KernelKind.LIGHTNING for n in ("lightning", "lightning_backward"))


def test_the_gated_delta_rule_is_one_op_each_way() -> None:
    heads, keys, values, tokens = 3, 32, 64, 256
    with FakeTensorMode(), fla_ops_on_every_device(), Meter(PhaseTracker()) as meter:
        widths = (keys, keys, values)
        qkv = [torch.empty(1, tokens, heads, n, dtype=torch.bfloat16) for n in widths]
        scalars = [torch.empty(1, tokens, heads, dtype=torch.float32) for _ in range(2)]
        inputs = DeltaInputs(*(x.requires_grad_() for x in (*qkv, *scalars)))
        output, state = gated_delta_rule(inputs)
        forward = meter.flops
        output.sum().backward()
    assert output.shape == (1, tokens, heads, values)
    assert state is not None
    assert state.shape == (1, heads, keys, values)
    # Three products with the state forward; products within chunks are not counted.
    assert forward == tokens * heads * 6 * keys * values
    assert meter.flops == 3 * forward
    assert [x.grad.shape for x in inputs if x.grad is not None] == [x.shape for x in inputs]


def test_a_kernel_takes_the_longer_of_computing_and_memory() -> None:
    rates = {"matmul": 100.0}, 10.0
    assert Kernel(KernelKind.MATMUL, "mm", 1000, 10).seconds(*rates) == 10
    assert Kernel(KernelKind.MATMUL, "mm", 1000, 1000).seconds(*rates) == 100
    assert Kernel(KernelKind.ELEMENTWISE, "add", 0, 30).seconds(*rates) == 3


def test_rates_are_below_the_peaks_of_the_data_sheet() -> None:
    for name, rates in KERNEL_RATES.items():
        assert set(rates.flops_per_second) == set(KernelKind) - {KernelKind.ELEMENTWISE}
        assert max(rates.flops_per_second.values()) < GPUS[name].flops_per_second
        assert rates.bytes_per_second < GPUS[name].bytes_per_second


def test_documents_of_packed_attention_see_only_themselves() -> None:
    heads, tokens, width = 2, 128, 32
    counts = []
    for bounds in ([0, 128], [0, 64, 128]):
        with FakeTensorMode(allow_non_fake_inputs=True), KernelCounter(lambda: "") as counter:
            packed = PackedRows.from_cu_seqlens(bounds, tokens, torch.device("cpu"))
            qkv = tuple(torch.empty(1, heads, tokens, width) for _ in "qkv")
            packed_attention_by_op((qkv[0], qkv[1], qkv[2]), packed.cu_seqlens, None)
        counts.append([k.flops for _, k in counter.kernels if k.kind is KernelKind.SOFTMAX])
    pairs = [tokens * (tokens + 1) // 2, 2 * 64 * 65 // 2]
    assert counts == [[4 * heads * width * n] for n in pairs]
