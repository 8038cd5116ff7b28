"""Evaluations in parts, from the graph to the cells: the same files as without parts."""

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.config.cluster_schema import LocalCluster
from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.config.experiment_schema import RecallPlan, SyntheticHaystack
from amnesia_bench.errors import MissingEnvironmentError, StageFailedError
from amnesia_bench.inference import generation
from amnesia_bench.inference.generation import Answer
from amnesia_bench.lm_eval_bridge import evaluation
from amnesia_bench.pipeline import evaluations, run, stages, worker
from amnesia_bench.pipeline.execute import execute
from amnesia_bench.pipeline.parts import divided
from amnesia_bench.pipeline.run import RunOptions, run_graph
from amnesia_bench.pipeline.scheduler import SchedulerResult, run_stages
from amnesia_bench.pipeline.specs import write_specs
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.pipeline.stage_process import STARTED, StageLauncher
from amnesia_bench.reasoning import answering
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.requests.engines import EngineChoice, EngineName
from amnesia_bench.store.layout import MANIFEST
from tests.support.fake_engine import FakeEngine

RECALL = RecallPlan(
    tasks=("niah_single_1", "niah_single_3"), lengths=(512,), lengths_per_stage=1, samples=4,
    max_new_tokens=8, haystack=SyntheticHaystack(rows=60, words=100),
)  # fmt: skip
OVERRIDES = ("eval.repeats=2", "eval.max_new_tokens=12")


def evaluated_in_parts(count: int, engine: EngineName = "transformers") -> tuple[Stage, ...]:
    """The recall and the scored answers of a random model, in so many parts."""
    tokenizer, choice = stages.tokenizer(0), EngineChoice(name=engine)
    model = stages.initial("qwen3_laptop", tokenizer, 0)
    essays = stages.rows(SyntheticSource(generator="haystack", rows=60, words=100, seed=0))
    recall = evaluations.recall(
        model, evaluations.prompts(RECALL, tokenizer, essays), RECALL, choice
    )
    problems = stages.rows(SyntheticSource(generator="test_problems", rows=7, words=None, seed=0))
    task = task_named("gsm8k")
    answers = evaluations.answers(
        model, task, evaluations.evaluation(task, OVERRIDES), problems, choice
    )
    return closure([divided(recall, count), evaluations.scores(divided(answers, count), task)])


def made(store: Path) -> dict[str, bytes]:
    """Return the files of all evaluations, without parts and manifests."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for kind in ("recall", "answers", "scores")
        for path in store.glob(f"{kind}/*/**/*")
        if path.is_file() and path.name != MANIFEST and ".part" not in str(path)
    }


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """Run stages in this process, which has imported all packages, without a model."""
    engine = FakeEngine(lambda request: f"{request.key.doc}, {len(request.tokens)}, {request.seed}")

    def run_here(store: Path, spec: StageSpec, log: Path, *_: object) -> int:
        with log.open("a") as file:
            file.write(f"{STARTED}{shlex.join(spec.command)}\n")
        return execute(store, spec.id)

    def run_in_order(store: Path, todo: Sequence[Stage], *_: object) -> SchedulerResult:
        done = [stage.id for stage in todo if worker.run_stage(store, stage.id, StageLauncher())]
        return SchedulerResult(done=frozenset(done), failed=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "fork_server", nullcontext)
        patch.setattr(run, "run_stages", run_in_order)
        patch.setattr(worker, "run_spec", run_here)
        for module in (answering, evaluation):
            patch.setattr(module, "open_engine", lambda *_, **__: engine)
        patch.setattr(sys, "argv", sys.argv)
        yield


def kill_after_an_answer(store: Path, part: Stage) -> None:
    """Leave what a part leaves that is killed before it writes its second answer."""
    write_specs(store, [run._spec(store, part, 1, run._THIS_MACHINE)])
    child = os.fork()
    if not child:
        written = []

        def write(answer: Answer) -> bytes:
            written.append(answer)
            if len(written) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return line_of(answer)

        line_of, generation._line = generation._line, write
        execute(store, part.id)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(next(part.folder(store).rglob("generations.jsonl")).read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def stores(one_process: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a store that was evaluated without parts, and one at its former path with parts.

    One of the parts was killed while it wrote its answers.
    """
    store = tmp_path_factory.mktemp("stores") / "store"
    run_graph(store, evaluated_in_parts(1))
    whole = Path(shutil.copytree(store, store.with_name("whole"), copy_function=shutil.copy2))
    for kind in ("recall", "answers", "scores"):
        shutil.rmtree(store / kind)
        for folder in store.glob(f"stages/{kind}.*"):
            shutil.rmtree(folder)
    graph = evaluated_in_parts(3)
    kill_after_an_answer(store, next(s for s in graph if s.name.endswith("gsm8k.part2of3")))
    assert run_graph(store, graph).done == 3 + 1 + 3 + 1 + 1
    return whole, store


def test_parts_change_neither_files_nor_cells(stores: tuple[Path, Path]) -> None:
    whole, split = stores
    assert made(whole) == made(split)
    assert sum(path.endswith("cell.json") for path in made(split)) == 2
    assert sum(path.endswith("cells.json") for path in made(split)) == 1


def test_the_command_in_the_log_of_a_merge_merges_by_hand(
    stores: tuple[Path, Path], tmp_path: Path
) -> None:
    _, split = stores
    merged = next(split.glob("stages/answers.*gsm8k-*"))
    command = re.match(r"\$ amnesia (.*) --out \S+\n", (merged / "log.txt").read_text())
    assert command is not None
    assert command[1].count("--merge") == 3
    out = tmp_path / "by hand"
    assert main([*command[1].split(), "--out", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes()
        for path in (split / "answers" / merged.name).iterdir()
        if path.name != MANIFEST
    }


def test_merged_parts_may_be_removed_and_their_number_may_change(
    stores: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, split = stores
    for count in (1, 2, 3, 4):
        outcome = run_graph(split, evaluated_in_parts(count))
        assert (outcome.done, outcome.by_others) == (0, 0)
    assert main(["clean", "--merged-parts", "--yes", f"--store={split}"]) == 0
    assert "6 stages" in capsys.readouterr().out
    assert list(split.glob("*/*.part*")) == []
    assert run_graph(split, evaluated_in_parts(3)).done == 0

    # Without the merged answers, the parts are needed again.
    shutil.rmtree(next(split.glob("answers/*")))
    assert run_graph(split, evaluated_in_parts(3)).done == 3 + 1
    assert made(split) == made(whole)


_PYTHON = """\
#!/bin/sh
if [ "$2" = -c ]; then PYTHONPATH="{modules}" exec {python} "$@"; fi
echo "this is the other Python: $*"
exit 3
"""


def test_a_stage_with_vllm_runs_in_the_python_that_has_it(
    stores: tuple[Path, Path], tmp_path: Path
) -> None:
    _, split = stores
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    python = tmp_path / "python"
    python.write_text(_PYTHON.format(modules=tmp_path, python=sys.executable))
    python.chmod(0o755)
    graph = closure(s for s in evaluated_in_parts(1, engine="vllm") if s.kind == "answers")
    with pytest.raises(MissingEnvironmentError, match=r"runs vLLM, but .* lacks vllm") as caught:
        run_graph(split, graph)
    assert "cluster.vllm_python=PATH" in str(caught.value.hint)
    cluster = LocalCluster(kind="local", vllm_python=str(python))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_stages", run_stages)
        with pytest.raises(StageFailedError, match="this is the other Python"):
            run_graph(split, graph, RunOptions(cluster=cluster))
