"""What a profile says of a model's engine reaches the requests of its stages, and no other's."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.costs.work import Answering
from amnesia_bench.pipeline.command_lines import command_line
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.engines import EngineChoice
from amnesia_bench.requests.reasoning import GenerateRequest
from amnesia_bench.requests.recall import EvaluateRequest


def answering(*overrides: str) -> dict[tuple[str, str], Stage]:
    graphs = [build(job) for job in load_jobs(["experiment=table1", *overrides])]
    kinds = ("recall", "answers")
    return {(s.kind, s.name): s for s in stages_of(graphs) if s.kind in kinds}


def engine_of(stage: Stage) -> EngineChoice:
    assert isinstance(stage.request, EvaluateRequest | GenerateRequest)
    return stage.request.engine


def test_only_hypenet_2b_answers_with_the_published_logit_scale(tmp_path: Path) -> None:
    for stage in answering().values():
        if not isinstance(stage.work, Answering):
            continue  # merges its parts
        command = command_line(stage.request, tmp_path)
        if stage.work.shape == "hypenet_2b":
            assert engine_of(stage).attn_logits_scaling == "hype 500"
            assert command[command.index("--attn-logits-scaling") + 1] == "hype 500"
        else:
            assert engine_of(stage).attn_logits_scaling is None
            assert "--attn-logits-scaling" not in command


def test_the_logit_scale_decides_answers_and_no_weights() -> None:
    before = answering()
    after = answering("profile.models.hypenet_2b.attn_logits_scaling=null")
    assert before.keys() == after.keys()
    for key, stage in before.items():
        same = engine_of(stage).attn_logits_scaling is None
        assert (after[key].id == stage.id) == same
        assert after[key].inputs[0].id == stage.inputs[0].id
