"""Every task has a config whose values say where they come from."""

from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig, NiahConfig
from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_option
from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import sample_seed
from amnesia_bench.reasoning.tasks import TASKS
from amnesia_bench.recall.niah import NIAH_SAMPLING
from amnesia_bench.recall.niah.tasks import SINGLE_TASKS
from amnesia_bench.records.evaluation import SampleKey
from amnesia_bench.records.reasoning import Checker

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "eval"
# From the issue and Appendix K: answers per problem, new tokens.
SIZES = {
    "math500": (16, 8192),
    "gsm8k": (16, 2048),
    "aime24": (16, 16384),
    "ifeval": (1, 1280),
    "livecodebench": (8, 16384),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_a_config(task: str) -> None:
    assert task in options("eval")
    config = load_option("eval", task, [], TASKS[task].config)
    assert (config.repeats, config.max_new_tokens) == SIZES[task]
    assert config.top_k is None
    assert (config.temperature, config.top_p) == ((0, 1) if task == "ifeval" else (0.6, 0.95))
    assert (CONFIGS / f"{task}.yaml").read_text().startswith("# Table ")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_value_has_its_source_beside_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all("# " in line for line in lines if not line.startswith(("  ", "extends: ")))


def test_recall_is_asked_as_in_table_1_and_checked_at_its_ends() -> None:
    niah = load_option("eval", "niah", [], NiahConfig)
    check = load_option("eval", "check", [], NiahConfig)
    assert niah.tasks == tuple(SINGLE_TASKS)
    assert niah.lengths == (32768, 65536, 131072, 262144)
    assert (niah.samples, niah.max_new_tokens) == (500, NIAH_SAMPLING.max_new_tokens)
    assert check == niah.model_copy(update={"lengths": (niah.lengths[0], niah.lengths[-1])})


def test_the_plan_of_the_paper_asks_recall_as_the_commands_do() -> None:
    (job,) = load_jobs(["experiment=table1", "profile=paper"])
    niah = load_option("eval", "niah", [], NiahConfig)
    recall = job.config.profile.recall.model_dump(include=set(NiahConfig.model_fields))
    assert NiahConfig.model_validate(recall) == niah


@pytest.mark.parametrize(
    ("command", "config"), [("check", "check"), ("eval niah", "niah"), ("niah build", "niah")]
)
def test_help_shows_what_is_asked_by_default(
    command: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown = "".join(capsys.readouterr().out.split())
    niah = load_option("eval", config, [], NiahConfig)
    assert ",".join(niah.tasks) in shown
    assert f"{niah.samples})" in shown
    assert command == "niah build" or ",".join(map(str, niah.lengths)) in shown


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["eval.repeats=0"], "eval.repeats=0"),
        (["eval.temperature=0"], "16 repeats with temperature 0 give equal answers"),
        (["eval.temperature=-1"], "eval.temperature=-1"),
        (["eval.top_p=0"], "eval.top_p=0"),
        (["eval.top_k=0"], "eval.top_k=0"),
        (["eval.think.open=''"], "eval.think.open="),
        (["eval.max_tokens=5"], "eval.max_tokens: unknown key"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_option("eval", "math500", overrides, EvalConfig)


def test_an_unknown_checker_is_answered_with_those_there_are() -> None:
    assert load_option("eval", "livecodebench", [], CodeEvalConfig).checker is Checker.LCB
    with pytest.raises(UserError, match=r"eval\.checker=lax.*'lcb' or 'lenient'"):
        load_option("eval", "livecodebench", ["eval.checker=lax"], CodeEvalConfig)


def test_thinking_can_be_switched_off() -> None:
    assert load_option("eval", "math500", ["eval.think=null"], EvalConfig).think is None


def test_seeds_are_those_of_always_and_differ_per_answer() -> None:
    keys = [
        SampleKey(task=task, doc=doc, repeat=repeat)
        for task in ("math500", "gsm8k")
        for doc in range(40)
        for repeat in range(16)
    ]
    seeds = [sample_seed(seed, key) for seed in (0, 1) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A run that goes on with a later version must draw the same.
    assert sample_seed(0, keys[0]) == 8697022715343618088
