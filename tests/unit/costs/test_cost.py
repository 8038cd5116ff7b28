"""What stages take, held against arithmetic by hand from the sizes of the paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.costs.answer_lengths import REASONING_MODEL_TOKENS, expected_tokens
from amnesia_bench.costs.decoding import DECODING
from amnesia_bench.costs.gpus import GPUS, Gpu
from amnesia_bench.costs.model_shape import named_shape
from amnesia_bench.costs.stage_cost import PREFILL_UTILISATION, Cost, cost_of, total
from amnesia_bench.costs.work import Answering, Probing, Weights, Writing, at_most
from amnesia_bench.pipeline.graph import build, stages_of
from amnesia_bench.pipeline.stage import Stage, closure

H100 = GPUS["h100"]
EAGER = DECODING["transformers"]
GRAPH = build(load_jobs(["experiment=table1"])[0])
TABLE_1 = {(stage.kind, stage.name): stage for stage in stages_of([GRAPH])}


def stage_cost(stage: Stage, gpu: Gpu) -> Cost:
    return cost_of(stage.work, stage.gpus, gpu)


def test_a_fine_tune_reads_210_million_tokens() -> None:
    cost = stage_cost(TABLE_1["trained", "sft_miromind_2b-s0"], H100)
    assert cost.trained_tokens == 100 * 128 * 16_384 == 209_715_200
    assert cost.disk_bytes == 2 * 1_926_138_880
    # Two saves of weights and two moments in float32.
    assert cost.transient_bytes == 2 * 12 * 1_926_138_880


def test_pretraining_reads_2_36_billion_tokens() -> None:
    stages = [TABLE_1["trained", f"stage{i}_2b-s0"] for i in (1, 2, 3)]
    tokens = [stage_cost(stage, H100).trained_tokens for stage in stages]
    assert tokens == [20_000 * 32 * 512, 20_000 * 96 * 512, 500 * 128 * 16_384]
    assert sum(tokens) / 1e9 == pytest.approx(2.36, abs=0.005)


@pytest.mark.parametrize(
    ("size", "by_hand"), [("2b", (23, 6)), ("5b", (57, 15)), ("9b", (102, 27))]
)
def test_pretraining_takes_an_eighth_more_than_a_rough_count(
    size: str, by_hand: tuple[float, float]
) -> None:
    # The rough count: 6 N per token and 2 N for the teacher, at 35 % of an H100. Ours has stage 1
    # without a student's MLPs (less), and recomputation, attention over 16,384 tokens, and 25 % in
    # rows of 512 tokens (more).
    hours = [
        stage_cost(TABLE_1["trained", f"stage{i}_{size}-s0"], H100).gpu_hours for i in (1, 2, 3)
    ]
    assert sum(hours) == pytest.approx(1.125 * sum(by_hand), rel=0.05)
    # Stage 2 by hand: 6 N + 2 N of the teacher, and three products of each layer again.
    shape = named_shape(f"hypenet_{size}")
    body, head = shape.body, shape.embedding
    teacher = named_shape({"2b": "qwen3_1_7b", "5b": "qwen3_4b", "9b": "qwen3_8b"}[size])
    narrow = shape.softmax.kv_heads * shape.softmax.head_dim
    again = shape.layers * shape.hidden * (narrow + shape.widest + shape.mlp)
    flops = 983_040_000 * (6 * body + 6 * head + 2 * again + 2 * (teacher.body + head))
    assert hours[1] == pytest.approx(flops / 989e12 / 0.25 / 3600, rel=0.03)


def test_recall_reads_737_million_tokens_for_each_checkpoint() -> None:
    for model in ("Jet-Nemotron-2B", "HypeNet-2B", "HypeNet-5B", "HypeNet-9B"):
        cost = recall_of(model)
        assert cost.read_tokens == 3 * 500 * 1024 * (32 + 64 + 128 + 256) == 737_280_000
        assert cost.new_tokens == 3 * 500 * 4 * 128
        # Half of them are shared, besides the last chunk of each prompt.
        assert cost.prefilled_tokens == pytest.approx(737_280_000 * 0.51, rel=0.01)
    # H100-hours at 350 TFLOP/s, counted apart: without answers or sharing, a head for every token.
    for size, hours in (("2b", 5.5), ("5b", 13.9), ("9b", 18.5)):
        cost = recall_of(f"HypeNet-{size.upper()}", shared=False)
        flops = cost.flops + cost.read_tokens * 2 * named_shape(f"hypenet_{size}").embedding
        assert flops / 350e12 / 3600 == pytest.approx(hours, rel=0.03)


def recall_of(model: str, shared: bool = True) -> Cost:
    """Return what a checkpoint's recall takes at all four lengths."""
    (row,) = (r for r in GRAPH.rows if (r.model, r.method) == (model, "pre"))
    evaluations = [stage for stage in closure(row.measured) if stage.kind == "recall"]
    works = [stage.work for stage in evaluations if isinstance(stage.work, Answering)]
    if not shared:
        works = [replace(work, prompts_per_haystack=None) for work in works]
    return total(cost_of(work, 1, H100) for work in works)


