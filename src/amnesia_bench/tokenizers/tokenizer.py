"""Load a checkpoint's tokenizer, identify it, and say what it puts around a text.

It splits texts as its tokenizer.json says, which pretraining used. transformers 5 builds some
classes from the vocabulary of that file alone, with a pre-tokenizer of the class
(huggingface/transformers#45812, #45920), so what it loads is compared with the file.
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

# What splits a text. Added tokens may also stand in tokenizer_config.json.
_SPLITTING = ("normalizer", "pre_tokenizer", "model")


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint folder. No code in the folder is run.

    Returns:
        A `transformers.PreTrainedTokenizerFast`; it can say which characters a token covers.

    Raises:
        UserError: the folder holds no tokenizer, one without a fast implementation, one that
            needs code of its own, or one that makes no tokens.
        MissingEnvironmentError: transformers is not installed.
    """
    if not folder.is_dir():
        raise no_folder(folder)
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingEnvironmentError(
            f"tokenizers are read by transformers ({error})",
            hint='pip install "amnesia-bench[train]" or "amnesia-bench[eval]"',
        ) from error
    loaded = _load(AutoTokenizer, folder)
    if not getattr(loaded, "is_fast", False):
        raise UserError(
            f"{folder}: its tokenizer ({type(loaded).__name__}) has no fast implementation",
            hint="Save it as a fast tokenizer (tokenizer.json) beside its present files.",
        )
    if not _follows_file(loaded, folder):
        loaded = _load(PreTrainedTokenizerFast, folder)
        if not _follows_file(loaded, folder):
            raise UserError(
                f"{folder}: transformers does not split texts as tokenizer.json there says",
                hint="Compare it with tokenizer_config.json: one of the two was changed.",
            )
    # A file may hold the truncation and padding of the program that saved it.
    loaded.backend_tokenizer.no_truncation()
    loaded.backend_tokenizer.no_padding()
    # transformers makes an empty vocabulary out of a folder whose files it does not know.
    if not loaded("The quick brown fox", add_special_tokens=False).input_ids:
        raise UserError(
            f"{folder}: the tokenizer makes no tokens out of English text",
            hint="Are its files complete (tokenizer.json, or vocab.json and merges.txt)?",
        )
    return loaded


def tokenizer_identity(tokenizer: Any) -> str:
    """Return the sha256, in hex, of all that determines how a tokenizer splits a text.

    It is equal for two tokenizers that split every text alike, whatever files they come from: it
    covers the normaliser, the pre-tokeniser, the vocabulary, the merges (in whichever of the two
    ways they are written) and the added tokens. How tokens become text again, and what is put
    around a prompt, are left out: see `with_special_tokens`.
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


def identity_of_older_prompts(tokenizer: Any) -> str:
    """Return the hash that older versions stored with NIAH prompts as their tokenizer's.

    It covers the whole serialised tokenizer: its decoder and its post-processor too.
    """
    backend = tokenizer.backend_tokenizer
    # State of the last call, which is no part of the tokenizer.
    backend.no_truncation()
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode("utf-8", "surrogatepass")).hexdigest()


def tokenizer_parts(tokenizer: Any) -> TokenizerParts:
    """Return what `tokenizer_identity` covers in two parts: the added tokens and the rest."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    splitting = {name: whole.get(name) for name in _SPLITTING}
    return TokenizerParts(
        sha256=hashlib.sha256(json.dumps(splitting, sort_keys=True).encode()).hexdigest(),
        added_tokens={
            entry["content"]: json.dumps(entry, sort_keys=True) for entry in whole["added_tokens"]
        },
    )


def with_special_tokens(tokenizer: Any, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a prompt's tokens with those that the tokenizer itself adds at either end.

    lm-eval's own models tokenise with them, so the official score is that of a prompt with its
    BOS.
    """
    before, after = _added(tokenizer)
    return np.concatenate([before, tokens, after])


def with_beginning(tokenizer: Any, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a prompt's tokens after those that the tokenizer puts before a text, such as a BOS.

    What it appends is left out: some fine-tunes save a tokenizer that ends every text in EOS, and
    a prompt that ends in EOS is answered with nothing or with another text.
    """
    return np.concatenate([_added(tokenizer)[0], tokens])


def _added(tokenizer: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the tokens that a tokenizer puts before and after a text."""
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
        with _config_unseen():
            return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises just that, transformers whatever happens
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder}: its tokenizer wants to run code of its own (auto_map in "
                "tokenizer_config.json), and no code of a checkpoint is run",
                hint="Save it there as a fast tokenizer (tokenizer.json) of a class that "
                "transformers knows, such as PreTrainedTokenizerFast, without auto_map.",
            ) from error
        raise UserError(
            f"{folder}: no tokenizer could be loaded ({str(error).partition(chr(10))[0]})",
            hint="The folder must hold an intact tokenizer.json, or vocab.json and merges.txt.",
        ) from error


def _follows_file(loaded: Any, folder: Path) -> bool:
    """Whether a tokenizer splits texts as tokenizer.json says; true where there is no such file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return True
    backend = type(loaded.backend_tokenizer).from_file(str(path))
    of_file, of_loaded = (
        json.loads(each.to_str(), object_hook=_without_neutral)
        for each in (backend, loaded.backend_tokenizer)
    )
    return all(of_file[part] == of_loaded[part] for part in _SPLITTING)


def _without_neutral(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a serialised tokenizer without what changes no token."""
    neutral = {"trim_offsets": (True, False), "continuing_subword_prefix": ("", None),
               "end_of_word_suffix": ("", None)}  # fmt: skip
    return {
        key: value for key, value in part.items() if key not in neutral or value not in neutral[key]
    }


@contextmanager
def _config_unseen() -> Iterator[None]:
    """Keep transformers from warning of a config that matters to models only."""
    logger = logging.getLogger("transformers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
