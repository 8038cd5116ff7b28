"""Call W&B such that its failures never reach the caller.

The mode is chosen before a run starts: online if there is an API key, else offline. If W&B does not
answer or refuses the key, the run continues offline, and so do all later runs of the same client.
"""

from __future__ import annotations

import logging
import netrc
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amnesia_bench.tracking.tracked_run import RunHeader

log = logging.getLogger(__name__)

INIT_SECONDS = 30.0
FINISH_SECONDS = 60.0
MAX_FAILURES = 3
_HOST = "api.wandb.ai"
_RETIRED = "replaced"  # the only tag of a run that another one replaces


class WandbClient:
    """Starts runs and makes calls; after three failed calls, it makes no more.

    Args:
        folder: the folder in which W&B keeps its files, such as offline runs.
        module: the `wandb` package; if None, it is imported.
    """

    def __init__(self, folder: Path, module: Any = None) -> None:
        self._folder = folder
        self._module = module
        self._failures = 0
        self.mode = wandb_mode(os.environ)
        if self.mode == "offline":
            log.warning("W&B: offline runs in %s; upload them with `wandb sync`", folder / "wandb")

    @property
    def disabled(self) -> bool:
        """Whether too many calls have failed."""
        return self._failures >= MAX_FAILURES

    def call(self, action: str, function: Callable[[], object]) -> bool:
        """Make a call, unless the client is disabled; return whether it succeeded."""
        if self.disabled:
            return False
        try:
            function()
        except Exception as error:
            self._failures += 1
            disabled = "; W&B is disabled" if self.disabled else ""
            log.warning("W&B: %s failed (%s)%s", action, error, disabled)
            return False
        return True

    def start(self, header: RunHeader, **settings: object) -> Any | None:
        """Start a run and return it; None if W&B cannot be used, which disables the client."""
        try:
            module = self.module()
        except ImportError as error:
            log.warning("W&B: not installed (%s)", error)
            self._failures = MAX_FAILURES
            return None
        if self.disabled:
            return None
        limits = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS, "silent": True}
        for mode in dict.fromkeys((self.mode, "offline")):
            try:
                run = module.init(
                    project=header.project,
                    entity=header.entity,
                    id=header.run_id,
                    name=header.name,
                    resume="allow",
                    group=header.group,
                    job_type=header.job_type,
                    tags=list(header.tags),
                    config=dict(header.config),
                    dir=str(self._folder),
                    mode=mode,
                    settings=module.Settings(**limits, **settings),
                )
            except Exception as error:
                log.warning("W&B (%s) did not start: %s", mode, error)
                # W&B's service keeps the id of a run that did not start, and refuses it to another.
                self.call("teardown", module.teardown)
            else:
                self.mode = mode  # do not wait again for a server that does not answer
                return run
        self._failures = MAX_FAILURES
        return None

    def offline_folders(self, run_id: str) -> list[Path]:
        """Return the folders of the offline runs with an id."""
        return sorted(self._folder.glob(f"wandb/offline-run-*-{run_id}"))

    def retire(self, header: RunHeader) -> None:
        """Take a run that another one replaces off all dashboards, which select runs by tags.

        A user may have written notes on a run, so it is not deleted. Offline runs that were not
        uploaded are removed, so that they never are.
        """
        for folder in self.offline_folders(header.run_id):
            if not list(folder.glob("*.synced")):
                shutil.rmtree(folder, ignore_errors=True)
        if self.mode == "online":
            self.call("retiring a run", lambda: self._untag(header))

    def _untag(self, header: RunHeader) -> None:
        path = [header.entity, header.project, header.run_id]
        run = self.module().Api().run("/".join(part for part in path if part))
        run.tags = [_RETIRED]
        run.update()

    def module(self) -> Any:
        """Return the `wandb` package.

        Raises:
            ImportError: it is not installed.
        """
        if self._module is None:
            import wandb

            self._module = wandb
        return self._module


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