def test_the_answers_of_table_1_are_those_that_were_counted_by_hand() -> None:
    name = "sft_miromind_2b-s0"
    limits = {"math500": 8192, "gsm8k": 2048, "aime24": 16_384}
    for task, problems in (("math500", 500), ("gsm8k", 1319), ("aime24", 30)):
        work = answering(name, task)
        most, expected = (cost_of(w, 1, H100).new_tokens for w in (at_most(work), work))
        assert most == problems * 16 * limits[task]
        published = REASONING_MODEL_TOKENS[task].tokens
        assert expected == problems * 16 * published < most


def answering(checkpoint: str, task: str) -> Answering:
    """Return the work of a benchmark, without its parts."""
    work = TABLE_1["answers", f"{checkpoint}.{task}"].work
    if not isinstance(work, Answering):
        parts = [
            stage.work
            for (kind, name), stage in TABLE_1.items()
            if kind == "answers" and name.startswith(f"{checkpoint}.{task}.part")
        ]
        answers = sum(part.prompts[0][1] for part in parts if isinstance(part, Answering))
        assert isinstance(parts[0], Answering)
        work = replace(parts[0], prompts=((parts[0].prompts[0][0], answers),))
    return work


def test_only_models_that_were_trained_on_chains_of_thought_have_expected_lengths() -> None:
    assert answering("stage3_2b-s0", "gsm8k").mean_new_tokens is None
    lengths = {
        answering(name, "gsm8k").mean_new_tokens
        for name in ("sft_miromind_2b-s0", "sft_miromind_2b-s0-qk")
    }
    assert lengths == {REASONING_MODEL_TOKENS["gsm8k"].tokens}
    assert expected_tokens("gsm8k", frozenset({"tulu3"})) is None
    # A limit below the published length is the expected length.
    work = Answering(shape="qwen3_4b", prompts=((9, 1),), new_tokens=50, mean_new_tokens=978)
    assert work.expected_new_tokens == 50


def test_reading_and_answering_by_hand() -> None:
    # Six prompts of 1,000 tokens and 200 new ones are one batch.
    cost = cost_of(Answering(shape="qwen3_1_7b", prompts=((1000, 6),), new_tokens=200), 1, H100)
    body, head = 1_720_574_976 - 151_936 * 2048, 151_936 * 2048
    attended = 28 * 4 * 2048
    reading = 6 * (1000 * (2 * body + attended * 500.5) + 2 * head)
    answering = 6 * 200 * (2 * (body + head) + attended * 1101)
    assert cost.flops == pytest.approx(reading + answering)
    steps = 200 * 28 * EAGER.layer_seconds
    seconds = reading / 989e12 / PREFILL_UTILISATION + steps
    assert cost.gpu_hours == pytest.approx(seconds / 3600)
    assert cost.disk_bytes == 4 * 6 * 200
    # Three answers to each question: its prompt is computed once. Two GPUs take three rows each.
    again = Answering(shape="qwen3_1_7b", prompts=((1000, 6),), new_tokens=200, repeats=3)
    assert cost.flops - cost_of(again, 1, H100).flops == pytest.approx(reading * 2 / 3)
    two = cost_of(again, 2, H100).gpu_hours - reading / 3 / 989e12 / PREFILL_UTILISATION / 3600
    assert two == pytest.approx(2 * steps / 3600)


