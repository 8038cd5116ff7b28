"""What a run reads, identified by content: a resumed run must find what it began with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.store.hashing import compare_changed, read_manifest
from amnesia_bench.training.batches import TokenStore


def data_parent(source: str, folder: Path) -> Parent:
    """Identify prepared data by the hashes in its manifest, which its files are held against.

    A file whose time of change is that of the manifest is not read again.

    Raises:
        UserError: the folder is not a finished artifact, or not what its manifest says.
    """
    manifest = read_manifest(folder)
    problems = [f"{found.path} {found.problem}" for found in compare_changed(folder, manifest)]
    if problems:
        raise UserError(
            f"{folder}: is not what was prepared: {'; '.join(problems)}",
            hint="Prepare the data again, to another folder.",
        )
    hashes = {entry.path: entry.sha256 for entry in manifest.files}
    digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    return Parent(role=f"data:{source}", location=str(folder), identity=f"sha256:{digest}")


def check_data(run: TrainingRun, stores: Mapping[str, TokenStore], tokenizer_sha256: str) -> None:
    """Hold prepared data against the stage and the tokenizer of the checkpoint it starts from.

    Raises:
        UserError: sources are missing or left over, or their data were prepared for another
            tokenizer, length or stage.
    """
    train = run.train
    if set(stores) != set(train.mixture):
        raise UserError(
            f"the stage mixes {', '.join(sorted(train.mixture))}; data were given for "
            f"{', '.join(sorted(stores)) or 'none'}",
            hint="Give --data NAME=FOLDER once for each, or change train.mixture.",
        )
    for name, store in stores.items():
        if store.tokenizer_sha256 != tokenizer_sha256:
            raise UserError(
                f"data {name} were prepared with another tokenizer than that of the checkpoint "
                f"({store.tokenizer_sha256[:12]}, not {tokenizer_sha256[:12]})",
                hint="Prepare the data with the tokenizer in the --init folder.",
            )
        if store.sequence_tokens != train.sequence_tokens:
            raise UserError(
                f"data {name} have sequences of {store.sequence_tokens} tokens, the stage wants "
                f"{train.sequence_tokens}",
                hint="Prepare them at that length, or change train.sequence_tokens.",
            )
        if store.isolate_documents != run.isolate_documents:
            kept, wanted = (
                "isolated" if isolated else "not isolated"
                for isolated in (store.isolate_documents, run.isolate_documents)
            )
            raise UserError(
                f"data {name} were prepared for documents that are {kept}; here they are {wanted}",
                hint="Prepare them for this stage, or change train.isolate_documents.",
            )
