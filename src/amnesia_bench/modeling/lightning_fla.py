"""Launch the Triton kernels of flash-linear-attention (fla); no other module uses fla.

The kernels are launched directly, with the arguments that they have in fla 0.6.0:

- fla's own `chunk_fwd_h` and `chunk_bwd_dh` read the number of chunks of packed documents from the
  device (fla/ops/common/chunk_h.py: `split_offsets[-1].item()`, also with `cu_seqlens_cpu`). Every
  layer would wait for the GPU, once in the forward and twice in the backward pass. Here the number
  is the length of a table that was made on the CPU.
- fla chooses tile sizes by timing the first call, whatever its length, so the choice differs
  between runs and machines. Ours are fixed (`_TILINGS`).
- By default, Triton multiplies float32 operands in TF32. A float32 model gets float32 products.

Do not use `fla.ops.lightning_attn`: its decays differ between layers, and its first head never
decays.

Shapes are those of `lightning_attention`; N rows or documents, C chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .packing import CHUNK, ChunkTable

Qkv = tuple[Tensor, Tensor, Tensor]
# The chunk kernels compute powers of 2.
_LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class _Tiling:
    """How a kernel divides its work: the largest tile of K and of V, warps and pipeline stages."""

    largest: int
    num_warps: int
    num_stages: int


# Compiled for sm_80 and sm_90, no kernel spills registers with these (docs/benchmarks.md). In
# bfloat16 they are a candidate of fla's own lists for the kernels whose tiles fla tunes; for
# `chunk_bwd_kernel_dqkwg` and `_dv`, fla takes tiles of 128 on Hopper, of which the first spills.
# Products in float32 run without tensor cores and need more registers: larger tiles or fewer warps
# spill.
# On Hopper, Triton 3.4 to 3.7.0 compiles `chunk_bwd_kernel_dqkwg` with tiles of 64 wrongly, so that
# dk is wrong (https://github.com/fla-org/flash-linear-attention/issues/640). PyTorch 2.13 requires
# Triton 3.7.1.
_TILINGS = {
    torch.bfloat16: _Tiling(largest=64, num_warps=4, num_stages=3),
    torch.float32: _Tiling(largest=16, num_warps=8, num_stages=2),
}


@dataclass(frozen=True)
class DocumentTables:
    """The boundaries of packed documents [N + 1] in int32, and their chunks."""

    cu_seqlens: Tensor
    chunks: ChunkTable


def fla_forward(
    qkv: Qkv,
    log_decay: Tensor,
    scale: float,
    state: Tensor | None,
    documents: DocumentTables | None,
) -> tuple[Tensor, Tensor]:
    """Run the chunked kernels, or the recurrent one for a single token per row.

    For more tokens, the recurrent kernel would multiply by a rounded gamma again and again, which
    costs a digit after 40 tokens.

    Args:
        qkv: q, k and v, all in bfloat16 or all in float32; products have this precision.
        log_decay: log gamma per head [H] in float32.
        scale: factor on q.
        state: the initial states [N, H, K, V] in float32, or None for zeros.
        documents: the documents that are packed in one row, or None.

    Returns:
        The outputs [B, T, H, V] in the dtype of q, and the states [N, H, K, V] in float32.
    """
    call = _Call.of(qkv, log_decay, scale, state, documents)
    with torch.cuda.device_of(call.q):
        if call.q.shape[1] == 1 and documents is None:
            return call.step()
        return call.forward()


def fla_backward(
    grads: tuple[Tensor, Tensor | None],
    qkv: Qkv,
    log_decay: Tensor,
    scale: float,
    state: Tensor | None,
    documents: DocumentTables | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and of the initial states (empty if `state` is None).

    `grads` are those of the outputs and of the final states; the other arguments are those of
    `fla_forward`.
    """
    call = _Call.of(qkv, log_decay, scale, state, documents)
    with torch.cuda.device_of(call.q):
        return call.backward(*grads)


