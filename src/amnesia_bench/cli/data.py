r"""Prepare training data, inspect prepared data, or generate synthetic data.

  amnesia data prepare miromind --tokenizer HYPENET --out data/miromind
  amnesia data prepare messages --tokenizer HYPENET --out data/mine --input rows.jsonl \
      data.sequence_tokens=4096
  amnesia data prepare tulu3 --tokenizer LLAMA --out data/tulu3 --chat template
  amnesia data inspect data/miromind --sequence 0
  amnesia data synthesize tokenizer --out data/tokenizer
  amnesia data synthesize test_problems --rows 200 --seed 1 --out data/problems

The first argument of `prepare` is the name of a config in configs/data, or the path of your own
config (path/to/mine.yaml). The configs messages, sharegpt, alpaca and prompt_response are for rows
in your own files; the configs of generated data need neither a download nor --input. To resume an
interrupted preparation, run the same command again: finished input files are skipped. `inspect`
compares the files with their hashes and prints the counts. `synthesize` writes the tokenizer for
generated texts, or the rows of a generator, which can be evaluation problems, a haystack, or
training rows to inspect. `import` copies a file, which `profile.files` of an experiment names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import amnesia_bench
from amnesia_bench.cli.command import Subcommand
from amnesia_bench.cli.output import percent, print_json, say, show, table, tell
from amnesia_bench.cli.requests import make
from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.data.data_tokenizer import decoder
from amnesia_bench.data.sequence_store import TOKENIZER, SequenceStore, open_store
from amnesia_bench.data.synthesize import ROWS
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.printable import counted, printable
from amnesia_bench.records.data import DataDescription
from amnesia_bench.requests.data import (
    ImportRowsRequest,
    PrepareRequest,
    SynthesizeRowsRequest,
    SynthesizeTokenizerRequest,
)
from amnesia_bench.store.hashing import verify_manifest

if TYPE_CHECKING:
    from rich.text import Text

    from amnesia_bench.data.prepare import PreparationProgress, Report


_MAX_COLUMNS = 20


def _add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help="name of a config in configs/data, or path/to/mine.yaml"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of the checkpoint to train"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; must not exist yet"
    )
    parser.add_argument(
        "--chat",
        metavar="STYLE",
        help="overrides the config's chat style: template (the tokenizer's own chat template), "
        "qwen3, chatml, llama3, mistral, or question_answer for a base model without a template",
    )
    parser.add_argument(
        "--input",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="read all rows of this file (Parquet, JSON lines, a JSON array) or folder instead of "
        "the config's source; can be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="override a value of the config: data.sequence_tokens=4096",
    )


def _prepare(args: argparse.Namespace) -> ExitCode:
    # The config's sample_rows is meant for the config's own source. By default, all rows of the
    # user's files are used.
    whole = ["data.sample_rows=1.0"] if args.input else []
    request = make(
        PrepareRequest,
        {"inputs": "--input"},
        config=amnesia_bench.load_data(args.config, [*whole, *args.overrides], args.chat),
        tokenizer=args.tokenizer,
        inputs=tuple(args.input),
    )
    with _reporting() as report:
        description = amnesia_bench.prepare(request, args.out, progress=report)
    if args.json:
        print_json(description)
    else:
        _print(description)
    return ExitCode.DONE


def _add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of prepared data")
    parser.add_argument(
        "--sequence",
        type=int,
        metavar="N",
        help="print sequence N (from 0) instead: trained tokens in green, other tokens dimmed",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def _inspect(args: argparse.Namespace) -> ExitCode:
    store = open_store(args.folder)
    if args.sequence is not None:
        if not 0 <= args.sequence < store.num_sequences:
            raise UserError(
                f"--sequence {args.sequence}: {store.folder} has sequences 0 to "
                f"{store.num_sequences - 1}"
            )
        show(_coloured(store, args.sequence))
        return ExitCode.DONE
    findings = verify_manifest(store.folder)
    if args.json:
        print_json(store.description)
    else:
        _print(store.description)
        for finding in findings:
            say(f"{finding.path} {finding.problem}")
        say("Files: changed since they were written" if findings else "Files: intact")
    return ExitCode.STAGE_FAILED if findings else ExitCode.DONE


def _add_synthesize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "generator", metavar="GENERATOR", help="tokenizer, or the name of a row generator"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="number of rows")
    parser.add_argument(
        "--words",
        type=int,
        metavar="N",
        help="approximate number of words per row, for generators with a variable row length",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the generator (0)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; must not exist yet"
    )


def _synthesize(args: argparse.Namespace) -> ExitCode:
    if args.generator == "tokenizer":
        request = make(SynthesizeTokenizerRequest, seed=args.seed)
        amnesia_bench.synthesize_tokenizer(request, args.out)
        say(f"{args.out}: the tokenizer for generated texts")
        return ExitCode.DONE
    source = make(
        SyntheticSource,
        {"generator": "generator"},
        generator=args.generator,
        rows=args.rows,
        words=args.words,
        seed=args.seed,
    )
    amnesia_bench.synthesize_rows(SynthesizeRowsRequest(source=source), args.out)
    say(f"{args.out / ROWS}: {args.rows:,} rows of {args.generator}")
    return ExitCode.DONE


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the file of rows or texts")
    parser.add_argument("--sha256", metavar="HEX", help="expected hash of the file's contents")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; must not exist yet"
    )


def _import(args: argparse.Namespace) -> ExitCode:
    request = make(ImportRowsRequest, {"sha256": "--sha256"}, file=args.file, sha256=args.sha256)
    amnesia_bench.import_rows(request, args.out)
    say(f"{args.out / request.copy_name}: a copy of {args.file}")
    return ExitCode.DONE


SUBCOMMANDS = {
    "prepare": Subcommand(
        "tokenize a data source and pack it into sequences", _add_prepare_arguments, _prepare
    ),
    "inspect": Subcommand(
        "verify prepared data, print its counts or one sequence", _add_inspect_arguments, _inspect
    ),
    "import": Subcommand(
        "copy a file of rows into a folder with a manifest", _add_import_arguments, _import
    ),
    "synthesize": Subcommand(
        "generate synthetic rows, or their tokenizer", _add_synthesize_arguments, _synthesize
    ),
}


def _coloured(store: SequenceStore, number: int) -> Text:
    """Return a sequence as styled text, with a heading before each document."""
    from rich.text import Text  # imported here so that --help does not wait for it

    # Runs of tokens are decoded together, because one character may consist of several tokens.
    decode = decoder(store.folder / TOKENIZER)
    sequence = store.sequence(number)
    text, begin = Text(), 0
    documents = sequence.document_lengths[: -1 if sequence.padding else None]
    for i, length in enumerate(documents):
        mask = sequence.loss_mask[begin : begin + length]
        trained_tokens = int(mask.sum())
        text.append(f"--- document {i}: {length:,} tokens, {trained_tokens:,} trained\n", "bold")
        for trained, run in groupby(range(length), key=lambda t: bool(mask[t])):
            tokens = [int(sequence.tokens[begin + t]) for t in run]
            text.append(printable(decode(tokens)), "green" if trained else "dim")
        text.append("\n")
        begin += length
    text.append(f"--- {sequence.padding:,} padding tokens", "bold")
    return text


def _print(description: DataDescription) -> None:
    counts = description.counts
    grid = table(f"{description.name}: {counted(description.num_sequences, 'sequence')} of "
                 f"{description.sequence_tokens:,} tokens", ("", "count", "share"))  # fmt: skip
    documents, tokens = max(counts.documents, 1), counts.tokens
    sampled = description.config["sample_rows"]
    shares = [
        ("rows read" if sampled == 1 else f"rows read (sample_rows={sampled})", counts.rows, None),
        *((f"  dropped: {reason}", n, n / counts.rows) for reason, n in counts.dropped.items()),
        ("documents", counts.documents, None),
        ("  longer than a sequence", counts.over_length, counts.over_length / documents),
        ("  fragments of long documents", counts.fragments, None),
        ("  fragments without trained tokens", counts.untrained_fragments, None),
        ("tokens", tokens, None),
        ("  trained", counts.trained_tokens, counts.trained_tokens / tokens),
        ("  padding", counts.padding_tokens, counts.padding_tokens / tokens),
    ]
    for label, count, share in shares:
        grid.add_row(label, f"{count:,}", "" if share is None else percent(share))
    show(grid)
    isolated = "isolated from each other" if description.isolate_documents else "not isolated"
    say(f"Documents in a sequence are {isolated}. "
        f"Tokenizer: sha256 {description.tokenizer_sha256[:12]}")  # fmt: skip


@contextmanager
def _reporting() -> Iterator[Report]:
    """Show progress on stderr (a line per finished step and, on a terminal, a bar for each step).

    Yields the function to call with each progress report.
    """
    if not sys.stderr.isatty():
        yield _print_finished
        return
    from rich.console import Console  # imported here so that --help does not wait for it
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(),
               TextColumn("{task.fields[counted]}"), TimeElapsedColumn())  # fmt: skip
    tasks = {}
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def report(progress: PreparationProgress) -> None:
            if progress.step not in tasks:
                # The bar only pulses, because the number of rows in a file is unknown.
                tasks[progress.step] = bars.add_task(progress.step, total=None, counted="")
            bars.update(tasks[progress.step], counted=_counted(progress))
            if progress.finished:
                bars.remove_task(tasks[progress.step])
                bars.console.out(_line(progress), highlight=False)

        yield report


def _print_finished(progress: PreparationProgress) -> None:
    if progress.finished:
        tell(_line(progress))


def _line(progress: PreparationProgress) -> str:
    line = f"{progress.step}: {_counted(progress)}"
    if progress.held_out:
        path = progress.step
        line = f"{path}: skipped, its name is that of a held-out split; --input {path} reads it"
    if progress.dropped:
        line += f"\nfirst dropped row: {progress.dropped}"
    if progress.unread:
        columns, more = progress.unread[:_MAX_COLUMNS], len(progress.unread) - _MAX_COLUMNS
        line += f"\nunused columns: {', '.join(columns)}"
        line += f" and {more} more" if more > 0 else ""
    return printable(line)


def _counted(progress: PreparationProgress) -> str:
    unit = "sequences" if progress.step == "packing" else "documents"
    resumed = ", from an earlier run" if progress.reused else ""
    return f"{progress.done:,} {unit}, {progress.tokens:,} tokens{resumed}"
