"""configs/train says what the paper's Tables 5-9 say; configs/recipe holds the two recipes."""

import re
from pathlib import Path

import pytest

from amnesia_bench.config.data_schema import DataConfig
from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_option, load_training
from amnesia_bench.config.train_schema import Recipe, TrainConfig
from amnesia_bench.errors import UserError

ROOT = Path(__file__).resolve().parents[2] / "configs"

# App. J: stage -> peak rate, floor, context length, batch, steps; Tables 5, 6 and 7.
PRETRAINING = {
    "stage1_2b": (1e-3, 1e-5, 512, 32, 20_000),
    "stage2_2b": (1e-4, 1e-5, 512, 96, 20_000),
    "stage3_2b": (1e-5, 1e-5, 16_384, 128, 500),
    "stage1_5b": (1e-3, 1e-5, 512, 32, 20_000),
    "stage2_5b": (5e-5, 1e-5, 512, 96, 20_000),
    "stage3_5b": (1e-5, 1e-5, 16_384, 128, 500),
    "stage1_9b": (1e-3, 1e-5, 512, 32, 20_000),
    "stage2_9b": (3e-5, 1e-5, 512, 96, 20_000),
    "stage3_9b": (1e-5, 1e-5, 16_384, 128, 500),
}
TABLE_8 = (1e-5, 1e-5, 16_384, 128, 100)
TABLE_9 = (1e-5, 1e-6, 16_384, 128, 100)
SFT = {
    f"sft_{data}_{size}": TABLE_8
    for data in ("miromind", "openthoughts", "tulu")
    for size in ("2b", "5b", "9b")
} | {
    **{f"qk_frozen_{size}": TABLE_8 for size in ("2b", "5b", "9b")},
    **{f"sft_miromind_{m}": TABLE_8 for m in ("qwen2_5_3b", "qwen2_5_7b", "mistral_7b")},
    "sft_miromind_jet_nemotron_2b": TABLE_9,
}

TINY = [name for name in options("train") if name.startswith("tiny_")]
GEMMA = [name for name in options("train") if name.startswith("gemma_")]
# What one_gpu's stages and fine-tunes change in those of HypeNet-2B.
ONE_GPU = {
    "one_gpu_stage1": ("stage1_2b", {"steps": 10_000, "micro_batch": 32}),
    "one_gpu_stage2": ("stage2_2b", {"steps": 10_000, "micro_batch": 24}),
    "one_gpu_stage3": ("stage3_2b", {"steps": 250}),
    "one_gpu_sft_miromind": ("sft_miromind_2b", {}),
    "one_gpu_qk_frozen": ("qk_frozen_2b", {}),
}


def table_row(train: TrainConfig) -> tuple[float, float, int, int, int]:
    adam = train.optimizer
    return (
        adam.learning_rate,
        adam.min_learning_rate,
        train.sequence_tokens,
        train.global_batch,
        train.steps,
    )


def test_every_committed_stage_is_a_row_of_the_paper() -> None:
    assert set(options("train")) == PRETRAINING.keys() | SFT.keys() | {*TINY, *GEMMA, *ONE_GPU}


@pytest.mark.parametrize("name", [*TINY, *GEMMA])
def test_a_small_stage_fits_its_data(name: str) -> None:
    train = load_training(name, []).train
    assert train.name == name
    for source in train.mixture:
        data = load_option("data", source, [], DataConfig)
        assert data.sequence_tokens == train.sequence_tokens
        assert data.isolate_documents == train.isolate_documents


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([name for name in TINY if name.startswith("tiny_sft")], 4),
        ([name for name in GEMMA if name != "gemma_qk_frozen"], 3),
    ],
)
def test_small_fine_tunes_differ_in_their_data_only(names: list[str], count: int) -> None:
    runs = [load_training(name, []).train for name in names]
    assert len(runs) == count
    same = {
        run.model_copy(update={"name": "x", "mixture": {"x": 1.0}}).model_dump_json()
        for run in runs
    }
    assert len(same) == 1


