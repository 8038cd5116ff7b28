"""The tracking service that a command's experiments select."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from amnesia_bench.config.tracking_schema import Tracking
from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.pipeline.graph import Graph

TRACKING = "tracking"  # the name of the store's folder for offline runs and notes on published ones


def tracking_of(graphs: Sequence[Graph]) -> Tracking:
    """Return where a command's experiments are published.

    Raises:
        UserError: they select several services or projects.
    """
    choices = list(dict.fromkeys(graph.job.config.tracking for graph in graphs))
    if len(choices) > 1:
        raise UserError(
            "tracking: several services or projects are selected",
            hint="Run one command for each of them.",
        )
    return choices[0]


def check_installed(tracking: Tracking) -> None:
    """Check that the package of the service is installed.

    Raises:
        MissingEnvironmentError: it is not.
    """
    service = tracking.service
    if service is not None and find_spec(service) is None:
        raise MissingEnvironmentError(
            f"tracking={service}: the package {service} is not installed",
            hint=f'pip install "amnesia-bench[{service}]", or leave tracking={service} out.',
        )
