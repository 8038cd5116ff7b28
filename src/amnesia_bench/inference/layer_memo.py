"""Skip the lower layers of a prompt that a model with the same lower layers has already read.

Models that differ only from some layer on compute the same in all layers below it. While a prompt
is prefilled, this memo records what those layers add to the cache, and the hidden states that enter
the layers from which models may differ. The next model takes both from the memo and computes only
its own layers. Recorded values are the bits that would be computed again, so answers do not change.

A record belongs to one prefill call: its key is a hash of the complete tokens of all rows, up to
the end of the call, and of the first new position. New tokens of answers are not shared, since
models answer differently.

Shapes: B rows, T tokens, M hidden size.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.inference.caches import copied
from amnesia_bench.modeling.hybrid_cache import BlockLayer

if TYPE_CHECKING:
    from amnesia_bench.inference.language_model import LanguageModel

log = logging.getLogger(__name__)

# Longer than a chunk, so that the second call of the test continues from the cache.
_PROBE_TOKENS, _PROBE_CHUNK = 72, 48


@dataclass(eq=False)
class _Record:
    """What the lower layers did in one call.

    `added` maps a layer to what it added to the cache: the new keys and values, or its complete
    state. `outputs` maps a layer to what it returned, if a model may differ from the next layer on.
    """

    added: dict[int, Any] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _Call:
    """A prefill call: its cache, the first new position, its record, and the layers to skip."""

    cache: Cache
    start: int
    record: _Record
    skipped: int


class LayerMemo:
    """Records and replays the lower layers of a model, as a part of `LanguageModel`.

    Attributes:
        first_changed: the lowest layer in which the model now differs from the others; layers below
            it are recorded and replayed.
        computed, replayed: number of tokens in prefill calls, counted once per layer, whose layer
            was computed, and taken from the memo.

    Args:
        layers: the decoder layers of the model, whose `forward` is wrapped.
        boundaries: the layers from which models may differ.
        max_bytes: no further calls are recorded once the records take this much memory.
    """

    def __init__(
        self, layers: Collection[Any], boundaries: Collection[int], max_bytes: float
    ) -> None:
        self.first_changed = len(layers)
        self.computed = self.replayed = 0
        self._boundaries = frozenset(boundaries)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._records: dict[bytes, _Record] = {}
        self._call: _Call | None = None
        self._forwards = [(layer, layer.forward) for layer in layers]
        for index, (layer, forward) in enumerate(self._forwards):
            layer.forward = self._wrapped(index, forward)

    def detach(self) -> None:
        """Give the layers their own `forward` again."""
        for layer, forward in self._forwards:
            layer.forward = forward

    def forget(self) -> None:
        """Drop all records, before prompts that were not prefilled yet."""
        self._records.clear()
        self._bytes = 0

    @contextmanager
    def prefilling(self, cache: Cache | None, tokens: Tensor, start: int) -> Iterator[None]:
        """Record and replay the layers of the model calls in this block.

        Args:
            cache: the cache of the tokens before `start`.
            tokens: ids of the complete rows up to the end of the call [B, start + T].
            start: position of the first new token.
        """
        if cache is None:
            yield
            return
        digest = hashlib.sha256(tokens.cpu().numpy().tobytes())
        digest.update(repr((tuple(tokens.shape), start)).encode())
        record = self._records.setdefault(digest.digest(), _Record())
        ready = (i for i in record.outputs if i < self.first_changed)
        self._call = _Call(cache, start, record, max(ready, default=-1) + 1)
        try:
            yield
        finally:
            self._call = None

    def _wrapped(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call_layer(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            call = self._call
            if call is None:
                return forward(hidden_states, *args, **kwargs)
            if index < call.skipped:
                self.replayed += hidden_states.shape[0] * hidden_states.shape[1]
                self._restore(call, index)
                # Skipped layers pass on what they got, in the form in which layers return it.
                output = call.record.outputs[call.skipped - 1]
                if index == call.skipped - 1:
                    return output
                return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states
            self.computed += hidden_states.shape[0] * hidden_states.shape[1]
            output = forward(hidden_states, *args, **kwargs)
            if index < self.first_changed:
                self._record(call, index, output)
            return output

        return call_layer

    def _record(self, call: _Call, index: int, output: Any) -> None:
        """Keep what a layer added to the cache, if the layers below it are recorded too."""
        record = call.record
        if self._bytes > self._max_bytes or any(i not in record.added for i in range(index)):
            return
        if index not in record.added:
            layer: Any = call.cache.layers[index]
            if isinstance(layer, BlockLayer):
                assert layer.keys is not None
                assert layer.values is not None
                added = tuple(x[:, :, call.start :].clone() for x in (layer.keys, layer.values))
            else:
                added = copied(vars(layer))
            record.added[index] = added
            self._bytes += _num_bytes(added)
        if index + 1 in self._boundaries and index not in record.outputs:
            record.outputs[index] = output
            self._bytes += _num_bytes(output)

    @staticmethod
    def _restore(call: _Call, index: int) -> None:
        """Bring a layer's cache into the state after the tokens of this call."""
        layer: Any = call.cache.layers[index]
        added = call.record.added[index]
        if isinstance(layer, BlockLayer):
            layer.update(*added)
        else:
            # A copy: the layer may overwrite its state in place.
            vars(layer).update(copied(added))


def _num_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_num_bytes, value.values()))
    return sum(map(_num_bytes, value)) if isinstance(value, tuple) else 0


def memo_for(
    model: LanguageModel, boundaries: Collection[int], max_bytes: float
) -> LayerMemo | None:
    """Return a memo of a model's decoder layers, or None if they cannot be replayed.

    It is tested on random tokens: a prompt whose lower layers are replayed must give the same bits.

    Args:
        model: the model, whose layers are wrapped.
        boundaries: the layers from which models may differ; the caller sets `first_changed` to one
            of them, or to the number of layers, whenever it changes weights.
        max_bytes: maximum memory of the records.
    """
    layers = getattr(model.module.get_decoder(), "layers", ())
    if model.full_reason is not None or not layers:
        return None
    memo = LayerMemo(layers, boundaries, max_bytes)
    try:
        exact = _replays_exactly(replace(model, memo=memo), memo, len(layers), sorted(boundaries))
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as error:
        log.debug("the layers of %s cannot be replayed: %r", type(model.module).__name__, error)
        exact = False
    if not exact:
        log.warning("all layers are computed for each candidate: they cannot be replayed exactly")
        memo.detach()
        return None
    memo.forget()
    memo.computed = memo.replayed = 0
    return memo


@torch.inference_mode()
def _replays_exactly(
    model: LanguageModel, memo: LayerMemo, num_layers: int, boundaries: Sequence[int]
) -> bool:
    vocabulary = model.module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator("cpu").manual_seed(1)
    tokens = torch.randint(0, vocabulary, (1, _PROBE_TOKENS), generator=generator)
    logits = []
    for first_changed in (num_layers, *boundaries):
        memo.first_changed = first_changed
        logits.append(model.prefill(model.new_cache(), tokens, _PROBE_CHUNK)[0])
    memo.first_changed = num_layers
    return all(torch.equal(first, logits[0]) for first in logits)
