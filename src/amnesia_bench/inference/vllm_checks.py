"""Refuse, before vLLM starts, what it would refuse minutes later or without the reason."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.modeling import HypeNetConfig, JetNemotronConfig
from amnesia_bench.store.files import read_json
from amnesia_bench.vllm_plugin import PLUGIN_GROUP, PLUGIN_NAME
from amnesia_bench.vllm_plugin.support import check_support
from amnesia_bench.weights.checkpoint import open_checkpoint
from amnesia_bench.weights.file_names import INDEX

_OWN_CONFIGS: dict[object, Any] = {
    config.model_type: config for config in (HypeNetConfig, JetNemotronConfig)
}


def check_start(checkpoint: Path, options: EngineOptions) -> dict[str, object]:
    """Return the changes to the config of the model, after all checks.

    Raises:
        UserError: the options name a device, the folder has tensors of something else, or vLLM
            cannot run the model of this config.
        MissingEnvironmentError: vLLM would not find the plugin that has the model.
    """
    if options.device is not None:
        raise UserError(
            f"device={options.device}: vLLM uses the devices that are visible",
            hint="Set CUDA_VISIBLE_DEVICES instead.",
        )
    _check_files(checkpoint)
    kind = read_json(checkpoint / "config.json").get("model_type")
    if kind not in _OWN_CONFIGS:
        return {}
    _check_plugin(kind)
    changes: dict[str, object] = {}
    if options.attn_logits_scaling is not None:
        changes["attn_logits_scaling"] = options.attn_logits_scaling
    try:
        config = _OWN_CONFIGS[kind].from_pretrained(checkpoint, **changes)
        check_support(config)
    except StrictDataclassError as error:
        raise UserError(f"{checkpoint}: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{checkpoint}: {error.what}", hint=error.hint) from error
    limit = options.max_context_tokens
    if limit is not None and limit > config.max_position_embeddings:
        # vLLM refuses more tokens than the config allows, which may be too few.
        changes["max_position_embeddings"] = limit
    return changes


def _check_files(checkpoint: Path) -> None:
    expected = set(open_checkpoint(checkpoint).shards)
    others = sorted({path.name for path in checkpoint.glob("*.safetensors")} - expected)
    if others and not (checkpoint / INDEX).exists():  # vLLM reads only the files of an index
        raise UserError(
            f"{checkpoint / others[0]}: is not a part of the checkpoint, but vLLM loads every "
            "safetensors file of the folder",
            hint="Move it out of the folder.",
        )


def _check_plugin(kind: object) -> None:
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN_NAME not in allowed.split(","):
        names = ",".join(filter(None, [allowed, PLUGIN_NAME]))
        raise UserError(
            f"VLLM_PLUGINS={allowed}: switches off the plugin with which vLLM runs {kind} models",
            hint=f"Unset VLLM_PLUGINS, or set VLLM_PLUGINS={names}",
        )
    if PLUGIN_NAME not in {point.name for point in entry_points(group=PLUGIN_GROUP)}:
        raise MissingEnvironmentError(
            f"this installation of amnesia-bench lacks the entry point {PLUGIN_NAME} in "
            f"{PLUGIN_GROUP}, by which vLLM finds {kind} models",
            hint='Install it again: pip install "amnesia-bench[eval,vllm]"',
        )
