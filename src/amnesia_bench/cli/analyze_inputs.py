"""Parse and open the inputs of `amnesia analyze`: labelled folders, prepared data, NIAH prompts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from amnesia_bench.analysis.distance import Prompt
from amnesia_bench.analysis.texts import equal_texts
from amnesia_bench.cli.niah_options import lengths_of, split_list
from amnesia_bench.data.sequence_store import SequenceStore, open_store
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import open_candidates
from amnesia_bench.recall.measure import PromptSetChoice, open_prompt_sets_for
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.tokenizers.tokenizer import (
    load_tokenizer,
    tokenizer_identity,
    with_special_tokens,
)
from amnesia_bench.training.inputs import data_parent


def labelled(values: Sequence[str], default: str) -> dict[str, Path]:
    """Parse values of the form [LABEL=]DIR, and return the folders by label, in the same order.

    A value without a label gets the label `default`.

    Raises:
        UserError: a label is repeated, or cannot be part of a file name.
    """
    folders: dict[str, Path] = {}
    for value in values:
        label, equals, folder = value.partition("=")
        if not equals:
            label, folder = default, value
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", label):
            raise UserError(
                f"{value!r}: {label!r} is not a valid label", hint="Use letters, digits, - and _."
            )
        if label in folders:
            raise UserError(
                f"{value!r}: {label} is given twice", hint="Give labels: pre=DIR post=DIR."
            )
        folders[label] = Path(folder)
    return folders


def open_stores(values: Sequence[str]) -> dict[str, SequenceStore]:
    """Open the prepared data in folders given as [NAME=]DIR, and return the stores by name.

    A value without a name gets the name of the data's config.

    Raises:
        UserError: a folder has no prepared data, or two folders have the same name.
    """
    stores: dict[str, SequenceStore] = {}
    for value in values:
        ((name, folder),) = labelled([value], "").items() if "=" in value else [("", Path(value))]
        store = open_store(folder)
        name = name or store.description.name
        if name in stores:
            raise UserError(
                f"--data {value}: {name} is given twice", hint="Give names: --data NAME=DIR"
            )
        stores[name] = store
    return stores


def parent_of_data(name: str, store: SequenceStore) -> Parent:
    """Return the manifest entry for a data store that is an input."""
    return data_parent(name, store.folder)


def check_tokenizer(store: SequenceStore, checkpoint: Path) -> None:
    """Check that data was prepared with the tokenizer of a checkpoint.

    Raises:
        UserError: the tokenizers differ.
    """
    sha256 = tokenizer_identity(load_tokenizer(checkpoint))
    if sha256 != store.tokenizer_sha256:
        raise UserError(
            f"{store.folder}: prepared with another tokenizer than that of {checkpoint} "
            f"(sha256 {store.tokenizer_sha256[:12]} and {sha256[:12]})",
            hint=f"Prepare the data again: amnesia data prepare ... --tokenizer {checkpoint}",
        )


def text_prompts(
    values: Sequence[str], checkpoints: Mapping[str, Path], tokens: int, samples: int
) -> tuple[list[Prompt], Parent]:
    """Return texts of prepared data as prompts without needles, and the data's manifest entry.

    Each text is truncated to `tokens` tokens, and at most `samples` texts are used.
    """
    ((name, store),) = open_stores(values).items()
    for folder in checkpoints.values():
        check_tokenizer(store, folder)
    texts = equal_texts(store, name, tokens, samples)
    prompts = [Prompt(text.tokens, None) for text in texts.taken]
    return prompts, parent_of_data(name, store)


def needle_prompts(
    args: argparse.Namespace, checkpoints: Mapping[str, Path]
) -> tuple[list[Prompt], Parent]:
    """Return NIAH prompts of one length, and the prompts' manifest entry.

    The prompts include the special tokens that the tokenizer adds.

    Raises:
        UserError: no prompts match, the prompts have several lengths, or the tokenizer of a
            checkpoint encodes them differently.
    """
    choice = PromptSetChoice(
        tasks=None if args.tasks is None else split_list(args.tasks),
        lengths=None if args.lengths is None else lengths_of(args.lengths),
        samples=None,
    )
    candidates = open_candidates(checkpoints)
    prompt_sets = open_prompt_sets_for(args.prompts, candidates, choice)
    lengths = sorted({prompt_set.context_tokens for prompt_set in prompt_sets})
    if len(lengths) > 1:
        raise UserError(
            f"{args.prompts}: prompts of {', '.join(map(str, lengths))} tokens; distances can be "
            "compared at only one length",
            hint=f"--lengths {lengths[-1]}",
        )
    tokenizer = candidates[0].tokenizer
    offset = _prefix_tokens(tokenizer)
    prompts = []
    for prompt_set in prompt_sets:
        for i in range(min(len(prompt_set), args.samples)):
            first, end = (position + offset for position in prompt_set.needle_span(i))
            tokens = with_special_tokens(tokenizer, prompt_set.tokens(i))
            prompts.append(Prompt(tokens, (first, end)))
    identity = "+".join(f"{prompt_set.name}:{prompt_set.sha256}" for prompt_set in prompt_sets)
    return prompts, Parent(role="prompts", location=str(args.prompts), identity=identity)


def _prefix_tokens(tokenizer: object) -> int:
    """Return the number of special tokens that the tokenizer puts before a prompt."""
    marker = np.array([-1], dtype=np.int32)
    return int(with_special_tokens(tokenizer, marker).tolist().index(-1))


def parse_heads(text: str) -> list[tuple[int, int]]:
    """Parse LAYER.HEAD,LAYER.HEAD,... into (layer, head) pairs.

    Raises:
        UserError: the text does not have this form.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+\.\d+", part) for part in parts):
        raise UserError(f"--heads {text!r}: not a list of heads", hint="--heads 33.8,33.9")
    return list(dict.fromkeys((int(a), int(b)) for a, b in (part.split(".") for part in parts)))
