"""The result of one examination of the machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from amnesia_bench.errors import AmnesiaError, MissingEnvironmentError


class Health(StrEnum):
    """OK; absent, so that some commands are not available; or broken, so that they fail."""

    OK = "ok"
    ABSENT = "absent"
    BROKEN = "broken"


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """One row of the doctor's table.

    `fix` is what to type, or what to do, about something absent or broken; "" for none.
    """

    topic: str
    health: Health
    text: str
    fix: str = ""


Examination = Callable[[], Iterable[HealthCheck]]


def ok(topic: str, text: str) -> HealthCheck:
    return HealthCheck(topic=topic, health=Health.OK, text=text)


def lacking(topic: str, text: str, fix: str = "") -> HealthCheck:
    return HealthCheck(topic=topic, health=Health.ABSENT, text=text, fix=fix)


def broken(topic: str, text: str, fix: str = "") -> HealthCheck:
    return HealthCheck(topic=topic, health=Health.BROKEN, text=text, fix=fix)


def examined(topic: str, examination: Examination) -> list[HealthCheck]:
    """Return the checks of an examination; if it raises any exception, a check that says so.

    On a damaged machine nearly any exception is possible, and the other examinations must not be
    lost.
    """
    checks: list[HealthCheck] = []
    try:
        checks.extend(examination())
    except AmnesiaError as error:
        checks.append(broken(topic, error.what, error.hint or ""))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        checks.append(broken(topic, f"cannot be examined ({reason})"))
    return checks


def output_of(command: Sequence[str], seconds: float, hint: str = "") -> str | None:
    """Return what a program prints; None if it is not installed.

    Raises:
        MissingEnvironmentError: it cannot be started, fails, or does not end in time; `hint` is the
            error's hint.
    """
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise MissingEnvironmentError(
            f"{command[0]} has not answered within {seconds:.0f} seconds", hint=hint
        ) from None
    except OSError as error:
        raise MissingEnvironmentError(
            f"{command[0]} cannot be started ({error.strerror})", hint=hint
        ) from None
    if done.returncode:
        last_lines = done.stderr.strip().splitlines()[-1:]
        reason = "".join(last_lines) or f"exit code {done.returncode}"
        raise MissingEnvironmentError(f"{command[0]} fails: {reason}", hint=hint)
    return done.stdout
