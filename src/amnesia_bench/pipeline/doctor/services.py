"""Examine the network services: the Hugging Face hub, and W&B."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec

from amnesia_bench.pipeline.doctor.result import HealthCheck, broken, lacking, ok
from amnesia_bench.tracking.wandb_client import wandb_mode

_HUB = "https://huggingface.co"
_SECONDS = 10
_FETCH = "On a machine with a network that shares the store: amnesia fetch experiment=NAME"


def hub_checks() -> Iterator[HealthCheck]:
    """Yield checks of the connection to the hub, and of the login there."""
    endpoint = os.environ.get("HF_ENDPOINT", _HUB)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield lacking("hub", "HF_HUB_OFFLINE forbids access", f"unset HF_HUB_OFFLINE. {_FETCH}")
    else:
        try:
            urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=_SECONDS).close()
        except urllib.error.HTTPError as error:
            yield broken("hub", f"{endpoint} answers {error.code} {error.reason}", _FETCH)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            yield lacking("hub", f"{endpoint} cannot be reached ({reason})", _FETCH)
        else:
            yield ok("hub", f"{endpoint} answers")
    if find_spec("huggingface_hub") is None:
        return
    from huggingface_hub import get_token

    if get_token() is None:
        yield lacking("hub login", "no token; gated models cannot be fetched", "hf auth login")
    else:
        yield ok("hub login", "a token is set")


def wandb_checks() -> Iterator[HealthCheck]:
    """Yield a check of W&B: the mode of runs and, if they are uploaded, the API key."""
    if find_spec("wandb") is None:
        yield lacking("W&B", "not installed", 'pip install "amnesia-bench[wandb]"')
        return
    mode = wandb_mode(os.environ)
    if mode != "online":
        yield lacking("W&B", f"runs are {mode}: no API key, or WANDB_MODE", "wandb login")
        return
    import wandb

    try:
        viewer = wandb.Api(timeout=_SECONDS).viewer
    except Exception as error:  # wandb has many error classes, also for an invalid key
        reason = str(error).partition("\n")[0]
        yield broken("W&B", f"the API key does not work ({reason})", "wandb login --relogin")
    else:
        yield ok("W&B", f"logged in as {viewer.username}")
