"""lm-eval's checkers of IFEval's instructions, made deterministic and offline."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.evals.judging import Row
from amnesia_bench.evals.niah.sentences import sentence_splitter


def follows_all(row: Row, response: str) -> list[tuple[str, bool]]:
    """Return each instruction of a problem and whether a response follows it, by the strict rule.

    Raises:
        UserError: the row is not one of IFEval's.
        MissingEnvironmentError: lm-eval or what it needs is missing.
    """
    checkers = _checkers()
    names: Any = row["instruction_id_list"]
    kwargs: Any = row["kwargs"]
    if len(names) != len(kwargs):
        raise UserError(
            f"ifeval: key {row['key']} has {len(names)} instructions and arguments for "
            f"{len(kwargs)}"
        )
    example = checkers.InputExample(
        key=row["key"], instruction_id_list=list(names), prompt=row["prompt"], kwargs=list(kwargs)
    )
    # A checker that misses an argument draws one.
    state = random.getstate()
    random.seed(0)
    try:
        judged = checkers.test_instruction_following_strict(example, response)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"ifeval: key {row['key']}: not an instruction of IFEval ({error})"
        ) from error
    finally:
        random.setstate(state)
    return list(zip(names, judged.follow_instruction_list, strict=True))


@cache
def _checkers() -> Any:
    # lm-eval downloads this data on import where nltk cannot find it.
    sentence_splitter()
    try:
        import langdetect  # type: ignore[import-untyped]
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise MissingEnvironmentError(
            f"judging IFEval needs lm-eval's checkers ({error})",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    langdetect.DetectorFactory.seed = 0  # it draws samples of a text
    return utils
