"""The choice of the inference engine."""

from __future__ import annotations

from typing import get_args

from pydantic import PositiveInt

from amnesia_bench.config.schema import Frozen
from amnesia_bench.records.ids import EngineName as EngineName

ENGINES: tuple[str, ...] = get_args(EngineName)


class EngineChoice(Frozen):
    """The inference engine, and overrides of the model's config during inference.

    Attributes:
        name: name of the engine.
        max_context_tokens: overrides the context limit in the model's config, which may be wrong
            or may apply to training only.
        attn_logits_scaling: overrides the logit scaling in a HypeNet's config, for example
            "hype 500".
    """

    name: EngineName = "transformers"
    max_context_tokens: PositiveInt | None = None
    attn_logits_scaling: str | None = None
