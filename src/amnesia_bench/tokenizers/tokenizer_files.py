"""A checkpoint's tokenizer, the same for training and evaluation, without running its code.

It splits texts as its tokenizer.json says, which pretraining used. transformers 5 builds some
classes from the vocabulary of that file alone, with a pre-tokenizer of the class
(huggingface/transformers#45812, #45920), so what it loads is compared with the file.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.store.missing_folder import no_folder

# What splits a text. Added tokens may also stand in tokenizer_config.json.
_SPLITTING = ("normalizer", "pre_tokenizer", "model")

# Templates of Llama 3.2, SmolLM3 and others write today's date into the system message. Data and
# prompts must not depend on the day: this is the date of templates that have a fixed one.
_FIXED_DATE = {
    "%-d": "26", "%d": "26", "%-m": "7", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024",
    "%y": "24", "%A": "Friday", "%a": "Fri", "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip


def load_fast_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint folder.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        UserError: the folder holds no tokenizer, one without a fast implementation, or one that
            needs code of its own.
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
    if _follows_file(loaded, folder):
        return loaded
    loaded = _load(PreTrainedTokenizerFast, folder)
    if not _follows_file(loaded, folder):
        raise UserError(
            f"{folder}: transformers does not split texts as tokenizer.json there says",
            hint="Compare it with tokenizer_config.json: one of the two was changed.",
        )
    return loaded


def with_fixed_date(template: str) -> str:
    """Return a chat template that writes the same on every day."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f" | replace('{code}', '{text}')" for code, text in _FIXED_DATE.items())
    return (
        "{%- macro strftime_now(format) -%}{{- format" + replaced + " -}}{%- endmacro %}\n"
    ) + template


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
