"""Token by token: from a cache that has read the prompts to finished answers, for all engines.

A row draws one number per token from a generator of its own, so what it says depends neither on
its neighbours nor on the order of the requests.

Shapes: B rows, E vocabulary.
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
from amnesia_bench.inference.language_model import LanguageModel, reaching
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.records.evaluation import FinishReason, Generation, Sampling

Decode = Callable[[Sequence[int]], str]


def check_room(request: PromptRequest, limit: int | None) -> None:
    """Refuse a prompt that is empty, or does not fit the model's context with its answer.

    Args:
        request: what is asked.
        limit: tokens of prompt and answer together; None for no limit.

    Raises:
        UserError: it names the document and the numbers.
    """
    key, new, num_tokens = request.key, request.sampling.max_new_tokens, len(request.tokens)
    if num_tokens == 0:
        raise UserError(f"{key.task} document {key.doc}: the prompt has no tokens")
    if limit is not None and num_tokens + new > limit:
        raise UserError(
            f"{key.task} document {key.doc}: {num_tokens:,} prompt tokens and up to {new:,} new "
            f"ones do not fit the model's context of {limit:,}",
            hint="Nothing is truncated. Ask for shorter prompts or answers; if the model can do "
            "more than its config says: --max-context-tokens N.",
        )


def generation_of(
    request: PromptRequest, tokens: Sequence[int], reason: FinishReason, decode: Decode
) -> Generation:
    """Return the finished answer; a stop string ends its text, not its tokens.

    Args:
        request: what was asked.
        tokens: the new ones, without an end token.
        reason: why there are no more.
        decode: turns tokens into text.
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
    """Return the error of an answer at whose next token the model computed NaN or infinity."""
    key = request.key
    return StageFailedError(
        f"{key.task} document {key.doc}: the model's logits are NaN or infinite after "
        f"{len(request.tokens):,} prompt tokens and {new_tokens:,} new ones; such a model has no "
        "answer, right or wrong",
        hint="The weights hold NaN or infinity, or their products overflow the dtype. "
        "`amnesia diff PRE POST` marks tensors whose values are not finite.",
    )


def answer_decoder(tokenizer: Any) -> Decode:
    """Return what turns new tokens into text: special ones do not show."""

    def decode(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    return decode


def end_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """Return every end token that the tokenizer or the generation config names.

    They differ in published models: Jet-Nemotron's generation config knows one, its chat template
    ends turns with another.
    """
    named: list[Any] = []
    for ids in (tokenizer.eos_token_id, getattr(generation_config, "eos_token_id", None)):
        named += ids if isinstance(ids, list) else [ids]
    return frozenset(int(i) for i in named if i is not None)


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the next token of each row [B] for logits [B, E].

    Temperature first, then top-k, then top-p of what is left, as in transformers and vLLM.

    Args:
        logits: of the last position.
        sampling: the same for all rows.
        generators: one per row, on the CPU so that a seed means the same on every device; unused
            and may be empty when greedy.
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)
    scaled = logits.double() / sampling.temperature
    # Stable: equal logits keep the order of their ids.
    ranked, ids = scaled.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ranked, ids = ranked[:, : sampling.top_k], ids[:, : sampling.top_k]
    likely = ranked.softmax(dim=-1)
    before = likely.cumsum(dim=-1) - likely
    # The likeliest token always stays: nothing is before it.
    likely = likely.masked_fill(before >= sampling.top_p, 0.0)
    reached = likely.cumsum(dim=-1)
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    drawn = uniform.to(logits.device)[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, drawn, right=True)
    # Rounding may put a draw at the very end of the sum: then the last token that may be drawn.
    last = (likely > 0).sum(dim=-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(place, last))[:, 0]


def generator_of(seed: int | None) -> torch.Generator:
    """Return the generator of one request."""
    generator = torch.Generator("cpu")
    generator.manual_seed(0 if seed is None else seed)
    return generator


