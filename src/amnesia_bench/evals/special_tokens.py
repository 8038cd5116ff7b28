"""What a tokenizer puts around a prompt: nothing for Qwen, a BOS before it for Llama and Mistral."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def with_special_tokens(tokenizer: Any, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a prompt's tokens with those that the tokenizer itself adds at either end.

    lm-eval's own models tokenise with them, so the official score is that of a prompt with its
    BOS.
    """
    bare = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    starts = [
        start
        for start in range(len(whole) - len(bare) + 1)
        if whole[start : start + len(bare)] == bare
    ]
    before, after = whole[: starts[0]], whole[starts[0] + len(bare) :]
    ends = [np.asarray(ids, dtype=np.int32) for ids in (before, after)]
    return np.concatenate([ends[0], tokens, ends[1]])
