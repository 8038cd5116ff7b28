"""The rows of a batch: their requests and answers, and helpers that all engines share.

Each row draws one random number per token from its own generator, so its answer depends neither on
the other rows of the batch nor on the order of the requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.inference.sampling import generator_of
from amnesia_bench.records.evaluation import FinishReason, Generation

Decode = Callable[[Sequence[int]], str]
_DRAWS = 256  # the number of random numbers that a row draws at once


def check_room(request: PromptRequest, limit: int | None) -> None:
    """Raise an error if a prompt is empty or, with its answer, exceeds the model's context.

    Args:
        request: the prompt and its sampling parameters.
        limit: maximum number of tokens of prompt and answer together; None for no limit.

    Raises:
        UserError: the prompt is empty, or prompt and answer may exceed `limit`.
    """
    key, new, num_tokens = request.key, request.sampling.max_new_tokens, len(request.tokens)
    if num_tokens == 0:
        raise UserError(f"{key.task} document {key.doc}: the prompt has no tokens")
    if limit is not None and num_tokens + new > limit:
        raise UserError(
            f"{key.task} document {key.doc}: {num_tokens:,} prompt tokens and up to {new:,} new "
            f"ones do not fit the model's context of {limit:,}",
            hint="Prompts are not truncated. Use shorter prompts or answers, or raise the limit of "
            "the model's config: --max-context-tokens N.",
        )


def generation_of(
    request: PromptRequest, tokens: Sequence[int], reason: FinishReason, decode: Decode
) -> Generation:
    """Return the record of a finished answer; a stop string truncates its text, not its tokens.

    Args:
        request: the request that was answered.
        tokens: token ids of the answer, without an end token.
        reason: why the answer ended.
        decode: converts token ids to text.
    """
    text = decode(tokens)
    ends = [text.find(stop) for stop in request.sampling.stop if stop in text]
    return Generation(
        key=request.key,
        text=text[: min(ends)] if ends else text,
        tokens=tuple(tokens),
        prompt_tokens=len(request.tokens),
        finish_reason=reason,
        seed=request.seed,
    )


def not_finite(request: PromptRequest, new_tokens: int) -> StageFailedError:
    """Return the error for logits that are NaN or infinite after `new_tokens` answer tokens."""
    key = request.key
    return StageFailedError(
        f"{key.task} document {key.doc}: the model's logits are NaN or infinite after "
        f"{len(request.tokens):,} prompt tokens and {new_tokens:,} new ones; such an answer is "
        "neither right nor wrong",
        hint="The weights contain NaN or infinity, or their products overflow the dtype. "
        "`amnesia diff PRE POST` marks tensors whose values are not finite.",
    )


def answer_decoder(tokenizer: Any) -> Decode:
    """Return a function that converts token ids to text and omits special tokens."""

    def decode(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    return decode


def end_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """Return the end token ids of the tokenizer and of the generation config.

    The two differ in some published models: Jet-Nemotron's generation config has one end token, and
    its chat template ends turns with another.
    """
    end_ids: list[Any] = []
    for ids in (tokenizer.eos_token_id, getattr(generation_config, "eos_token_id", None)):
        end_ids += ids if isinstance(ids, list) else [ids]
    return frozenset(int(i) for i in end_ids if i is not None)


# The end token ids, and a function that converts token ids to text.
Stopping = tuple[frozenset[int], Decode]


@dataclass(eq=False)
class DecodingRow:
    """One row of a batch: a request, and its answer so far."""

    request: PromptRequest
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    _draws: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, request: PromptRequest) -> DecodingRow:
        """Return the row of a request, with an empty answer."""
        return cls(request, generator_of(request.seed))

    def draw(self) -> float:
        """Return the next random number of this row, in [0, 1)."""
        if not self._draws:
            # These are the numbers that single draws would give, but one call takes less time.
            numbers = torch.rand(_DRAWS, generator=self.generator, dtype=torch.float64)
            self._draws = numbers.flip(0).tolist()
        return self._draws.pop()

    def append(self, token: int, eos_ids: frozenset[int], decode: Decode) -> None:
        """Append a token id, and set the finish reason if it ends the answer."""
        if token in eos_ids:
            self.finish_reason = FinishReason.EOS
            return
        self.tokens.append(token)
        if self._stops(decode):
            self.finish_reason = FinishReason.STOP
        elif len(self.tokens) >= self.request.sampling.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH

    def _stops(self, decode: Decode) -> bool:
        stops = self.request.sampling.stop
        if not stops:
            return False
        # Each visible token has at least one byte. 4 more allow for a character that is cut in two.
        tail = max(len(stop.encode()) for stop in stops) + 4
        text = decode(self.tokens[-tail:])
        return any(stop in text for stop in stops)

    def generation(self, decode: Decode) -> Generation:
        """Return the record of the finished answer."""
        assert self.finish_reason is not None
        return generation_of(self.request, self.tokens, self.finish_reason, decode)
