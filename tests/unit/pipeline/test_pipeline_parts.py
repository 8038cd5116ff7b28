"""Long evaluations are divided into parts, and no id but the parts' own depends on it."""

import re
from pathlib import Path

import pytest

from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.stage_cost import cost_of
from amnesia_bench.costs.work import Answering
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.parts import part_count
from amnesia_bench.pipeline.stage import Stage, whole_of
from amnesia_bench.requests.answering import AnsweringRequest, AnswerPart, MergedParts
from amnesia_bench.requests.reasoning import GenerateRequest

H100, HOURS = GPUS["h100"], 0.25
JOB = ("experiment=table1", "experiment.scopes.paper.models=[hypenet_9b]")


def graph(*overrides: str) -> dict[str, Stage]:
    return {stage.id: stage for stage in stages_of(graphs_of([*JOB, *overrides]))}


@pytest.fixture(scope="module")
def whole() -> dict[str, Stage]:
    return graph("profile.max_hours_per_evaluation=null")


@pytest.fixture(scope="module")
def paper() -> dict[str, Stage]:
    return graph(f"profile.max_hours_per_evaluation={HOURS}")


def parts_in(found: dict[str, Stage]) -> set[str]:
    return {id for id in found if whole_of(id) is not None}


def test_parts_change_no_id(whole: dict[str, Stage], paper: dict[str, Stage]) -> None:
    assert not parts_in(whole)
    assert set(paper) - parts_in(paper) == set(whole)
    assert {whole_of(id) for id in parts_in(paper)} <= set(whole)


def test_parts_have_at_most_the_hours_of_the_profile_and_together_the_work_of_the_whole(
    whole: dict[str, Stage], paper: dict[str, Stage]
) -> None:
    for id, stage in paper.items():
        if isinstance(stage.work, Answering) and stage.kind != "ranking":
            hours = cost_of(stage.work, stage.gpus, H100).gpu_hours / stage.gpus
            # Batches of a part are not all full, so a part takes a little more than its share.
            assert hours < HOURS * 1.5, id
    merged = [s for s in paper.values() if isinstance(s.request, AnsweringRequest)]
    merged = [s for s in merged if isinstance(s.request.division, MergedParts)]
    assert {stage.kind for stage in merged} == {"answers", "recall"}
    for stage in merged:
        assert stage.gpus == 0
        parts = [read for read in stage.inputs if whole_of(read.id) == stage.id]
        assert isinstance(stage.request, AnsweringRequest)
        assert isinstance(stage.request.division, MergedParts)
        assert stage.request.division.folders == tuple(part.location for part in parts)
        prompts = sum(n for part in parts for _, n in part.work.prompts)
        assert prompts == sum(n for _, n in whole[stage.id].work.prompts)
        assert {part.gpus for part in parts} == {1}


def test_a_part_is_named_and_keeps_the_hash_of_the_whole(paper: dict[str, Stage]) -> None:
    name = r"sft_miromind_9b-s0\.math500\.part2of(\d+)"
    part = next(s for s in paper.values() if re.fullmatch(name, s.name))
    count = part.name.rpartition("of")[2]
    assert whole_of(part.id) == part.id.replace(f".part2of{count}", "")
    assert whole_of(part.id) in paper
    assert isinstance(part.request, GenerateRequest)
    assert part.request.division == AnswerPart(index=2, count=int(count))


def test_parts_are_contiguous_and_cover_every_document_once() -> None:
    for total in (0, 1, 5, 500):
        for count in (1, 3, 7):
            parts = [AnswerPart(index=i, count=count).documents(total) for i in range(1, count + 1)]
            assert [doc for part in parts for doc in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_has_at_least_one_document(whole: dict[str, Stage]) -> None:
    for stage in whole.values():
        if stage.kind == "answers" and stage.name.endswith(".aime24"):
            assert part_count(stage, H100, 1e-6) == 30
        if stage.kind == "recall":
            assert part_count(stage, H100, 1e-6) == 500


def test_a_part_needs_no_run_once_the_whole_is_done(
    paper: dict[str, Stage], tmp_path: Path
) -> None:
    part = next(s for s in paper.values() if whole_of(s.id) is not None)
    assert state_of(tmp_path, part.kind, part.id) is StageState.WAITING
    merged = paper[str(whole_of(part.id))].folder(tmp_path)
    merged.mkdir(parents=True)
    (merged / "manifest.json").write_text("{}")
    assert state_of(tmp_path, part.kind, part.id) is StageState.CACHED


def test_an_engine_is_part_of_the_ids_of_what_it_answers(whole: dict[str, Stage]) -> None:
    vllm = graph("profile.max_hours_per_evaluation=null", "profile.engine=vllm")
    changed = {stage.kind for id, stage in vllm.items() if id not in whole}
    assert changed == {"recall", "answers", "scores"}
    engines = {
        stage.request.engine.name
        for stage in vllm.values()
        if isinstance(stage.request, AnsweringRequest)
    }
    assert engines == {"vllm"}


def test_an_evaluation_may_use_several_gpus(paper: dict[str, Stage]) -> None:
    found = graph("profile.gpus_per_evaluation=4", f"profile.max_hours_per_evaluation={HOURS}")
    answering = [s for s in found.values() if isinstance(s.work, Answering)]
    assert {stage.gpus for stage in answering} == {4}
    assert len(parts_in(found)) < len(parts_in(paper))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("profile.gpus_per_evaluation=9", "gpus_per_evaluation 9 is above gpus 8"),
        ("profile.max_hours_per_evaluation=0", "max_hours_per_evaluation"),
        ("profile.engine=sglang", "engine"),
    ],
)
def test_a_division_that_makes_no_sense_is_refused(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        graph(override)


def test_an_evaluation_does_not_run_on_several_nodes() -> None:
    with pytest.raises(UserError, match="only trainings run on several nodes"):
        graph("cluster=slurm", "cluster.gpus_per_node=4", "profile.gpus_per_evaluation=8")
