"""The tiny profile, from nothing to a fine-tune: generated data through the cluster's own code."""

import json
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.data import open_store
from amnesia_bench.data.data_tokenizer import decoder
from amnesia_bench.data.sequence_store import TOKENIZER
from amnesia_bench.data.synthesize import ROWS
from amnesia_bench.reasoning.documents import load_documents
from amnesia_bench.reasoning.tasks.mathematics import GSM8K
from amnesia_bench.recall.niah.haystack import read_haystack
from amnesia_bench.records.artifacts import Manifest
from amnesia_bench.store.hashing import read_manifest
from tests.support.synthetic import rows_of

SMALL = {
    "tiny_rehearsal": ["data.source.rows=60"],
    "tiny_copies": ["data.source.rows=60"],
    "tiny_prose": ["data.source.rows=60"],
    "tiny_prose_short": ["data.source.rows=60"],
    "tiny_math": ["data.source.rows=60"],
    "tiny_prose_long": ["data.source.rows=12"],
    "tiny_math_long": ["data.source.rows=12"],
    "tiny_chat": ["data.source.rows=60"],
    "tiny_cot": ["data.source.rows=60"],
    "tiny_programs": ["data.source.rows=60"],
    "tiny_instruct_short": ["data.source.rows=60"],
    "tiny_instruct_long": ["data.source.rows=60"],
}


def amnesia(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer and all data."""
    work = tmp_path_factory.mktemp("tiny")
    amnesia("data", "synthesize", "tokenizer", "--out", work / "tokenizer")
    for name, changes in SMALL.items():
        amnesia("data", "prepare", name, "--tokenizer", work / "tokenizer", "--out", work / name,
                *changes)  # fmt: skip
    return work


def train(work: Path, stage: str, init: str, *options: object) -> None:
    small = ["train.steps=3", "train.global_batch=2", "train.micro_batch=2",
             "train.optimizer.warmup_steps=1"]  # fmt: skip
    from amnesia_bench.config.load import load_training

    data = []
    for source in load_training(stage, []).train.mixture:
        data += ["--data", f"{source}={work / source}"]
    amnesia("train", "--config", stage, "--init", work / init, *data, "--out", work / stage,
            *options, *small)  # fmt: skip


def test_all_stages_run_from_random_weights_to_every_fine_tune(work: Path) -> None:
    amnesia("init", "--model", "qwen3_laptop", "--tokenizer", work / "tokenizer",
            "--out", work / "random")  # fmt: skip
    train(work, "tiny_copy", "random")
    train(work, "tiny_pretrain", "tiny_copy")
    teacher = work / "tiny_pretrain"
    convert = ["convert", "--teacher", teacher, "--size", "laptop"]
    amnesia(*convert, "--stage", 1, "--out", work / "student")
    train(work, "tiny_stage1", "student", "--teacher", teacher)
    amnesia(*convert, "--stage", 2, "--student", work / "tiny_stage1", "--out", work / "hybrid")
    train(work, "tiny_stage2", "hybrid", "--teacher", teacher)
    train(work, "tiny_stage3", "tiny_stage2")
    for stage in ("tiny_sft_cot", "tiny_sft_programs", "tiny_sft_instruct_short",
                  "tiny_sft_instruct_long", "tiny_qk_frozen"):  # fmt: skip
        train(work, stage, "tiny_stage3")
        assert read_manifest(work / stage).kind == "trained"
    amnesia("restore", "--pre", work / "tiny_stage3", "--post", work / "tiny_sft_cot",
            "--out", work / "restored")  # fmt: skip


def test_what_is_trained_of_a_generated_chat_is_its_answer(work: Path) -> None:
    for name in ("tiny_cot", "tiny_programs", "tiny_instruct_short"):
        store = open_store(work / name)
        decode = decoder(work / name / TOKENIZER)
        trained = "".join(
            decode(sequence.tokens[sequence.loss_mask].tolist())
            for sequence in map(store.sequence, range(store.num_sequences))
        )
        answers = sorted(trained.split("<|im_end|>")[:-1])
        assert answers == sorted(expected(name))


def expected(name: str) -> list[str]:
    if name == "tiny_cot":
        return [row["response"] for row in rows_of("word_problems", 60)]
    if name == "tiny_programs":
        return [row["conversations"][1]["value"] for row in rows_of("programs", 60)]
    rows = rows_of("short_instructions", 60, words=80)
    return [row["messages"][1]["content"] for row in rows]


def test_both_controls_have_as_many_tokens_and_as_many_trained(work: Path) -> None:
    counts = [
        open_store(work / name).description.counts
        for name in ("tiny_instruct_short", "tiny_instruct_long")
    ]
    assert counts[0].documents == counts[1].documents == 60
    assert counts[0].trained_tokens == counts[1].trained_tokens


def test_preparing_from_the_config_and_from_the_written_rows_is_the_same(
    work: Path, tmp_path: Path
) -> None:
    amnesia("data", "synthesize", "word_problems", "--rows", 60, "--out", tmp_path / "rows")
    amnesia("data", "prepare", "tiny_cot", "--tokenizer", work / "tokenizer",
            "--input", tmp_path / "rows" / ROWS, "--out", tmp_path / "data",
            *SMALL["tiny_cot"])  # fmt: skip
    assert open_store(tmp_path / "data").sha256 == open_store(work / "tiny_cot").sha256
    manifests: list[Manifest] = [read_manifest(p) for p in (tmp_path / "data", work / "tiny_cot")]
    assert manifests[0].parents[0].identity == manifests[1].parents[0].identity


def test_problems_and_haystack_are_read_where_the_evaluations_read_them(tmp_path: Path) -> None:
    amnesia("data", "synthesize", "test_problems", "--rows", 20, "--out", tmp_path / "problems")
    documents = load_documents(GSM8K.source, tmp_path / "problems" / ROWS, None)
    assert len(documents.rows) == 20
    amnesia("data", "synthesize", "haystack", "--rows", 3, "--words", 100, "--seed", 5,
            "--out", tmp_path / "haystack")  # fmt: skip
    assert len(read_haystack(tmp_path / "haystack" / ROWS).words) >= 300


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["proze", "--rows", "3", "--out", "x"], "generator proze: must be 'prose', 'haystack'"),
        (["prose", "--words", "9", "--out", "x"], "--rows is missing"),
        (["prose", "--rows", "0", "--words", "9", "--out", "x"], "--rows 0: must be at least 1"),
        (["prose", "--rows", "3", "--out", "x"], "generator prose needs words"),
        (["programs", "--rows", "3", "--words", "9", "--out", "x"], "takes no words"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["data", "synthesize", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_are_json_lines(tmp_path: Path) -> None:
    amnesia("data", "synthesize", "programs", "--rows", 5, "--out", tmp_path / "rows")
    lines = (tmp_path / "rows" / ROWS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows_of("programs", 5)
