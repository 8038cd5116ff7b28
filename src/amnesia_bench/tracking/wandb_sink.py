"""Copies of the metrics for W&B. Nothing that goes wrong here may reach the run.

The record is metrics.jsonl; W&B is told what is written there, offline where there is no account.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

INIT_SECONDS = 30.0
MAX_FAILURES = 3
_HOST = "api.wandb.ai"


@dataclass(frozen=True, kw_only=True)
class WandbRun:
    """How a run is called. The same `run_id` again continues the same run."""

    project: str
    run_id: str
    group: str
    job_type: str
    config: Mapping[str, Any]
    folder: Path


class WandbSink:
    """Sends metrics until it has failed three times.

    Args:
        run: how it is called.
        module: the `wandb` package; imported when None.
    """

    def __init__(self, run: WandbRun, module: Any = None) -> None:
        self._failures = 0
        self._run: Any = None
        self._guarded("start", lambda: self._start(run, module))
        if self._run is None:
            self._failures = MAX_FAILURES

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of a step."""
        self._guarded("log", lambda: self._run.log(dict(metrics), step=step))

    def finish(self, exit_code: int) -> None:
        """Say that the run has ended."""
        self._guarded("finish", lambda: self._run.finish(exit_code=exit_code))

    def _start(self, run: WandbRun, module: Any) -> None:
        if module is None:
            import wandb as module
        mode = wandb_mode(os.environ)
        if mode == "offline":
            log.warning("W&B: offline, in %s; `wandb sync` sends it", run.folder / "wandb")
        for chosen in dict.fromkeys((mode, "offline")):
            try:
                self._run = module.init(
                    project=run.project,
                    id=run.run_id,
                    resume="allow",
                    group=run.group,
                    job_type=run.job_type,
                    config=dict(run.config),
                    dir=str(run.folder),
                    mode=chosen,
                    settings=module.Settings(init_timeout=INIT_SECONDS, silent=True),
                )
                return
            except Exception as error:
                log.warning("W&B (%s) did not start: %s", chosen, error)

    def _guarded(self, doing: str, call: Callable[[], object]) -> None:
        if self._failures >= MAX_FAILURES:
            return
        try:
            call()
        except Exception as error:
            self._failures += 1
            given_up = "; no more of it" if self._failures >= MAX_FAILURES else ""
            log.warning("W&B: %s failed (%s)%s", doing, error, given_up)


def wandb_mode(environ: Mapping[str, str]) -> str:
    """Return what WANDB_MODE says, or `online` where there is a key and `offline` elsewhere."""
    if chosen := environ.get("WANDB_MODE"):
        return chosen
    if environ.get("WANDB_API_KEY"):
        return "online"
    try:
        known = netrc.netrc(environ.get("NETRC")).authenticators(_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    return "online" if known else "offline"
