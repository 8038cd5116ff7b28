"""The layer ranking of Appendix M: evaluate retrieval tasks without each softmax layer in turn.

The formula of the ablated model is missing in our copy of the paper. We assume that the output
projection of the ablated layer returns zeros. The attention block then leaves the residual stream
unchanged, and the layer's MLP stays active.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import open_candidate
from amnesia_bench.inference.protocol import EngineOptions, silent
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.lm_eval_bridge.layer_ranking import measure_layers
from amnesia_bench.lm_eval_bridge.model import AmnesiaLM
from amnesia_bench.lm_eval_bridge.retrieval_tasks import files_in, load_retrieval_tasks
from amnesia_bench.lm_eval_bridge.zero_shot import accuracies
from amnesia_bench.records.layer_ranking import LayerRanking
from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.requests.recall import RankLayersRequest
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint

ABLATION = "attention output zero (our reading of Appendix M)"


def output_projections(checkpoint: Checkpoint) -> Mapping[int, str]:
    """Map the index of each full-attention softmax layer to the name of its output projection.

    Raises:
        UserError: the architecture is unknown, or has no such layers with an output projection.
    """
    attention = attention_map(checkpoint.config, checkpoint.shapes)
    layers = attention.layers(LayerKind.FULL)
    projections = {
        tensor.layer: tensor.name.removesuffix(".weight")
        for tensor in attention.tensors
        if tensor.role is Role.O and tensor.layer in layers and tensor.name.endswith(".weight")
    }
    if not layers or set(projections) != set(layers):
        raise UserError(
            f"{checkpoint.folder}: {attention.family} has no softmax layers over the whole "
            "context with their own output projection"
        )
    return projections


@contextmanager
def without_attention(model: Any, projection: str) -> Iterator[None]:
    """Set the attention output of one layer to zero inside the `with` block.

    Args:
        model: a transformers model; its weights are not changed.
        projection: the module name of the layer's output projection.

    Raises:
        UserError: the model has no module of this name.
    """
    try:
        module = model.get_submodule(projection)
    except AttributeError as error:
        raise UserError(
            f"{type(model).__name__} has no module {projection}: its module names differ from the "
            "tensor names of its checkpoint"
        ) from error
    hook = module.register_forward_hook(
        lambda _module, _inputs, output: output.new_zeros(output.shape)
    )
    try:
        yield
    finally:
        hook.remove()


def rank_layers(
    request: RankLayersRequest, out: Path, *, progress: Callable[[str], None] = silent
) -> LayerRanking:
    """Rank the softmax layers of a checkpoint by ablating each in turn, and write the ranking.

    Args:
        request: the checkpoint and the tasks.
        out: the JSON file to write.
        progress: called with one line of text before each measurement.

    Raises:
        UserError: an input is wrong, or `out` exists; no ranking is written.
        BusyError: another process is writing `out`.
        StageFailedError: the checkpoint changed during the ranking, or the disk is full; finished
            measurements are kept.
        MissingEnvironmentError: the data of the tasks cannot be downloaded.
    """
    if out.exists():
        raise UserError(f"{out}: already exists", hint="Choose another file.")
    projections = output_projections(open_checkpoint(request.checkpoint))
    candidate = open_candidate(request.checkpoint, method="")
    tasks = load_retrieval_tasks(
        tuple(dict.fromkeys(request.tasks)), candidate.tokenizer, files_in(request.data)
    )
    # Ablation requires the module in this process, so only this engine is possible, on one device.
    engine = TransformersEngine.load(request.checkpoint, EngineOptions())
    lm = AmnesiaLM(engine, candidate.tokenizer)

    def measure(layer: int | None) -> Mapping[str, float]:
        progress(
            "evaluating the whole model" if layer is None else f"evaluating without layer {layer}"
        )
        ablation = (
            nullcontext() if layer is None else without_attention(engine.module, projections[layer])
        )
        with ablation:
            measured = accuracies(lm, tasks, request.samples)
        candidate.held.check()
        return measured

    plan = LayerRanking(
        checkpoint=candidate.parent,
        ablation=ABLATION,
        tasks=tuple(task.record(request.samples) for task in tasks),
        accuracy={},
        layers=(),
        settings=engine.settings,
    )
    return measure_layers(plan, sorted(projections), measure, out)
