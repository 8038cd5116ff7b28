"""The plugin that adds HypeNet and Jet-Nemotron to vLLM.

vLLM finds `register` by the entry point `amnesia_bench` in the group `vllm.general_plugins`, and
calls it in each of its processes, possibly several times. With this package installed, the two
models therefore run in every vLLM: `vllm serve`, `vllm.LLM`, lm-eval's `--model vllm`.

This room is code that vLLM runs. It imports vLLM and the configs and functions of `modeling`, and
nothing else of the package.
"""

from __future__ import annotations

# The name of the entry point, by which the variable VLLM_PLUGINS selects plugins.
PLUGIN_NAME = "amnesia_bench"
PLUGIN_GROUP = "vllm.general_plugins"
# The names in `architectures` of config.json. vLLM imports a class only to run its model.
ARCHITECTURES = {
    "HypeNetForCausalLM": f"{__name__}.hypenet:VllmHypeNetForCausalLM",
    "JetNemotronForCausalLM": f"{__name__}.jet_nemotron:VllmJetNemotronForCausalLM",
}


def register() -> None:
    """Register the configs with transformers and the models with vLLM."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from amnesia_bench.modeling.configuration_hypenet import HypeNetConfig
    from amnesia_bench.modeling.configuration_jet_nemotron import JetNemotronConfig

    for config in (HypeNetConfig, JetNemotronConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for architecture, model in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, model)
