"""Which settings decide a result. A field that is listed nowhere fails the test until it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amnesia_bench.config.data_schema import DataConfig, SyntheticSource
from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.config.schema import Frozen, Variant
from amnesia_bench.config.train_schema import Recipe, TrainConfig, TrainingRun

# What a thing is called, when it is saved and who is told, and how the work is cut up: the same
# numbers, up to the order in which they are added.
NEUTRAL: Mapping[type[Frozen], frozenset[str]] = {
    TrainConfig: frozenset(
        {
            "name",
            "model",  # for estimates only
            "teacher",  # the folder itself is an input
            "activation_checkpointing",
            "loss_chunk_rows",
            "checkpoints",
            "wandb_project",
        }
    ),
    Recipe: frozenset({"name"}),
    DataConfig: frozenset({"name"}),
    EvalConfig: frozenset(),
    SyntheticSource: frozenset({"kind"}),
    Variant: frozenset({"name"}),
}
DECIDING: Mapping[type[Frozen], frozenset[str]] = {
    TrainConfig: frozenset(
        {
            "objective",
            "steps",
            "global_batch",
            "micro_batch",  # recipes that average over micro-batches
            "sequence_tokens",
            "mixture",
            "isolate_documents",
            "align_layers",
            "freeze",
            "optimizer",
            "compute_dtype",
            "trusted_code_sha256",
            "seed",
        }
    ),
    Recipe: frozenset(
        {
            "master_dtype",
            "kd_rows",
            "kd_dtype",
            "loss_mean",
            "head",
            "shuffle",
            "isolate_documents",
            "buffers_dtype",
        }
    ),
    DataConfig: frozenset(
        {
            "source",
            "rows",
            "chat",
            "pack",
            "over_length",
            "sequence_tokens",
            "isolate_documents",
            "sample_rows",
            "max_dropped",
            "seed",
        }
    ),
    EvalConfig: frozenset(
        {
            "repeats",
            "max_new_tokens",
            "temperature",
            "top_p",
            "top_k",
            "seed",
            "chat_template",
            "think",
            "window",
            "seconds_per_test",
            "checker",
        }
    ),
    SyntheticSource: frozenset({"generator", "rows", "words", "seed"}),
    Variant: frozenset({"select", "rule"}),
}


def deciding(config: Frozen) -> dict[str, Any]:
    """Return the settings of a config that decide a result, as JSON values."""
    if isinstance(config, TrainingRun):
        return {"train": deciding(config.train), "recipe": deciding(config.recipe)}
    known = next(kind for kind in DECIDING if isinstance(config, kind))
    return config.model_dump(mode="json", include=set(DECIDING[known]))
