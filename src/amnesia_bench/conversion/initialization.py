"""A model that has learned nothing yet, as a checkpoint folder with its tokenizer.

The tiny profile pretrains its own teacher from here; on a cluster the teacher is a Qwen3.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

import amnesia_bench.modeling  # noqa: F401 - registers HypeNet with transformers' auto classes
from amnesia_bench.config.load import load_model_file
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Manifest, Parent
from amnesia_bench.store.hashing import file_entry, sha256_of
from amnesia_bench.store.provenance import collect_provenance, ended_now
from amnesia_bench.store.publish import publishing


def initialize(model: str, tokenizer: Path, seed: int, out: Path) -> int:
    """Write a checkpoint of random float32 weights to `out`, whole or not at all.

    Args:
        model: a config of configs/model.
        tokenizer: folder of the tokenizer, copied into the checkpoint.
        seed: of the weights.
        out: folder to write.

    Returns:
        The number of parameters.

    Raises:
        UserError: no such model, the tokenizer does not fit it, or `out` exists.
    """
    values = load_model_file(model)
    if values["model_type"] not in CONFIG_MAPPING:
        raise UserError(f"model {model}: transformers has no code for {values['model_type']}")
    files = _tokenizer_files(tokenizer)
    loaded = AutoTokenizer.from_pretrained(
        tokenizer, local_files_only=True, trust_remote_code=False
    )
    if len(loaded) > values["vocab_size"]:
        raise UserError(
            f"{model} has room for {values['vocab_size']} tokens, the tokenizer of {tokenizer} "
            f"has {len(loaded)}"
        )
    provenance = collect_provenance(sys.argv, seeds={"weights": seed})
    values |= {"eos_token_id": loaded.eos_token_id, "pad_token_id": loaded.pad_token_id}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with publishing(out) as work, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        network.save_pretrained(work.folder)
        for file in files:
            shutil.copyfile(file, work.folder / file.name)
        hashes = {path.name: sha256_of(path) for path in sorted(work.folder.iterdir())}
        work.finish(
            Manifest(
                kind="initialized",
                parents=tuple(
                    Parent(
                        role="tokenizer",
                        location=str(file),
                        identity=f"sha256:{hashes[file.name]}",
                    )
                    for file in files
                ),
                files=tuple(
                    file_entry(work.folder, name, sha256=digest) for name, digest in hashes.items()
                ),
                provenance=ended_now(provenance),
            )
        )
    return int(network.num_parameters())


def _tokenizer_files(folder: Path) -> list[Path]:
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: holds no tokenizer.json",
            hint="amnesia data synthesize tokenizer --out DIR makes one.",
        )
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return [folder / name for name in names if (folder / name).is_file()]
