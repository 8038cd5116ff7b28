"""Tiny training runs for tests: data made on the spot, models of a few thousand parameters."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amnesia_bench.config.load import load_option
from amnesia_bench.config.train_schema import Recipe, TrainConfig, TrainingRun
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing

VOCAB = 97
TOKENS = 32
TOKENIZER = b'{"a tokenizer": 1}'
TOKENIZER_SHA256 = hashlib.sha256(TOKENIZER).hexdigest()


@dataclass(frozen=True)
class Row:
    tokens: np.ndarray
    loss_mask: np.ndarray
    document_lengths: tuple[int, ...]


class Store:
    """The interface of prepared data over three arrays in a folder."""

    def __init__(self, folder: Path) -> None:
        settings = json.loads((folder / "settings.json").read_text())
        self.tokenizer_sha256 = settings["tokenizer_sha256"]
        self.vocab_size = settings["vocab_size"]
        self.sequence_tokens = settings["sequence_tokens"]
        self.isolate_documents = settings["isolate_documents"]
        self._lengths = settings["document_lengths"]
        self._tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self._mask = np.load(folder / "mask.npy", mmap_mode="r")

    @property
    def packs_documents(self) -> bool:
        return any(len(lengths) > 1 for lengths in self._lengths)

    @property
    def num_sequences(self) -> int:
        return len(self._tokens)

    def sequence(self, i: int) -> Row:
        return Row(self._tokens[i], self._mask[i], tuple(self._lengths[i]))


class Shuffled:
    """A seeded order over one or more sources: epoch after epoch, each a permutation."""

    def __init__(self, sizes: list[int], seed: int) -> None:
        self._all = [(source, i) for source, size in enumerate(sizes) for i in range(size)]
        self._seed = seed

    def sample(self, index: int) -> tuple[int, int]:
        epoch, at = divmod(index, len(self._all))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._all))
        return self._all[order[at]]


def write_data(
    folder: Path,
    *,
    rows: int = 24,
    tokens: int = TOKENS,
    isolate: bool = True,
    documents: int = 3,
    seed: int = 0,
    tokenizer_sha256: str = TOKENIZER_SHA256,
    spoil: Callable[[np.ndarray, np.ndarray], None] = lambda tokens, mask: None,
) -> Path:
    """Prepared data of random documents, some in each row, whose masks are very uneven."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, VOCAB, (rows, tokens), dtype=np.int32)
    mask = rng.random((rows, tokens)) < rng.choice([0.05, 0.3, 1.0], (rows, 1))
    mask[:, 5] = True
    lengths = []
    for _ in range(rows):
        cuts = np.sort(rng.choice(np.arange(1, tokens), documents - 1, replace=False))
        lengths.append(np.diff([0, *cuts, tokens]).tolist())
    for row, of_row in enumerate(lengths):
        for start in np.cumsum([0, *of_row[:-1]]):
            mask[row, start] = False
        mask[row, int(np.cumsum([0, *of_row])[np.argmax(of_row)]) + 1] = True
    spoil(ids, mask)
    with publishing(folder) as work:
        np.save(work.folder / "tokens.npy", ids)
        np.save(work.folder / "mask.npy", mask)
        settings = {
            "tokenizer_sha256": tokenizer_sha256,
            "vocab_size": VOCAB,
            "sequence_tokens": tokens,
            "isolate_documents": isolate,
            "document_lengths": lengths,
        }
        (work.folder / "settings.json").write_text(json.dumps(settings))
        work.finish("data", (), collect_provenance(["test"], seeds={}))
    return folder


TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mixer_types": ["lightning-attn", "attn", "attn", "lightning-attn"],
    "max_position_embeddings": 4096,
    "rope_theta": 1000000,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_nkv": 4,
    "lightning_use_qk_norm": True,
    "lightning_use_output_norm": True,
    "lightning_use_output_gate": True,
    "expand_kv_proj": True,
}


