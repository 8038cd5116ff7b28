"""Collect the answers that several processes generated, each a part of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.inference.generation import (
    RUN,
    Answer,
    read_answers,
    read_run_record,
    request_sha256,
)
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.records.evaluation import Generation, SampleKey

_GENERATE = "Generate it with the same command, with --part I/N instead of --merge."


class PartsEngine:
    """An `Engine` that returns the answers of finished parts, and needs neither model nor GPU.

    Args:
        parts: the folders of the parts' answers.
        identity: the identity of the run, as for `generate_missing`.

    Raises:
        UserError: a part is missing, belongs to another run, or was generated with other settings
            than the first part.
    """

    def __init__(self, parts: Sequence[Path], identity: Mapping[str, str]) -> None:
        self._parts = tuple(parts)
        self._settings: Mapping[str, str] | None = None
        for part in self._parts:
            if not (part / RUN).is_file():
                raise UserError(f"{part}: is not a part of these answers", hint=_GENERATE)
            run = read_run_record(part).depends
            if name := _difference({n: run.get(n) for n in identity}, identity):
                raise UserError(
                    f"{part}: is a part of another run: its {name} is {run.get(name, 'absent')}, "
                    f"not {identity[name]}",
                    hint=_GENERATE,
                )
            settings = {n: value for n, value in run.items() if n not in identity}
            first = self._settings or settings
            if name := _difference(settings, first):
                raise UserError(
                    f"the parts were generated with different settings: {name} is "
                    f"{first.get(name, 'absent')} in {self._parts[0]}, and "
                    f"{settings.get(name, 'absent')} in {part}",
                    hint="Remove one of the parts, and generate it with the settings of the other.",
                )
            self._settings = first

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of the engine that generated the parts."""
        assert self._settings is not None
        return self._settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Yield the parts' answers to the requests.

        Raises:
            UserError: the parts lack an answer, or it belongs to another request.
        """
        answers: dict[SampleKey, tuple[Path, Answer]] = {}
        for part in self._parts:
            for key, answer in read_answers(part).items():
                answers.setdefault(key, (part, answer))
        keys = [requests[i].key for i in range(len(requests))]
        if missing := [key for key in keys if key not in answers]:
            raise UserError(
                f"the parts lack {len(missing)} of {len(keys)} answers, for example to document "
                f"{missing[0].doc} of {missing[0].task}",
                hint="Name all parts, each with --merge, and finish them first.",
            )
        for i, key in enumerate(keys):
            part, answer = answers[key]
            if answer.request_sha256 != request_sha256(requests[i]):
                raise UserError(
                    f"{part}: its answer to {key.task}, document {key.doc}, repeat {key.repeat} "
                    "belongs to another prompt, other sampling parameters or another seed",
                    hint=_GENERATE,
                )
            yield answer.generation


def _difference(these: Mapping[str, str | None], those: Mapping[str, str]) -> str | None:
    """Return the first name whose values differ."""
    names = sorted(these.keys() | those.keys())
    return next((name for name in names if these.get(name) != those.get(name)), None)
