"""Some answers computed a second time, from the first token on, against the shared run.

Equal means the same tokens. The two ways are the same mathematics and mostly the same bits; where
a batch rounds otherwise and the two best tokens are equal to within that, either is right: this
is reported and accepted, anything else is a failure.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from amnesia_bench.errors import UserError
from amnesia_bench.inference.decoding import DecodingRow, ReadRows, Stopping, decode_batch
from amnesia_bench.inference.language_model import LanguageModel, token_rows
from amnesia_bench.inference.protocol import PromptRequest, UntrustedAnswersError
from amnesia_bench.records.evaluation import Generation, SampleKey

log = logging.getLogger(__name__)

# Logits carry the rounding of the last product and of what came before it. How much more than one
# rounding a deep model adds is not measured: this is a choice.
_TIE_ROUNDINGS = 4


@dataclass(frozen=True, eq=False)
class _Expected:
    request: PromptRequest
    tokens: tuple[int, ...]


class PrefixCheck:
    """Recomputes greedy answers in full and compares.

    Args:
        model: the model.
        chunk: tokens per piece of a prompt, as in the shared run.
        stopping: end tokens, and what turns tokens into text.
    """

    def __init__(self, model: LanguageModel, chunk: int, stopping: Stopping) -> None:
        self._model = model
        self._chunk = chunk
        self._stopping = stopping
        self._expected: dict[SampleKey, _Expected] = {}

    def prepare(self, requests: Sequence[PromptRequest], order: Sequence[int], count: int) -> None:
        """Compute `count` answers in full, before the shared run takes its memory.

        Args:
            requests: all of them.
            order: their indices by cut, so that evenly spaced ones are spread over the cuts.
            count: how many.

        Raises:
            UserError: one of them is sampled: rounding may then change any token.
        """
        count = min(count, len(order))
        places = np.linspace(0, len(order) - 1, count).round().astype(int)
        for place in places.tolist():
            request = requests[order[place]]
            refuse_sampled(request)
            self._expected[request.key] = _Expected(request, self._full_answer(request))

    @torch.inference_mode()
    def _full_answer(self, request: PromptRequest) -> tuple[int, ...]:
        row = DecodingRow.of(request)
        prompt = token_rows([request.tokens])
        logits, cache = self._model.read(self._model.new_cache(), prompt, self._chunk)
        [answered] = decode_batch(self._model, ReadRows([row], logits, cache), self._stopping)
        return tuple(answered.tokens)

    def compare(self, generation: Generation) -> None:
        """Compare an answer of the shared run, if it is one of those computed in full.

        Raises:
            UntrustedAnswersError: another token, by more than rounding.
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
                f"{where}: shared prefixes give another token than a full run, whose logits lie "
                f"{gap:.3g} apart where rounding explains {rounding:.3g}",
                hint="Set share_prefixes to false, and report this model.",
            )
        log.warning("%s: a tie to within rounding (%.3g), broken the other way", where, gap)

    @torch.inference_mode()
    def _gap(self, expected: _Expected, tokens: tuple[int, ...], place: int) -> tuple[float, float]:
        """Return how far the other token lies below the best in a full run, and what a tie is."""
        shown = np.concatenate([expected.request.tokens, np.array(tokens[:place], np.int32)])
        prompt = token_rows([shown])
        logits = self._model.read(self._model.new_cache(), prompt, self._chunk)[0][0]
        # An answer that ended is shorter: the token in question is then one of the end tokens.
        ends = sorted(self._stopping[0])
        chosen = [
            logits[[each[place]] if place < len(each) else ends].max()
            for each in (expected.tokens, tokens)
        ]
        gap = (chosen[0] - chosen[1]).abs()
        return float(gap), tie_gap(self._model.module.dtype, float(logits.abs().max()))


def tie_gap(dtype: torch.dtype, largest: float) -> float:
    """Return how far two logits may lie apart and still be equal to within rounding.

    Args:
        dtype: of the model.
        largest: the largest logit.
    """
    return _TIE_ROUNDINGS * torch.finfo(dtype).eps * abs(largest)


def refuse_sampled(request: PromptRequest) -> None:
    """Refuse to check an answer that is drawn at random.

    Raises:
        UserError: it is.
    """
    if not request.sampling.greedy:
        raise UserError(
            f"verify_prefix: answers of {request.key.task} are sampled",
            hint="Only greedy answers can be compared. Set temperature 0 or verify_prefix 0.",
        )


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the first place where two answers differ; the end of the shorter if none does."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