# End tokens, and what turns tokens into text.
Stopping = tuple[frozenset[int], Decode]


@dataclass(eq=False)
class DecodingRow:
    """One answer in the making."""

    request: PromptRequest
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @classmethod
    def of(cls, request: PromptRequest) -> DecodingRow:
        """Start an answer."""
        return cls(request, generator_of(request.seed))

    def take(self, token: int, eos_ids: frozenset[int], decode: Decode) -> None:
        """Add a token, and see whether the answer ends with it."""
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
        # A token that shows has at least a byte; some more for characters cut at the front.
        tail = max(len(stop.encode()) for stop in stops) + 4
        text = decode(self.tokens[-tail:])
        return any(stop in text for stop in stops)

    def generation(self, decode: Decode) -> Generation:
        """Return the finished answer."""
        assert self.finish_reason is not None
        return generation_of(self.request, self.tokens, self.finish_reason, decode)


@dataclass(frozen=True, eq=False)
class ReadRows:
    """Rows whose prompts have been read, and all that decoding goes on from.

    `logits` are those of the prompts' last tokens [B, E]. `cache` has one row per prompt, and is
    of no use to anyone afterwards unless there is one row only: then it holds the prompt and the
    answer. `padding` counts the tokens of padding before each prompt [B], None without any.
    """

    rows: Sequence[DecodingRow]
    logits: Tensor
    cache: Cache | None
    padding: Tensor | None = None


@torch.inference_mode()
def decode_batch(
    model: LanguageModel, batch: ReadRows, stopping: Stopping
) -> Iterator[DecodingRow]:
    """Complete all rows, in place; give each back as soon as it is finished.

    Args:
        model: the model.
        batch: rows at the ends of their prompts.
        stopping: end tokens, and what turns tokens into text.

    Raises:
        MemoryExhaustedError: some rows were not finished.
        StageFailedError: a row has logits that are not finite: it has no answer, and the rows
            that are finished keep theirs.
    """
    active, cache, logits, padding = list(batch.rows), batch.cache, batch.logits, batch.padding
    longest = max(len(row.request.tokens) for row in active)
    for step in itertools.count():
        _check_finite(logits, active)
        tokens = _next_tokens(logits, active)
        for row, token in zip(active, tokens.tolist(), strict=True):
            if row.finish_reason is None:
                row.take(token, *stopping)
                if row.finish_reason is not None:
                    yield row
        running = [i for i, row in enumerate(active) if row.finish_reason is None]
        if not running:
            return
        with reaching(longest + step):
            # Each time the copies cost as much as one step, and save half of all later ones.
            if model.cache_class is not None and len(running) <= len(active) // 2:
                assert cache is not None
                index: Any = torch.tensor(running, device=tokens.device)
                cache.reorder_cache(index)
                tokens, active = tokens[index], [active[i] for i in running]
                padding = None if padding is None else padding[index]
            logits, cache = model.advance(cache, tokens[:, None], padding)


def _check_finite(logits: Tensor, rows: Sequence[DecodingRow]) -> None:
    """Raise StageFailedError where the model computed no token: argmax would still name one.

    A maximum is NaN where any logit is. Single logits of -inf (tokens that a model rules out) are
    none of its faults.
    """
    broken = ~logits.amax(dim=-1).isfinite()
    for row, bad in zip(rows, broken.tolist(), strict=True):
        if bad and row.finish_reason is None:
            raise not_finite(row.request, len(row.tokens))


def _next_tokens(logits: Tensor, rows: Sequence[DecodingRow]) -> Tensor:
    """Return the next token of each row [B], each chosen as its own sampling says."""
    places: dict[Sampling, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.request.sampling, []).append(i)
    if len(places) == 1:
        return choose(logits, rows[0].request.sampling, [row.generator for row in rows])
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    for sampling, chosen in places.items():
        generators = [rows[i].generator for i in chosen]
        tokens[chosen] = choose(logits[chosen], sampling, generators)
    return tokens
