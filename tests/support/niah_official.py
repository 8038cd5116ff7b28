"""lm-eval's own generator of the NIAH tasks, on a haystack of ours: the reference."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from amnesia_bench.tokenizers.sentences import install_sentence_model


@cache
def lm_eval_niah() -> tuple[ModuleType, ModuleType]:
    """Import lm-eval's modules (10 s, 1 GB)."""
    install_sentence_model()  # or lm-eval would try to download Punkt's data
    from lm_eval.tasks.ruler import niah_utils, prepare_niah

    return niah_utils, prepare_niah


def official_documents(
    tokenizer: Path, task: str, context_tokens: int, samples: int, texts: list[str]
) -> tuple[Any, object]:
    """Return lm-eval's documents of a task, and the state that it leaves `random` in.

    Two things are put in its way: what the hub answers, and how many samples it makes.
    """
    niah_utils, prepare_niah = lm_eval_niah()
    made, load = niah_utils.generate_samples, prepare_niah.datasets.load_dataset
    before = random.getstate()
    try:
        prepare_niah.get_haystack.cache_clear()
        prepare_niah.datasets.load_dataset = lambda *_, **__: {"text": texts}
        niah_utils.generate_samples = lambda *args, **settings: made(
            *args, **{**settings, "num_samples": samples}
        )
        random.seed(0)
        data = getattr(niah_utils, task)(tokenizer=str(tokenizer), max_seq_lengths=[context_tokens])
        return data["test"], random.getstate()
    finally:
        random.setstate(before)
        niah_utils.generate_samples = made
        prepare_niah.datasets.load_dataset = load
        prepare_niah.get_haystack.cache_clear()
        prepare_niah.cached_sent_tokenize.cache_clear()
