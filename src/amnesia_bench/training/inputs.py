"""Check the inputs of a run, and identify prepared data by their contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.store.hashing import compare_changed, read_manifest
from amnesia_bench.training.batches import TokenStore
from amnesia_bench.training.heads import trainable
from amnesia_bench.weights.checkpoint import Checkpoint

# With these RoPE types the rotation depends on the longest document of a row, so documents in one
# row affect each other. `su` is the name of longrope in the first Phi-3 configs.
_ROPE_OF_THE_ROW = frozenset({"dynamic", "longrope", "su"})


def data_parent(source: str, folder: Path) -> Parent:
    """Check prepared data against their manifest, and return a parent record with their hash.

    The hash covers the file hashes in the manifest. A large file is not read again if its
    modification time is the one in the manifest.

    Raises:
        UserError: the folder is not a finished artifact, or does not match its manifest.
    """
    manifest = read_manifest(folder)
    problems = [f"{file.path} {file.problem}" for file in compare_changed(folder, manifest)]
    if problems:
        raise UserError(
            f"{folder}: was changed since it was prepared: {'; '.join(problems)}",
            hint="Prepare the data again, to another folder.",
        )
    hashes = {entry.path: entry.sha256 for entry in manifest.files}
    digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    return Parent(role=f"data:{source}", location=str(folder), identity=f"sha256:{digest}")


def check_data(run: TrainingRun, stores: Mapping[str, TokenStore], tokenizer_sha256: str) -> None:
    """Check that prepared data match the stage and the tokenizer of the initial checkpoint.

    Raises:
        UserError: a source of the mixture has no data, data are not of a source in the mixture, or
            data were prepared for another tokenizer, sequence length or document isolation.
    """
    train = run.train
    if set(stores) != set(train.mixture):
        raise UserError(
            f"the stage mixes {', '.join(sorted(train.mixture))}; data were given for "
            f"{', '.join(sorted(stores)) or 'none'}",
            hint="Give --data NAME=FOLDER once for each source, or change train.mixture.",
        )
    for name, store in stores.items():
        if store.tokenizer_sha256 != tokenizer_sha256:
            raise UserError(
                f"data {name} were prepared with a different tokenizer than that of the checkpoint "
                f"({store.tokenizer_sha256[:12]}, not {tokenizer_sha256[:12]})",
                hint="Prepare the data with the tokenizer in the --init folder.",
            )
        if store.sequence_tokens != train.sequence_tokens:
            raise UserError(
                f"data {name} have sequences of {store.sequence_tokens} tokens, the stage needs "
                f"{train.sequence_tokens}",
                hint="Prepare them at that length, or change train.sequence_tokens.",
            )
        if store.isolate_documents != run.isolate_documents:
            prepared, required = (
                "isolated" if isolated else "not isolated"
                for isolated in (store.isolate_documents, run.isolate_documents)
            )
            raise UserError(
                f"data {name} were prepared with documents {prepared}; this stage needs them "
                f"{required}",
                hint="Prepare them for this stage, or change train.isolate_documents.",
            )


def check_documents(run: TrainingRun, stores: Mapping[str, TokenStore], init: Checkpoint) -> None:
    """Refuse packed data if the stage isolates documents and the model cannot.

    Raises:
        UserError: the model cannot isolate the documents of a row, or its rotary embedding depends
            on the other documents of the row.
    """
    packed = [name for name, store in stores.items() if store.packs_documents]
    if not packed or not run.isolate_documents:
        return
    kind = init.config.get("model_type")
    rope_of_row = sorted(_ROPE_OF_THE_ROW & _rope_types(init.config))
    if trainable(kind).documents == "alone":
        why = f"models of type {kind} cannot isolate packed documents"
    elif rope_of_row:
        why = f"with rope_type {rope_of_row[0]} packed documents change each other's positions"
    else:
        return
    raise UserError(
        f"{init.folder}: {why}, and data {packed[0]} have sequences of several documents",
        hint="Prepare the data with one document per sequence: data.pack=single.",
    )


def _rope_types(config: Mapping[str, Any]) -> set[Any]:
    """Return the RoPE types in a config.json; families with sliding windows have two entries."""
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return set()
    nested = [section for section in rope.values() if isinstance(section, Mapping)]
    return {section.get("rope_type", section.get("type")) for section in nested or [rope]}


def check_vocabulary(stores: Mapping[str, TokenStore], init: Checkpoint) -> None:
    """Refuse data whose token ids may exceed the rows of the embeddings.

    Raises:
        UserError: the tokenizer, which `init` and the data share, has more tokens than the
            embeddings have rows.
    """
    tables = (s[0] for n, s in init.shapes.items() if n.endswith("embed_tokens.weight") and s)
    rows = min(tables, default=None)
    for name, store in stores.items():
        if rows is not None and store.vocab_size > rows:
            resize = (
                "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
                f"m = M.from_pretrained('{init.folder}'); "
                f"m.resize_token_embeddings({store.vocab_size}); m.save_pretrained('COPY'); "
                f"T.from_pretrained('{init.folder}').save_pretrained('COPY')"
            )
            raise UserError(
                f"the tokenizer of {init.folder}, with which data {name} were prepared, has tokens "
                f"up to {store.vocab_size - 1:,}; the embeddings have {rows:,} rows",
                hint=f'Resize the embeddings, and train COPY: python -c "{resize}"',
            )
