"""The tokenizer of a checkpoint, and a hash over all that determines how it splits a text."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.store.missing_folder import no_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Post-processor and decoder are left out: we add special tokens ourselves, and only encode.
_DETERMINE = ("normalizer", "pre_tokenizer", "model", "added_tokens")


class Tokenizer:
    """A tokenizer that knows its identity.

    `sha256` is equal for two tokenizers that split every text alike, whatever files they come
    from: it covers normaliser, pre-tokeniser, vocabulary, merges and added tokens.
    """

    def __init__(self, folder: Path, whole: Any) -> None:
        self.folder = folder
        self._whole = whole
        self._backend: Backend = whole.backend_tokenizer
        self.serialized: str = self._backend.to_str()
        self.sha256 = _identity(json.loads(self.serialized))
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def pad_token(self) -> int:
        """Return a token to fill sequences with; it is never trained."""
        for token in (self._whole.pad_token_id, self._whole.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    def id_of(self, token: str) -> int | None:
        """Return the number of a token; None when there is no such token."""
        number: int | None = self._backend.token_to_id(token)
        return number

    def separator(self, name: str) -> int:
        """Return the token that ends documents: `eos` is the tokenizer's own.

        Raises:
            UserError: it has no such token.
        """
        number = self._whole.eos_token_id if name == "eos" else self.id_of(name)
        if number is None:
            raise UserError(
                f"rows.separator={name}: the tokenizer of {self.folder} has no such token",
                hint="data.rows.separator=eos takes the one it ends texts with.",
            )
        return int(number)

    def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """Return a conversation in the tokenizer's own chat template; None without one."""
        if not self._whole.chat_template:
            return None
        text: str = self._whole.apply_chat_template(list(messages), tokenize=False)
        return text

    def encode(self, text: str) -> list[int]:
        """Return the tokens of one text, special tokens in it understood."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(
        self, texts: list[str], *, special_tokens: bool
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the tokens of all texts end to end, and how many each has.

        Texts are divided among the machine's cores. Without `special_tokens` a `<|im_end|>` in a
        text is plain characters.
        """
        self._backend.encode_special_tokens = not special_tokens
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        lists = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        tokens = np.empty(int(lengths.sum()), np.uint32)
        end = 0
        for ids in lists:
            begin, end = end, end + len(ids)
            tokens[begin:end] = ids
        return tokens, lengths


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder as transformers would for inference.

    Raises:
        UserError: the folder holds no tokenizer, or one without a fast implementation.
        MissingEnvironmentError: transformers is not installed.
    """
    if not folder.is_dir():
        raise no_folder(folder)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingEnvironmentError(
            f"preparing data needs transformers ({error})",
            hint='pip install "amnesia-bench[train]"',
        ) from error
    try:
        with _config_unseen():
            whole = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: holds no tokenizer that transformers can load ({error})") from (
            error
        )
    if not getattr(whole, "is_fast", False):
        raise UserError(f"{folder}: its tokenizer has no fast implementation (tokenizer.json)")
    return Tokenizer(folder, whole)


@contextmanager
def _config_unseen() -> Iterator[None]:
    """Keep transformers from warning of a config that matters to models only, and is read here."""
    logger = logging.getLogger("transformers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _identity(parts: Mapping[str, Any]) -> str:
    """Hash a serialised tokenizer, whichever of its two ways merges are written in."""
    model = dict(parts["model"])
    if "merges" in model:
        model["merges"] = [
            merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"]
        ]
    canonical = {**{name: parts.get(name) for name in _DETERMINE}, "model": model}
    text = json.dumps(canonical, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def decoder(path: Path) -> Callable[[Sequence[int]], str]:
    """Return how to show tokens as text, from a serialised tokenizer alone.

    Raises:
        MissingEnvironmentError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise MissingEnvironmentError(
            f"showing tokens needs tokenizers ({error})", hint='pip install "amnesia-bench[train]"'
        ) from error
    backend = Backend.from_file(str(path))

    def decode(tokens: Sequence[int]) -> str:
        text: str = backend.decode(list(tokens), skip_special_tokens=False)
        return text

    return decode