def write_hypenet(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A random HypeNet in the official format."""
    import torch

    from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM

    torch.manual_seed(seed)
    HypeNetForCausalLM(HypeNetConfig(**(TINY | changes))).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder


def write_teacher(folder: Path, *, seed: int = 1, **changes: Any) -> Path:
    """A random Qwen3 that a stage-1 or stage-2 HypeNet can be converted from."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shared = {key: value for key, value in TINY.items() if key in Qwen3Config().to_dict()}
    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    config = Qwen3Config(**(shared | {"rope_parameters": rope} | changes))
    Qwen3ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    return folder


def training_run(
    train: Mapping[str, Any] | None = None, recipe: Mapping[str, Any] | None = None
) -> TrainingRun:
    """An SFT of eight steps in float32, with changes."""
    adam = {"kind": "adamw", "learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_steps": 2,
            "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}  # fmt: skip
    values: dict[str, Any] = {
        "name": "tiny", "objective": "next_token", "model": None, "teacher": None, "steps": 8,
        "global_batch": 4, "micro_batch": 1, "sequence_tokens": TOKENS, "mixture": {"sft": 1.0},
        "isolate_documents": True, "align_layers": "all", "freeze": None,
        "optimizer": adam, "compute_dtype": "fp32", "activation_checkpointing": "none",
        "loss_chunk_rows": 16,
        "checkpoints": {"every_steps": 3, "keep": 2, "asynchronous": False},
        "trusted_code_sha256": None, "wandb_project": None, "seed": 0,
    }  # fmt: skip
    merged = values | dict(train or {})
    merged["optimizer"] = adam | dict(merged["optimizer"])
    fixed = load_option("recipe", "fixed", [], Recipe)
    return TrainingRun(
        train=TrainConfig.model_validate_json(json.dumps(merged)),
        recipe=Recipe.model_validate_json(json.dumps(fixed.model_dump() | dict(recipe or {}))),
    )


@dataclass(frozen=True, kw_only=True)
class TinyJob:
    """What a test trains; plain enough to be sent to another process."""

    run: TrainingRun
    init: Path
    data: dict[str, Path]
    out: Path
    teacher: Path | None = None


def train_here(job: TinyJob) -> int:
    """Train in this process and return the exit code of a run that ends."""
    import torch

    from amnesia_bench.requests.training import TrainRequest
    from amnesia_bench.training.run import TrainingJob, run_job

    torch.set_num_threads(1)
    stores = {name: Store(folder) for name, folder in job.data.items()}
    run_job(
        TrainingJob(
            request=TrainRequest(run=job.run, init=job.init, teacher=job.teacher, data=job.data),
            stores=stores,
            order=Shuffled([s.num_sequences for s in stores.values()], job.run.train.seed),
            tokenizer_sha256=hashlib.sha256((job.init / "tokenizer.json").read_bytes()).hexdigest(),
            out=job.out,
        )
    )
    return 0


def as_process(job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
    """Be one process of a run, and end with its exit code."""
    from amnesia_bench.errors import AmnesiaError

    # What torchrun would set.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        code = train_here(job)
    except AmnesiaError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        code = int(error.exit_code)
    os._exit(code)


class Started:
    """A run in processes of its own, forked from a server that has torch imported."""

    def __init__(self, job: TinyJob, size: int = 1, target: Any = as_process) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["amnesia_bench.training.run"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # A folder for each start: two runs at once would overwrite each other's lines.
        logs = Path(tempfile.mkdtemp(prefix=f"{job.out.name}.logs.", dir=job.out.parent))
        self._logs = [logs / f"rank-{rank}" for rank in range(size)]
        self.processes = [
            context.Process(target=target, args=(job, rank, size, port, self._logs[rank]))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Return the exit codes; processes that do not end are killed."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self) -> None:
        """kill -9 all of them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    @property
    def said(self) -> str:
        return "".join(log.read_text() for log in self._logs if log.exists())
