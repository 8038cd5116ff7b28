"""Choose the next token of each row from its logits, by temperature, top-k and top-p.

Sorting a vocabulary of 150,000 tokens for each row and step would take longer than a layer of the
model. Almost always the tokens that can be drawn are among the few most likely ones, so only those
are sorted, and rows for which they do not suffice are sorted completely. Both ways choose the same
token.

Shapes: B rows, E vocabulary size, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amnesia_bench.records.evaluation import Sampling

# With temperature 0.6 and top-p 0.95, answers of reasoning models rarely need more than 100.
CANDIDATES = 512


def generator_of(seed: int | None) -> torch.Generator:
    """Return a CPU random generator with the seed of one request; None means seed 0."""
    generator = torch.Generator("cpu")
    generator.manual_seed(0 if seed is None else seed)
    return generator


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next token id of each row [B], and whether it is uncertain [B].

    Temperature is applied first, then top-k, then top-p, as in transformers and vLLM. Tokens with
    equal logits are ranked by their ids. A token is uncertain if the candidates do not suffice:
    then `choose_by_sorting` must choose it. The caller learns this together with the tokens, so
    that the host waits for the device only once.

    Args:
        logits: logits at the last position of each row [B, E].
        sampling: sampling parameters of all rows.
        uniform: one random number in [0, 1) per row [B], float64; not used by greedy decoding.
    """
    certain = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if sampling.greedy:
        return logits.argmax(dim=-1), certain
    if logits.shape[1] <= CANDIDATES or (sampling.top_k or 0) > CANDIDATES:
        return choose_by_sorting(logits, sampling, uniform), certain
    scaled = logits.double() / sampling.temperature
    ranked, ids = _most_likely(scaled)
    total = scaled.logsumexp(dim=-1, keepdim=True)
    tokens, smallest_kept = _draw(ranked, ids, total, sampling, uniform[:, None])
    # Another token may equal the last candidate, so ranks from there on are uncertain.
    return tokens, smallest_kept <= ranked[:, -1]


def choose_by_sorting(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Return the next token ids [B] as `choose` does, but sort the complete vocabulary."""
    scaled = logits.double() / sampling.temperature
    # A stable sort ranks equal logits by token id.
    ranked, ids = scaled.sort(dim=-1, descending=True, stable=True)
    total = ranked.logsumexp(dim=-1, keepdim=True)
    return _draw(ranked, ids, total, sampling, uniform[:, None])[0]


def _most_likely(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Return the C largest scaled logits in descending order, and their token ids."""
    ids = scaled.topk(CANDIDATES, dim=-1, sorted=False).indices.sort(dim=-1).values
    ranked, order = scaled.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return ranked, ids.gather(1, order)


def _draw(
    ranked: Tensor, ids: Tensor, total: Tensor, sampling: Sampling, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw one token per row from ranked logits.

    Args:
        ranked: scaled logits in descending order [B, C].
        ids: their token ids [B, C].
        total: logsumexp of the scaled logits of the whole vocabulary [B, 1].
        sampling: sampling parameters; top-k is at most C.
        uniform: one random number in [0, 1) per row [B, 1].

    Returns:
        The token ids [B], and the smallest scaled logit that top-k and top-p keep [B].
    """
    if sampling.top_k is not None:
        ranked, ids = ranked[:, : sampling.top_k], ids[:, : sampling.top_k]
        total = ranked.logsumexp(dim=-1, keepdim=True)
    probabilities = (ranked - total).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    # The most likely token is always kept, since the cumulative probability before it is zero.
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    rank = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    # Rounding may put a draw beyond the sum: then choose the last token with a probability > 0.
    # There is none if logits are NaN, which the caller finds when it reads the tokens.
    last = ((probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return ids.gather(1, torch.minimum(rank, last))[:, 0], ranked.gather(1, last)[:, 0]