@pytest.mark.parametrize(("name", "row"), (PRETRAINING | SFT).items())
def test_a_stage_has_the_numbers_of_its_table(name: str, row: tuple[float, ...]) -> None:
    run = load_training(name, [])
    assert run.train.name == name
    assert table_row(run.train) == row
    adam = run.train.optimizer
    assert (adam.betas, adam.eps, adam.weight_decay, adam.clip_norm) == ((0.9, 0.95), 1e-8, 0, 1)
    assert run.recipe.name == "fixed"
    assert run.isolate_documents is (name in SFT)
    objectives = {"stage1": "align", "stage2": "distill"}
    assert run.train.objective == objectives.get(name.split("_")[0], "next_token")
    assert (run.train.freeze is not None) is name.startswith("qk_frozen")


@pytest.mark.parametrize("name", ONE_GPU)
def test_one_gpu_changes_the_number_of_steps_only(name: str) -> None:
    base, changes = ONE_GPU[name]
    run, paper = load_training(name, []), load_training(base, [])
    teacher = None if paper.train.teacher is None else "Qwen/Qwen3-0.6B"
    same = {"name": name, "model": "hypenet_0_6b", "teacher": teacher}
    assert run == paper.model_copy(
        update={"train": paper.train.model_copy(update={**same, **changes})}
    )


def test_every_value_says_where_it_comes_from() -> None:
    for path in sorted((ROOT / "train").rglob("*.yaml")):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("#"), path
        for line in lines:
            if re.search(r"rate:|steps:|batch:|tokens:|betas:|eps:|decay:|norm:|dtype:", line):
                assert re.search(r"# \[(T\d|halo|ours)\]", line), f"{path}: {line}"


def test_recipes_differ_in_every_quirk_and_the_9b_one_in_its_masters_only() -> None:
    fixed, parity, nine = (
        load_training("stage2_9b", [f"recipe={name}"]).recipe
        for name in ("fixed", "halo_parity", "halo_parity_9b")
    )
    for field in Recipe.model_fields:
        assert getattr(fixed, field) != getattr(parity, field)
        assert (getattr(parity, field) != getattr(nine, field)) is (
            field in ("name", "master_dtype")
        )


def test_values_of_stage_and_recipe_can_be_changed() -> None:
    run = load_training(
        "sft_tulu_5b",
        ["recipe=halo_parity", "recipe.kd_rows=all", "train.optimizer.warmup_steps=0"],
    )
    assert run.recipe.kd_rows == "all"
    assert run.recipe.master_dtype == "bf16"
    assert run.train.optimizer.warmup_steps == 0
    assert not run.isolate_documents


def test_a_mixture_takes_the_place_of_that_of_the_stage() -> None:
    run = load_training("stage3_2b", ["train.mixture={mine: 2.0, other: 1.0}"])
    assert run.train.mixture == {"mine": 2.0, "other": 1.0}


@pytest.mark.parametrize(
    ("override", "said", "hint"),
    [
        ("train.stepz=3", "train.stepz: unknown key", "Did you mean steps?"),
        ("recipe=halo", "recipe=halo: no such option", "Known: fixed, halo_parity"),
        ("recipe.kd_row=all", "recipe.kd_row: unknown key", "Did you mean kd_rows?"),
        ("steps=3", "steps: unknown key", "Known: recipe, train."),
        ("train.steps=0", "train.steps=0", None),
        ("train.micro_batch=5", "global_batch 128 is not a multiple of micro_batch 5", None),
        ("train.optimizer.min_learning_rate=1", "min_learning_rate 1.0 is above", None),
        ("train.optimizer.warmup_steps=100", "warmup_steps 100 must be below steps 100", None),
        ("train.objective=align", "align and distill need a teacher", None),
        ("train={objective: align, teacher: x}", "train is sft_miromind_2b", None),
        ("train.mixture.miromind=0", "each with a weight above 0", None),
        ("train.mixture.miromind=inf", "mixture.miromind=inf: Input should be a finite", None),
        ("train.optimizer.weight_decay=nan", "weight_decay=nan: Input should be a finite", None),
        ("train.freeze={roles: [x], layers: all}", "train.freeze.roles[0]=x", None),
    ],
)
def test_a_mistake_is_named(override: str, said: str, hint: str | None) -> None:
    with pytest.raises(UserError) as caught:
        load_training("sft_miromind_2b", [override])
    assert said in caught.value.what
    assert hint is None or hint in str(caught.value.hint)
