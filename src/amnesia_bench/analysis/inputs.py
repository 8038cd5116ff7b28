"""Open the inputs of an analysis: prepared data and NIAH prompts, for the given checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from amnesia_bench.analysis.distance import Prompt
from amnesia_bench.analysis.texts import equal_texts
from amnesia_bench.data.sequence_store import SequenceStore, open_store
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import open_candidates
from amnesia_bench.recall.measure import PromptSetChoice, open_single_needle_sets
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.analysis import Distances, NeedlePrompts
from amnesia_bench.tokenizers.tokenizer import (
    load_tokenizer,
    tokenizer_identity,
    with_leading_special_tokens,
)
from amnesia_bench.training.inputs import data_parent


def open_stores(
    data: Mapping[str, Path], checkpoints: Iterable[Path] = ()
) -> dict[str, tuple[SequenceStore, Parent]]:
    """Open prepared data, and return each store with its manifest entry, by name.

    Raises:
        UserError: a folder has no prepared data, or the data were prepared with another tokenizer
            than that of one of the checkpoints.
    """
    stores = {name: open_store(folder) for name, folder in data.items()}
    for store in stores.values():
        for checkpoint in checkpoints:
            _check_tokenizer(store, checkpoint)
    return {name: (store, data_parent(name, store.folder)) for name, store in stores.items()}


def _check_tokenizer(store: SequenceStore, checkpoint: Path) -> None:
    sha256 = tokenizer_identity(load_tokenizer(checkpoint))
    if sha256 != store.tokenizer_sha256:
        raise UserError(
            f"{store.folder}: prepared with another tokenizer than that of {checkpoint} "
            f"(sha256 {store.tokenizer_sha256[:12]} and {sha256[:12]})",
            hint=f"Prepare the data again: amnesia data prepare ... --tokenizer {checkpoint}",
        )


def prompts_of(analysis: Distances) -> tuple[list[Prompt], Parent]:
    """Return the prompts or texts on which distances are measured, and their manifest entry."""
    if analysis.prompts is not None:
        return needle_prompts(analysis.prompts, analysis.checkpoints)
    ((name, (store, parent)),) = open_stores(analysis.data, analysis.checkpoints.values()).items()
    texts = equal_texts(store, name, analysis.tokens, analysis.samples)
    return [Prompt(text.tokens, None) for text in texts.taken], parent


def needle_prompts(
    chosen: NeedlePrompts, checkpoints: Mapping[str, Path]
) -> tuple[list[Prompt], Parent]:
    """Return NIAH prompts of one length, and the prompts' manifest entry.

    The prompts begin with the special tokens that the tokenizer puts before a text, as in
    evaluations. Their last token is therefore the one after which the model answers.

    Raises:
        UserError: no prompts match, the prompts have several lengths, or the tokenizer of a
            checkpoint encodes them differently.
    """
    choice = PromptSetChoice(
        tasks=chosen.tasks,
        lengths=None if chosen.length is None else (chosen.length,),
        samples=None,
    )
    candidates = open_candidates(checkpoints)
    prompt_sets = open_single_needle_sets(chosen.folder, candidates, choice)
    lengths = sorted({prompt_set.context_tokens for prompt_set in prompt_sets})
    if len(lengths) > 1:
        raise UserError(
            f"{chosen.folder}: prompts of {', '.join(map(str, lengths))} tokens; distances can be "
            "compared at only one length",
            hint=f"--length {lengths[-1]}",
        )
    tokenizer = candidates[0].tokenizer
    prompts = []
    for prompt_set in prompt_sets:
        for i in range(min(len(prompt_set), chosen.samples)):
            bare = prompt_set.tokens(i)
            tokens = with_leading_special_tokens(tokenizer, bare)
            added = len(tokens) - len(bare)
            first, end = prompt_set.needle_span(i)
            prompts.append(Prompt(tokens, (first + added, end + added)))
    identity = "+".join(f"{prompt_set.name}:{prompt_set.sha256}" for prompt_set in prompt_sets)
    return prompts, Parent(role="prompts", location=str(chosen.folder), identity=identity)
