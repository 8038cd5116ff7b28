"""A config of one's own by its path: what it may extend, and how each mistake is answered."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from amnesia_bench.config.data_schema import DataConfig
from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.config.files import config_name, merged, options, read_config
from amnesia_bench.config.load import load_model_file, load_option, load_training, load_variant
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.config.schema import Variant
from amnesia_bench.config.train_schema import TrainConfig
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.graph import build, stages_of


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("group", "base", "change", "schema"),
    [
        ("train", "sft_miromind_2b", "steps: 50", TrainConfig),
        ("data", "tiny_cot", "sequence_tokens: 512", DataConfig),
        ("restore", "qk_blend", "rule: {alpha: 0.3}", Variant),
        ("report", "tiny_table1", "title: mine", TableConfig),
        ("eval", "gsm8k", "repeats: 4", EvalConfig),
    ],
)
def test_a_file_is_what_it_extends_with_its_own_values(
    tmp_path: Path, group: str, base: str, change: str, schema: type[BaseModel]
) -> None:
    path = write(tmp_path / "mine.yaml", f"extends: {base}\n{change}\n")
    own, packaged = load_option(group, path, [], schema), load_option(group, base, [], schema)
    differing = {k for k in schema.model_fields if getattr(own, k) != getattr(packaged, k)}
    named = {"name"} if "name" in schema.model_fields else set()
    assert differing == named | {change.partition(":")[0]}
    assert read_config(group, path).name == "mine"


def test_what_was_typed_changes_a_file_of_ones_own_too(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "extends: qk_blend\n")
    assert load_variant(path, ["restore.rule.alpha=0.1"]).rule.model_dump()["alpha"] == 0.1


def test_a_family_of_stages_is_extended_or_completed_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "extends: sft\nmixture: {mine: 1.0}\n")
    own = load_training(path, []).train
    typed = load_training("sft", ["train.mixture={mine: 1.0}"]).train
    assert own.mixture == {"mine": 1.0}
    assert own.model_copy(update={"name": "sft"}) == typed
    assert "sft" not in options("train")
    with pytest.raises(UserError, match=r"train\.mixture: missing \(.*sft\.yaml\)") as caught:
        load_training("sft", [])
    assert "sft is only the shared part of sft_miromind_2b, sft_miromind_5b, " in str(
        caught.value.hint
    )


def test_files_extend_each_other_by_paths_beside_them(tmp_path: Path) -> None:
    write(tmp_path / "_base.yaml", "extends: sft_tulu_2b\nsteps: 50\n")
    (tmp_path / "runs").mkdir()
    path = write(tmp_path / "runs" / "mine.yaml", "extends: ../_base.yaml\nmicro_batch: 2\n")
    train = load_training(path, []).train
    assert (train.name, train.steps, train.micro_batch) == ("mine", 50, 2)
    assert train.mixture == {"tulu3": 1.0}


def test_of_several_the_last_wins_and_the_file_itself_over_all(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "steps: 20\nseed: 1\nmicro_batch: 2\n")
    write(tmp_path / "b.yaml", "seed: 2\nmicro_batch: 4\n")
    path = write(tmp_path / "c.yaml", "extends: [sft_tulu_2b, a.yaml, b.yaml]\nmicro_batch: 8\n")
    train = load_training(path, []).train
    assert (train.steps, train.seed, train.micro_batch) == (20, 2, 8)


def test_a_block_extends_a_config_of_another_group(tmp_path: Path) -> None:
    text = "extends: tiny\nrecall:\n  extends: eval/check\n  samples: 9\n"
    path = write(tmp_path / "mine.yaml", text)
    (job,) = load_jobs(["experiment=table1", f"profile={path}"])
    recall = job.config.profile.recall
    assert (recall.lengths, recall.samples) == ((32768, 262144), 9)


def test_an_experiment_of_ones_own_has_the_stages_of_what_it_extends(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "extends: table1\n")
    own, packaged = (
        [stage.id for job in load_jobs([f"experiment={e}", "profile=smoke"])
         for stage in stages_of([build(job)])]
        for e in (path, "table1")
    )  # fmt: skip
    assert own == packaged
    (job,) = load_jobs([f"experiment={path}", "profile=smoke"])
    assert job.config.experiment.name == "mine"


def test_a_run_takes_a_repair_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "extends: qk_blend\nrule: {alpha: 0.25}\n")
    (job,) = load_jobs(["experiment=table1", f"restore={path}"])
    assert job.config.restore == load_variant("qk_blend", ["restore.rule.alpha=0.25"]).model_copy(
        update={"name": "mine"}
    )


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "extends: hypenet_tiny\nvocab_size: 300\n")
    assert load_model_file(path) == load_model_file("hypenet_tiny") | {"vocab_size": 300}


def test_values_are_never_shared_between_two_that_were_loaded() -> None:
    load_model_file("hypenet_tiny")["mixer_types"].clear()
    assert load_model_file("hypenet_tiny")["mixer_types"]


def test_blocks_are_merged_key_by_key_and_lists_replaced() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 0}
    assert merged(base, {"a": {"c": [3]}, "d": {"e": 1}}) == {
        "a": {"b": 1, "c": [3]},
        "d": {"e": 1},
    }
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 0}


def test_a_path_is_known_by_its_ending() -> None:
    assert config_name("runs/mine.yaml") == config_name("mine") == "mine"


# What is written into mine.yaml, and what is said of it.
MISTAKES = [
    ("extends: sft_tulu_2b\nstepz: 3\n", "train.stepz: unknown key ({path}:2)", "mean steps?"),
    ("extends: sft_tulu_2b\nsteps: x\n", "train.steps=x: Input should be a valid", None),
    ("extends: sft_tulu_2b\n\nsteps: x\n", "({path}:3)", None),
    (
        "extends: sft_tulu_2b\noptimizer:\n  betas: [0.9, 2]\n",
        "train.optimizer.betas[1]=2: Input should be less than 1 ({path}:3)",
        None,
    ),
    (
        "extends: sft_tulu_2b\nsteps: 5\n",
        "no step would have the full learning rate ({path})",
        None,
    ),
    ("steps: 5\n", "train.objective: missing ({path})", None),
    ("", "train.objective: missing ({path})", None),
    ("extends: sft_tulu\n", "{path}:1: extends: train=sft_tulu: no such option", "mean sft_tulu_"),
    ("steps: 5\nextends: no.yaml\n", "{path}:2: extends: no.yaml: no such file", None),
    ("extends: mine.yaml\n", "{path}:1: mine extends mine", None),
    ("extends: 3\n", "{path}:1: extends=3: expected the name of a config", None),
    ("extends: {a: 1}\n", "{path}:1: extends={{'a': 1}}: expected the name of a config", None),
    ("extends: eval/no\n", "extends: eval=no: no such option", "Known: aime24, check"),
    ("optimizer: {extends: no/adam}\n", "no=adam: no such option", None),
    ("defaults: [sft_tulu_2b, _self_]\n", "{path}:1: defaults: unknown key", "Write `extends:"),
    ("extends: sft\nname: mine\n", "{path}:2: name: unknown key", "the name of its file"),
    ("configs: {a: {}}\n", "{path}:1: a file given by path can contain only one config", "Write"),
    ("steps: [1,\n", "{path}:2 is not YAML", None),
    ("steps: 1\nsteps: 2\n", "{path}:2 is not YAML: found duplicate key steps", None),
    ("\tsteps: 1\n", "{path}:1 is not YAML", None),
    ("- 1\n", "{path} does not contain keys and values", None),
    ("steps\n", "{path}", None),
    ("steps: !!python/object:os.system x\n", "{path}:1 is not YAML", None),
    ("extends: sft_tulu_2b\nseed: ${nothing}\n", "nothing", None),
    ("extends: sft_tulu_2b\n_target_: os.system\n", "train._target_: not allowed", None),
    ("[" * 3000, "{path}", None),
]


@pytest.mark.parametrize(("text", "said", "hint"), MISTAKES)
def test_a_mistake_is_named_with_its_file_and_line(
    tmp_path: Path, text: str, said: str, hint: str | None
) -> None:
    path = write(tmp_path / "mine.yaml", text)
    with pytest.raises(UserError) as caught:
        load_training(path, [])
    assert said.format(path=path) in caught.value.what
    assert hint is None or hint in str(caught.value.hint)


def test_files_that_extend_each_other_in_a_circle_are_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    write(tmp_path / "a.yaml", "extends: runs/b.yaml\n")
    path = write(tmp_path / "runs" / "b.yaml", "extends: ../a.yaml\n")
    with pytest.raises(UserError, match="b extends a extends b"):
        load_training(path, [])


def test_a_path_that_no_file_can_have_is_refused() -> None:
    for path in ("a" * 5000 + ".yaml", "a\0.yaml", "~nobody/a.yaml"):
        with pytest.raises(UserError, match=r"no such file|too long"):
            load_training(path, [])


def test_what_was_typed_is_not_looked_for_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "extends: sft_tulu_2b\n")
    for override in ("train.steps=x", "train.micro_batch=5", "train.stepz=3"):
        with pytest.raises(UserError) as caught:
            load_training(path, [override])
        assert ".yaml" not in caught.value.what


@pytest.mark.parametrize("name", ["My-Run.yaml", "ä.yaml", "a b.yml"])
def test_the_name_of_a_file_must_be_one_of_a_config(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a valid name"):
        load_training(write(tmp_path / name, "extends: sft_tulu_2b\n"), [])


def test_what_is_no_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"steps: \xe9\n")
    write(tmp_path / "mine.yaml", "extends: sft_tulu_2b\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"folder\.yaml: no such file"):
        load_training("folder.yaml", [])
    with pytest.raises(UserError, match=r"latin\.yaml is not text in UTF-8"):
        load_training("latin.yaml", [])
    with pytest.raises(UserError, match="train=mine: no such option") as caught:
        load_training("mine", [])
    assert caught.value.hint == "To use your own file, add its suffix: mine.yaml"
