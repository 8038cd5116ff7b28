"""The gate on real checkpoints: a model that recalls everything, and copies damaged on purpose."""

from pathlib import Path

import pytest

from amnesia_bench.config.load import load_variant
from amnesia_bench.inference.candidates import open_candidates
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.recall.sequential_check import CheckPlan, CheckResult, compare_checkpoints
from amnesia_bench.records.evaluation import Sampling
from amnesia_bench.records.recall import CheckVerdict, Rule
from tests.support.surgery import restore
from tests.support.tiny_retrieval import LookupPromptSet, noised, train

pytestmark = pytest.mark.slow

ONE_TOKEN = Sampling(max_new_tokens=1, temperature=0.0, top_p=1.0, top_k=None, stop=())
CPU = EngineOptions(device="cpu")
CELLS = (LookupPromptSet(12, 500), LookupPromptSet(24, 500))


@pytest.fixture(scope="module")
def pre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("models") / "pre")


def run(work: Path, **folders: Path) -> CheckResult:
    candidates = open_candidates(folders)
    plan = CheckPlan(
        pre=candidates[0],
        post=candidates[1],
        restored=candidates[2] if len(candidates) > 2 else None,
        prompt_sets=CELLS,
        sampling=ONE_TOKEN,
        rule=Rule(samples=500, margin=0.0, error_rate=0.025),
    )
    return compare_checkpoints(
        plan, lambda each: TransformersEngine.load(each.folder, CPU), work, lambda line: None
    )


def recalls(result: CheckResult, role: str) -> list[float | None]:
    return [cell.value for cell in result.cells if cell.method == role]


@pytest.mark.parametrize("routing", [0.0, 0.2])
def test_noise_that_costs_no_recall_is_no_regression(
    routing: float, pre: Path, tmp_path: Path
) -> None:
    post = noised(pre, tmp_path / "post", everywhere=0.02, routing=routing, seed=1)
    result = run(tmp_path, pre=pre, post=post)
    assert result.report.verdict is CheckVerdict.NO_REGRESSION
    assert result.report.generations <= result.report.generations_planned / 2


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_that_costs_some_points_of_recall_is_a_regression(
    seed: int, pre: Path, tmp_path: Path
) -> None:
    post = noised(pre, tmp_path / "post", everywhere=0.02, routing=0.6, seed=seed)
    result = run(tmp_path, pre=pre, post=post)
    assert result.report.verdict is CheckVerdict.REGRESSION
    assert result.report.generations <= result.report.generations_planned / 2


def test_lost_routing_is_found_at_the_first_look_and_restoring_it_wins_recall_back(
    pre: Path, tmp_path: Path
) -> None:
    post = noised(pre, tmp_path / "post", everywhere=0.02, routing=1.2, seed=1)
    repaired = tmp_path / "restored"
    restore(pre, post, repaired, load_variant("qk", ["restore.select.layers=all"]))
    result = run(tmp_path, pre=pre, post=post, restored=repaired)
    assert result.report.verdict is CheckVerdict.REGRESSION
    # Three checkpoints, 25 prompts at the longer length; the shorter one was not needed.
    assert result.report.generations == 75
    by_role = {role: recalls(result, role)[1] for role in ("pre", "post", "restored")}
    assert by_role["pre"] == by_role["restored"] == 1
    assert by_role["post"] is not None
    assert by_role["post"] < 0.6
    # The same check again takes every answer from disk.
    again = run(tmp_path, pre=pre, post=post, restored=repaired)
    assert again == result
