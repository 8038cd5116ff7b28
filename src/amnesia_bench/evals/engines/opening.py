"""Engines by name."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.evals.engines import ENGINES
from amnesia_bench.evals.engines.options import EngineOptions
from amnesia_bench.evals.engines.protocol import Engine


def open_engine(name: str, checkpoint: Path, options: EngineOptions) -> Engine:
    """Load a checkpoint into an engine.

    transformers runs on all GPUs unless the options name one; vLLM on one, the first it sees.

    Raises:
        UserError: no engine of this name, or the folder holds no model.
        MissingEnvironmentError: vLLM is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"engine {name}: not known", hint=nearest(name, ENGINES))
    if name == "vllm":
        from amnesia_bench.evals.engines.vllm_engine import VllmEngine

        return VllmEngine.load(checkpoint, options)
    from amnesia_bench.evals.engines.data_parallel import load_engine

    return load_engine(checkpoint, options)
