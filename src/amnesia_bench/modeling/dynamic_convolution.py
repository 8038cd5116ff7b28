"""A short causal convolution whose kernel is generated for each token.

    y_t[c] = silu(sum_j kernel_t[c, j] v_(t - W + 1 + j)[c])        kernel_t = w2 silu(w1 x_t) + b2

Tap W - 1 multiplies the token itself. Tokens before the first one are zero. x is the input of the
layer, not v. Source: JetBlock, arXiv 2508.15884.

Shapes: B batch (1 for packed documents), T tokens, C channels, W taps, R = W - 1 earlier tokens,
M hidden size, I inner width of the generator, N documents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .packing import PackedRows
from .precision import precise_dtype

# The kernels of a token have C * W values, four times a token of v: 12,288 in Jet-Nemotron-2B.
CHUNK_TOKENS = 2048


class KernelGenerator(nn.Module):
    """The two-layer network that generates the kernel of each token."""

    def __init__(self, size: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(size, inner, bias=False)
        self.w2 = nn.Linear(inner, outputs, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the kernels [..., C * W] for layer inputs [..., M]."""
        kernels: Tensor = self.w2(nn.functional.silu(self.w1(x)))
        return kernels


class DynamicConvolution(nn.Module):
    """The convolution of C channels with W taps; parameter names are those of checkpoints."""

    def __init__(self, size: int, channels: int, taps: int, inner: int) -> None:
        super().__init__()
        self.taps = taps
        self.kernel_generator = KernelGenerator(size, inner, channels * taps)

    def forward(
        self, x: Tensor, v: Tensor, tail: Tensor | None, packed: PackedRows | None
    ) -> tuple[Tensor, Tensor]:
        """Convolve v.

        Args:
            x: inputs of the layer [B, T, M], which determine the kernels.
            v: values [B, T, C].
            tail: the last R values before the first token [B, R, C], or [N, R, C] with `packed`;
                zero when None.
            packed: documents that are packed in one row and convolved separately.

        Returns:
            The convolved values [B, T, C], and the last R values of each row or document.
        """
        early = self.taps - 1
        before = v.new_zeros(v.shape[0], early, v.shape[2])
        if tail is not None and packed is None:
            before = tail.to(v.dtype)
        row = torch.cat([before, v], dim=1)
        age, first = None, None
        if packed is not None:
            document = packed.document_numbers()
            token = torch.arange(v.shape[1], device=v.device)
            age = token - packed.cu_seqlens[document]  # [T], the position within the document
            first = document * early  # [T], the document's first row in `tail` as [N * R, C]
        outputs = []
        for start in range(0, v.shape[1], CHUNK_TOKENS):
            part = slice(start, min(start + CHUNK_TOKENS, v.shape[1]))
            kernels = self.kernel_generator(x[:, part]).unflatten(-1, (v.shape[2], self.taps))
            total: Tensor | None = None
            for tap in range(self.taps):
                value = row[:, part.start + tap : part.stop + tap]
                shift = early - tap
                if age is not None and shift:
                    old = value.new_zeros(())
                    if first is not None and tail is not None:
                        index = first[part] + (age[part] + tap).clamp(max=early - 1)
                        old = tail.to(v.dtype).flatten(0, 1)[index]
                    value = torch.where(age[part, None] >= shift, value, old)
                product = (value * kernels[..., tap]).to(precise_dtype(v.dtype))
                total = product if total is None else total + product
            assert total is not None
            outputs.append(nn.functional.silu(total).to(v.dtype))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return output, self._tail(row, v, tail, packed)

    def _tail(
        self, row: Tensor, v: Tensor, tail: Tensor | None, packed: PackedRows | None
    ) -> Tensor:
        early = self.taps - 1
        if packed is None:
            return row[:, row.shape[1] - early :].clone()  # a view would keep the row in memory
        start, stop = packed.cu_seqlens[:-1, None], packed.cu_seqlens[1:, None]
        token = stop - early + torch.arange(early, device=v.device)  # [N, R]
        new = v[0][token.clamp(min=0)]
        if tail is None:
            old = new.new_zeros(())
        else:
            # A document of fewer than R tokens keeps the end of its old tail.
            at = (early + token - start).clamp(min=0, max=max(early - 1, 0))
            old = tail.to(v.dtype).gather(1, at.long()[..., None].expand_as(new))
        return torch.where((token >= start)[..., None], new, old)
