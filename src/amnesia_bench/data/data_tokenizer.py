"""The tokenizer of data preparation: encode batches, apply chat templates, decode token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.tokenizers.chat_format import with_fixed_date
from amnesia_bench.tokenizers.tokenizer import (
    tokenizer_identity,
    with_leading_special_tokens,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


class DataTokenizer:
    """A tokenizer with the operations that data preparation needs.

    `folder` is its checkpoint folder, `sha256` its `tokenizer_identity`, and `serialized` the
    content of its tokenizer.json.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.folder = str(tokenizer.name_or_path)
        self._tokenizer = tokenizer
        self._backend: Backend = tokenizer.backend_tokenizer
        self.serialized: str = self._backend.to_str()
        self.sha256 = tokenizer_identity(tokenizer)
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def pad_token(self) -> int:
        """The id of the token that pads sequences; padding is never trained."""
        for token in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    @property
    def eos_token(self) -> str | None:
        """The token that ends generation; None if the tokenizer defines none."""
        token: str | None = self._tokenizer.eos_token
        return token

    @cached_property
    def leading_tokens(self) -> str:
        """The text of the special tokens that the tokenizer puts before a text, such as a BOS."""
        ids = with_leading_special_tokens(self._tokenizer, np.empty(0, np.int32))
        return "".join(self._tokenizer.convert_ids_to_tokens(ids.tolist()))

    def id_of(self, token: str) -> int | None:
        """Return the id of a token; None if the vocabulary lacks it."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def separator(self, name: str) -> int:
        """Return the id of the token that ends documents.

        Args:
            name: the token, or `eos` for the tokenizer's EOS token.

        Raises:
            UserError: the tokenizer has no such token.
        """
        token_id = self._tokenizer.eos_token_id if name == "eos" else self.id_of(name)
        if token_id is None:
            raise UserError(
                f"rows.separator={name}: the tokenizer of {self.folder} has no such token",
                hint="To use the tokenizer's EOS token: data.rows.separator=eos",
            )
        return int(token_id)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template for conversations without tools; may be None."""
        return self._template(tools=False)

    @property
    def templates_sha256(self) -> str:
        """The hash of all chat templates, for conversations with and without tools."""
        templates = json.dumps(self._tokenizer.chat_template, sort_keys=True)
        return hashlib.sha256(templates.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """The texts of the special tokens, such as those that begin and end turns."""
        added = self._backend.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    @cached_property
    def added_tokens(self) -> frozenset[str]:
        """The texts of all added tokens, which are matched before the rest of a text is split."""
        added = self._backend.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added)

    def apply_template(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] = (),
        *,
        prompt: bool = False,
        **options: bool,
    ) -> str:
        """Render a conversation with the tokenizer's own chat template, which must exist.

        Args:
            messages: the messages in the format of chat templates.
            tools: the JSON schemas of the available tools.
            prompt: whether to append the generation prompt.
            options: variables of the template, such as enable_thinking.
        """
        text: str = self._tokenizer.apply_chat_template(
            list(messages),
            tools=[dict(tool) for tool in tools] or None,
            chat_template=with_fixed_date(self._template(tools=bool(tools)) or ""),
            add_generation_prompt=prompt,
            tokenize=False,
            **options,
        )
        return text

    def _template(self, *, tools: bool) -> str | None:
        if not self._tokenizer.chat_template:
            return None
        try:
            template: str = self._tokenizer.get_chat_template(tools=[{}] if tools else None)
        except ValueError as error:  # several templates, none of which is the default
            raise UserError(f"{self.folder}: {error}") from error
        return template

    def encode(self, text: str) -> list[int]:
        """Return the token ids of one text; special tokens in the text are recognised."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(
        self, texts: list[str], *, special_tokens: bool
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the concatenated token ids of all texts, and the number of tokens of each text.

        The texts are tokenised in parallel on all CPU cores. Without `special_tokens`, special
        tokens in a text, such as `<|im_end|>`, are tokenised like other characters.
        """
        self._backend.encode_special_tokens = not special_tokens
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ids_by_text = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids_by_text), np.int64, len(ids_by_text))
        tokens = np.empty(int(lengths.sum()), np.uint32)
        end = 0
        for ids in ids_by_text:
            begin, end = end, end + len(ids)
            tokens[begin:end] = ids
        return tokens, lengths


def decoder(path: Path) -> Callable[[Sequence[int]], str]:
    """Return a function that decodes token ids; it needs only the tokenizer.json at `path`.

    Raises:
        MissingEnvironmentError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise MissingEnvironmentError(
            f"decoding tokens needs tokenizers ({error})", hint='pip install "amnesia-bench[train]"'
        ) from error
    backend = Backend.from_file(str(path))

    def decode(tokens: Sequence[int]) -> str:
        text: str = backend.decode(list(tokens), skip_special_tokens=False)
        return text

    return decode
