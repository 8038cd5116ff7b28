"""Activation checkpointing and compilation of a model's blocks, before FSDP2 shards them.

A block is a decoder layer, or a mixer in alignment. The forward method of the block is replaced in
the instance. So the hooks of FSDP2 are outside of the recomputed and compiled region, and the names
of modules and parameters do not change (`torch.compile(block)` would insert `_orig_mod`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from amnesia_bench.config.train_schema import Recomputation
from amnesia_bench.errors import UserError
from amnesia_bench.modeling import PackedRows

_Context = AbstractContextManager[None]

_PRODUCTS = ("aten::mm", "aten::addmm")
# The outputs of attention kernels are small, and take long to compute again.
_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "amnesia_bench::packed_attention",
    "amnesia_bench::lightning",
    "amnesia_bench::gated_delta",
)


def recompute_activations(blocks: Iterable[nn.Module], policy: Recomputation) -> None:
    """Make blocks compute activations again in the backward pass instead of keeping them.

    `selective` keeps the outputs of attention kernels and of every second product with a weight
    matrix. All products but the last of a block need equal memory per FLOP, so the choice among
    them does not matter; the output of the last one is not needed in the backward pass.
    """
    if policy == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if policy == "selective":
        options["context_fn"] = _keep_every_second_product
    for block in blocks:
        block.forward = _recomputed(block.forward, options)


def check_compilers(device: torch.device) -> None:
    """Check that the programs which torch.compile calls are installed.

    Raises:
        UserError: there is no C++ compiler, or for a GPU no Triton.
    """
    # Imported here, since runs without compilation do not need these modules, which take seconds.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    missing = "Triton" if device.type == "cuda" and not has_triton() else None
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        missing = "a C++ compiler"
    if missing is not None:
        raise UserError(
            f"train.compile=true needs {missing}, which was not found",
            hint="Install Triton with pip, or a compiler such as g++ (the environment variable CXX "
            "may name one). Training without it is slower: train.compile=false.",
        )


def compiler_failure(device: torch.device) -> UserError | None:
    """Return the error of `check_compilers`, or None; nodes may differ in what is installed."""
    try:
        check_compilers(device)
    except UserError as error:
        return error
    return None


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile the forward and backward pass of each block; blocks of the same kind share the code.

    A graph break is an error. So are more than a few shapes of batches, since the code is compiled
    again for each; only the number of packed documents may change freely.
    """
    for block in blocks:
        compiled: Any = torch.compile(block.forward, fullgraph=True, dynamic=False)
        block.forward = compiled


def let_documents_vary(packed: PackedRows) -> None:
    """Compile code for any number of documents, and of their chunks, from the first batch on."""
    for boundaries in (packed.cu_seqlens, packed.chunks.index, packed.chunks.offsets):
        torch._dynamo.mark_dynamic(boundaries, 0)


def _recomputed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **options, **kwargs)

    return recomputed


def _keep_every_second_product() -> tuple[
    AbstractContextManager[None], AbstractContextManager[None]
]:
    products = 0

    def policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        nonlocal products
        name = operation.name()
        products += name in _PRODUCTS
        keep = name in _ATTENTION or (name in _PRODUCTS and products % 2 == 1)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    create: Any = create_selective_checkpoint_contexts  # untyped
    contexts: tuple[_Context, _Context] = create(policy)
    return contexts
