"""A model that has learned nothing yet, as a checkpoint folder with its tokenizer.

The tiny profile pretrains its own teacher from here; on a cluster the teacher is a Qwen3.
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
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.requests.checkpoints import InitializeRequest
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing


def initialize(request: InitializeRequest, out: Path) -> int:
    """Write a checkpoint of random float32 weights to `out`, whole or not at all.

    The tokenizer is copied into the checkpoint.

    Returns:
        The number of parameters.

    Raises:
        UserError: transformers has no such model, the tokenizer does not fit it, or `out` exists.
    """
    model, tokenizer = request.model, request.tokenizer
    values: dict[str, Any] = dict(model.values)
    kind = values.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise UserError(f"model {model.name}: transformers has no code for {kind}")
    files = _tokenizer_files(tokenizer)
    loaded = AutoTokenizer.from_pretrained(
        tokenizer, local_files_only=True, trust_remote_code=False
    )
    if len(loaded) > values["vocab_size"]:
        raise UserError(
            f"{model.name} has room for {values['vocab_size']} tokens, the tokenizer of "
            f"{tokenizer} has {len(loaded)}"
        )
    provenance = collect_provenance(sys.argv, seeds={"weights": request.seed})
    values |= {"eos_token_id": loaded.eos_token_id, "pad_token_id": loaded.pad_token_id}
    config = AutoConfig.for_model(kind, **values)
    with publishing(out) as work, torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        network.save_pretrained(work.folder)
        for file in files:
            shutil.copyfile(file, work.folder / file.name)
        copies = {file: f"sha256:{sha256_of(work.folder / file.name)}" for file in files}
        parents = [
            Parent(role="tokenizer", location=str(file), identity=identity)
            for file, identity in copies.items()
        ]
        work.finish("initialized", parents, provenance)
    return int(network.num_parameters())


def _tokenizer_files(folder: Path) -> list[Path]:
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: holds no tokenizer.json",
            hint="amnesia data synthesize tokenizer --out DIR makes one.",
        )
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return [folder / name for name in names if (folder / name).is_file()]
