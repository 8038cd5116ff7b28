"""Load a checkpoint's tokenizer, compute its identity, and add its special tokens to prompts.

A tokenizer must split texts as tokenizer.json defines, since the model was pretrained with that
file. For some tokenizer classes, transformers 5 reads only the vocabulary from the file, and uses
the pre-tokeniser of the class instead of the file's (huggingface/transformers#45812, #45920).
Therefore the loaded tokenizer is compared with the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.records.niah import TokenizerParts
from amnesia_bench.store.missing_folder import no_folder

# The components that determine how a text is split, except the added tokens, which may also come
# from tokenizer_config.json.
_SPLITTING = ("normalizer", "pre_tokenizer", "model")


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint folder, without running code from the folder.

    Returns:
        A `transformers.PreTrainedTokenizerFast`, which can also return the character offsets of
        tokens.

    Raises:
        UserError: the folder has no tokenizer, or the tokenizer has no fast implementation, needs
            remote code, does not split texts as tokenizer.json defines, or produces no tokens.
        MissingEnvironmentError: transformers is not installed.
    """
    if not folder.is_dir():
        raise no_folder(folder)
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingEnvironmentError(
            f"loading a tokenizer needs transformers ({error})",
            hint='pip install "amnesia-bench[train]" or "amnesia-bench[eval]"',
        ) from error
    loaded = _load(AutoTokenizer, folder)
    if not getattr(loaded, "is_fast", False):
        raise UserError(
            f"{folder}: its tokenizer ({type(loaded).__name__}) has no fast implementation",
            hint="Save it in the same folder as a fast tokenizer (tokenizer.json).",
        )
    if not _matches_file(loaded, folder):
        loaded = _load(PreTrainedTokenizerFast, folder)
        if not _matches_file(loaded, folder):
            raise UserError(
                f"{folder}: transformers does not split texts as its tokenizer.json defines",
                hint="Compare it with tokenizer_config.json: one of the two files was changed.",
            )
    # tokenizer.json may contain the truncation and padding settings of the program that saved it.
    loaded.backend_tokenizer.no_truncation()
    loaded.backend_tokenizer.no_padding()
    # If transformers does not recognise the files of a folder, it builds an empty vocabulary.
    if not loaded("The quick brown fox", add_special_tokens=False).input_ids:
        raise UserError(
            f"{folder}: its tokenizer produces no tokens for English text",
            hint="Are its files complete (tokenizer.json, or vocab.json and merges.txt)?",
        )
    return loaded


def tokenizer_identity(tokenizer: Any) -> str:
    """Return the sha256, in hex, of everything that determines how a tokenizer splits a text.

    The hash covers the normaliser, the pre-tokeniser, the vocabulary, the merges and the added
    tokens, whatever files they come from; both notations of merges give the same hash. It does not
    cover the decoder, nor the special tokens that `with_special_tokens` adds to a prompt.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = dict(whole["model"])
    if "merges" in model:
        model["merges"] = [
            merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"]
        ]
    splitting = {name: whole.get(name) for name in (*_SPLITTING, "added_tokens")}
    text = json.dumps({**splitting, "model": model}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def legacy_tokenizer_identity(tokenizer: Any) -> str:
    """Return the tokenizer hash that older versions of amnesia-bench stored with NIAH prompts.

    It covers the complete serialised tokenizer, including its decoder and post-processor.
    """
    backend = tokenizer.backend_tokenizer
    # Truncation and padding settings remain from the last call, and are not part of the tokenizer.
    backend.no_truncation()
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode("utf-8", "surrogatepass")).hexdigest()


def tokenizer_parts(tokenizer: Any) -> TokenizerParts:
    """Return the identity of a tokenizer in two parts: its added tokens, and a hash of the rest."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    splitting = {name: whole.get(name) for name in _SPLITTING}
    return TokenizerParts(
        sha256=hashlib.sha256(json.dumps(splitting, sort_keys=True).encode()).hexdigest(),
        added_tokens={
            entry["content"]: json.dumps(entry, sort_keys=True) for entry in whole["added_tokens"]
        },
    )


def with_special_tokens(tokenizer: Any, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a prompt's token ids with the special tokens that the tokenizer adds at both ends.

    lm-eval's own models tokenise prompts with special tokens, so official scores are measured on
    prompts that begin with a BOS (if the tokenizer adds one).
    """
    before, after = _added(tokenizer)
    return np.concatenate([before, tokens, after])


def with_leading_special_tokens(tokenizer: Any, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a prompt's token ids with only the leading special tokens, such as a BOS.

    Trailing special tokens are left out. The tokenizers of some fine-tunes append EOS to every
    text, and after a prompt that ends in EOS a model generates no text or an unrelated one.
    """
    return np.concatenate([_added(tokenizer)[0], tokens])


def _added(tokenizer: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the ids of the special tokens that a tokenizer adds before and after a text."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    start = next(
        start
        for start in range(len(whole) - len(bare) + 1)
        if whole[start : start + len(bare)] == bare
    )
    before, after = whole[:start], whole[start + len(bare) :]
    return np.asarray(before, dtype=np.int32), np.asarray(after, dtype=np.int32)


def _load(auto: Any, folder: Path) -> Any:
    try:
        with _without_config_warnings():
            return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises Exception, transformers any subclass of it
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder}: its tokenizer needs code from the checkpoint (auto_map in "
                "tokenizer_config.json), and such code is never run",
                hint="Save it there as a fast tokenizer (tokenizer.json) of a class in "
                "transformers, such as PreTrainedTokenizerFast, without auto_map.",
            ) from error
        raise UserError(
            f"{folder}: its tokenizer cannot be loaded ({str(error).partition(chr(10))[0]})",
            hint="The folder needs an intact tokenizer.json, or vocab.json and merges.txt.",
        ) from error


def _matches_file(loaded: Any, folder: Path) -> bool:
    """Return whether a tokenizer splits texts as tokenizer.json defines; True without that file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return True
    backend = type(loaded.backend_tokenizer).from_file(str(path))
    in_file, in_memory = (
        json.loads(tokenizer.to_str(), object_hook=_without_neutral)
        for tokenizer in (backend, loaded.backend_tokenizer)
    )
    return all(in_file[part] == in_memory[part] for part in _SPLITTING)


def _without_neutral(part: dict[str, Any]) -> dict[str, Any]:
    """Remove the settings that do not affect token ids from an object of tokenizer.json."""
    neutral = {"trim_offsets": (True, False), "continuing_subword_prefix": ("", None),
               "end_of_word_suffix": ("", None)}  # fmt: skip
    return {
        key: value for key, value in part.items() if key not in neutral or value not in neutral[key]
    }


@contextmanager
def _without_config_warnings() -> Iterator[None]:
    """Silence transformers' warnings about the model config, which tokenizers do not need."""
    logger = logging.getLogger("transformers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
