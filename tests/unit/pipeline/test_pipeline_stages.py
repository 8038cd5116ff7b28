"""The commands of stages say what their settings say."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.costs.work import Answering
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.stage import Stage


def answering(*overrides: str) -> dict[tuple[str, str, str], Stage]:
    graphs = [build(job) for job in load_jobs(["experiment=table1", *overrides])]
    kinds = ("recall", "answers")
    found = (s for s in stages_of(graphs) if s.kind in kinds)
    return {(s.kind, s.name, str(s.settings.get("lengths"))): s for s in found}


def test_only_hypenet_2b_answers_with_the_published_logit_scale(tmp_path: Path) -> None:
    for stage in answering().values():
        command = stage.command(tmp_path)
        assert isinstance(stage.work, Answering)
        if stage.work.shape == "hypenet_2b":
            assert stage.settings["options"]["--attn-logits-scaling"] == "hype 500"
            assert command[command.index("--attn-logits-scaling") + 1] == "hype 500"
        else:
            assert "--attn-logits-scaling" not in stage.settings["options"]
            assert "--attn-logits-scaling" not in command


def test_the_logit_scale_decides_answers_and_no_weights() -> None:
    before = answering()
    after = answering("profile.models.hypenet_2b.attn_logits_scaling=null")
    assert before.keys() == after.keys()
    for key, stage in before.items():
        same = "--attn-logits-scaling" not in stage.settings["options"]
        assert (after[key].id == stage.id) == same
        assert after[key].inputs[0].id == stage.inputs[0].id
