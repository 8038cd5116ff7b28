"""Open the checkpoints under test: hash their contents and load their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amnesia_bench.records.artifacts import Parent
from amnesia_bench.store.held_files import HeldFiles
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.identity import parent_by_contents

# transformers' `generate` reads the end token ids from this file.
_GENERATION_CONFIG = "generation_config.json"
# Files that an engine reads in addition to config and weights: end tokens and tokenizer.
_TOKENIZER_FILES = (
    _GENERATION_CONFIG,
    "*token*.json",  # tokenizer, tokenizer_config, special_tokens_map, added_tokens
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint under test.

    Attributes:
        role: pre, post or restored; "checkpoint" if it is tested alone.
        method: the row label of its cells in tables, such as +QK-Restore.
        folder: the checkpoint's folder.
        parent: the checkpoint as a parent of records; its identity is a hash of its contents.
        held: the files that the identity was computed from, and the tokenizer files.
        tokenizer: its `transformers.PreTrainedTokenizerFast`.
    """

    role: str
    method: str
    folder: Path
    parent: Parent
    held: HeldFiles
    tokenizer: Any


def open_candidates(folders: Mapping[str, Path]) -> tuple[Candidate, ...]:
    """Open checkpoints, identify each by a hash of its contents, and load its tokenizer.

    Args:
        folders: maps each role (pre, post, restored) to a checkpoint folder.

    Returns:
        The candidates in the order of `folders`, each with its role as the method. Their
        tokenizers may differ.

    Raises:
        UserError: a folder is not a checkpoint, or contains no tokenizer.
        StageFailedError: a file changed while it was hashed.
    """
    # Open all folders first, so that a wrong one fails before gigabytes of the others are hashed.
    checkpoints = {role: open_checkpoint(folder) for role, folder in folders.items()}
    return tuple(_candidate(role, checkpoint) for role, checkpoint in checkpoints.items())


def open_candidate(folder: Path, method: str) -> Candidate:
    """Open a single checkpoint with the given method; see `open_candidates`."""
    (candidate,) = open_candidates({"checkpoint": folder})
    return replace(candidate, method=method)


def _candidate(role: str, checkpoint: Checkpoint) -> Candidate:
    folder = checkpoint.folder
    tokenizer_files = [path for name in _TOKENIZER_FILES for path in sorted(folder.glob(name))]
    held = checkpoint.held + HeldFiles.hold(tokenizer_files)
    tokenizer = load_tokenizer(folder)
    hashed = [_GENERATION_CONFIG] if (folder / _GENERATION_CONFIG).is_file() else []
    parent = parent_by_contents(role, checkpoint, hashed)
    held.check()
    return Candidate(
        role=role, method=role, folder=folder, parent=parent, held=held, tokenizer=tokenizer
    )
