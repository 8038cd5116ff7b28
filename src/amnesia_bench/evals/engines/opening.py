"""Engines by name."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.evals.engines.options import EngineOptions
from amnesia_bench.evals.engines.protocol import Engine

ENGINES = ("transformers",)


def open_engine(name: str, checkpoint: Path, options: EngineOptions) -> Engine:
    """Load a checkpoint into an engine.

    Raises:
        UserError: no engine of this name, or the folder holds no model.
    """
    if name not in ENGINES:
        raise UserError(f"engine {name}: not known", hint=nearest(name, ENGINES))
    from amnesia_bench.evals.engines.transformers_engine import TransformersEngine

    return TransformersEngine.load(checkpoint, options)
