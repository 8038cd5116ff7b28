"""Load a checkpoint into the engine that the user named, on one device or on all GPUs."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.inference import ENGINES
from amnesia_bench.inference.protocol import Engine, EngineOptions
from amnesia_bench.store.files import read_json


def open_engine(name: str, checkpoint: Path, options: EngineOptions) -> Engine:
    """Load a checkpoint into an engine.

    transformers runs on all GPUs unless the options name one; vLLM on one, the first it sees.

    Raises:
        UserError: no engine of this name, or the folder holds no model, or options of another.
        MissingEnvironmentError: vLLM is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"engine {name}: not known", hint=nearest(name, ENGINES))
    if options.attn_logits_scaling is not None:
        _check_hypenet(checkpoint)
    if name == "vllm":
        from amnesia_bench.inference.vllm_engine import VllmEngine

        return VllmEngine.load(checkpoint, options)
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if options.device is None and len(gpus) > 1:
        from amnesia_bench.inference.data_parallel import DataParallelEngine

        return DataParallelEngine(checkpoint, options, gpus)
    from amnesia_bench.inference.transformers_engine import TransformersEngine

    return TransformersEngine.load(checkpoint, options)


def _check_hypenet(checkpoint: Path) -> None:
    config = read_json(checkpoint / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "hypenet":
        raise UserError(
            f"{checkpoint}: attn_logits_scaling is of HypeNets, and this is a {kind}",
            hint="Leave it out.",
        )
