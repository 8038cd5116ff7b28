"""What `amnesia analyze` is given: labelled folders, data stores, prompts with needles."""

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


def labelled(typed: Sequence[str], otherwise: str) -> dict[str, Path]:
    """Return the folders of LABEL=DIR by label, in the order they were typed.

    Raises:
        UserError: a label twice, or one that could not be part of a file name.
    """
    folders: dict[str, Path] = {}
    for each in typed:
        label, equals, folder = each.partition("=")
        if not equals:
            label, folder = otherwise, each
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", label):
            raise UserError(
                f"{each!r}: {label!r} is no label", hint="Use letters, digits, - and _."
            )
        if label in folders:
            raise UserError(
                f"{each!r}: {label} is given twice", hint="Name each: pre=DIR post=DIR."
            )
        folders[label] = Path(folder)
    return folders


def open_stores(typed: Sequence[str]) -> dict[str, SequenceStore]:
    """Open the data of [NAME=]DIR; without a name they have that of their config.

    Raises:
        UserError: a folder holds no prepared data, or two have one name.
    """
    stores: dict[str, SequenceStore] = {}
    for each in typed:
        ((name, folder),) = labelled([each], "").items() if "=" in each else [("", Path(each))]
        store = open_store(folder)
        name = name or store.description.name
        if name in stores:
            raise UserError(f"--data {each}: {name} is given twice", hint="Give each NAME=DIR.")
        stores[name] = store
    return stores


def parent_of_data(name: str, store: SequenceStore) -> Parent:
    """Return the entry of a data store in a manifest."""
    return data_parent(name, store.folder)


def check_tokenizer(store: SequenceStore, checkpoint: Path) -> None:
    """Refuse data whose tokens mean something else to a checkpoint.

    Raises:
        UserError: the tokenizers differ.
    """
    sha256 = tokenizer_identity(load_tokenizer(checkpoint))
    if sha256 != store.tokenizer_sha256:
        raise UserError(
            f"{store.folder}: prepared with another tokenizer than that of {checkpoint} "
            f"(sha256 {store.tokenizer_sha256[:12]} and {sha256[:12]})",
            hint=f"Prepare the data with it: amnesia data prepare ... --tokenizer {checkpoint}",
        )


def text_prompts(
    typed: Sequence[str], checkpoints: Mapping[str, Path], tokens: int, samples: int
) -> tuple[list[Prompt], Parent]:
    """Return the texts of prepared data as prompts without needles."""
    ((name, store),) = open_stores(typed).items()
    for folder in checkpoints.values():
        check_tokenizer(store, folder)
    texts = equal_texts(store, name, tokens, samples)
    prompts = [Prompt(text.tokens, None) for text in texts.taken]
    return prompts, parent_of_data(name, store)


def needle_prompts(
    args: argparse.Namespace, checkpoints: Mapping[str, Path]
) -> tuple[list[Prompt], Parent]:
    """Open NIAH prompts of one length, with the special tokens that the tokenizer adds.

    Raises:
        UserError: there are none, or of several lengths, or the tokenizer of a checkpoint makes
            other tokens of them.
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
            f"{args.prompts}: prompts of {', '.join(map(str, lengths))} tokens; distances are "
            "compared at one length",
            hint=f"--lengths {lengths[-1]}",
        )
    tokenizer = candidates[0].tokenizer
    before = _before(tokenizer)
    prompts = []
    for prompt_set in prompt_sets:
        for i in range(min(len(prompt_set), args.samples)):
            first, end = (position + before for position in prompt_set.needle_span(i))
            whole = with_special_tokens(tokenizer, prompt_set.tokens(i))
            prompts.append(Prompt(whole, (first, end)))
    identity = "+".join(f"{prompt_set.name}:{prompt_set.sha256}" for prompt_set in prompt_sets)
    return prompts, Parent(role="prompts", location=str(args.prompts), identity=identity)


def _before(tokenizer: object) -> int:
    """Return how many special tokens come before a prompt."""
    marker = np.array([-1], dtype=np.int32)
    return int(with_special_tokens(tokenizer, marker).tolist().index(-1))


def heads_of(typed: str) -> list[tuple[int, int]]:
    """Return the heads of LAYER.HEAD,LAYER.HEAD.

    Raises:
        UserError: it is no such list.
    """
    parts = [part.strip() for part in typed.split(",")]
    if not all(re.fullmatch(r"\d+\.\d+", part) for part in parts):
        raise UserError(f"--heads {typed!r}: not a list of heads", hint="--heads 33.8,33.9")
    return list(dict.fromkeys((int(a), int(b)) for a, b in (part.split(".") for part in parts)))
