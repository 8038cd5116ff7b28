"""Run lm-eval's checkers of IFEval's instructions deterministically, offline and without logging.

Executed as a program, this module is a worker of a `ComparisonPool`, whose time limit bounds the
judging of long responses: on these a checker's regular expression may take minutes.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.reasoning.math.worker import answer_requests
from amnesia_bench.reasoning.task import Row
from amnesia_bench.tokenizers.sentences import install_sentence_model

# Longer responses are judged in a worker. Several checkers need quadratic time: half a second for
# a response of this length.
LONG_CHARACTERS = 10_000
# Address space limit of a worker. Importing lm-eval alone needs 1.7 GiB.
_MEMORY_BYTES = 6 << 30


def instructions_of(row: Row) -> list[tuple[str, Any]]:
    """Return the instructions of a problem, each with the checker that lm-eval builds for it.

    Raises:
        UserError: the row is not a valid IFEval problem.
        MissingEnvironmentError: lm-eval or one of its dependencies is missing.
    """
    checkers = _checkers()
    names: Any = row["instruction_id_list"]
    arguments: Any = row["kwargs"]
    if len(names) != len(arguments):
        raise UserError(
            f"ifeval: key {row['key']} has {len(names)} instructions and arguments for "
            f"{len(arguments)}"
        )
    # A checker replaces a missing argument by a random one, so fix the seed.
    state = random.getstate()
    random.seed(0)
    try:
        return [
            (name, _checker(checkers[name](name), values, str(row["prompt"])))
            for name, values in zip(names, arguments, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"ifeval: key {row['key']}: unknown instruction or argument ({error})"
        ) from error
    finally:
        random.setstate(state)


def follows_all(row: Row, response: str) -> list[tuple[str, bool]]:
    """Return the name of each instruction and whether a response follows it by the strict rule.

    Raises:
        UserError: the row is not a valid IFEval problem.
        MissingEnvironmentError: lm-eval or one of its dependencies is missing.
    """
    return [(name, _follows(checker, response)) for name, checker in instructions_of(row)]


def _checker(checker: Any, values: Any, prompt: str) -> Any:
    # Rows of the data set on the hub contain a null for every argument that an instruction lacks.
    arguments = {name: value for name, value in values.items() if value}
    checker.build_description(**arguments)
    if "prompt" in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=prompt)
    letter = arguments.get("letter")
    if isinstance(letter, str) and len(letter) == 1 and hasattr(checker, "_letter"):
        # The problem with key 1122 requires "#", which lm-eval's checker replaces by a random
        # letter.
        checker._letter = letter.lower()
    return checker


def _follows(checker: Any, response: str) -> bool:
    if not response.strip():
        return False
    try:
        return bool(checker.check_following(response))
    except Exception:  # checkers raise on some responses, e.g. parsing 2,000 open brackets as JSON
        return False


@cache
def _checkers() -> Any:
    # If nltk cannot find the splitter's data, lm-eval downloads them when it is imported.
    install_sentence_model()
    try:
        import langdetect  # type: ignore[import-untyped]
        from lm_eval.tasks.ifeval import instructions, instructions_registry
    except ImportError as error:
        raise MissingEnvironmentError(
            f"judging IFEval needs lm-eval's checkers ({error})",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    langdetect.DetectorFactory.seed = 0  # langdetect draws random samples from the text
    # lm-eval logs every response whose language it cannot detect.
    logging.getLogger(instructions.__name__).disabled = True
    return instructions_registry.INSTRUCTION_DICT


def _answer(request: Sequence[str]) -> Any:
    row, response = request
    return follows_all(json.loads(row), response)


if __name__ == "__main__":
    answer_requests(float(sys.argv[1]), _MEMORY_BYTES, _answer, _checkers)
