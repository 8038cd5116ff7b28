"""Count the kernels that torch.compile generates for a GPU, without a GPU.

TorchInductor decides from shapes, dtypes and the properties of the device which operations become
one kernel. Here it lowers the forward and backward graph for a CUDA device of which only the
properties exist, and schedules and fuses them with its Triton scheduler. The kernels are counted
and not generated; the graph itself runs on tensors without data.

The bytes of a fused kernel are those of the buffers that it reads and writes, each once. A
reduction over a row that is too long for registers reads it twice; the second read normally comes
from a cache, so it is not counted.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._dynamo.device_interface import CudaInterface
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from amnesia_bench.training.dry_run.kernel_costs import (
    Kernel,
    KernelKind,
    kernel_of,
    storage_of,
    tensor_bytes,
)

_CUDA = torch.device("cuda", 0)
# What Inductor asks of a device: an H100, whose H200 variant differs in its memory only.
_PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    gcnArchName="",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 10**9,
    shared_memory_per_block_optin=232448,
)


@dataclass(frozen=True)
class CompiledGraph:
    """A forward or backward graph; `returned_bytes` are those of the tensors it returns.

    A forward graph returns the output of a block and all that is kept for its backward pass.
    """

    is_backward: bool
    kernels: tuple[Kernel, ...]
    returned_bytes: int


@contextmanager
def counted_compilation(ran: Callable[[CompiledGraph], None]) -> Iterator[None]:
    """Make `torch.compile` within the block count kernels instead of generating them.

    Functions that were compiled within the block take tensors without data. Each time one of their
    graphs would run on a GPU, `ran` is called with it.
    """

    def compile_graph(
        graph: fx.GraphModule, inputs: Sequence[Any], is_backward: bool = False, **_: object
    ) -> Callable[[list[Any]], Any]:
        with _disable_current_modes():
            compiled = lower(graph, inputs, is_backward)

        def run(args: list[Any]) -> Any:
            ran(compiled)
            with _disable_current_modes():
                return graph(*args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(graph: fx.GraphModule, inputs: list[Any]) -> Any:
        inner: Any = compile_graph  # its result is callable as Inductor's own is
        return compile_fx.compile_fx(graph, inputs, inner_compile=inner)

    torch_compile = torch.compile

    def counted_compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = torch_compile(function, backend=backend, **options)

        @functools.wraps(function)
        def without_modes(*args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():  # Dynamo compiles nothing below an unknown mode
                return compiled(*args, **kwargs)

        return without_modes

    with mock.patch.object(torch, "compile", counted_compile):
        yield


def lower(graph: fx.GraphModule, inputs: Sequence[Any], is_backward: bool) -> CompiledGraph:
    """Return the kernels into which Inductor turns a graph of ATen operations on a GPU.

    Args:
        graph: the graph, which is not changed; its tensors may be on any device.
        inputs: its inputs, tensors without data.
        is_backward: whether it is a backward graph.
    """
    moved, mode = copy.deepcopy(graph), detect_fake_mode(inputs)
    assert mode is not None
    arguments = [_on_cuda(x, mode) if isinstance(x, Tensor) else x for x in inputs]
    for node in moved.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": _CUDA}
    moved.recompile()
    with torch.no_grad(), _pretended_gpu():
        view_to_reshape(moved)
        compile_fx.fake_tensor_prop(moved, arguments, force_allow_non_fake_inputs=True)
        compile_fx._recursive_record_original_output_strides(moved)
        with V.set_fake_mode(mode):
            compile_fx._recursive_post_grad_passes(moved, is_inference=False)
            lowering = GraphLowering(
                moved,
                example_inputs=arguments,
                shape_env=mode.shape_env,
                is_backward=is_backward,
            )
            with (
                V.set_graph_handler(lowering),
                V.set_extern_kernel_nodes([]),
                V.set_debug_handler(DebugContext()),
            ):
                lowering.run(*arguments)
                lowering._update_scheduler()
                nodes = lowering.scheduler.nodes
                kernels = [kernel for node in nodes if (kernel := _kernel(node)) is not None]
    return CompiledGraph(is_backward, tuple(kernels), _returned_bytes(graph))


def _on_cuda(tensor: Tensor, mode: Any) -> Tensor:
    """Return a tensor without data on the device that does not exist. Autograd must not see it."""
    shape, stride = tensor.shape, tensor.stride()
    meta = torch.empty_strided(shape, stride, dtype=tensor.dtype, device="meta")
    return FakeTensor(mode, meta, _CUDA)


def _kernel(node: Any) -> Kernel | None:
    if isinstance(node, scheduler.NopKernelSchedulerNode) or isinstance(node.node, MultiOutput):
        return None
    if not isinstance(node, scheduler.ExternKernelSchedulerNode):
        num_bytes = int(node.get_read_write_buffers_sizes())
        return Kernel(KernelKind.ELEMENTWISE, _modules(node), 0, num_bytes)
    call = node.node.get_origin_node()
    if call is None:  # for example, of an operation that returns a list
        call = next(x for x in node.node.origins if x.target is node.node.op_overload)
    args, kwargs = tree_map(_value, (call.args, call.kwargs))
    return kernel_of(call.target, args, kwargs, _value(call))


def _modules(node: Any) -> str:
    """Return the classes of the modules whose operations were fused into a kernel."""
    classes = set()
    for member in node.get_nodes():
        for origin in member.node.origins if member.node is not None else ():
            meta = origin.meta
            stack = meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack")
            if stack:
                name = list(stack.values())[-1][1]
                classes.add(name.rsplit(".", 1)[-1] if isinstance(name, str) else name.__name__)
    # To a linear layer belong only the views of its operands.
    return " + ".join(sorted(classes - {"Linear"})) or "block"


def _value(argument: Any) -> Any:
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def _returned_bytes(graph: fx.GraphModule) -> int:
    """Return the bytes of the tensors that a graph returns, without views of those it was given."""
    results: Any = graph.graph.output_node().args[0]
    sizes: dict[int, int] = {}
    for node in results:
        if isinstance(node, fx.Node) and isinstance(value := node.meta["val"], Tensor):
            sizes[storage_of(value)] = tensor_bytes(value)
    for node in graph.graph.find_nodes(op="placeholder"):
        if isinstance(value := node.meta["val"], Tensor):
            sizes.pop(storage_of(value), None)
    return sum(sizes.values())


@contextmanager
def _pretended_gpu() -> Iterator[None]:
    answers: dict[str, Callable[..., Any]] = {
        "get_device_properties": lambda *_: _PROPERTIES,
        "is_available": lambda *_: True,
        "current_device": lambda *_: 0,
        "device_count": lambda *_: 1,
        "synchronize": lambda *_: None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
            stack.enter_context(mock.patch.object(CudaInterface, name, staticmethod(answer)))
        for owner, name, value in (
            (torch.cuda, "get_device_capability", (9, 0)),
            (torch.cuda, "is_bf16_supported", True),
            (CudaInterface, "get_compute_capability", 90),
            (scheduler, "has_triton", True),
        ):
            answer = staticmethod(lambda *_, value=value, **__: value)
            stack.enter_context(mock.patch.object(owner, name, answer))
        yield
