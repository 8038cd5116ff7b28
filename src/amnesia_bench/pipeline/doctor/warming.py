"""Compile and tune the GPU kernels of the paper's models, so that the first stages do not wait.

Triton keeps compiled kernels in its cache ($TRITON_CACHE_DIR), torch.compile in its own
($TORCHINDUCTOR_CACHE_DIR). Results of autotuning are kept too if TRITON_CACHE_AUTOTUNING=1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.pipeline.doctor.result import HealthCheck, broken, ok, output_of

_SECONDS = 3600.0
_MODELS = ("hypenet_2b", "hypenet_5b", "hypenet_9b", "jet_nemotron_2b")
# One layer of each kind has all kernels of the model; a vocabulary of 1,024 saves memory.
_WARM = """\
import sys, torch
import amnesia_bench.modeling
from amnesia_bench.config.load import load_model
from transformers import AutoConfig, AutoModelForCausalLM
values = dict(load_model(sys.argv[1]).values)
key = "mixer_types" if "mixer_types" in values else "layer_types"
values[key] = list(dict.fromkeys(values[key]))
values |= {"num_hidden_layers": len(values[key]), "vocab_size": 1024, "bos_token_id": 0,
           "eos_token_id": 0, "pad_token_id": 0}
config = AutoConfig.for_model(values.pop("model_type"), **values)
device = torch.device(sys.argv[2])
tokens = int(sys.argv[3])
with device:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    ids = torch.randint(1024, (1, tokens))
for run in (model, torch.compile(model)) if device.type == "cuda" else (model,):
    run(input_ids=ids, labels=ids).loss.backward()
model.eval()
model.generate(ids[:, :-8], max_new_tokens=8, do_sample=False)
"""


def warming_checks(device: str = "cuda", tokens: int = 16384) -> Iterator[HealthCheck]:
    """Train and generate with a shallow model of each shape; yield a check for each.

    Args:
        device: the torch device.
        tokens: length of the sequence; the default is that of fine-tuning.
    """
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    for model in _MODELS:
        command = [sys.executable, "-P", "-c", _WARM, model, device, str(tokens)]
        try:
            output_of(command, _SECONDS)
        except MissingEnvironmentError as error:
            yield broken(f"kernels of {model}", error.what, "See the rows of torch and fla.")
        else:
            yield ok(f"kernels of {model}", "compiled and tuned; export TRITON_CACHE_AUTOTUNING=1")
