"""Recompute some answers without shared prefixes, and compare them with those of the shared run.

The token ids must be equal: both runs are mathematically equivalent, and mostly bit-identical. If
rounding differs within a batch and the two best tokens tie within rounding, either token is
correct; such a difference is logged and accepted. Any other difference is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from amnesia_bench.errors import UserError
from amnesia_bench.inference.batch_decoder import PrefilledRows, decode_batch
from amnesia_bench.inference.decoding import DecodingRow, Stopping
from amnesia_bench.inference.language_model import LanguageModel, token_rows
from amnesia_bench.inference.protocol import PromptRequest, UntrustedAnswersError
from amnesia_bench.records.evaluation import Generation, SampleKey

log = logging.getLogger(__name__)

# Logits accumulate the rounding errors of all layers, not only of the last product. We have not
# measured how large their sum is in a deep model: this factor is a choice.
_TIE_ROUNDINGS = 4


@dataclass(frozen=True, eq=False)
class _Expected:
    request: PromptRequest
    tokens: tuple[int, ...]


class PrefixCheck:
    """Recomputes greedy answers without shared prefixes, and compares them with the shared run.

    Args:
        model: the model.
        chunk: prefill chunk size in tokens, the same as in the shared run.
        stopping: the end token ids, and a function that converts token ids to text.
    """

    def __init__(self, model: LanguageModel, chunk: int, stopping: Stopping) -> None:
        self._model = model
        self._chunk = chunk
        self._stopping = stopping
        self._expected: dict[SampleKey, _Expected] = {}

    def prepare(self, requests: Sequence[PromptRequest], order: Sequence[int], count: int) -> None:
        """Recompute `count` answers without sharing, before the shared run occupies memory.

        Args:
            requests: all requests.
            order: indices of the requests in tree order; evenly spaced ones are recomputed.
            count: number of answers to recompute.

        Raises:
            UserError: the answer to a request is sampled, so rounding may change any of its tokens.
        """
        count = min(count, len(order))
        positions = np.linspace(0, len(order) - 1, count).round().astype(int)
        for position in positions.tolist():
            request = requests[order[position]]
            refuse_sampled(request)
            self._expected[request.key] = _Expected(request, self._full_answer(request))

    @torch.inference_mode()
    def _full_answer(self, request: PromptRequest) -> tuple[int, ...]:
        row = DecodingRow.of(request)
        prompt = token_rows([request.tokens])
        logits, cache = self._model.prefill(self._model.new_cache(), prompt, self._chunk)
        part = PrefilledRows(logits, cache, [0])
        [answered] = decode_batch(self._model, [row], part, self._stopping)
        return tuple(answered.tokens)

    def compare(self, generation: Generation) -> None:
        """Compare an answer of the shared run with its recomputed answer, if one exists.

        Raises:
            UntrustedAnswersError: a token differs, and rounding does not explain it.
        """
        expected = self._expected.pop(generation.key, None)
        if expected is None or expected.tokens == generation.tokens:
            return
        place = first_difference(expected.tokens, generation.tokens)
        key = generation.key
        where = f"{key.task} document {key.doc}, token {place} of the answer"
        gap, rounding = self._gap(expected, generation.tokens, place)
        if gap > rounding:
            raise UntrustedAnswersError(
                f"{where}: shared prefixes change the token; the two logits differ by {gap:.3g}, "
                f"and rounding explains {rounding:.3g}",
                hint="Set share_prefixes to false, and report this model.",
            )
        log.warning("%s: another token, in a tie within rounding (%.3g)", where, gap)

    @torch.inference_mode()
    def _gap(self, expected: _Expected, tokens: tuple[int, ...], place: int) -> tuple[float, float]:
        """Return the gap between the logits of the two tokens, and the largest gap in a tie."""
        answer = np.array(tokens[:place], np.int32)
        prompt = token_rows([np.concatenate([expected.request.tokens, answer])])
        logits = self._model.prefill(self._model.new_cache(), prompt, self._chunk)[0][0]
        # If one answer ended before this place, its token here was an end token.
        ends = sorted(self._stopping[0])
        chosen = [
            logits[[answer_tokens[place]] if place < len(answer_tokens) else ends].max()
            for answer_tokens in (expected.tokens, tokens)
        ]
        gap = (chosen[0] - chosen[1]).abs()
        return float(gap), tie_gap(self._model.module.dtype, float(logits.abs().max()))


def tie_gap(dtype: torch.dtype, largest: float) -> float:
    """Return the largest difference between two logits that are equal within rounding.

    Args:
        dtype: the model's dtype.
        largest: the logit that sets the scale; its sign is ignored.
    """
    return _TIE_ROUNDINGS * torch.finfo(dtype).eps * abs(largest)


def refuse_sampled(request: PromptRequest) -> None:
    """Raise an error if the answer to a request is sampled, so that it cannot be compared.

    Raises:
        UserError: the request is not greedy.
    """
    if not request.sampling.greedy:
        raise UserError(
            f"verify_prefix: answers of {request.key.task} are sampled",
            hint="Only greedy answers can be compared. Set temperature 0 or verify_prefix 0.",
        )


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the first position at which two answers differ, or the length of the shorter one."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
