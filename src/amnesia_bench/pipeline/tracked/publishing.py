"""Publish what is finished to a tracking service; the entry point is `track`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.config.tracking_schema import Tracking
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import Graph
from amnesia_bench.pipeline.tracked.metrics import DELTA, RECALL_BY_LENGTH
from amnesia_bench.pipeline.tracked.reports import report_runs
from amnesia_bench.pipeline.tracked.rows import row_runs, rows_of_experiments
from amnesia_bench.pipeline.tracked.service import TRACKING, check_installed, tracking_of
from amnesia_bench.pipeline.tracked.stages import stage_runs
from amnesia_bench.pipeline.tracked.stamps import (
    Stamp,
    id_of_version,
    read_stamp,
    stamps_of,
    write_stamp,
)
from amnesia_bench.requests.experiments import TrackRequest
from amnesia_bench.store.files import explaining_write_errors, make_folder
from amnesia_bench.store.layout import store_of
from amnesia_bench.store.lease import holding_lease
from amnesia_bench.tracking.tracked_run import TrackedRun
from amnesia_bench.tracking.trackio_sink import publish_to_trackio
from amnesia_bench.tracking.wandb_client import MAX_FAILURES, WandbClient
from amnesia_bench.tracking.wandb_sink import publish_to_wandb


@dataclass(frozen=True, kw_only=True)
class TrackResult:
    """The numbers of runs that were published now, were published before, or failed.

    `where` is the folder of offline runs, or the project; `view` is what to type to see the runs.
    """

    published: int
    unchanged: int
    failed: int
    where: str
    view: str


def track(request: TrackRequest) -> TrackResult:
    """Publish the finished stages, table rows and reports of experiments as tracked runs.

    A run that was published before and has not changed is not published again.

    Raises:
        UserError: an override is wrong, no service is selected, or a file is damaged.
        BusyError: another process is publishing from the same store.
        MissingEnvironmentError: the package of the service is not installed, or the store cannot be
            written.
    """
    store = store_of(request.store)
    graphs = graphs_of(request.overrides)
    tracking = tracking_of(graphs)
    if tracking.service is None:
        raise UserError(
            "tracking=none publishes nothing", hint="Add tracking=wandb or tracking=trackio."
        )
    check_installed(tracking)
    folder = store / TRACKING / tracking.service
    with explaining_write_errors(folder, "runs published before are kept"):
        make_folder(folder)
        with holding_lease(folder / tracking.project):
            return _publish(_runs(graphs, store, request.results, tracking), folder, tracking)


def _runs(
    graphs: Sequence[Graph], store: Path, results: Path, tracking: Tracking
) -> Iterator[TrackedRun]:
    yield from stage_runs(graphs, store, tracking)
    yield from row_runs(rows_of_experiments(graphs), store, tracking)
    yield from report_runs(graphs, store, results, tracking)


def _publish(runs: Iterator[TrackedRun], folder: Path, tracking: Tracking) -> TrackResult:
    client = WandbClient(folder) if tracking.service == "wandb" else None
    stamps = stamps_of(folder, tracking.project)
    published = unchanged = failed = 0
    for run in runs:
        before = read_stamp(stamps, run.header.run_id)
        # Another experiment published a stage that it shares; its tag is kept.
        tags = (*(before.tags if before is not None else ()), *run.header.tags)
        run = replace(run, header=replace(run.header, tags=tuple(dict.fromkeys(tags))))
        if before is not None and before == _stamp(run, before, client):
            unchanged += 1
        elif failed < MAX_FAILURES and _send(run, before, client, stamps):
            published += 1
        else:
            failed += 1
    where, view = _view(folder, tracking, None if client is None else client.mode)
    return TrackResult(
        published=published, unchanged=unchanged, failed=failed, where=where, view=view
    )


def _stamp(run: TrackedRun, before: Stamp | None, client: WandbClient | None) -> Stamp:
    """Return the stamp of a run once it has been sent; `before` is its present one."""
    changed = before is not None and before.lines_sha256 != run.lines_sha256
    return Stamp(
        sha256=run.sha256,
        lines_sha256=run.lines_sha256,
        # A run that was published offline is published again once there is an API key.
        mode="local" if client is None else client.mode,
        tags=run.header.tags,
        version=(1 if before is None else before.version) + changed,
    )


def _send(run: TrackedRun, before: Stamp | None, client: WandbClient | None, stamps: Path) -> bool:
    """Send a run to the service, and remember that; return whether it succeeded."""
    run_id, stamp = run.header.run_id, _stamp(run, before, client)
    if client is None:
        sent = publish_to_trackio(run)
    else:
        headers = [
            replace(run.header, run_id=id_of_version(run_id, version))
            for version in range(1, stamp.version + 1)
        ]
        # If this process is killed, it is unknown which lines were sent.
        begun = replace(stamp, sha256=None, lines_sha256=None)
        sent = publish_to_wandb(
            replace(run, header=headers[-1]),
            client,
            lines_sent=before is not None and before.version == stamp.version,
            begun=lambda: write_stamp(stamps, run_id, begun),
        )
        if sent and before is not None and before.version < stamp.version:
            for header in headers[:-1]:
                client.retire(header)
    if sent:
        # The client may have changed its mode: W&B did not answer.
        write_stamp(stamps, run_id, _stamp(run, before, client))
    return sent


def _view(folder: Path, tracking: Tracking, mode: str | None) -> tuple[str, str]:
    """Return where the runs are, and what to type to see them."""
    project = f"project {tracking.project}"
    if mode is None:
        query = f"&smoothing=0&metric_filter={RECALL_BY_LENGTH}|{DELTA}"
        return project, (
            f"To see them: trackio show --project {tracking.project}. To compare table rows, "
            f"append {query} to the address of the page."
        )
    if mode == "offline":
        runs = folder / "wandb"
        return str(runs), f"To upload them: wandb sync {shlex.quote(str(runs))}/offline-run-*"
    return project, "To compare table rows: amnesia dashboard ... --push"
