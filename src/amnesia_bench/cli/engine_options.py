"""What all commands that let a model answer ask about the engine."""

from __future__ import annotations

import argparse

from amnesia_bench.inference import ENGINES


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which engine runs a model, and how."""
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help=f"what runs it ({ENGINES[0]})"
    )
    parser.add_argument(
        "--max-context-tokens", type=int, help="overrides the context limit of the model's config"
    )
    parser.add_argument(
        "--attn-logits-scaling",
        metavar='"hype A"',
        help="of a HypeNet's softmax layers, in place of that in its config (HypeNet-2B: hype 500)",
    )
