"""Load a checkpoint into an engine, on one device or on all GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.inference.data_parallel import DataParallelEngine, Loader
from amnesia_bench.inference.protocol import (
    Engine,
    EngineOptions,
    HeldEngine,
    ProgressEngine,
    silent,
)
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.inference.vllm_engine import VllmEngine
from amnesia_bench.requests.engines import ENGINES, EngineChoice
from amnesia_bench.store.files import read_json


def open_engine(
    choice: EngineChoice,
    candidate: Candidate,
    *,
    verify_prefix: int = 0,
    count: Callable[[int, int], None] = silent,
) -> Engine:
    """Load a checkpoint into the engine of the user's choice.

    The engine raises an error as soon as the checkpoint's files differ from those that were hashed.

    Args:
        choice: the name of the engine, and values that override the model's config.
        candidate: the checkpoint.
        verify_prefix: number of answers to recompute without shared prefixes.
        count: called with the number of answered requests and the total number of requests.

    Raises:
        UserError: the folder contains no model, or the choice does not apply to the model.
        MissingEnvironmentError: vLLM is not installed.
    """
    options = EngineOptions(
        verify_prefix=verify_prefix,
        max_context_tokens=choice.max_context_tokens,
        attn_logits_scaling=choice.attn_logits_scaling,
    )
    engine = load_engine(choice.name, candidate.folder, options)
    return ProgressEngine(HeldEngine(engine, candidate.held), count)


def load_engine(name: str, checkpoint: Path, options: EngineOptions) -> Engine:
    """Load a checkpoint folder into an engine, with all engine options.

    The engine runs on all visible GPUs, with a copy of the model on each, unless the options name a
    device.

    Raises:
        UserError: the engine is unknown, the folder contains no model, or an option does not
            apply to the model.
        MissingEnvironmentError: vLLM is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"unknown engine {name}", hint=nearest(name, ENGINES))
    if options.attn_logits_scaling is not None:
        check_hypenet(checkpoint)
    load: Loader = VllmEngine.load if name == "vllm" else TransformersEngine.load
    count = torch.cuda.device_count()
    if options.device is None and count > 1:
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        return DataParallelEngine(load, checkpoint, options, names.split(",")[:count])
    return load(checkpoint, options)


def check_hypenet(checkpoint: Path) -> None:
    """Raise UserError unless a checkpoint is a HypeNet, the only model with a logit scaling."""
    config = read_json(checkpoint / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "hypenet":
        raise UserError(
            f"{checkpoint}: attn_logits_scaling only applies to HypeNet; this checkpoint is {kind}",
            hint="Remove the option.",
        )
