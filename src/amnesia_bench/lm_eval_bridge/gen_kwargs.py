"""What lm-eval's generation kwargs mean, as a `Sampling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.records.evaluation import Sampling

# What lm-eval's own models take when a task names no limit.
_DEFAULT_MAX_NEW_TOKENS = 256
_KNOWN = frozenset({"do_sample", "max_gen_toks", "seed", "temperature", "top_k", "top_p", "until"})


def sampling_of(gen_kwargs: Mapping[str, Any], where: str) -> tuple[Sampling, int]:
    """Return the sampling that these kwargs ask for, and the base of its seeds.

    Defaults are lm-eval's: greedy, 256 new tokens. One is not: `top_k` is off where nobody names
    it, and not the 50 that transformers adds by itself.

    Args:
        gen_kwargs: of one request: a task's `generation_kwargs`, changed by `--gen_kwargs`.
        where: the task, for messages.

    Raises:
        UserError: a key that no engine here has, or a value that is none.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    normal = normalize_gen_kwargs(dict(gen_kwargs), _DEFAULT_MAX_NEW_TOKENS)
    if unknown := sorted(set(normal) - _KNOWN):
        raise UserError(
            f"{where}: generation kwargs {', '.join(unknown)}: not known to the model amnesia, "
            "and left out they would change the score",
            hint=f"Known: {', '.join(sorted(_KNOWN))}.",
        )
    temperature = float(normal.get("temperature") or 0.0)
    if normal["do_sample"] and temperature == 0:
        raise UserError(
            f"{where}: do_sample=true with a temperature of 0",
            hint="--gen_kwargs do_sample=true,temperature=0.6, or do_sample=false for greedy",
        )
    # What a greedy choice ignores is left at off, so that it cannot tell two runs apart.
    drawn: Mapping[str, Any] = normal if normal["do_sample"] else {}
    top_k = drawn.get("top_k")
    try:
        sampling = Sampling(
            max_new_tokens=normal["max_gen_toks"],
            temperature=temperature if drawn else 0.0,
            top_p=float(drawn.get("top_p") or 1.0),
            top_k=int(top_k) if top_k is not None and int(top_k) > 0 else None,
            stop=tuple(dict.fromkeys(stop for stop in normal["until"] if stop)),
        )
    except ValueError as error:
        raise UserError(f"{where}: generation kwargs: {error}") from error
    return sampling, int(normal.get("seed") or 0)