@dataclass(frozen=True)
class _Call:
    """The operands of one call, and the launches of its kernels."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    scale: float
    state: Tensor | None
    documents: DocumentTables | None

    @classmethod
    def of(
        cls,
        qkv: Qkv,
        log_decay: Tensor,
        scale: float,
        state: Tensor | None,
        documents: DocumentTables | None,
    ) -> _Call:
        # The kernels compute addresses from shapes, so they need contiguous tensors.
        q, k, v = (x.contiguous() for x in qkv)
        state = None if state is None else state.contiguous()
        return cls(q, k, v, log_decay.contiguous(), scale, state, documents)

    @property
    def _num_states(self) -> int:
        if self.documents is None:
            return self.q.shape[0]
        return self.documents.cu_seqlens.shape[0] - 1

    @property
    def _num_chunks(self) -> int:
        """The number of chunks per row of the batch."""
        if self.documents is None:
            return -(-self.q.shape[1] // CHUNK)
        return self.documents.chunks.index.shape[0]

    def step(self) -> tuple[Tensor, Tensor]:
        """Process one token per row; return the outputs and the states."""
        # Each tile of K adds to the output, and the kernel writes one output per tile.
        parts = self.v.new_empty(self._tiles("K"), *self.v.shape, dtype=torch.float32)
        end = self._new_states(self._num_states)
        self._launch(
            "fused_recurrent.fused_recurrent_fwd_kernel",
            self._grid_of_states(),
            q=self.q,
            k=self.k,
            v=self.v,
            o=parts,
            h0=self.state,
            ht=end,
            g_gamma=self.log_decay,
            scale=self.scale,
            B=self.q.shape[0],
            REVERSE=False,
            USE_INITIAL_STATE=self.state is not None,
            STORE_FINAL_STATE=True,
            **_NO_VECTOR_GATES,
        )
        return parts.sum(0).to(self.q.dtype), end

    def forward(self) -> tuple[Tensor, Tensor]:
        """Process chunks in parallel; return the outputs and the states."""
        end = self._new_states(self._num_states)
        starts = self._states_of_chunks(end)
        output = torch.empty_like(self.v)
        self._launch_chunks("chunk_fwd_kernel_o", "V", v=self.v, h=starts, o=output)
        return output, end

    def backward(
        self, grad: Tensor, grad_end: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of q, k, v and of the initial states."""
        grad, grad_end = grad.contiguous(), None if grad_end is None else grad_end.contiguous()
        starts, grad_starts = self._states_of_chunks(None), self._new_chunk_states()
        initial = None if self.state is None else torch.empty_like(self.state)
        self._launch_states(
            "chunk_bwd_kernel_dh",
            q=self.q,
            do=grad,
            dh=grad_starts,
            dht=grad_end,
            dh0=initial,
            scale=self.scale,
            HQ=self.q.shape[2],
            NG=1,
            STORE_INITIAL_STATE_GRADIENT=initial is not None,
            USE_FINAL_STATE_GRADIENT=grad_end is not None,
        )
        dq, dk, dv = (torch.empty_like(x) for x in (self.q, self.k, self.v))
        operands = {"do": grad, "dh": grad_starts}
        unused = {"dw": None, "dv": None, "dg": None, "USE_DW": False, "B": self.q.shape[0]}
        outputs = {"dq": dq, "dk": dk}
        self._launch_chunks(
            "chunk_bwd_kernel_dqkwg", "K", v=self.v, h=starts, **outputs, **operands, **unused
        )
        self._launch_chunks("chunk_bwd_kernel_dv", "V", dv=dv, **operands)
        return dq, dk, dv, self.q.new_empty(0) if initial is None else initial

    def _states_of_chunks(self, end: Tensor | None) -> Tensor:
        """Return the state before each chunk in the operands' dtype; write the last one to `end`.

        The running state is float32. Only copies for the products are rounded. In the backward
        pass, fla keeps float32 copies, but rounds them before each product without gates on tokens.
        """
        starts = self._new_chunk_states()
        self._launch_states(
            "chunk_fwd_kernel_h",
            k=self.k,
            v=self.v,
            h=starts,
            h0=self.state,
            ht=end,
            USE_INITIAL_STATE=self.state is not None,
            STORE_FINAL_STATE=end is not None,
        )
        return starts

    def _new_states(self, *count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.q.new_empty(*count, *self.q.shape[2:], self.v.shape[3], dtype=dtype)

    def _new_chunk_states(self) -> Tensor:
        return self._new_states(self.q.shape[0], self._num_chunks, dtype=self.q.dtype)

    @property
    def _tiling(self) -> _Tiling:
        return _TILINGS[self.q.dtype]

    def _size(self, dim: str) -> int:
        return self.q.shape[3] if dim == "K" else self.v.shape[3]

    def _tile(self, dim: str) -> int:
        # Tensor cores multiply tiles of at least 16 numbers; Triton wants powers of 2.
        return min(max(1 << (self._size(dim) - 1).bit_length(), 16), self._tiling.largest)

    def _tiles(self, dim: str) -> int:
        return -(-self._size(dim) // self._tile(dim))

    def _grid_of_states(self) -> tuple[int]:
        return (self._tiles("K") * self._tiles("V") * self._num_states * self.q.shape[2],)

    def _launch_states(self, kernel: str, **operands: Any) -> None:
        """Launch a kernel that walks through the chunks of each row or document."""
        self._launch(
            f"chunk_h.{kernel}",
            self._grid_of_states(),
            g_gamma=self.log_decay * _LOG2_E,
            split_offsets=None if self.documents is None else self.documents.chunks.offsets,
            BT=CHUNK,
            BS=CHUNK,
            **_NO_VECTOR_GATES,
            **operands,
        )

    def _launch_chunks(self, kernel: str, tiled: str, **operands: Any) -> None:
        """Launch a kernel that processes all chunks in parallel, for each tile of K or V."""
        batch, _, heads, _ = self.q.shape
        self._launch(
            f"chunk_o.{kernel}",
            (self._tiles(tiled) * self._num_chunks, batch * heads),
            q=self.q,
            k=self.k,
            g_gamma=self.log_decay * _LOG2_E,
            chunk_indices=None if self.documents is None else self.documents.chunks.index,
            scale=self.scale,
            HV=heads,
            BT=CHUNK,
            **operands,
        )

    def _launch(self, kernel: str, grid: tuple[int, ...], **operands: Any) -> None:
        """Launch `module.kernel` of fla.ops.common."""
        common: dict[str, Any] = {
            "cu_seqlens": None if self.documents is None else self.documents.cu_seqlens,
            "IS_VARLEN": self.documents is not None,
            "T": self.q.shape[1],
            "H": self.q.shape[2],
            "K": self._size("K"),
            "V": self._size("V"),
            "BK": self._tile("K"),
            "BV": self._tile("V"),
            "num_warps": self._tiling.num_warps,
            "num_stages": self._tiling.num_stages,
        }
        if self.q.dtype == torch.float32:
            # Without this option, the products would be TF32.
            common["allowed_dot_input_precisions"] = ("ieee",)
        _kernel(kernel)[grid](**common, **_NO_TOKEN_GATES, **operands)


_NO_TOKEN_GATES = {"g": None, "USE_G": False, "USE_G_GAMMA": True, "STATE_V_FIRST": False}
_NO_VECTOR_GATES = {"gk": None, "gv": None, "USE_GK": False, "USE_GV": False}


def _kernel(name: str) -> Any:
    # The import is here because it takes seconds and Triton needs a GPU driver.
    from fla.ops.common import chunk_h, chunk_o, fused_recurrent
    from triton.runtime.autotuner import Autotuner, Heuristics

    modules = {"chunk_h": chunk_h, "chunk_o": chunk_o, "fused_recurrent": fused_recurrent}
    module, function = name.split(".")
    kernel = getattr(modules[module], function)
    # These wrappers of Triton would choose tiles by timing.
    while isinstance(kernel, Autotuner | Heuristics):
        kernel = kernel.fn
    return kernel
