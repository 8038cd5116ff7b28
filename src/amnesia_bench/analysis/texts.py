"""Select the texts of a data store for measurements, and mark their trained tokens.

Shapes: T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.data.sequence_store import PackedSequence, SequenceStore
from amnesia_bench.errors import UserError


@dataclass(frozen=True, eq=False)
class Text:
    """Token ids, int32 [T], and for each token whether it is a target of the loss, bool [T]."""

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts chosen from one data source.

    All texts have `tokens` tokens, or any length if `tokens` is None. `too_short` and `untrained`
    are the numbers of texts that were skipped because they are too short, or because the part to be
    used has no trained token. `targets_of` is the source that decided which positions are targets.
    """

    source: str
    tokens: int | None
    taken: tuple[Text, ...]
    too_short: int
    untrained: int
    targets_of: str


def texts_of(store: SequenceStore) -> Iterator[Text]:
    """Yield the texts of a data store, without padding, as a model processes them in training.

    They are documents if the store isolates documents, and packed sequences otherwise. The first
    token of a text has no context, so it is never a target.
    """
    for i in range(store.num_sequences):
        sequence = store.sequence(i)
        end = len(sequence.tokens) - sequence.padding
        for part in _documents(sequence) if store.isolate_documents else [slice(0, end)]:
            trained = sequence.loss_mask[part].copy()
            trained[:1] = False
            yield Text(sequence.tokens[part], trained)


def _documents(sequence: PackedSequence) -> Iterator[slice]:
    lengths = sequence.document_lengths
    start = 0
    for length in lengths[:-1] if sequence.padding else lengths:
        yield slice(start, start + length)
        start += length


def equal_texts(store: SequenceStore, source: str, tokens: int, samples: int) -> Texts:
    """Return the first `tokens` tokens of the first `samples` texts that can be used.

    Raises:
        UserError: no text is long enough, or no such text has a trained token in this part.
    """
    taken: list[Text] = []
    too_short = untrained = longest = 0
    for text in texts_of(store):
        longest = max(longest, len(text.tokens))
        trained = text.trained[:tokens]
        if len(text.tokens) < tokens:
            too_short += 1
        elif not trained.any():
            untrained += 1
        else:
            taken.append(Text(text.tokens[:tokens], trained))
        if len(taken) == samples:
            break
    if not taken and not untrained:
        raise UserError(
            f"{store.folder}: no text of {source} has {tokens} tokens; the longest has {longest}",
            hint=f"--tokens {longest} takes texts of that length.",
        )
    if not taken:
        raise UserError(
            f"{store.folder}: no text of {source} has a trained token among its first {tokens}",
            hint="Only trained tokens have gradients: use a larger --tokens, or data with more "
            "trained tokens.",
        )
    return Texts(source, tokens, tuple(taken), too_short, untrained, source)


def with_targets_of(texts: Texts, other: Texts) -> Texts:
    """Return texts whose targets are at the positions of another source's targets, text by text.

    If the other source has fewer texts, its texts are repeated.

    Args:
        texts: texts of equal length.
        other: texts of the same length.
    """
    assert texts.tokens == other.tokens is not None, (texts.tokens, other.tokens)
    pairs = zip(texts.taken, cycle(other.taken), strict=False)
    taken = tuple(replace(text, trained=model.trained) for text, model in pairs)
    return replace(texts, taken=taken, targets_of=other.source)


def shortened_texts(store: SequenceStore, source: str, tokens: int, samples: int) -> Texts:
    """Return the first `samples` texts with trained tokens, each cut to at most `tokens` tokens.

    Raises:
        UserError: no text has a trained token in this part.
    """
    taken: list[Text] = []
    untrained = 0
    for text in texts_of(store):
        part = Text(text.tokens[:tokens], text.trained[:tokens])
        if part.trained.any():
            taken.append(part)
        else:
            untrained += 1
        if len(taken) == samples:
            break
    if not taken:
        raise UserError(
            f"{store.folder}: no text of {source} has a trained token among its first {tokens}",
            hint="Use a larger --tokens, or data with more trained tokens.",
        )
    return Texts(source, None, tuple(taken), 0, untrained, source)


def trained_texts(store: SequenceStore, source: str, longer_than: int) -> Texts:
    """Return the part of each document from its first trained token to its last.

    This excludes prompts and chat markup, which are the same in every document.

    Raises:
        UserError: fewer than two parts have more than `longer_than` tokens.
    """
    taken: list[Text] = []
    too_short = untrained = longest = 0
    for i in range(store.num_sequences):
        sequence = store.sequence(i)
        for part in _documents(sequence):
            trained = sequence.loss_mask[part].nonzero()[0]
            if not len(trained):
                untrained += 1
                continue
            tokens = sequence.tokens[part][trained[0] : trained[-1] + 1]
            longest = max(longest, len(tokens))
            if len(tokens) <= longer_than:
                too_short += 1
            else:
                taken.append(Text(tokens, np.ones(len(tokens), bool)))
    if not longest:
        raise UserError(
            f"{store.folder}: {source} has no trained token",
            hint="Use data on which a model can be trained: amnesia data prepare ...",
        )
    if len(taken) < 2:
        raise UserError(
            f"{store.folder}: {len(taken)} texts of {source} are longer than the largest distance, "
            f"{longer_than} tokens; the longest has {longest}",
            hint="Use a smaller --max-distance: at least two texts must be longer.",
        )
    return Texts(source, None, tuple(taken), too_short, untrained, source)
