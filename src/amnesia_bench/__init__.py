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

from amnesia_bench.errors import MissingEnvironmentError, UserError

if TYPE_CHECKING:
    from amnesia_bench.analysis.analyze import analyze as analyze
    from amnesia_bench.comparison.comparing import compare as compare
    from amnesia_bench.config.load import load_data as load_data
    from amnesia_bench.config.load import load_hypenet as load_hypenet
    from amnesia_bench.config.load import load_model as load_model
    from amnesia_bench.config.load import load_niah as load_niah
    from amnesia_bench.config.load import load_training as load_training
    from amnesia_bench.config.load import load_variant as load_variant
    from amnesia_bench.conversion.conversion import convert as convert
    from amnesia_bench.conversion.download import download as download
    from amnesia_bench.conversion.initialization import initialize as initialize
    from amnesia_bench.costs.check_cost import estimate_check as estimate_check
    from amnesia_bench.costs.estimate import estimate as estimate
    from amnesia_bench.data.import_rows import import_rows as import_rows
    from amnesia_bench.data.prepare import prepare as prepare
    from amnesia_bench.data.synthesize import synthesize_rows as synthesize_rows
    from amnesia_bench.data.synthesize import synthesize_tokenizer as synthesize_tokenizer
    from amnesia_bench.exports.export import export as export
    from amnesia_bench.heads.ranking import rank_heads as rank_heads
    from amnesia_bench.lm_eval_bridge.evaluation import evaluate as evaluate
    from amnesia_bench.lm_eval_bridge.layer_scores import score_layers as score_layers
    from amnesia_bench.lm_eval_bridge.layer_selection import select_layers as select_layers
    from amnesia_bench.lm_eval_bridge.ranking import rank_layers as rank_layers
    from amnesia_bench.merging.measure import measure as measure
    from amnesia_bench.pipeline.adoption import adopt as adopt
    from amnesia_bench.pipeline.collection import collect as collect
    from amnesia_bench.pipeline.dashboard import dashboard as dashboard
    from amnesia_bench.pipeline.doctor.examination import doctor as doctor
    from amnesia_bench.pipeline.experiments import cancel as cancel
    from amnesia_bench.pipeline.experiments import explain_stage as explain_stage
    from amnesia_bench.pipeline.experiments import job_scripts as job_scripts
    from amnesia_bench.pipeline.experiments import plan as plan
    from amnesia_bench.pipeline.experiments import run as run
    from amnesia_bench.pipeline.fetch import fetch as fetch
    from amnesia_bench.pipeline.tracked.publishing import track as track
    from amnesia_bench.reasoning.answering import generate as generate
    from amnesia_bench.reasoning.score import score as score
    from amnesia_bench.reasoning.tasks import load_eval as load_eval
    from amnesia_bench.recall.check import check as check
    from amnesia_bench.recall.niah.build import build_prompts as build_prompts
    from amnesia_bench.reporting.building import report as report
    from amnesia_bench.requests.analysis import AnalyzeRequest as AnalyzeRequest
    from amnesia_bench.requests.analysis import AttentionMaps as AttentionMaps
    from amnesia_bench.requests.analysis import Autocorrelations as Autocorrelations
    from amnesia_bench.requests.analysis import Distances as Distances
    from amnesia_bench.requests.analysis import Divergence as Divergence
    from amnesia_bench.requests.analysis import Gradients as Gradients
    from amnesia_bench.requests.analysis import NeedlePrompts as NeedlePrompts
    from amnesia_bench.requests.checkpoints import ConvertRequest as ConvertRequest
    from amnesia_bench.requests.checkpoints import DiffRequest as DiffRequest
    from amnesia_bench.requests.checkpoints import DownloadRequest as DownloadRequest
    from amnesia_bench.requests.checkpoints import InitializeRequest as InitializeRequest
    from amnesia_bench.requests.checkpoints import MeasureRequest as MeasureRequest
    from amnesia_bench.requests.checkpoints import RandomTokens as RandomTokens
    from amnesia_bench.requests.checkpoints import RankedHeads as RankedHeads
    from amnesia_bench.requests.checkpoints import RankedLayers as RankedLayers
    from amnesia_bench.requests.checkpoints import RestoreRequest as RestoreRequest
    from amnesia_bench.requests.checkpoints import ScoreLayersRequest as ScoreLayersRequest
    from amnesia_bench.requests.checkpoints import SelectLayersRequest as SelectLayersRequest
    from amnesia_bench.requests.checkpoints import VerifyRequest as VerifyRequest
    from amnesia_bench.requests.comparison import CompareRequest as CompareRequest
    from amnesia_bench.requests.data import ImportRowsRequest as ImportRowsRequest
    from amnesia_bench.requests.data import PrepareRequest as PrepareRequest
    from amnesia_bench.requests.data import SynthesizeRowsRequest as SynthesizeRowsRequest
    from amnesia_bench.requests.data import SynthesizeTokenizerRequest as SynthesizeTokenizerRequest
    from amnesia_bench.requests.engines import EngineChoice as EngineChoice
    from amnesia_bench.requests.experiments import AdoptRequest as AdoptRequest
    from amnesia_bench.requests.experiments import CancelRequest as CancelRequest
    from amnesia_bench.requests.experiments import CollectRequest as CollectRequest
    from amnesia_bench.requests.experiments import DashboardRequest as DashboardRequest
    from amnesia_bench.requests.experiments import DoctorRequest as DoctorRequest
    from amnesia_bench.requests.experiments import ExplainStageRequest as ExplainStageRequest
    from amnesia_bench.requests.experiments import ExportRequest as ExportRequest
    from amnesia_bench.requests.experiments import FetchRequest as FetchRequest
    from amnesia_bench.requests.experiments import JobScriptsRequest as JobScriptsRequest
    from amnesia_bench.requests.experiments import LabelledAnalysis as LabelledAnalysis
    from amnesia_bench.requests.experiments import LabelledCells as LabelledCells
    from amnesia_bench.requests.experiments import LabelledDrift as LabelledDrift
    from amnesia_bench.requests.experiments import PlanRequest as PlanRequest
    from amnesia_bench.requests.experiments import ReportRequest as ReportRequest
    from amnesia_bench.requests.experiments import RunRequest as RunRequest
    from amnesia_bench.requests.experiments import TrackRequest as TrackRequest
    from amnesia_bench.requests.reasoning import GenerateRequest as GenerateRequest
    from amnesia_bench.requests.reasoning import ScoreRequest as ScoreRequest
    from amnesia_bench.requests.recall import BuildPromptsRequest as BuildPromptsRequest
    from amnesia_bench.requests.recall import CheckRequest as CheckRequest
    from amnesia_bench.requests.recall import EvaluateRequest as EvaluateRequest
    from amnesia_bench.requests.recall import HubEssays as HubEssays
    from amnesia_bench.requests.recall import RankHeadsRequest as RankHeadsRequest
    from amnesia_bench.requests.recall import RankLayersRequest as RankLayersRequest
    from amnesia_bench.requests.training import DryRunRequest as DryRunRequest
    from amnesia_bench.requests.training import EstimateRequest as EstimateRequest
    from amnesia_bench.requests.training import TrainRequest as TrainRequest
    from amnesia_bench.requests.tuning import ReasoningProblems as ReasoningProblems
    from amnesia_bench.requests.tuning import TuneRequest as TuneRequest
    from amnesia_bench.surgery.diff import diff as diff
    from amnesia_bench.surgery.restoration import restore as restore
    from amnesia_bench.surgery.verification import verify as verify
    from amnesia_bench.training.dry_run.measure import dry_run as dry_run
    from amnesia_bench.training.run import train as train
    from amnesia_bench.tuning.tune import tune as tune

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
    "tune": FrontDoor("tuning.tune", "eval"),
    "measure": FrontDoor("merging.measure", "eval"),
    "diff": FrontDoor("surgery.diff"),
    "verify": FrontDoor("surgery.verification"),
    # Recall and reasoning.
    "build_prompts": FrontDoor("recall.niah.build", "eval"),
    "evaluate": FrontDoor("lm_eval_bridge.evaluation", "eval"),
    "estimate_check": FrontDoor("costs.check_cost"),
    "rank_layers": FrontDoor("lm_eval_bridge.ranking", "eval"),
    "rank_heads": FrontDoor("heads.ranking", "eval"),
    "score_layers": FrontDoor("lm_eval_bridge.layer_scores", "eval"),
    "select_layers": FrontDoor("lm_eval_bridge.layer_selection"),
    "analyze": FrontDoor("analysis.analyze", "eval"),
    "generate": FrontDoor("reasoning.answering", "eval"),
    "score": FrontDoor("reasoning.score", "eval"),
    "compare": FrontDoor("comparison.comparing"),
    # Checkpoints, data and training.
    "download": FrontDoor("conversion.download"),
    "initialize": FrontDoor("conversion.initialization", "train"),
    "convert": FrontDoor("conversion.conversion", "train"),
    "prepare": FrontDoor("data.prepare", "train"),
    "import_rows": FrontDoor("data.import_rows"),
    "synthesize_rows": FrontDoor("data.synthesize"),
    "synthesize_tokenizer": FrontDoor("data.synthesize"),
    "estimate": FrontDoor("costs.estimate"),
    "dry_run": FrontDoor("training.dry_run.measure", "train"),
    "train": FrontDoor("training.run", "train"),
    # Experiments.
    "plan": FrontDoor("pipeline.experiments"),
    "explain_stage": FrontDoor("pipeline.experiments"),
    "fetch": FrontDoor("pipeline.fetch"),
    "adopt": FrontDoor("pipeline.adoption"),
    "collect": FrontDoor("pipeline.collection"),
    "doctor": FrontDoor("pipeline.doctor.examination"),
    "run": FrontDoor("pipeline.experiments"),
    "job_scripts": FrontDoor("pipeline.experiments"),
    "cancel": FrontDoor("pipeline.experiments"),
    "track": FrontDoor("pipeline.tracked.publishing"),
    "dashboard": FrontDoor("pipeline.dashboard"),
    "report": FrontDoor("reporting.building"),
    "export": FrontDoor("exports.export"),
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
    "AnalyzeRequest": "analysis",
    "Autocorrelations": "analysis",
    "Gradients": "analysis",
    "NeedlePrompts": "analysis",
    "Distances": "analysis",
    "AttentionMaps": "analysis",
    "Divergence": "analysis",
    "RankHeadsRequest": "recall",
    "RestoreRequest": "checkpoints",
    "TuneRequest": "tuning",
    "ReasoningProblems": "tuning",
    "MeasureRequest": "checkpoints",
    "RandomTokens": "checkpoints",
    "RankedLayers": "checkpoints",
    "RankedHeads": "checkpoints",
    "DiffRequest": "checkpoints",
    "VerifyRequest": "checkpoints",
    "DownloadRequest": "checkpoints",
    "InitializeRequest": "checkpoints",
    "ScoreLayersRequest": "checkpoints",
    "SelectLayersRequest": "checkpoints",
    "ConvertRequest": "checkpoints",
    "GenerateRequest": "reasoning",
    "ScoreRequest": "reasoning",
    "CompareRequest": "comparison",
    "EngineChoice": "engines",
    "PrepareRequest": "data",
    "ImportRowsRequest": "data",
    "SynthesizeRowsRequest": "data",
    "SynthesizeTokenizerRequest": "data",
    "EstimateRequest": "training",
    "DryRunRequest": "training",
    "TrainRequest": "training",
    "PlanRequest": "experiments",
    "ExplainStageRequest": "experiments",
    "FetchRequest": "experiments",
    "AdoptRequest": "experiments",
    "CollectRequest": "experiments",
    "DoctorRequest": "experiments",
    "RunRequest": "experiments",
    "JobScriptsRequest": "experiments",
    "CancelRequest": "experiments",
    "TrackRequest": "experiments",
    "DashboardRequest": "experiments",
    "ReportRequest": "experiments",
    "ExportRequest": "experiments",
    "LabelledAnalysis": "experiments",
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
        if "" in (*arguments, named.get("out")):
            raise UserError(f"{name}: the path of the output is empty")
        paths = (Path(value) if isinstance(value, str) else value for value in arguments)
        if isinstance(named.get("out"), str):
            named["out"] = Path(named["out"])
        return function(request, *paths, **named)

    return enter


def __dir__() -> list[str]:
    return sorted(["__version__", *FRONT_DOORS, *REQUESTS])
