"""What all engines have in common: the room for an answer, when it ends, and the text of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.inference.protocol import Request
from amnesia_bench.records.evaluation import FinishReason, Generation

Decode = Callable[[Sequence[int]], str]


def check_room(request: Request, limit: int | None) -> None:
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
    request: Request, tokens: Sequence[int], reason: FinishReason, decode: Decode
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


def not_finite(request: Request, new_tokens: int) -> StageFailedError:
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
