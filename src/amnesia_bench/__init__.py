"""amnesia_bench: did a fine-tune make a hybrid LLM forget how to look far back? Repair it.

Each use case is one request and one function, the front doors below. Importing this package is
fast; a function's module is imported when the function is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from amnesia_bench.errors import MissingEnvironmentError

if TYPE_CHECKING:
    from amnesia_bench.config.load import load_data as load_data
    from amnesia_bench.config.load import load_hypenet as load_hypenet
    from amnesia_bench.config.load import load_model as load_model
    from amnesia_bench.config.load import load_niah as load_niah
    from amnesia_bench.config.load import load_training as load_training
    from amnesia_bench.config.load import load_variant as load_variant
    from amnesia_bench.conversion.conversion import convert as convert
    from amnesia_bench.conversion.initialization import initialize as initialize
    from amnesia_bench.costs.estimate import estimate as estimate
    from amnesia_bench.data.prepare import prepare as prepare
    from amnesia_bench.data.synthesize import synthesize_rows as synthesize_rows
    from amnesia_bench.data.synthesize import synthesize_tokenizer as synthesize_tokenizer
    from amnesia_bench.lm_eval_bridge.evaluation import evaluate as evaluate
    from amnesia_bench.lm_eval_bridge.ranking import rank_layers as rank_layers
    from amnesia_bench.pipeline.experiments import plan as plan
    from amnesia_bench.pipeline.experiments import run as run
    from amnesia_bench.reasoning.answering import generate as generate
    from amnesia_bench.reasoning.compare import compare as compare
    from amnesia_bench.reasoning.score import score as score
    from amnesia_bench.reasoning.tasks import load_eval as load_eval
    from amnesia_bench.recall.check import check as check
    from amnesia_bench.recall.niah.build import build_prompts as build_prompts
    from amnesia_bench.reporting.building import report as report
    from amnesia_bench.surgery.diff import diff as diff
    from amnesia_bench.surgery.restoration import restore as restore
    from amnesia_bench.surgery.verification import verify as verify
    from amnesia_bench.training.run import train as train
    from amnesia_bench.weights.hub import download as download

__version__ = "0.1.0"


class FrontDoor(NamedTuple):
    """Where a function lives, and the extra of the package that it needs; "" for none."""

    module: str
    extra: str = ""


FRONT_DOORS = {
    # Practitioner: two checkpoints.
    "check": FrontDoor("recall.check", "eval"),
    "restore": FrontDoor("surgery.restoration"),
    "diff": FrontDoor("surgery.diff"),
    "verify": FrontDoor("surgery.verification"),
    # Recall and reasoning.
    "build_prompts": FrontDoor("recall.niah.build", "eval"),
    "evaluate": FrontDoor("lm_eval_bridge.evaluation", "eval"),
    "rank_layers": FrontDoor("lm_eval_bridge.ranking", "eval"),
    "generate": FrontDoor("reasoning.answering", "eval"),
    "score": FrontDoor("reasoning.score", "eval"),
    "compare": FrontDoor("reasoning.compare", "eval"),
    # Checkpoints, data and training.
    "download": FrontDoor("weights.hub"),
    "initialize": FrontDoor("conversion.initialization", "train"),
    "convert": FrontDoor("conversion.conversion", "train"),
    "prepare": FrontDoor("data.prepare", "train"),
    "synthesize_rows": FrontDoor("data.synthesize"),
    "synthesize_tokenizer": FrontDoor("data.synthesize"),
    "estimate": FrontDoor("costs.estimate"),
    "train": FrontDoor("training.run", "train"),
    # Experiments.
    "plan": FrontDoor("pipeline.experiments"),
    "run": FrontDoor("pipeline.experiments"),
    "report": FrontDoor("reporting.building"),
    # Configs that requests hold, by name.
    "load_variant": FrontDoor("config.load"),
    "load_data": FrontDoor("config.load"),
    "load_eval": FrontDoor("reasoning.tasks"),
    "load_model": FrontDoor("config.load"),
    "load_niah": FrontDoor("config.load"),
    "load_hypenet": FrontDoor("config.load"),
    "load_training": FrontDoor("config.load"),
}


def __getattr__(name: str) -> Any:
    """Import a front door where it is first used."""
    if name not in FRONT_DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    door = FRONT_DOORS[name]
    try:
        return getattr(import_module(f"{__name__}.{door.module}"), name)
    except ImportError as error:
        if not door.extra:
            raise
        raise MissingEnvironmentError(
            f"{name} needs packages that are not installed ({error})",
            hint=f'pip install "amnesia-bench[{door.extra}]"',
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *FRONT_DOORS])
