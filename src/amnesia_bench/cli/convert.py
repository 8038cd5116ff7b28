"""Convert a Qwen3 teacher to a HypeNet checkpoint.

  amnesia convert --teacher Qwen3-1.7B --size 2b --stage 1 --out student
  amnesia convert --teacher Qwen3-1.7B --size 2b --stage 2 --student student --out hybrid

Stage 1 creates the student for hidden-state alignment, which has a lightning mixer in every layer.
Stage 2 creates the hybrid, which has the teacher's softmax attention in the layers that the config
or `amnesia select-layers` selects, and lightning mixers in all others. Nobody has published the
layers of 0_6b: those in its config are evenly spaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.checkpoints import ConvertRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a Qwen3 checkpoint")
    parser.add_argument(
        "--size",
        required=True,
        help="size of the HypeNet: 0_6b, 2b, 5b, 9b, or the path of a config (.yaml, config.json)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--stage", type=int, choices=(1, 2), required=True, help="training stage; see above"
    )
    parser.add_argument(
        "--student", type=Path, help="stage 2: copy trained lightning mixers of this checkpoint"
    )
    parser.add_argument(
        "--tie-head",
        choices=("teacher", "config"),
        default="teacher",
        help="if the teacher's head is untied and the config's is tied (9B): keep the teacher's "
        "head, or drop it as the authors did (teacher)",
    )
    parser.add_argument(
        "--layers",
        type=Path,
        metavar="FILE",
        help="stage 2: softmax layers from a file of `amnesia select-layers` (those of the config)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the new gates (0)")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        ConvertRequest,
        teacher=args.teacher,
        model=amnesia_bench.load_hypenet(args.size),
        stage=args.stage,
        student=args.student,
        tie_head=args.tie_head,
        seed=args.seed,
        layers=args.layers,
    )
    config = amnesia_bench.convert(request, args.out)
    softmax = ", ".join(map(str, config.softmax_layers)) or "none"
    say(
        f"{args.out}: {config.num_hidden_layers} layers, softmax attention in {softmax}; "
        f"{'tied' if config.tie_word_embeddings else 'untied'} head."
    )
    return ExitCode.DONE
