"""Options of the inference engine, shared by all commands that run a model."""

from __future__ import annotations

import argparse

from amnesia_bench.cli.requests import make
from amnesia_bench.requests.engines import ENGINES, EngineChoice


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the inference engine, and which engine."""
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help=f"inference backend ({ENGINES[0]})"
    )
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the engine that override the model's config."""
    parser.add_argument(
        "--max-context-tokens", type=int, help="overrides the context limit of the model's config"
    )
    parser.add_argument(
        "--attn-logits-scaling",
        metavar='"hype A"',
        help="overrides the logit scaling of a HypeNet's config (HypeNet-2B: hype 500)",
    )


def engine_choice(args: argparse.Namespace) -> EngineChoice:
    """Return the engine choice that these options specify.

    Raises:
        UserError: a value is invalid.
    """
    return make(
        EngineChoice,
        {"name": "--engine"},
        name=getattr(args, "engine", ENGINES[0]),  # some commands have no choice
        max_context_tokens=args.max_context_tokens,
        attn_logits_scaling=args.attn_logits_scaling,
    )
