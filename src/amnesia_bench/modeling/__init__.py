"""HypeNet and Jet-Nemotron; the import registers them with transformers' auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from amnesia_bench.modeling.configuration_hypenet import HypeNetConfig
from amnesia_bench.modeling.configuration_jet_nemotron import JetNemotronConfig
from amnesia_bench.modeling.hybrid_cache import HypeNetCache, PrefixSnapshot
from amnesia_bench.modeling.lightning_attention import alibi_log_decay, lightning_attention
from amnesia_bench.modeling.modeling_hypenet import (
    HypeNetForCausalLM,
    HypeNetModel,
    HypeNetPreTrainedModel,
)
from amnesia_bench.modeling.modeling_jet_nemotron import (
    JetNemotronForCausalLM,
    JetNemotronModel,
    JetNemotronPreTrainedModel,
)
from amnesia_bench.modeling.packing import PackedRows

AutoConfig.register(HypeNetConfig.model_type, HypeNetConfig, exist_ok=True)
AutoModel.register(HypeNetConfig, HypeNetModel, exist_ok=True)
AutoModelForCausalLM.register(HypeNetConfig, HypeNetForCausalLM, exist_ok=True)
AutoConfig.register(JetNemotronConfig.model_type, JetNemotronConfig, exist_ok=True)
AutoModel.register(JetNemotronConfig, JetNemotronModel, exist_ok=True)
AutoModelForCausalLM.register(JetNemotronConfig, JetNemotronForCausalLM, exist_ok=True)

__all__ = [
    "HypeNetCache",
    "HypeNetConfig",
    "HypeNetForCausalLM",
    "HypeNetModel",
    "HypeNetPreTrainedModel",
    "JetNemotronConfig",
    "JetNemotronForCausalLM",
    "JetNemotronModel",
    "JetNemotronPreTrainedModel",
    "PackedRows",
    "PrefixSnapshot",
    "alibi_log_decay",
    "lightning_attention",
]
