"""The id of a stage covers what decides its result, and nothing else."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import BaseModel

from amnesia_bench.config.cache_key import NEUTRAL, cache_key
from amnesia_bench.config.data_schema import DataConfig, SyntheticSource
from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig
from amnesia_bench.config.experiment_schema import RecallPlan, TrainingStep
from amnesia_bench.config.load import load_training, load_variant
from amnesia_bench.config.schema import ModelFile, Variant
from amnesia_bench.config.train_schema import Recipe, TrainConfig, TrainingRun
from amnesia_bench.pipeline import evaluations, stages
from amnesia_bench.pipeline.stage import VERSIONS, Stage, closure
from amnesia_bench.requests.checkpoints import RankedHeads, RestoreRequest
from amnesia_bench.requests.data import ImportRowsRequest
from amnesia_bench.requests.engines import EngineChoice
from amnesia_bench.requests.reasoning import GenerateRequest, ScoreRequest
from amnesia_bench.requests.recall import EvaluateRequest
from amnesia_bench.requests.stage_requests import STAGE_REQUESTS

SCHEMAS: tuple[type[BaseModel], ...] = (
    *(TrainConfig, TrainingRun, Recipe, DataConfig, SyntheticSource, EvalConfig, CodeEvalConfig),
    *(Variant, ModelFile, EngineChoice, *STAGE_REQUESTS.values()),
)
TOKENIZER = stages.tokenizer(0)
START = stages.initial("hypenet_laptop", TOKENIZER, 0)


def test_fields_that_change_no_result_are_few_and_all_others_are_in_the_key() -> None:
    # A field that is added belongs to the key until somebody marks it; whoever marks one, adds it
    # here with a reason.
    assert {kind: neutral(kind) for kind in SCHEMAS if neutral(kind)} == {
        TrainConfig: {
            "name", "model", "teacher", "activation_checkpointing", "deterministic",
            "loss_chunk_rows", "checkpoints", "wandb_project",
        },
        Recipe: {"name"},
        DataConfig: {"name"},
        Variant: {"name"},
        ModelFile: {"name"},
        ScoreRequest: {"workers", "unsafe_no_sandbox"},
        # Which process generates an answer does not decide what it is.
        GenerateRequest: {"division"},
        EvaluateRequest: {"division"},
        # Its contents are in the key, by their hash.
        ImportRowsRequest: {"file"},
    }  # fmt: skip
    run = load_training("tiny_sft_cot", ())
    left_out = neutral(TrainConfig)
    assert set(cache_key(run)["train"]) == set(TrainConfig.model_fields) - left_out


def neutral(schema: type[BaseModel]) -> set[str]:
    return {name for name, field in schema.model_fields.items() if NEUTRAL in field.metadata}


def trained(*overrides: str) -> Stage:
    seeds = [o.partition("=")[2] for o in overrides if o.startswith("train.seed=")]
    others = tuple(o for o in overrides if not o.startswith("train.seed="))
    step = TrainingStep(train="tiny_sft_cot", overrides=others)
    source = stages.data("tiny_cot", (), TOKENIZER)
    seed = int(seeds[0]) if seeds else 0
    run = stages.training_of(step, (), seed)
    return stages.trained(step, run, START, {"tiny_cot": source}, None)


@pytest.mark.parametrize(
    "override",
    [
        "train.checkpoints.every_steps=7",
        "train.loss_chunk_rows=64",
        "train.wandb_project=mine",
        "train.activation_checkpointing=full",
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


def test_the_order_of_a_mixture_changes_the_id_since_it_decides_which_samples_are_drawn() -> None:
    here = load_training("stage3_2b", ["train.mixture={mine: 2.0, other: 1.0}"])
    reverse = load_training("stage3_2b", ["train.mixture={other: 1.0, mine: 2.0}"])
    assert here.train.mixture == reverse.train.mixture
    assert cache_key(here) != cache_key(reverse)


def test_a_field_that_was_added_later_keeps_ids_until_it_is_used() -> None:
    request = RestoreRequest(pre=Path("a"), post=Path("b"), variant=load_variant("qk"))
    before = {"pre", "post", "variant", "ranked_layers", "cast", "allow_noop"}
    assert set(cache_key(request)) == before
    cocktail = load_variant("lm_cocktail")
    measured = RestoreRequest(pre="a", post="b", variant=cocktail, measured="c/m.json")
    assert cache_key(measured)["measured"] == "c/m.json"
    heads = RankedHeads(count=2, file="h.json")
    ranked = RestoreRequest(pre="a", post="b", variant=load_variant("qk"), ranked_heads=heads)
    assert cache_key(ranked)["ranked_heads"] == {"count": 2, "file": "h.json"}


def test_an_input_changes_the_id_of_all_that_read_it() -> None:
    other = stages.tokenizer(1)
    assert stages.data("tiny_cot", (), other).id != stages.data("tiny_cot", (), TOKENIZER).id
    pre, post = START, trained()
    qk = load_variant("qk")
    there = stages.restored(pre, post, qk, None, None)
    back = stages.restored(post, pre, qk, None, None)
    assert there.id.rpartition("-")[2] != back.id.rpartition("-")[2]


def test_a_raised_version_changes_the_ids_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stages.tokenizer(0).id
    monkeypatch.setitem(VERSIONS, "tokenizer", VERSIONS["tokenizer"] + 1)  # type: ignore[arg-type]
    assert stages.tokenizer(0).id != before


def test_ids_stay_what_they_are() -> None:
    # If this fails without a change of what a tokenizer stage makes, every cache in the world is
    # lost: find out why before changing the number.
    assert TOKENIZER.id == "tokenizer.generated-s0-dbb9f4ee72d1"


def test_a_graph_holds_each_stage_once_and_inputs_first() -> None:
    # Built twice: equal ids, other objects.
    graph = closure([trained(), replace(trained()), START])
    ids = [stage.id for stage in graph]
    assert len(set(ids)) == len(ids) == 4
    for number, stage in enumerate(graph):
        assert {each.id for each in stage.inputs} <= set(ids[:number])


def test_an_id_says_what_a_stage_is() -> None:
    recall = RecallPlan(
        tasks=("niah_single_1",), lengths=(512, 1024), lengths_per_stage=2, samples=4,
        max_new_tokens=128, haystack="hub",
    )  # fmt: skip
    asked = evaluations.prompts(recall, TOKENIZER, None)
    stage = evaluations.recall(START, asked, recall, EngineChoice())
    assert re.fullmatch(r"recall\.hypenet_laptop-s0\.512\+1024-[0-9a-f]{12}", stage.id)
    assert stage.folder(Path("store")) == Path("store", "recall", stage.id)
    odd = replace(TOKENIZER, name="a b/c")
    assert odd.id.startswith("tokenizer.a-b-c-")
