"""Token-by-token decoding of prefilled prompts, and helpers that all engines share.

Each row draws one random number per token from its own generator, so its answer depends neither on
the other rows of the batch nor on the order of the requests.

Shapes: B rows, E vocabulary size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.inference.language_model import LanguageModel, catching_oom
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.inference.sampling import choose, generator_of
from amnesia_bench.modeling.packing import copy_to_device
from amnesia_bench.records.evaluation import FinishReason, Generation, Sampling

Decode = Callable[[Sequence[int]], str]


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

    @classmethod
    def of(cls, request: PromptRequest) -> DecodingRow:
        """Return the row of a request, with an empty answer."""
        return cls(request, generator_of(request.seed))

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


@dataclass(frozen=True, eq=False)
class PrefilledRows:
    """Rows with prefilled prompts, ready for decoding.

    `logits` [B, E] are the logits after the last token of each prompt. `cache` has one row per
    prompt; all prompts end in the same column, with padding before shorter ones. Decoding leaves it
    usable only if it has a single row: it then contains the prompt and the answer.
    """

    rows: Sequence[DecodingRow]
    logits: Tensor
    cache: Cache | None


@torch.inference_mode()
def decode_batch(
    model: LanguageModel, batch: PrefilledRows, stopping: Stopping
) -> Iterator[DecodingRow]:
    """Decode the answers of all rows in place; yield each row as soon as it is finished.

    Args:
        model: the model.
        batch: the prefilled rows.
        stopping: the end token ids, and a function that converts token ids to text.

    Raises:
        MemoryExhaustedError: memory ran out before all rows were finished.
        StageFailedError: the logits of an unfinished row are not finite, so it has no answer. Rows
            that were yielded before keep their answers.
    """
    active, cache, logits = list(batch.rows), batch.cache, batch.logits
    longest = max(len(row.request.tokens) for row in active)
    padding = _padding(active, longest, logits.device)
    for step in itertools.count():
        tokens = _next_tokens(logits, active)
        # If the largest logit is finite, none is NaN; single logits of -inf are valid, since a
        # model excludes tokens in this way. Without this check, argmax would still return a token.
        finite = logits.amax(dim=-1).isfinite()
        # The only copy from the device in a greedy step; sampling makes one more. Each one waits
        # until the device is idle.
        for row, (token, valid) in zip(
            active, torch.stack([tokens, finite.long()], dim=1).tolist(), strict=True
        ):
            if row.finish_reason is None:
                if not valid:
                    raise not_finite(row.request, len(row.tokens))
                row.append(token, *stopping)
                if row.finish_reason is not None:
                    yield row
        running = [i for i, row in enumerate(active) if row.finish_reason is None]
        if not running:
            return
        with catching_oom(longest + step):
            # Copying the cache costs about one step, and halves the cost of all later steps.
            if model.cache_class is not None and len(running) <= len(active) // 2:
                assert cache is not None
                index: Any = torch.tensor(running, device=tokens.device)
                cache.reorder_cache(index)
                tokens, active = tokens[index], [active[i] for i in running]
                padding = _padding(active, longest, tokens.device)
            logits, cache = model.advance(cache, tokens[:, None], padding)


def _padding(rows: Sequence[DecodingRow], longest: int, device: torch.device) -> Tensor | None:
    """Return the number of padding tokens before each prompt [B], or None if there is none."""
    tokens = [longest - len(row.request.tokens) for row in rows]
    return copy_to_device(torch.tensor(tokens), device) if any(tokens) else None


def _next_tokens(logits: Tensor, rows: Sequence[DecodingRow]) -> Tensor:
    """Return the next token id of each row [B], chosen with the row's sampling parameters."""
    groups: dict[Sampling, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.request.sampling, []).append(i)
    if len(groups) == 1:
        return choose(logits, rows[0].request.sampling, [row.generator for row in rows])
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    for sampling, indices in groups.items():
        generators = [rows[i].generator for i in indices]
        tokens[indices] = choose(logits[indices], sampling, generators)
    return tokens
