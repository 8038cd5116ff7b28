"""Refuse what the models of this plugin cannot do in vLLM, before vLLM starts."""

from __future__ import annotations

from typing import Any

from amnesia_bench.modeling.input_errors import InvalidModelInputError

_HINT = "The transformers engine runs it: --engine transformers."


def check_support(config: Any, ranks: int = 1) -> None:
    """Raise an error for a config that vLLM cannot run.

    Args:
        config: a `HypeNetConfig` or a `JetNemotronConfig`.
        ranks: the number of GPUs that share the model by tensor parallelism.

    Raises:
        InvalidModelInputError: the message names the key and its value.
    """
    kinds = set(config.layer_types)
    if "linear_attention" not in kinds or kinds == {"linear_attention"}:
        missing = "linear" if "linear_attention" not in kinds else "softmax"
        raise InvalidModelInputError(
            f"config.json: the model has no {missing} layers; vLLM runs {config.model_type} models "
            "with both kinds",
            hint=_HINT,
        )
    if config.hidden_act != "silu":
        raise InvalidModelInputError(
            f"config.json: hidden_act is {config.hidden_act!r}; in vLLM, only 'silu' is supported",
            hint=_HINT,
        )
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if config.uses_positions and rope_type in ("dynamic", "longrope"):
        raise InvalidModelInputError(
            f"config.json: rope_type is {rope_type!r}, which depends on the length of a request; "
            "vLLM computes all requests of a step together",
            hint=_HINT,
        )
    for key, heads in _head_counts(config).items():
        divides = heads % ranks == 0 or ("kv" in key and ranks % heads == 0)
        if not divides:
            raise InvalidModelInputError(
                f"config.json: {key} is {heads}, which cannot be split over {ranks} GPUs",
                hint="Use another --tensor-parallel-size.",
            )


def _head_counts(config: Any) -> dict[str, int]:
    counts = {
        "num_attention_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
    }
    if config.model_type == "hypenet":
        counts |= {"lightning_nh": config.lightning_nh, "lightning_nkv": config.lightning_nkv}
    else:
        counts |= {"efficient_attention_config.jet.num_heads": config.jet_block.num_heads}
    return counts
