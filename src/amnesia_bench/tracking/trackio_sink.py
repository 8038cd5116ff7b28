"""Send finished runs to trackio, whose database and dashboard are on this machine."""

from __future__ import annotations

import io
import json
import logging
import os
from contextlib import redirect_stdout, suppress
from importlib import import_module
from typing import Any

from amnesia_bench.tracking.tracked_run import TrackedArtifact, TrackedRun

log = logging.getLogger(__name__)


def publish_to_trackio(run: TrackedRun, module: Any = None) -> bool:
    """Send a finished run to trackio; return whether it succeeded.

    A run with the same name is replaced. The values of `run.summary` are logged at step 0, because
    trackio has no summaries. $TRACKIO_DIR is the folder of its database.

    Args:
        run: the run to send.
        module: the `trackio` package; if None, it is imported.
    """
    try:
        if module is None:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            module = import_module("trackio")
        with redirect_stdout(io.StringIO()):  # trackio prints hints there
            _publish(run, module)
    except Exception as error:
        log.warning("trackio: %s was not sent (%s)", run.header.name, error)
        return False
    return True


def _publish(run: TrackedRun, module: Any) -> None:
    header = run.header
    _remove_earlier(header.project, header.name, module)
    started = module.init(
        project=header.project,
        name=header.name,
        group=header.group,
        config={
            "job_type": header.job_type,
            "tags": ", ".join(header.tags),
            **{key: _plain(value) for key, value in header.config.items()},
            **({"n_and_intervals": _plain(run.details)} if run.details else {}),
        },
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    tables = {
        table.name: module.Table(
            columns=list(table.columns), data=[list(row) for row in table.rows]
        )
        for table in run.tables
    }
    if run.summary or tables:
        module.log({**run.summary, **tables}, step=0)
    for step, line in run.history:
        module.log(dict(line), step=step)
    if run.artifact is not None:
        started.log_artifact(_artifact(run.artifact, module))
    module.finish()


def _remove_earlier(project: str, name: str, module: Any) -> None:
    with suppress(ValueError):  # the project does not exist yet
        for earlier in module.Api().runs(project):
            if earlier.name == name:
                earlier.delete()


def _plain(value: object) -> object:
    """Return a value that trackio's table of runs can show."""
    return value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)


def _artifact(artifact: TrackedArtifact, module: Any) -> Any:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in artifact.name)
    logged = module.Artifact(
        name,
        type=artifact.kind,
        metadata={
            "folder": str(artifact.folder),
            "inputs": list(artifact.inputs),
            "sha256": {file.path: file.digest for file in artifact.files},
        },
    )
    for file in artifact.files:
        # checksum=False: the hashes are known, and the files may be very large.
        uri = (artifact.folder / file.path).as_uri()
        logged.add_reference(uri, name=file.path, checksum=False)
    return logged
