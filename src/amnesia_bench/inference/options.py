"""How the transformers engine runs a model."""

from __future__ import annotations

from dataclasses import dataclass

from amnesia_bench.errors import UserError

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Everything about a run that is not the checkpoint and not the request.

    Args:
        dtype: of weights and activations; "auto" is the checkpoint's own.
        device: "cpu", "cuda", "cuda:1", ...; None takes a GPU where there is one.
        max_batch_tokens: rows of a batch times the tokens of its longest row, new ones included.
            One row alone may be longer.
        prefill_chunk_tokens: prompts are read in pieces of this size, and shared prefixes end at
            its multiples: so that a shared and a full run make the very same calls. A sliding
            window needs 5 bytes per token of a piece and token of the window. None is 2,048, and
            256 on a CPU, which is as fast by small pieces, and then more is shared.
        share_prefixes: read text that several prompts begin with once.
        verify_prefix: how many answers to compute a second time, without sharing.
        max_context_tokens: in place of the limit in the model's config, which may be wrong
            (Jet-Nemotron's says 131,072) or a limit of training only.
        attn_logits_scaling: in place of that in a HypeNet's config, such as "hype 500": off in
            training, it stands in the config of no checkpoint that was trained.
    """

    dtype: str = "auto"
    device: str | None = None
    max_batch_tokens: int = 2**18
    prefill_chunk_tokens: int | None = None
    share_prefixes: bool = True
    verify_prefix: int = 0
    max_context_tokens: int | None = None
    attn_logits_scaling: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype}", hint=f"Use one of {', '.join(DTYPES)}.")
        for name in ("max_batch_tokens", "prefill_chunk_tokens", "max_context_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if self.verify_prefix < 0:
            raise UserError(f"verify_prefix={self.verify_prefix}: must be 0 (none) or above")

    def chunk_on(self, device_type: str) -> int:
        """Return the tokens of a piece of a prompt on "cpu", "cuda", ..."""
        if self.prefill_chunk_tokens is not None:
            return self.prefill_chunk_tokens
        return 256 if device_type == "cpu" else 2048
