"""Fetch a model from the Hugging Face hub into a folder, whole or not at all.

  amnesia download Qwen/Qwen3-1.7B --out models/qwen3-1.7b
  amnesia download jet-ai/Jet-Nemotron-2B --revision COMMIT --out models/jet

Config, tokenizer, safetensors, and the code of an architecture that brings its own: it is kept and
not run. Every file is compared with the hub's hash. If it is killed, the same command resumes with
the files that are missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say, size
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.checkpoints import DownloadRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repository", metavar="OWNER/NAME", help="the model's name on the hub")
    parser.add_argument("--revision", help="commit, branch or tag (the newest commit)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(DownloadRequest, repository=args.repository, revision=args.revision)
    found = amnesia_bench.download(request, args.out)
    say(
        f"{args.out}: {args.repository} at {found.commit}, {found.files} files of "
        f"{size(found.bytes)}."
    )
    if found.code:
        say(f"It brings code, which was not run: {', '.join(found.code)}")
    return ExitCode.DONE
