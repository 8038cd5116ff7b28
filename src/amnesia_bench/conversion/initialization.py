"""Write a randomly initialised model and its tokenizer as a checkpoint folder.

The tiny profile pretrains its teacher from this checkpoint; on a cluster the teacher is a Qwen3
model.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

import amnesia_bench.modeling  # noqa: F401 - registers HypeNet with transformers' auto classes
from amnesia_bench.errors import UserError
from amnesia_bench.modeling.named_configs import check_config_keys
from amnesia_bench.modeling.torch_forms import pytorch_forms_on_cpu
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.checkpoints import InitializeRequest
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing


def initialize(request: InitializeRequest, out: Path) -> int:
    """Write a checkpoint with random float32 weights to `out`, complete or not at all.

    The files of the tokenizer are copied into the checkpoint.

    Returns:
        The number of parameters.

    Raises:
        UserError: transformers does not know the model type, the tokenizer is missing or has more
            tokens than the model's vocabulary, or `out` exists.
    """
    model, tokenizer = request.model, request.tokenizer
    values: dict[str, Any] = dict(model.values)
    model_type = values.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"model {model.name}: transformers has no model_type {model_type}")
    check_config_keys(model, values, CONFIG_MAPPING[model_type])
    files = _tokenizer_files(tokenizer)
    loaded_tokenizer = AutoTokenizer.from_pretrained(
        tokenizer, local_files_only=True, trust_remote_code=False
    )
    vocab_size = values.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise UserError(
            f"model {model.name}: vocab_size is {vocab_size!r}, expected a whole number"
        )
    if len(loaded_tokenizer) > vocab_size:
        raise UserError(
            f"{model.name} has a vocabulary of {vocab_size} tokens, but the tokenizer of "
            f"{tokenizer} has {len(loaded_tokenizer)}"
        )
    provenance = collect_provenance(sys.argv, seeds={"weights": request.seed})
    values |= {
        "eos_token_id": loaded_tokenizer.eos_token_id,
        "pad_token_id": loaded_tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(model_type, **values)
    except (TypeError, ValueError) as error:  # what transformers raises for values of a wrong type
        raise UserError(f"model {model.name}: transformers refuses its values ({error})") from error
    with publishing(out) as work, torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        with pytorch_forms_on_cpu():
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        network.save_pretrained(work.folder)
        for file in files:
            shutil.copyfile(file, work.folder / file.name)
        tokenizer_hashes = {file: f"sha256:{sha256_of(work.folder / file.name)}" for file in files}
        parents = [
            Parent(role="tokenizer", location=str(file), identity=identity)
            for file, identity in tokenizer_hashes.items()
        ]
        work.finish("initialized", parents, provenance)
    return int(network.num_parameters())


def _tokenizer_files(folder: Path) -> list[Path]:
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: holds no tokenizer.json",
            hint="Make one: amnesia data synthesize tokenizer --out DIR",
        )
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return [folder / name for name in names if (folder / name).is_file()]
