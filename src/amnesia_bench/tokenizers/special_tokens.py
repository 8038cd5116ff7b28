"""What a tokenizer puts around a prompt: nothing for Qwen, a BOS before it for Mistral."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def with_special_tokens(tokenizer: Any, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a prompt's tokens with those that the tokenizer itself adds at either end.

    lm-eval's own models tokenise with them, so the official score is that of a prompt with its
    BOS.
    """
    before, after = _added(tokenizer)
    return np.concatenate([before, tokens, after])


def with_beginning(tokenizer: Any, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a prompt's tokens after those that the tokenizer puts before a text, such as a BOS.

    What it appends is left out: some fine-tunes save a tokenizer that ends every text in EOS, and
    a prompt that ends in EOS is answered with nothing or with another text.
    """
    return np.concatenate([_added(tokenizer)[0], tokens])


def _added(tokenizer: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the tokens that a tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    start = next(
        start
        for start in range(len(whole) - len(bare) + 1)
        if whole[start : start + len(bare)] == bare
    )
    before, after = whole[:start], whole[start + len(bare) :]
    return np.asarray(before, dtype=np.int32), np.asarray(after, dtype=np.int32)
