"""The id of a stage covers what decides its result, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
from amnesia_bench.config.fields import DECIDING, NEUTRAL

from amnesia_bench.config.data_schema import DataConfig, SyntheticSource
from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig
from amnesia_bench.config.experiment_schema import TrainingStep
from amnesia_bench.config.load import load_variant
from amnesia_bench.config.schema import Frozen, Variant
from amnesia_bench.config.train_schema import Recipe, TrainConfig
from amnesia_bench.pipeline import stages
from amnesia_bench.pipeline.stage import VERSIONS, Input, Output, Stage, closure

TOKENIZER = stages.tokenizer(0)
START = stages.initial("hypenet_laptop", TOKENIZER, 0)


@pytest.mark.parametrize(
    ("kind", "schemas"),
    [
        (TrainConfig, [TrainConfig]),
        (Recipe, [Recipe]),
        (DataConfig, [DataConfig]),
        (SyntheticSource, [SyntheticSource]),
        (EvalConfig, [EvalConfig, CodeEvalConfig]),
        (Variant, [Variant]),
    ],
)
def test_every_field_is_either_deciding_or_neutral(
    kind: type[Frozen], schemas: list[type[Frozen]]
) -> None:
    fields = {name for schema in schemas for name in schema.model_fields}
    assert DECIDING[kind] | NEUTRAL[kind] == fields
    assert not DECIDING[kind] & NEUTRAL[kind]


def trained(*overrides: str) -> Stage:
    seeds = [o.partition("=")[2] for o in overrides if o.startswith("train.seed=")]
    others = tuple(o for o in overrides if not o.startswith("train.seed="))
    step = TrainingStep(train="tiny_sft_cot", overrides=others)
    source = stages.data("tiny_cot", (), TOKENIZER)
    seed = int(seeds[0]) if seeds else 0
    return stages.trained(step, (), seed, START, {"tiny_cot": source}, None)


@pytest.mark.parametrize(
    "override",
    [
        "train.checkpoints.every_steps=7",
        "train.loss_chunk_rows=64",
        "train.wandb_project=mine",
        "train.activation_checkpointing=true",
    ],
)
def test_how_the_work_is_cut_up_and_told_changes_no_id(override: str) -> None:
    assert trained(override).id == trained().id


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=70",
        "train.seed=1",
        "train.optimizer.learning_rate=1.0e-5",
        "train.optimizer.clip_norm=0.5",
        "recipe=halo_parity",
    ],
)
def test_what_decides_the_result_changes_the_id(override: str) -> None:
    assert trained(override).id != trained().id


def test_an_input_changes_the_id_of_all_that_read_it() -> None:
    other = stages.tokenizer(1)
    assert stages.data("tiny_cot", (), other).id != stages.data("tiny_cot", (), TOKENIZER).id
    pre, post = START, trained()
    qk = load_variant("qk")
    there = stages.restored(pre, post, qk, (), None)
    back = stages.restored(post, pre, qk, (), None)
    assert there.id.rpartition("-")[2] != back.id.rpartition("-")[2]


def test_a_raised_version_changes_the_ids_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stages.tokenizer(0).id
    monkeypatch.setitem(VERSIONS, "tokenizer", VERSIONS["tokenizer"] + 1)  # type: ignore[arg-type]
    assert stages.tokenizer(0).id != before


def test_ids_stay_what_they_are() -> None:
    # If this fails without a change of what a tokenizer stage makes, every cache in the world is
    # lost: find out why before changing the number.
    assert TOKENIZER.id == "generated-s0-d70d8d2d9cdb"


def test_a_graph_holds_each_stage_once_and_inputs_first() -> None:
    # Built twice: equal ids, other objects.
    graph = closure([trained(), replace(trained()), START])
    ids = [stage.id for stage in graph]
    assert len(set(ids)) == len(ids) == 4
    for number, stage in enumerate(graph):
        assert {each.id for each in stage.inputs} <= set(ids[:number])


def test_a_command_names_folders_of_the_store(tmp_path: Path) -> None:
    stage = Stage(
        kind="rows",
        name="a b/c",
        arguments=("x", Input(stage=TOKENIZER, prefix="t=", file="f.json"), Output(file="o")),
        settings={},
        work=TOKENIZER.work,
    )
    assert stage.id.startswith("a-b-c-")
    folder = f"{tmp_path}/tokenizer/{TOKENIZER.id}"
    assert stage.command(tmp_path) == (
        "x",
        f"t={folder}/f.json",
        f"{tmp_path}/rows/{stage.id}/o",
    )
