"""A checkpoint's tokenizer, and what makes two of them the same one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from amnesia_bench.errors import UserError


def load_tokenizer(checkpoint: Path) -> Any:
    """Load the tokenizer of a checkpoint folder. No code in the folder is run.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        UserError: there is none, or it cannot say which characters a token covers.
    """
    from transformers import AutoTokenizer

    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint}: no such folder", hint="Give a checkpoint's folder, or its tokenizer's."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{checkpoint}: no tokenizer could be loaded ({str(error).partition(chr(10))[0]})",
            hint="The folder must hold tokenizer.json, or vocab.json and merges.txt.",
        ) from error
    check_offsets(tokenizer, str(checkpoint))
    return tokenizer


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
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by every call with padding or a limit: a state, and no part of the tokenizer.
    description.update(truncation=None, padding=None)
    canonical = json.dumps(description, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
