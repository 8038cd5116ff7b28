"""Everything about the inputs of a check that can be wrong, found before a model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from amnesia_bench.errors import UserError
from amnesia_bench.evals.recall import Candidate, PromptCell
from amnesia_bench.evals.tokenizers import load_tokenizer, tokenizer_identity
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.identity import as_parent, identify

if TYPE_CHECKING:
    from amnesia_bench.evals.niah.build import NiahBuild
    from amnesia_bench.evals.niah.cells import NiahCell

_Cell = TypeVar("_Cell", bound=PromptCell)
# Read by transformers' generate: it names the end tokens.
GENERATION_CONFIG = "generation_config.json"


def open_candidates(folders: Mapping[str, Path]) -> tuple[tuple[Candidate, ...], Any]:
    """Identify checkpoints by their whole contents, and hold their vocabularies together.

    Args:
        folders: role (pre, post, restored) -> checkpoint folder.

    Returns:
        The candidates in the order given, and their common tokenizer.

    Raises:
        UserError: a folder is no checkpoint, or the tokenizers or vocabularies differ: the same
            prompts would not be the same.
    """
    checkpoints = {role: open_checkpoint(folder) for role, folder in folders.items()}
    tokenizers = {role: load_tokenizer(folder) for role, folder in folders.items()}
    first = next(iter(folders))
    for role in folders:
        for what, of in (
            ("tokenizer", {each: tokenizer_identity(tokenizers[each]) for each in (first, role)}),
            ("vocabulary size", {each: _vocab_size(checkpoints[each]) for each in (first, role)}),
        ):
            if of[first] != of[role]:
                raise UserError(
                    f"{first} and {role} have not the same {what}: {of[first]:.12} in "
                    f"{folders[first]}, {of[role]:.12} in {folders[role]}",
                    hint="Recall is compared on the same tokens. Was the vocabulary changed by "
                    "the fine-tune? Then give both checkpoints the tokenizer of the fine-tune.",
                )
    candidates = tuple(
        Candidate(role=role, method=role, folder=folder, parent=_parent(role, checkpoints[role]))
        for role, folder in folders.items()
    )
    return candidates, tokenizers[first]


@dataclass(frozen=True, kw_only=True)
class CellChoice:
    """Which prompts of a folder; None takes all tasks, lengths or prompts that it holds."""

    tasks: tuple[str, ...] | None
    lengths: tuple[int, ...] | None
    samples: int | None


def pick_cells(held: Sequence[_Cell], choice: CellChoice) -> tuple[_Cell, ...]:
    """Return the chosen cells, the longest first.

    Raises:
        UserError: one is not there, or holds fewer prompts than are asked for.
    """
    tasks = choice.tasks or tuple(sorted({cell.task for cell in held}))
    lengths = choice.lengths or {cell.context_tokens for cell in held}
    by_name = {(cell.task, cell.context_tokens): cell for cell in held}
    picked = []
    for length in sorted(lengths, reverse=True):
        for task in tasks:
            cell = by_name.get((task, length))
            if cell is None:
                raise UserError(
                    f"no prompts of {task} at {length} tokens",
                    hint=f"There are: {', '.join(sorted(cell.name for cell in held)) or 'none'}.",
                )
            if choice.samples is not None and len(cell) < choice.samples:
                raise UserError(
                    f"{cell.name} holds {len(cell)} prompts, {choice.samples} are asked for",
                    hint=f"--samples {len(cell)}, or build more prompts.",
                )
            picked.append(cell)
    return tuple(picked)


def open_cells_of(folder: Path, tokenizer: Any, choice: CellChoice) -> tuple[NiahCell, ...]:
    """Open the prompts that `amnesia niah build` wrote, and take those chosen; see `pick_cells`.

    Raises:
        UserError: it holds no prompts, or of another tokenizer.
    """
    from amnesia_bench.evals.niah.cells import open_cells

    return pick_cells(open_cells(folder, tokenizer), choice)


def build_cells_of(build: NiahBuild, work: Path, tokenizer: Any) -> tuple[PromptCell, ...]:
    """Build prompts into `work`, or take those that an earlier check has built there.

    Raises:
        UserError: they cannot be built: a haystack that is too short, ...
        MissingEnvironmentError: words, sentence model or hub are not to be had.
    """
    from amnesia_bench.evals.niah.build import build_cells
    from amnesia_bench.evals.niah.cells import open_cells
    from amnesia_bench.evals.niah.haystack import read_haystack

    depends = {
        "tokenizer": tokenizer_identity(tokenizer),
        "lengths": build.lengths,
        "tasks": build.tasks,
        "haystack": None if build.haystack is None else read_haystack(build.haystack).sha256,
        "samples": build.samples,
    }
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    folder = work / "prompts" / digest[:16]
    if not (folder / MANIFEST).is_file():
        build_cells(build, folder)
    choice = CellChoice(tasks=build.tasks, lengths=build.lengths, samples=build.samples)
    return pick_cells(open_cells(folder, tokenizer), choice)


def _vocab_size(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    text = config.get("text_config")
    return str((text if isinstance(text, dict) else config).get("vocab_size"))


def _parent(role: str, checkpoint: Checkpoint) -> Any:
    names = [*checkpoint.shards]
    if (checkpoint.folder / GENERATION_CONFIG).is_file():
        names.append(GENERATION_CONFIG)
    with ThreadPoolExecutor(4) as readers:
        hashes = readers.map(lambda name: sha256_of(checkpoint.folder / name), names)
        return as_parent(role, identify(checkpoint), dict(zip(names, hashes, strict=True)))
