"""Copy the metrics of a training run to W&B. A failure of W&B never affects the run.

The authoritative record of a run is metrics.jsonl. W&B receives the same values; without an account
they are stored locally, in an offline run.
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
    """The name and config of a W&B run; a second run with the same `run_id` continues the first."""

    project: str
    run_id: str
    group: str
    job_type: str
    config: Mapping[str, Any]
    folder: Path


class WandbSink:
    """Sends metrics to W&B, until three calls have failed.

    Args:
        run: the name and config of the W&B run.
        module: the `wandb` package; if None, it is imported.
    """

    def __init__(self, run: WandbRun, module: Any = None) -> None:
        self._failures = 0
        self._run: Any = None
        self._guarded("start", lambda: self._start(run, module))
        if self._run is None:
            self._failures = MAX_FAILURES

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of one step."""
        self._guarded("log", lambda: self._run.log(dict(metrics), step=step))

    def finish(self, exit_code: int) -> None:
        """End the W&B run with this exit code."""
        self._guarded("finish", lambda: self._run.finish(exit_code=exit_code))

    def _start(self, run: WandbRun, module: Any) -> None:
        if module is None:
            import wandb as module
        mode = wandb_mode(os.environ)
        if mode == "offline":
            log.warning("W&B: offline run in %s; upload it with `wandb sync`", run.folder / "wandb")
        for mode_to_try in dict.fromkeys((mode, "offline")):
            try:
                self._run = module.init(
                    project=run.project,
                    id=run.run_id,
                    resume="allow",
                    group=run.group,
                    job_type=run.job_type,
                    config=dict(run.config),
                    dir=str(run.folder),
                    mode=mode_to_try,
                    settings=module.Settings(init_timeout=INIT_SECONDS, silent=True),
                )
                return
            except Exception as error:
                log.warning("W&B (%s) did not start: %s", mode_to_try, error)

    def _guarded(self, action: str, call: Callable[[], object]) -> None:
        if self._failures >= MAX_FAILURES:
            return
        try:
            call()
        except Exception as error:
            self._failures += 1
            disabled = "; W&B is disabled" if self._failures >= MAX_FAILURES else ""
            log.warning("W&B: %s failed (%s)%s", action, error, disabled)


def wandb_mode(environ: Mapping[str, str]) -> str:
    """Return $WANDB_MODE if it is set; otherwise `online` if there is an API key, or `offline`."""
    if mode := environ.get("WANDB_MODE"):
        return mode
    if environ.get("WANDB_API_KEY"):
        return "online"
    try:
        has_key = netrc.netrc(environ.get("NETRC")).authenticators(_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        has_key = False
    return "online" if has_key else "offline"
