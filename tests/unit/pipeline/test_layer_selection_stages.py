"""Selected softmax layers in a graph, and the plan of profile=one_gpu."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amnesia_bench.config.load import load_model_file
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.stage_cost import cost_of, total
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import Graph, stages_of
from amnesia_bench.pipeline.plan import Step, by_model, plan_graphs
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.checkpoints import (
    ConvertRequest,
    ScoreLayersRequest,
    SelectLayersRequest,
)

H100 = GPUS["h100"]
TABLES = "experiment=table1,table4"


@pytest.fixture(scope="module")
def one_gpu() -> list[Graph]:
    return list(graphs_of((TABLES, "profile=one_gpu")))


def of_kind(kind: str, *overrides: str) -> Stage:
    (stage,) = (s for s in stages_of(graphs_of(overrides)) if s.kind == kind)
    return stage


def test_tables_1_and_4_take_less_than_a_day_of_one_gpu(
    one_gpu: list[Graph], tmp_path: Path
) -> None:
    plan = plan_graphs(one_gpu, tmp_path, H100, total_gpus=1)
    assert total(planned.bound for planned in plan.stages).gpu_hours < 24
    assert total(planned.cost for planned in plan.stages).gpu_hours < 24
    assert plan.wall_hours is not None
    assert plan.wall_hours < 24
    assert {planned.stage.gpus for planned in plan.stages} == {0, 1}
    assert 0 < max(planned.cost.gpu_memory_bytes for planned in plan.stages) < 80e9
    (steps,) = by_model(plan.stages).values()
    hybrid = {Step.STAGE_1, Step.SELECTION, Step.STAGE_2, Step.STAGE_3, Step.SFT}
    assert set(steps) == hybrid | {Step.RECALL, Step.REASONING, Step.FILES}


def test_every_row_of_the_papers_tables_is_there(one_gpu: list[Graph]) -> None:
    paper = graphs_of((TABLES, "profile=paper"))
    for ours, theirs in zip(one_gpu, paper, strict=True):
        assert {row.method for row in ours.rows} == {row.method for row in theirs.rows}
        assert {row.model for row in ours.rows} == {"HypeNet-0.6B"}


def test_the_hybrid_has_the_selected_layers() -> None:
    overrides = ("experiment=table1", "profile=one_gpu")
    stages = stages_of(graphs_of(overrides))
    (hybrid,) = (s for s in stages if s.kind == "converted" and "stage2" in s.name)
    assert [read.kind for read in hybrid.inputs] == ["download", "trained", "selection"]
    teacher, student, selection = hybrid.inputs
    assert isinstance(hybrid.request, ConvertRequest)
    assert hybrid.request.layers == selection.location / "selection.json"
    assert isinstance(selection.request, SelectLayersRequest)
    assert selection.request.count == 7
    (scores,) = selection.inputs
    assert (scores.inputs, scores.gpus) == ((teacher, student), 1)
    assert isinstance(scores.request, ScoreLayersRequest)
    assert scores.request.samples is None
    # Another number of layers is selected from the same scores.
    count = "profile.models.hypenet_0_6b.distillation.selection.count=8"
    assert of_kind("layer_scores", *overrides, count).id == scores.id
    assert of_kind("selection", *overrides, count).id != selection.id


def test_scores_of_all_layers_read_all_documents_once_per_layer() -> None:
    scores = of_kind("layer_scores", "experiment=table1", "profile=one_gpu")
    cost = cost_of(scores.work, 1, H100)
    retrieval = 1102 * 2048 + 1111 * 1024 + 500 * 4096
    commonsense = 4 * ((1172 + 2376) * 64 + 10042 * 128)
    assert cost.read_tokens == 29 * (retrieval + commonsense)
    assert cost.new_tokens == 29 * (48 * (1102 + 1111 + 500) + 4 * (1172 + 2376 + 10042))


def test_your_own_documents_take_the_place_of_generated_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"text": "a", "value": "b"}))
    overrides = ("experiment=table1", "profile=smoke_selection")
    generated = of_kind("layer_scores", *overrides).request
    mine = of_kind("layer_scores", *overrides, f"profile.files.swde={file}")
    assert isinstance(generated, ScoreLayersRequest)
    assert isinstance(mine.request, ScoreLayersRequest)
    assert {path.name for path in generated.data.values()} == {"rows.jsonl"}
    assert mine.request.data["arc_easy"] == generated.data["arc_easy"]
    assert mine.request.data["swde"] != generated.data["swde"]
    assert mine.request.data["swde"].parent in {read.location for read in mine.inputs}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("retrieval=[squad]", r"retrieval\[0\]=squad"),
        ("commonsense=[arc_easy,arc_easy]", "listed twice: arc_easy"),
        ("retrieval=[ruler_qa_squad]", "generated_rows=ruler_qa_squad: unknown"),
        ("count=0", "count=0"),
        ("count=5", "count=5: qwen3_pico has only 4 layers"),
        ("counts=3", "counts: unknown key"),
    ],
)
def test_a_wrong_selection_is_named(change: str, said: str) -> None:
    override = f"profile.models.tiny.distillation.selection.{change}"
    with pytest.raises(UserError, match=said):
        graphs_of(("experiment=table1", "profile=smoke_selection", override))


def test_the_sizes_are_those_of_qwen3_0_6b() -> None:
    teacher, hybrid = load_model_file("qwen3_0_6b"), load_model_file("hypenet_0_6b")
    expected = {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
    }
    for values in (teacher, hybrid):
        assert {key: values[key] for key in expected} == expected
    assert hybrid["mixer_types"].count("attn") == 7
