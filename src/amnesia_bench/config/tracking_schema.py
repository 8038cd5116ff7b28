"""Schema of tracking: the service that receives copies of results. It does not affect results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from amnesia_bench.config.schema import Frozen

TrackingService = Literal["wandb", "trackio"]


class Tracking(Frozen):
    """Where finished stages, table rows and reports are published.

    `service` is null to publish nothing. `entity` is a user or team of W&B; null selects the
    account's default. `project` is the name of the project in both services.
    """

    service: TrackingService | None
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    entity: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None
