"""The committed files of configs/data: each loads, and stages read files of their own."""

from itertools import pairwise

import pytest

from amnesia_bench.config.cache_key import cache_key
from amnesia_bench.config.data_schema import DataConfig, Gsm8kRows, HubSource, SyntheticSource
from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_option
from amnesia_bench.errors import UserError

NAMES = options("data")
# The data of the gemma profile, whose sequences are shorter than the paper's.
GEMMA = ("gsm8k_chains", "gsm8k_answers", "dolly", "generated_instructions", "generated_problems",
         "generated_numbers", "wikitext")  # fmt: skip


def load(name: str, *overrides: str) -> DataConfig:
    return load_option("data", name, overrides, DataConfig)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_loads_and_has_the_name_of_its_file(name: str) -> None:
    config = load(name)
    assert config.name == name
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not name.startswith("tiny_") and name not in GEMMA]
)
def test_pretraining_joins_documents_and_fine_tuning_keeps_them_apart(name: str) -> None:
    config = load(name)
    pretraining = "stage" in name
    assert (config.rows.kind == "text") is pretraining
    assert (config.pack == "concat") is pretraining
    assert config.isolate_documents is not pretraining
    # Tables 5 to 9: stages 1 and 2 train on 512 tokens, stage 3 and the fine-tune on 16K.
    assert config.sequence_tokens == (512 if name.endswith(("stage1", "stage2")) else 16384)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tiny_")])
def test_the_tiny_profile_downloads_nothing(name: str) -> None:
    config = load(name)
    assert isinstance(config.source, SyntheticSource)
    assert config.max_dropped == 0
    # Conversations of pretraining are trained whole, those of fine-tuning for their answers.
    fine_tuning = config.chat is not None and config.chat.loss_on == "assistant"
    assert config.isolate_documents is fine_tuning


def test_the_controls_of_gemma_have_the_same_questions_and_are_rendered_alike() -> None:
    chains, numbers = load("gsm8k_chains"), load("gsm8k_answers")
    assert isinstance(chains.rows, Gsm8kRows)
    without = chains.rows.model_copy(update={"response": "number"})
    changes = {"name": numbers.name, "rows": without}
    assert cache_key(chains.model_copy(update=changes)) == cache_key(numbers)
    for name in GEMMA:
        if (config := load(name)).chat is not None:
            like = chains.model_copy(update={"source": config.source, "rows": config.rows})
            assert config == like.model_copy(update={"name": name})


def test_the_controls_differ_in_reach_only() -> None:
    short, long = load("tiny_instruct_short"), load("tiny_instruct_long")
    assert isinstance(short.source, SyntheticSource)
    as_long = short.source.model_copy(update={"generator": "long_instructions"})
    assert short.model_copy(update={"name": long.name, "source": as_long}) == long


@pytest.mark.parametrize("source", ["fineweb_edu", "ultradata_math"])
def test_no_two_stages_read_the_same_file(source: str) -> None:
    sources: list[HubSource] = []
    for stage in (1, 2, 3):
        read = load(f"{source}_stage{stage}").source
        assert isinstance(read, HubSource)
        sources.append(read)
    for before, after in pairwise(sources):
        assert before.subsets == after.subsets
        assert before.take_files is not None
        assert after.skip_files == before.skip_files + before.take_files


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("miromind", "data.source.revision=main", "data.source.revision=main"),
        ("miromind", "data.chat=null", "rows of kind question_response: needs a chat"),
        ("fineweb_edu_stage1", "data.chat={style: mistral, loss_on: all}", "takes no chat"),
        ("miromind", "data.over_length=null", "pack best_fit needs over_length"),
        ("fineweb_edu_stage1", "data.over_length=drop", "pack concat cuts documents anywhere"),
        ("miromind", "data.chat.style=qwen4", "data.chat.style=qwen4: unknown"),
        ("miromind", "data.sequence_tokens=0", "data.sequence_tokens=0"),
        ("tiny_prose", "data.source.generator=prosa", "data.source.generator=prosa"),
        ("tiny_prose", "data.source.words=null", "generator prose needs words"),
        ("tiny_cot", "data.source.words=5", "generator word_problems takes no words"),
        ("tiny_cot", "data.source.kind=hubb", "data.source.kind=hubb: unknown"),
        ("tiny_cot", "data.source.dataset=x", "data.source.dataset: unknown key"),
        ("miromind", "data.sample_rows=0", "data.sample_rows=0"),
        ("miromind", "data.sequence_token=512", "data.sequence_token: unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_path(name: str, override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(name, override)
    assert said in caught.value.what