def test_checkpoints_take_their_bytes_and_a_laptop_has_no_gpu_hours() -> None:
    assert cost_of(Weights(shape="qwen3_4b"), 1, H100).disk_bytes == 2 * 4_022_468_096
    assert cost_of(Writing(bytes=5.0), 1, H100) == Cost(disk_bytes=5.0)
    tiny = [build(job) for job in load_jobs(["experiment=table1", "profile=tiny"])]
    cost = total(stage_cost(stage, H100) for stage in stages_of(tiny))
    assert cost.gpu_hours == 0
    assert cost.core_hours > 0
    assert min(cost.trained_tokens, cost.read_tokens, cost.new_tokens, cost.flops) > 0


def test_hours_on_a_cpu_are_what_was_measured_with_gemma() -> None:
    def seconds(prompt_tokens: int, answers: int, new_tokens: int) -> float:
        work = Answering(
            shape="gemma3_270m", prompts=((prompt_tokens, answers),), new_tokens=new_tokens
        )
        cost = cost_of(work, 0, H100)
        assert cost.gpu_hours == cost.gpu_memory_bytes == 0
        return 3600 * cost.core_hours

    # costs/gpus.py: 1.1 core-seconds to prefill 512 tokens, 0.1 to decode a token alone.
    decoded = (seconds(512, 1, 101) - seconds(512, 1, 1)) / 100
    assert decoded == pytest.approx(0.1, rel=0.1)
    assert seconds(512, 1, 1) - decoded == pytest.approx(1.1, rel=0.1)
    # Rows of a batch share the weights that are read, not the products.
    together = (seconds(512, 64, 101) - seconds(512, 64, 1)) / 100
    assert decoded < together < 64 * decoded
    assert cost_of(Weights(shape="gemma3_270m"), 0, H100).core_hours == 0


def test_on_a_cpu_prefixes_are_shared_in_smaller_chunks() -> None:
    work = Answering(
        shape="gemma3_270m", prompts=((1024, 100),), new_tokens=48, prompts_per_haystack=100
    )
    assert cost_of(work, 1, H100).prefilled_tokens == 1024 * 100  # chunks of 2,048 tokens
    # Chunks of 256: prompts skip 0, 256, 512 or 768 tokens, and the longest prefix is read once.
    assert cost_of(work, 0, H100).prefilled_tokens == pytest.approx(1024 * 100 * 0.64, rel=0.02)


def test_saves_of_several_trainings_are_not_there_at_once() -> None:
    several = (
        Cost(disk_bytes=1, transient_bytes=3, flops=1),
        Cost(disk_bytes=2, transient_bytes=2),
    )
    assert total(several) == Cost(disk_bytes=3, transient_bytes=3, flops=1)
    assert total(()) == Cost()


def test_probing_a_text_costs_a_prefill_and_its_backward_pass_four_times_as_much() -> None:
    tokens = 2048
    work = Probing(shape="hypenet_2b", texts=64, tokens=tokens)
    cost, shape = cost_of(work, 1, H100), named_shape("hypenet_2b")
    products = 64 * tokens * 2 * (shape.body + shape.embedding)
    assert cost.read_tokens == 64 * tokens
    # Products with weights dominate; attention over 2,048 tokens adds a few per cent.
    assert products < cost.flops < 1.2 * products
    gradients = cost_of(replace(work, gradients=True), 1, H100)
    # A forward pass and half of its attention again; four forward passes and all attention again.
    assert 3.9 < gradients.flops / cost.flops < 4
    assert gradients.gpu_hours == pytest.approx(gradients.flops / 989e12 / 0.03 / 3600)
    on_cpu = cost_of(work, 0, H100)
    assert on_cpu.gpu_hours == 0
    assert on_cpu.core_hours == pytest.approx(cost.flops / 2.9e11 / 0.35 / 3600)
