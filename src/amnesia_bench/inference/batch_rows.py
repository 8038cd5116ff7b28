"""How many answers are decoded together, and when finished rows are replaced by new ones.

The transformers engine and the estimates of `costs` use the same rules. This module needs no torch.

    engine    free_bytes is measured after the weights are loaded, and the cache bytes of a row are
              measured on the model's own cache.
    costs     tokens = prompt_tokens + max_new_tokens
              rows_that_fit(
                  gpu.memory_bytes - 2 * shape.parameters,  # bf16 weights
                  row_bytes(shape.cache_bytes(tokens), shape.vocab),
                  MAX_ROWS["cuda"],
              )

A batch is refilled while prompts are waiting, so on average nearly all of its rows are in use: the
answers of a stage take about (all answer tokens) / rows decode steps, plus the longest answer once
for the end, when no prompt is waiting any more.
"""

from __future__ import annotations

# The maximum number of rows by device type. A step of a small model takes about as long for many
# rows as for one on a GPU, since launching its kernels takes longer than running them. A CPU has no
# such reserve: with more rows, answers would only finish, and be saved, less often.
MAX_ROWS = {"cpu": 64, "cuda": 512}

# The tokens of a prefill call of one prompt, by device type; shared prefixes end at its multiples.
# On a CPU, small chunks are as fast, and allow longer shared prefixes.
PREFILL_CHUNK_TOKENS = {"cpu": 256, "cuda": 2048}

# The rest is for the activations of a prefill call, and for memory that the allocator cannot use.
_USABLE_SHARE = 0.85
# Padding and spare columns of the buffers take up to an eighth each, and a refill copies one layer.
_CACHE_OVERHEAD = 1.3
# Logits in the dtype of the model, in float32, and several copies in float64 in the sampler.
_BYTES_PER_LOGIT = 48

# The maximum number of tokens of one prefill call. More tokens would only need more memory for
# activations: a call of this size already takes much longer than launching its kernels.
_PREFILL_CALL_TOKENS = 2**16
# The maximum number of tokens in the caches of the prompts that are prefilled together. They take
# memory in addition to the batch that they join, in which `rows_that_fit` counts one more row.
_PREFILLED_TOKENS = 2**17

# The number of decode steps that take about as long as a refill, which copies the cache once: it
# reads what a step reads, writes as much, and clears the new buffers before.
REFILL_STEPS = 4.0


def max_rows(device_type: str) -> int:
    """Return the maximum number of rows on a device type such as "cpu" or "cuda"."""
    return MAX_ROWS["cpu" if device_type == "cpu" else "cuda"]


def row_bytes(cache_bytes: float, vocab: int) -> float:
    """Return the memory of one row in bytes: its cache with spare room, and its logits.

    Args:
        cache_bytes: the bytes of the row's cache after its last token.
        vocab: the vocabulary size.
    """
    return _CACHE_OVERHEAD * cache_bytes + _BYTES_PER_LOGIT * vocab


def rows_that_fit(free_bytes: float, bytes_per_row: float, limit: int) -> int:
    """Return how many rows a batch may have: as many as fit, but at least 1 and at most `limit`.

    Args:
        free_bytes: device memory that is free after loading the weights. The rule leaves a part of
            it for activations.
        bytes_per_row: the memory of the longest row, from `row_bytes`.
        limit: maximum number of rows, such as `MAX_ROWS["cuda"]`.
    """
    # One more row holds the prompt that is being prefilled.
    fitting = int(_USABLE_SHARE * max(0.0, free_bytes) // bytes_per_row) - 1
    return max(1, min(limit, fitting))


def rows_per_call(num_tokens: int, chunk: int | None) -> int:
    """Return how many prompts of `num_tokens` tokens are prefilled by one call.

    `chunk` is the prefill chunk size in tokens; None means that prompts are prefilled as a whole.
    """
    call_tokens = num_tokens if chunk is None else min(num_tokens, chunk)
    return max(1, _PREFILL_CALL_TOKENS // call_tokens)


def rows_per_refill(num_tokens: int, cut: int, chunk: int | None) -> int:
    """Return how many prompts are prefilled together before they join a batch.

    Args:
        num_tokens: the length of each prompt.
        cut: the number of its first tokens that are in the cache already.
        chunk: the prefill chunk size in tokens; None means that prompts are prefilled as a whole.
    """
    by_memory = max(1, _PREFILLED_TOKENS // num_tokens)
    return min(rows_per_call(num_tokens - cut, chunk), by_memory)


class RefillRule:
    """Decides when the finished rows of a batch are replaced by waiting prompts.

    A refill copies the cache of the other rows, so it waits until the finished rows have cost as
    much as it will cost. The total cost is then at most twice that of the best choice, for any
    lengths of answers, and the number of copies is linear in the number of steps.
    """

    def __init__(self) -> None:
        self._idle_steps = 0.0

    def after_step(self, running: int, rows: int) -> None:
        """Record a step in which `running` of `rows` rows were unfinished."""
        self._idle_steps += 1 - running / rows

    def due(self, running: int) -> bool:
        """Return whether to refill the batch now, if prompts are waiting."""
        return running == 0 or self._idle_steps >= REFILL_STEPS

    def refilled(self) -> None:
        """Record a refill."""
        self._idle_steps = 0.0
