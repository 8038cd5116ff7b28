"""amnesia_bench: detect and repair the loss of long-range recall in fine-tuned hybrid LLMs.

Each use case has one front door (a function) and one request (its argument). Importing this package
is fast, since the module of a front door or request is imported only when its name is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from inspect import signature
from pathlib import Path
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
    from amnesia_bench.requests.checkpoints import ConvertRequest as ConvertRequest
    from amnesia_bench.requests.checkpoints import DiffRequest as DiffRequest
    from amnesia_bench.requests.checkpoints import DownloadRequest as DownloadRequest
    from amnesia_bench.requests.checkpoints import InitializeRequest as InitializeRequest
    from amnesia_bench.requests.checkpoints import RankedLayers as RankedLayers
    from amnesia_bench.requests.checkpoints import RestoreRequest as RestoreRequest
    from amnesia_bench.requests.checkpoints import VerifyRequest as VerifyRequest
    from amnesia_bench.requests.data import PrepareRequest as PrepareRequest
    from amnesia_bench.requests.data import SynthesizeRowsRequest as SynthesizeRowsRequest
    from amnesia_bench.requests.data import SynthesizeTokenizerRequest as SynthesizeTokenizerRequest
    from amnesia_bench.requests.engines import EngineChoice as EngineChoice
    from amnesia_bench.requests.experiments import LabelledCells as LabelledCells
    from amnesia_bench.requests.experiments import LabelledDrift as LabelledDrift
    from amnesia_bench.requests.experiments import PlanRequest as PlanRequest
    from amnesia_bench.requests.experiments import ReportRequest as ReportRequest
    from amnesia_bench.requests.experiments import RunRequest as RunRequest
    from amnesia_bench.requests.reasoning import CompareRequest as CompareRequest
    from amnesia_bench.requests.reasoning import GenerateRequest as GenerateRequest
    from amnesia_bench.requests.reasoning import ScoreRequest as ScoreRequest
    from amnesia_bench.requests.recall import BuildPromptsRequest as BuildPromptsRequest
    from amnesia_bench.requests.recall import CheckRequest as CheckRequest
    from amnesia_bench.requests.recall import EvaluateRequest as EvaluateRequest
    from amnesia_bench.requests.recall import HubEssays as HubEssays
    from amnesia_bench.requests.recall import RankLayersRequest as RankLayersRequest
    from amnesia_bench.requests.training import DryRunRequest as DryRunRequest
    from amnesia_bench.requests.training import EstimateRequest as EstimateRequest
    from amnesia_bench.requests.training import TrainRequest as TrainRequest
    from amnesia_bench.surgery.diff import diff as diff
    from amnesia_bench.surgery.restoration import restore as restore
    from amnesia_bench.surgery.verification import verify as verify
    from amnesia_bench.training.dry_run.measure import dry_run as dry_run
    from amnesia_bench.training.run import train as train
    from amnesia_bench.weights.hub import download as download

__version__ = "0.1.0"


class _MissingExtraError(MissingEnvironmentError, AttributeError):
    """An AttributeError too, so that `hasattr` and `inspect` work without the extras."""


class FrontDoor(NamedTuple):
    """The module that defines a front door, and the package extra that it needs ("" for none)."""

    module: str
    extra: str = ""


FRONT_DOORS = {
    # Check, restore, compare and verify checkpoints.
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
    "dry_run": FrontDoor("training.dry_run.measure", "train"),
    "train": FrontDoor("training.run", "train"),
    # Experiments.
    "plan": FrontDoor("pipeline.experiments"),
    "run": FrontDoor("pipeline.experiments"),
    "report": FrontDoor("reporting.building"),
    # Functions that load the configs for the fields of requests.
    "load_variant": FrontDoor("config.load"),
    "load_data": FrontDoor("config.load"),
    "load_eval": FrontDoor("reasoning.tasks"),
    "load_model": FrontDoor("config.load"),
    "load_niah": FrontDoor("config.load"),
    "load_hypenet": FrontDoor("config.load"),
    "load_training": FrontDoor("config.load"),
}


# For each request, or component of a request, the module of `requests` that defines it.
REQUESTS = {
    "CheckRequest": "recall",
    "BuildPromptsRequest": "recall",
    "HubEssays": "recall",
    "EvaluateRequest": "recall",
    "RankLayersRequest": "recall",
    "RestoreRequest": "checkpoints",
    "RankedLayers": "checkpoints",
    "DiffRequest": "checkpoints",
    "VerifyRequest": "checkpoints",
    "DownloadRequest": "checkpoints",
    "InitializeRequest": "checkpoints",
    "ConvertRequest": "checkpoints",
    "GenerateRequest": "reasoning",
    "ScoreRequest": "reasoning",
    "CompareRequest": "reasoning",
    "EngineChoice": "engines",
    "PrepareRequest": "data",
    "SynthesizeRowsRequest": "data",
    "SynthesizeTokenizerRequest": "data",
    "EstimateRequest": "training",
    "DryRunRequest": "training",
    "TrainRequest": "training",
    "PlanRequest": "experiments",
    "RunRequest": "experiments",
    "ReportRequest": "experiments",
    "LabelledCells": "experiments",
    "LabelledDrift": "experiments",
}


def __getattr__(name: str) -> Any:
    """Return a front door or a request; its module is imported on first use."""
    if name in REQUESTS:
        return getattr(import_module(f"{__name__}.requests.{REQUESTS[name]}"), name)
    if name not in FRONT_DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    door = FRONT_DOORS[name]
    try:
        function = getattr(import_module(f"{__name__}.{door.module}"), name)
    except ImportError as error:
        if not door.extra:
            raise
        raise _MissingExtraError(
            f"{name} needs packages that are not installed ({error})",
            hint=f'pip install "amnesia-bench[{door.extra}]"',
        ) from error
    return function if name.startswith("load_") else _checked(name, function)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a front door that refuses anything but its request, and takes a text as `out`."""
    expected = next(iter(signature(function).parameters.values())).annotation

    @wraps(function)
    def enter(request: Any, *arguments: Any, **named: Any) -> Any:
        if type(request).__name__ != expected:
            raise TypeError(f"{__name__}.{name}: expected a {expected}, got {request!r:.80}")
        paths = (Path(value) if isinstance(value, str) else value for value in arguments)
        if isinstance(named.get("out"), str):
            named["out"] = Path(named["out"])
        return function(request, *paths, **named)

    return enter


def __dir__() -> list[str]:
    return sorted(["__version__", *FRONT_DOORS, *REQUESTS])
