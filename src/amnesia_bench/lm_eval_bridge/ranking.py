"""Appendix M on a checkpoint: the engine, the ablations and lm-eval's tasks brought together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.lm_eval_bridge.layer_ablation import (
    ABLATION,
    output_projections,
    without_attention,
)
from amnesia_bench.lm_eval_bridge.layer_ranking import rank_layers
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM
from amnesia_bench.lm_eval_bridge.retrieval_tasks import accuracies, load_retrieval_tasks
from amnesia_bench.recall.check_inputs import open_candidates
from amnesia_bench.records.layer_ranking import LayerRanking
from amnesia_bench.weights.checkpoint import open_checkpoint


def rank_checkpoint(
    checkpoint: Path,
    tasks: Sequence[str],
    samples: int | None,
    data: Path | None,
    out: Path,
    progress: Callable[[str], None],
) -> LayerRanking:
    """Rank the softmax layers of a checkpoint by leaving each out, and write the ranking.

    Args:
        checkpoint: the folder.
        tasks: see `load_retrieval_tasks`.
        samples: how many documents of each task at most; None for all.
        data: a folder of data, or None to fetch them.
        out: the JSON file to write.
        progress: told one line before each measurement.

    Raises:
        UserError: anything about the inputs is wrong; nothing was written.
    """
    if out.exists():
        raise UserError(f"{out}: already exists", hint="Choose another file.")
    projections = output_projections(open_checkpoint(checkpoint))
    (candidate,) = open_candidates({"checkpoint": checkpoint})
    loaded = load_retrieval_tasks(tasks, candidate.tokenizer, data)
    engine = TransformersEngine.load(checkpoint, EngineOptions())
    lm = AmnesiaLM(engine, candidate.tokenizer)

    def measure(layer: int | None) -> Mapping[str, float]:
        progress("the whole model answers" if layer is None else f"without layer {layer}")
        ablation = (
            nullcontext() if layer is None else without_attention(engine.module, projections[layer])
        )
        with ablation:
            measured = accuracies(lm, loaded, samples)
        candidate.held.check()
        return measured

    plan = LayerRanking(
        checkpoint=candidate.parent,
        ablation=ABLATION,
        tasks=tuple(task.record(samples) for task in loaded),
        accuracy={},
        layers=(),
        settings=engine.settings,
    )
    return rank_layers(plan, sorted(projections), measure, out)
