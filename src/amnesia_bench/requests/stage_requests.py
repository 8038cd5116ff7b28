"""The requests that stages can execute, by the name of the function that executes each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from amnesia_bench.requests.analysis import AnalyzeRequest
from amnesia_bench.requests.base import StageRequest
from amnesia_bench.requests.checkpoints import (
    ConvertRequest,
    DownloadRequest,
    InitializeRequest,
    MeasureRequest,
    RestoreRequest,
    ScoreLayersRequest,
    SelectLayersRequest,
)
from amnesia_bench.requests.data import (
    ImportRowsRequest,
    PrepareRequest,
    SynthesizeRowsRequest,
    SynthesizeTokenizerRequest,
)
from amnesia_bench.requests.reasoning import GenerateRequest, ScoreRequest
from amnesia_bench.requests.recall import BuildPromptsRequest, EvaluateRequest, RankLayersRequest
from amnesia_bench.requests.training import TrainRequest

STAGE_REQUESTS: Mapping[str, type[StageRequest]] = MappingProxyType(
    {
        request.front_door: request
        for request in (
            AnalyzeRequest,
            BuildPromptsRequest,
            ConvertRequest,
            DownloadRequest,
            EvaluateRequest,
            GenerateRequest,
            ImportRowsRequest,
            InitializeRequest,
            MeasureRequest,
            PrepareRequest,
            RankLayersRequest,
            RestoreRequest,
            ScoreLayersRequest,
            ScoreRequest,
            SelectLayersRequest,
            SynthesizeRowsRequest,
            SynthesizeTokenizerRequest,
            TrainRequest,
        )
    }
)
