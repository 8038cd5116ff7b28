"""From experiments to stages: the paper's chain of them, and what several experiments share."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.config.schema import Blend
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.command_lines import command_line
from amnesia_bench.pipeline.graph import ExperimentRow, Graph, build, stages_of
from amnesia_bench.pipeline.reporting import report_calls
from amnesia_bench.pipeline.run import threads_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.checkpoints import RankedLayers, RestoreRequest
from amnesia_bench.requests.experiments import LabelledDrift


def graphs(*overrides: str) -> list[Graph]:
    return [build(job) for job in load_jobs(overrides)]


def row(graph: Graph, method: str, model: str = "tiny") -> ExperimentRow:
    return next(row for row in graph.rows if (row.method, row.model) == (method, model))


def trainings(stage: Stage) -> list[str]:
    """The stages that a checkpoint came from, by name without seed, the last first."""
    inputs = [each for each in stage.inputs if each.kind in ("trained", "converted")]
    before = trainings(inputs[-1]) if inputs else []
    return [*([stage.name.rpartition("-s")[0]] if stage.kind == "trained" else []), *before]


@pytest.fixture(scope="module")
def paper() -> Graph:
    (graph,) = graphs("experiment=table1")
    return graph


def test_a_row_of_the_paper_goes_through_three_stages_and_sft(paper: Graph) -> None:
    post = row(paper, "post", "HypeNet-9B").checkpoint
    assert trainings(post) == [
        "sft_miromind_9b", "stage3_9b", "stage2_9b", "stage1_9b"
    ]  # fmt: skip
    restored = row(paper, "restored", "HypeNet-9B").checkpoint
    pre = row(paper, "pre", "HypeNet-9B").checkpoint
    assert [each.id for each in restored.inputs] == [pre.id, post.id]


def test_a_table_of_the_paper_has_all_its_rows(paper: Graph) -> None:
    rows = {(row.model, row.method) for row in paper.rows}
    models = ("Jet-Nemotron-2B", "HypeNet-2B", "HypeNet-5B", "HypeNet-9B")
    assert rows == {(model, method) for model in models for method in ("pre", "post", "restored")}
    kinds = [[stage.kind for stage in row.measured] for row in paper.rows]
    assert kinds == [[*["recall"] * 4, *["scores"] * 3]] * 12


def test_softmax_models_are_restored_where_the_ranking_says() -> None:
    (graph,) = graphs("experiment=table10")
    restored = row(graph, "restored", "Qwen2.5-7B").checkpoint
    assert [each.kind for each in restored.inputs] == ["download", "trained", "ranking"]
    assert isinstance(restored.request, RestoreRequest)
    file = restored.inputs[2].location / "ranking.json"
    assert restored.request.ranked_layers == RankedLayers(count=7, file=file)


@pytest.mark.parametrize("profile", ["paper", "tiny"])
def test_peers_are_rows_whose_values_are_measured_first(profile: str) -> None:
    (graph,) = graphs("experiment=table4", f"profile={profile}")
    model = {"paper": "HypeNet-2B", "tiny": "tiny"}[profile]
    long = {"paper": "fineweb_edu_stage3", "tiny": "tiny_prose_long"}[profile]
    for method in ("wise_ft", "ties", "dare", "qk_blend", "qk_ties", "qk_dare"):
        peer = row(graph, method, model).checkpoint
        assert [stage.kind for stage in peer.inputs] == ["trained", "trained"]
    for method in ("lm_cocktail", "step_back", "qk_lm_cocktail", "qk_step_back"):
        *_, measured = row(graph, method, model).checkpoint.inputs
        kinds = [(stage.kind, stage.name) for stage in measured.inputs]
        assert kinds[2:] == [("data", long)]
    for method in ("layer_fisher", "qk_layer_fisher"):
        peer = row(graph, method, model).checkpoint
        *pair, measured = peer.inputs
        assert list(measured.inputs) == pair
        assert isinstance(peer.request, RestoreRequest)
        assert peer.request.measured == measured.location / "measurement.json"


def test_a_merge_of_all_weights_takes_no_ranking_and_losses_need_data() -> None:
    (graph,) = graphs("experiment=table10", "restore=wise_ft")
    merged = row(graph, "restored", "Qwen2.5-7B").checkpoint
    assert [stage.kind for stage in merged.inputs] == ["download", "trained"]
    with pytest.raises(UserError, match=r"Qwen2.5-7B: variant lm_cocktail measures losses") as no:
        graphs("experiment=table10", "restore=lm_cocktail")
    assert no.value.hint is not None
    assert "amnesia measure --data" in no.value.hint


def test_tables_share_stages_and_seeds_share_data() -> None:
    whole = ("experiment=table1,table4", "profile=tiny")
    both = stages_of(graphs(*whole))
    parts = [stages_of([graph]) for graph in graphs(*whole)]
    assert {stage.id for stage in parts[0]} < {stage.id for stage in parts[1]}
    assert len(both) == len(parts[1])
    seeds = stages_of(graphs(*whole, "profile.seeds=[0,1]"))
    data = [stage.id for stage in seeds if stage.kind == "data"]
    assert sorted(data) == sorted(stage.id for stage in both if stage.kind == "data")
    trained = [stage for stage in both if stage.kind == "trained"]
    assert sum(stage.kind == "trained" for stage in seeds) == 2 * len(trained)


def test_a_sweep_over_restore_variants_is_one_graph() -> None:
    jobs = ("experiment=table1", "profile=tiny")
    swept = graphs(*jobs, "restore=qk,qk_blend,qk_low_rank")
    assert len(swept) == 3
    whole = stages_of(swept)
    one = stages_of(swept[:1])
    new = {stage.id for stage in whole} - {stage.id for stage in one}
    # For each further variant: the checkpoint, its recall, its answers, their scores.
    assert len(new) == 2 * 4
    calls = report_calls(swept, Path("store"), Path("results"))
    assert [str(call.out) for call in calls] == [
        f"results/tiny/table1/restore={name}" for name in ("qk", "qk_blend", "qk_low_rank")
    ]


def test_a_changed_value_of_the_variant_reaches_its_request_and_command() -> None:
    (graph,) = graphs(
        "experiment=table1", "profile=tiny", "restore=qk_blend", "restore.rule.alpha=0.3"
    )
    request = row(graph, "restored").checkpoint.request
    assert isinstance(request, RestoreRequest)
    assert request.variant.rule == Blend(alpha=0.3)
    command = command_line(request, Path("out"))
    assert "restore.rule.alpha=0.3" in command
    assert command[command.index("--variant") + 1] == "qk_blend"


@pytest.mark.parametrize("override", ["restore.nam=v", "experiment=glob(*)", "experiment=table1,"])
def test_what_is_no_experiment_is_refused(override: str) -> None:
    with pytest.raises(UserError):
        load_jobs(["experiment=table1", "profile=tiny", override])


def test_a_report_gets_every_folder_of_cells_under_its_label() -> None:
    both = graphs("experiment=table1,table2", "profile=tiny", "profile.seeds=[0,3]")
    (call,) = report_calls(both, Path("store"), Path("results"))
    assert call.out == Path("results/tiny")
    request = call.request
    assert request.tables == ("tiny_table1", "tiny_table2")
    labels = [f"{each.model}/{each.method}/{each.seed}" for each in request.sources]
    assert {each.folder for each in request.sources} == set(call.sources)
    restored = row(both[0], "restored").checkpoint.folder(Path("store")) / "restoration.json"
    assert LabelledDrift(file=restored, label="tiny/restored@tiny_cot/0") in request.drift
    assert len(request.drift) == 4
    # Recall and one reasoning task each; `pre` is the same for both tables.
    assert {label: labels.count(label) for label in labels} == {
        f"tiny/{method}/{seed}": 2
        for seed in (0, 3)
        for method in (
            "pre", "post@tiny_cot", "restored@tiny_cot",
            "post@tiny_instruct_short", "restored@tiny_instruct_short",
        )
    }  # fmt: skip


def test_a_training_takes_all_cores_where_nothing_could_run_beside_it() -> None:
    def threads_by_name(seeds: str, cores: int) -> dict[str, int]:
        whole = stages_of(
            graphs("experiment=table1,table10", "profile=tiny", f"profile.seeds={seeds}")
        )
        threads = threads_of(whole, cores)
        assert {threads[stage.id] for stage in whole if stage.kind != "trained"} == {1}
        return {stage.name: threads[stage.id] for stage in whole if stage.kind == "trained"}

    alone = threads_by_name("[0]", 4)
    assert alone["tiny_copy-s0"] == alone["tiny_pretrain-s0"] == 4
    # The teacher is evaluated and fine-tuned beside all that comes after it.
    assert alone["tiny_stage1-s0"] == alone["tiny_stage3-s0"] == alone["tiny_sft_cot-s0"] == 1
    assert set(threads_by_name("[0,3]", 4).values()) == {1}
    assert set(threads_by_name("[0]", 1).values()) == {1}


def test_programs_are_judged_by_as_many_workers_as_the_stage_has_cores() -> None:
    (graph,) = graphs("experiment=table3")
    whole = stages_of([graph])
    scores = [stage for stage in whole if stage.kind == "scores"]
    for cores, workers in ((64, 32), (2, 1), (1, 1)):
        threads = threads_of(whole, cores)
        assert {threads[stage.id] for stage in scores} == {workers}
    assert all(stage.many_processes for stage in scores)
    (laptop,) = graphs("experiment=table3", "profile=tiny")
    (judged,) = row(laptop, "pre").measured[-1:]
    assert not judged.many_processes


@pytest.mark.parametrize(
    "jobs",
    [
        ["experiment=table1,table2,table3,table4,table10,figures"],
        ["experiment=table1,table2,table3,table4,table10,controls", "profile=tiny"],
    ],
)
def test_a_request_reads_its_inputs_and_no_other_place(jobs: list[str]) -> None:
    for stage in stages_of(graphs(*jobs)):
        named = {path.parts[:2] for path in locations(stage.request)}
        assert named == {(each.kind, each.id) for each in stage.inputs}, stage.id


def locations(value: object) -> Iterator[Path]:
    """Every path in a request."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from locations(getattr(value, name))
    elif isinstance(value, Mapping | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from locations(item)
