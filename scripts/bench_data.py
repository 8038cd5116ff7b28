"""Tokens per second of `amnesia data prepare` and of plain `datasets.map`, in the same run.

python scripts/bench_data.py --tokenizer FOLDER --input FILE.jsonl

FILE has rows with a question and an answer, such as GSM8K's train set. Both sides read the same
file of texts with the same tokenizer: datasets.map writes Arrow files of token lists, prepare
writes packed, hashed and published sequences. Rounds alternate; the best of each counts.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from amnesia_bench.config.load import load_data
from amnesia_bench.data import prepare as preparing
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.sequence_store import open_store
from amnesia_bench.requests.data import PrepareRequest
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

ROUNDS = 3
DOCUMENT_ROWS = 8  # about a thousand tokens a document, as FineWeb-Edu's have


def write_texts(source: Path, folder: Path, copies: int) -> Path:
    """Join rows of a question file into documents; copies differ, so no cache can help."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    texts = [f"{row['question']}\n{row['answer']}" for row in rows]
    path = folder / "texts.jsonl"
    with path.open("w") as file:
        for copy in range(copies):
            for i in range(0, len(texts), DOCUMENT_ROWS):
                text = "\n\n".join([f"Part {copy}.{i}", *texts[i : i + DOCUMENT_ROWS]])
                file.write(json.dumps({"text": text}) + "\n")
    return path


def by_map(
    path: Path, tokenizer: PreTrainedTokenizerBase, cache: Path, num_proc: int | None
) -> None:
    """Tokenise with datasets.map, as its documentation shows."""
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    rows.map(
        lambda batch: tokenizer(batch["text"]),
        batched=True,
        remove_columns=["text"],
        num_proc=num_proc,
        load_from_cache_file=False,
    )


def plain_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(folder))


def tokenizer_alone(path: Path, tokenizer: DataTokenizer) -> None:
    """Encode everything in one call and discard the result."""
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    tokenizer.encode_batch(texts, special_tokens=False)


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds, including those of child processes."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    run()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a tokenizer")
    parser.add_argument("--input", type=Path, required=True, help="question, answer: JSON lines")
    parser.add_argument("--copies", type=int, default=2)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    ours, theirs = (load(arguments.tokenizer) for load in (load_tokenizer, plain_tokenizer))
    config = load_data("fineweb_edu_stage1")
    # Loading transformers and the vocabulary is not measured.
    preparing.load_tokenizer = lambda folder: ours
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = write_texts(arguments.input, folder, arguments.copies)
        out = folder / "out"
        request = PrepareRequest(config=config, tokenizer=arguments.tokenizer, inputs=(texts,))

        def prepare() -> None:
            shutil.rmtree(out, ignore_errors=True)
            preparing.prepare(request, out)

        sides: dict[str, Callable[[], object]] = {
            "amnesia data prepare": prepare,
            "datasets.map, threads": lambda: by_map(texts, theirs, folder / "a", None),
            "datasets.map, num_proc=2": lambda: by_map(texts, theirs, folder / "b", 2),
            "the tokenizer alone": lambda: tokenizer_alone(texts, DataTokenizer(ours)),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, side in sides.items():
                taken[name].append(measured(side))
        counts = open_store(out).description.counts
    tokens = counts.tokens - counts.padding_tokens
    print(
        f"## Data\n\n{tokens:,} tokens of {counts.documents:,} documents, {os.cpu_count()} cores; "
        f"best of {ROUNDS} alternating rounds. The time of\n`amnesia data prepare` includes "
        "reading, hashing, packing and publishing; that of datasets.map\nincludes reading (from "
        "its own cache after the first round).\n\n"
        "| | tokens/s | wall time relative to prepare (target 1.5) | CPU s |\n|---|---|---|---|"
    )
    best = {
        name: [min(column) for column in zip(*times, strict=True)] for name, times in taken.items()
    }
    for name, (wall, cpu) in best.items():
        ratio = wall / best["amnesia data prepare"][0]
        print(f"| {name} | {tokens / wall:,.0f} | {ratio:.2f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
