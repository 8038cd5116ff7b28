"""Send runs to W&B: a training run while it runs, and finished runs from the store's records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from amnesia_bench.tracking.tracked_run import RunHeader, TrackedArtifact, TrackedRun, TrackedTable
from amnesia_bench.tracking.wandb_client import WandbClient

# A published run was computed elsewhere, so this process's output, machine and commit are not its.
_PUBLISHED = {
    "console": "off",
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
}
_ARTIFACT_NAME_CHARACTERS = 128


class WandbSink:
    """Sends the metrics of a training run to W&B while it runs; a failure never affects the run.

    The authoritative record of a run is metrics.jsonl. W&B receives the same values.

    Args:
        header: the identity and config of the W&B run.
        folder: the folder of offline runs.
        module: the `wandb` package; if None, it is imported.
    """

    def __init__(self, header: RunHeader, folder: Path, module: Any = None) -> None:
        self._client = WandbClient(folder, module)
        self._run: Any = self._client.start(header)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of one step."""
        self._client.call("log", lambda: self._run.log(dict(metrics), step=step))

    def finish(self, exit_code: int) -> None:
        """End the W&B run with this exit code."""
        self._client.call("finish", lambda: self._run.finish(exit_code=exit_code))


def publish_to_wandb(
    run: TrackedRun,
    client: WandbClient,
    *,
    lines_sent: bool = False,
    begun: Callable[[], None] = lambda: None,
) -> bool:
    """Send a finished run to W&B; return whether every call succeeded.

    Args:
        run: the run. If W&B has a run with its id, that run is continued.
        client: the client.
        lines_sent: whether the same history and tables were sent under this id before. W&B can
            only append lines, so they are then left out, unless W&B does not have the run.
        begun: called once the run has been started, before its first line is sent.
    """
    has_files = bool(client.offline_folders(run.header.run_id))
    started = client.start(run.header, **_PUBLISHED)
    if started is None:
        return False
    begun()
    sent = []
    if not (lines_sent and (started.resumed or (client.mode == "offline" and has_files))):
        lines: list[dict[str, Any]] = [{run.step_name: at, **values} for at, values in run.history]
        sent = [client.call("log", partial(started.log, line)) for line in lines]
        sent += [client.call("log", partial(_log_table, client, started, t)) for t in run.tables]
    sent.append(
        client.call("summary", lambda: started.summary.update({**run.summary, **run.details}))
    )
    if (artifact := run.artifact) is not None:
        sent.append(client.call("artifact", lambda: _log_artifact(client, started, artifact)))
    sent.append(client.call("finish", lambda: started.finish(exit_code=0)))
    return all(sent)


def _log_table(client: WandbClient, run: Any, table: TrackedTable) -> None:
    rows = [list(row) for row in table.rows]
    make = client.module().Table
    run.log({table.name: make(columns=list(table.columns), data=rows, allow_mixed_types=True)})


def _log_artifact(client: WandbClient, run: Any, artifact: TrackedArtifact) -> None:
    """Record the artifact of a run, and online also those from which it was made."""
    if client.mode == "online":  # offline, wandb refuses to use artifacts
        for name in artifact.inputs:
            run.use_artifact(f"{_artifact_name(name)}:latest")
    module = client.module()
    entry = module.sdk.artifacts.artifact_manifest_entry.ArtifactManifestEntry
    logged = module.Artifact(
        _artifact_name(artifact.name),
        type=artifact.kind,
        metadata={"folder": str(artifact.folder), "inputs": list(artifact.inputs)},
    )
    for file in artifact.files:
        # add_reference would read the file, which may have hundreds of gigabytes, to hash it. The
        # hash is known: it is the one in the manifest.
        uri = (artifact.folder / file.path).as_uri()
        logged.manifest.add_entry(
            entry(path=file.path, digest=file.digest, ref=uri, size=file.bytes)
        )
    run.log_artifact(logged)


def _artifact_name(name: str) -> str:
    """Return a name that W&B and trackio accept: letters, digits and `._-`."""
    allowed = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    return allowed[-_ARTIFACT_NAME_CHARACTERS:]
