"""A checkpoint's tokenizer, and what makes two of them the same one."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.records.niah import TokenizerParts
from amnesia_bench.store.files import read_json
from amnesia_bench.tokenizers.tokenizer_files import load_fast_tokenizer


def load_tokenizer(checkpoint: Path) -> Any:
    """Load the tokenizer of a checkpoint folder. No code in the folder is run.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        UserError: there is none, or it cannot say which characters a token covers.
        MissingEnvironmentError: transformers is not installed.
    """
    _register_hypenet(checkpoint)
    tokenizer = load_fast_tokenizer(checkpoint)
    check_offsets(tokenizer, str(checkpoint))
    return tokenizer


def _register_hypenet(checkpoint: Path) -> None:
    """Tell transformers what a HypeNet is, or it warns of a model type that it does not know."""
    path = checkpoint / "config.json"
    config = read_json(path) if path.is_file() else None
    if isinstance(config, dict) and config.get("model_type") == "hypenet":
        with suppress(ImportError):  # without torch: the tokenizer loads all the same
            import amnesia_bench.modeling  # noqa: F401


def check_offsets(tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer that cannot say where its tokens lie in a text, or that makes none.

    Raises:
        UserError: `where` names the tokenizer in the message.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{where}: {type(tokenizer).__name__} does not say which characters a token covers",
            hint="Save it as a fast tokenizer (tokenizer.json) beside its present files.",
        )
    # transformers makes an empty vocabulary out of a folder whose files it does not know.
    if not tokenizer("The quick brown fox", add_special_tokens=False).input_ids:
        raise UserError(
            f"{where}: the tokenizer makes no tokens out of English text",
            hint="Are its files complete (tokenizer.json, or vocab.json and merges.txt)?",
        )


def tokenizer_identity(tokenizer: Any) -> str:
    """Return the sha256, in hex, of everything that determines how a text is tokenised."""
    backend = tokenizer.backend_tokenizer
    # States that every call of transformers' sets anew, and no part of the tokenizer.
    backend.no_truncation()
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode("utf-8", "surrogatepass")).hexdigest()


def tokenizer_parts(tokenizer: Any) -> TokenizerParts:
    """Return what decides how a tokenizer splits a text, its added tokens apart from the rest.

    Unlike `tokenizer_identity` this leaves out how tokens become text again, and what is put
    around a prompt.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    splitting = {name: whole.get(name) for name in ("normalizer", "pre_tokenizer", "model")}
    return TokenizerParts(
        sha256=hashlib.sha256(json.dumps(splitting, sort_keys=True).encode()).hexdigest(),
        added_tokens={
            entry["content"]: json.dumps(entry, sort_keys=True) for entry in whole["added_tokens"]
        },
    )
