"""How a model is run while it answers."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import PositiveInt

from amnesia_bench.config.schema import Frozen

EngineName = Literal["transformers", "vllm"]
ENGINES: tuple[str, ...] = get_args(EngineName)


class EngineChoice(Frozen):
    """Which inference engine answers, and what of the model's config it overrides.

    Attributes:
        name: the engine.
        max_context_tokens: overrides the context limit of the model's config, which may be wrong
            or a limit of training only.
        attn_logits_scaling: overrides that of a HypeNet's config: "hype 500".
    """

    name: EngineName = "transformers"
    max_context_tokens: PositiveInt | None = None
    attn_logits_scaling: str | None = None
