"""Score attention heads by how much of an answer they copy from a needle (arXiv 2404.15574).

A head copies an answer's token if, at the position that predicts it, the head attends most to a
token of the needle, and this token equals the answer's. The answer is given to the model ("teacher
forcing") instead of decoded, so that one forward pass is enough, and every model and every prompt
is measured on the same tokens. Only the attention rows of the answer's positions are computed.

Shapes: B batch, T tokens, H query heads, R rows (positions that predict an answer's token), E keys
of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amnesia_bench.analysis.models import MeasuredModel
from amnesia_bench.analysis.probe import probing
from amnesia_bench.analysis.row_blocks import RowBlock
from amnesia_bench.errors import UserError


@dataclass(frozen=True, eq=False)
class AnsweredPrompt:
    """The token ids of a prompt and the correct answer after it, and the position of the needle.

    `tokens` is int32 [T]. The answer begins at the index `answer` and ends with the last token.
    `needle` is the index of the needle's first token, and one past its last.
    """

    tokens: NDArray[np.int32]
    needle: tuple[int, int]
    answer: int

    def __post_init__(self) -> None:
        first, end = self.needle
        if not 0 <= first < end <= self.answer < len(self.tokens):
            raise UserError(
                f"a prompt with its answer at tokens {self.answer} to {len(self.tokens)} has no "
                f"needle before it: tokens {first} to {end}"
            )

    def copyable(self) -> NDArray[np.intp]:
        """Return the positions of those tokens of the answer that the needle contains."""
        answer, needle = self.tokens[self.answer :], self.tokens[slice(*self.needle)]
        return self.answer + np.flatnonzero(np.isin(answer, needle))


@dataclass(frozen=True, eq=False)
class CopiedTokens:
    """What the heads of a model copy while it reads the answer to one prompt.

    `by_layer` maps each softmax layer to the number of copied tokens of each head [H]; `copyable`
    is the number of tokens that could be copied. `recalled` is true if every token of the answer is
    the one that the model itself finds most likely, as in greedy decoding.
    """

    by_layer: Mapping[int, NDArray[np.int64]]
    copyable: int
    recalled: bool


class CopyCounter:
    """A consumer that counts, for each head, the rows whose largest weight is on a copied token.

    A tie with any other key counts as no copy, so the order of the keys does not matter.

    Args:
        rows: indices of the queries, ascending [R].
        sources: for each row, the keys that hold the predicted token in the needle; bool [R, T].

    Attributes:
        counts: maps each layer to the counts of its heads [B, H], in ascending order of heads.
    """

    def __init__(self, rows: Tensor, sources: Tensor) -> None:
        self._rows, self._sources = rows, sources
        self._counts: dict[int, dict[int, Tensor]] = {}

    def __call__(self, block: RowBlock) -> None:
        """Count the rows of a block of softmax weights.

        Raises:
            UserError: a weight is NaN.
        """
        if block.values.isnan().any():
            raise UserError(
                f"layer {block.layer}: attention weights are NaN",
                hint="Has the training of this model diverged?",
            )
        inside = (self._rows >= block.first_query) & (self._rows < block.stop)
        alpha = block.values[:, :, self._rows[inside] - block.first_query]  # [B, heads, R, E]
        source = self._sources[inside, block.first_key : block.stop]
        at_source = alpha.masked_fill(~source, -1).amax(dim=-1)
        elsewhere = alpha.masked_fill(source, -1).amax(dim=-1)
        copied = (at_source > elsewhere).sum(dim=-1)
        heads = self._counts.setdefault(block.layer, {})
        heads[block.first_head] = heads.get(block.first_head, 0) + copied

    @property
    def counts(self) -> dict[int, Tensor]:
        return {
            layer: torch.cat([heads[first] for first in sorted(heads)], dim=1)
            for layer, heads in sorted(self._counts.items())
        }


def copied_tokens(model: MeasuredModel, prompt: AnsweredPrompt) -> CopiedTokens:
    """Count the tokens of the answer that each head copies from the needle, in one forward pass.

    Raises:
        UserError: the needle contains no token of the answer.
    """
    targets = prompt.copyable()
    if not len(targets):
        raise UserError(
            "the needle of a prompt contains no token of its answer, so no head can copy one",
            hint="Does the tokenizer split the value differently in the needle and in the answer?",
        )
    ids = torch.from_numpy(prompt.tokens.astype(np.int64)).to(model.device)
    target = torch.from_numpy(targets).to(model.device)
    sources = ids[None, :-1] == ids[target, None]  # [R, T - 1]: the last token is not an input
    position = torch.arange(len(ids) - 1, device=model.device)
    sources &= (position >= prompt.needle[0]) & (position < prompt.needle[1])
    counter = CopyCounter(target - 1, sources)
    answer = ids[prompt.answer :]
    with torch.no_grad(), probing(model.module, weights=counter, first_query=prompt.answer - 1):
        predicted = _most_likely(model, ids[:-1], len(answer))
    return CopiedTokens(
        by_layer={layer: counts[0].cpu().numpy() for layer, counts in counter.counts.items()},
        copyable=len(targets),
        recalled=bool((predicted == answer).all()),
    )


def _most_likely(model: MeasuredModel, ids: Tensor, count: int) -> Tensor:
    """Return the token that the model predicts after each of the last `count` tokens [count].

    Only these rows go through the head: the logits of all tokens of a long prompt would take
    gigabytes. The option `logits_to_keep` of transformers is not used, because with it Gemma 4
    leaves out queries too. A scale or a cap after the head does not change which token is first.
    """
    hidden = model.module.base_model(input_ids=ids[None], use_cache=False).last_hidden_state
    predicted: Tensor = model.module.get_output_embeddings()(hidden[0, -count:]).argmax(dim=-1)
    return predicted
