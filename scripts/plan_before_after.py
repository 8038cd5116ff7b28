"""Print the planned GPU-hours of an experiment line by line, before and after each improvement.

python scripts/plan_before_after.py >> docs/costs.md     # Table 1 on H100s

Nothing is measured. The first column repeats the formulas of the plan up to commit 1e99a95, which
were right for the engine of that commit: at most 64 rows and 2^18 tokens per batch, batches that
last as long as their longest answer, and an upper bound of prefill without shared prefixes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil

from amnesia_bench.config.experiment_schema import load_jobs
from amnesia_bench.costs.decoding import BANDWIDTH_UTILISATION, DECODING
from amnesia_bench.costs.gpus import GPUS, Gpu
from amnesia_bench.costs.model_shape import ModelShape, named_shape
from amnesia_bench.costs.stage_cost import PREFILL_UTILISATION, cost_of
from amnesia_bench.costs.work import Answering, at_most
from amnesia_bench.pipeline.graph import Graph, build
from amnesia_bench.pipeline.plan import step_of
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.requests.reasoning import GenerateRequest

Line = tuple[str, str]  # model, cell
Hours = Mapping[Line, float]

COLUMNS = (
    "before",
    "rows by memory",
    "prefixes and questions once",
    "expected lengths, refilled",
    "vLLM instead",
)


def hours_before(work: Answering, gpu: Gpu) -> float:
    """Return the GPU-hours of the plan's formulas at commit 1e99a95."""
    shape = named_shape(work.shape)
    seconds = 0.0
    for tokens, count in work.prompts:
        rows = min(count, 64, max(1, 2**18 // (tokens + work.new_tokens)))
        step = step_before(shape, rows, tokens + work.new_tokens // 2, gpu)
        seconds += ceil(count / rows) * work.new_tokens * step
        flops = tokens * (2 * shape.body + shape.mixing_flops(tokens)) + 2 * shape.embedding
        seconds += count * flops / gpu.flops_per_second / PREFILL_UTILISATION
    return seconds / 3600


def step_before(shape: ModelShape, rows: int, context: int, gpu: Gpu) -> float:
    """Return the seconds of a decode step, without those of the sampler and of products."""
    caches = rows * (shape.cache_bytes(context) + shape.cache_bytes(0))
    moved = 2 * (shape.body + shape.embedding) + caches
    memory = moved / gpu.bytes_per_second / BANDWIDTH_UTILISATION
    return max(memory, shape.layers * DECODING["transformers"].layer_seconds)


def rows_by_memory(work: Answering, gpu: Gpu) -> float:
    """Return the GPU-hours with as many rows as fit, but without sharing or expected lengths."""
    alone = replace(work, prompts_per_haystack=None, repeats=1, mean_new_tokens=None)
    return cost_of(alone, 1, gpu).gpu_hours


def shared(work: Answering, gpu: Gpu) -> float:
    """Return the GPU-hours if shared prefixes and repeated questions are prefilled once."""
    return cost_of(at_most(work), 1, gpu).gpu_hours


def expected(work: Answering, gpu: Gpu) -> float:
    """Return the GPU-hours of answers with their expected lengths, in refilled batches."""
    return cost_of(work, 1, gpu).gpu_hours


def with_vllm(work: Answering, gpu: Gpu) -> float:
    """Return the GPU-hours of the same answers by vLLM."""
    return cost_of(replace(work, engine="vllm"), 1, gpu).gpu_hours


STEPS = (hours_before, rows_by_memory, shared, expected, with_vllm)


def lines_of(graph: Graph, gpu: Gpu, hours: Callable[[Answering, Gpu], float]) -> Hours:
    """Return the GPU-hours of each line of the table."""
    lines: dict[Line, float] = defaultdict(float)
    models = dict.fromkeys(row.model for row in graph.rows)
    for model in models:
        measured = (stage for row in graph.rows if row.model == model for stage in row.measured)
        for stage in closure(measured):
            if not stage.gpus:
                continue
            work = stage.work
            cost = (
                hours(work, gpu)
                if isinstance(work, Answering)
                else cost_of(work, stage.gpus, gpu).gpu_hours
            )
            lines[model, cell_of(stage)] += cost
    return lines


def cell_of(stage: Stage) -> str:
    """Return the step of a stage, with the length or benchmark of an evaluation."""
    request = stage.request
    if isinstance(request, GenerateRequest):
        return request.task
    if isinstance(stage.work, Answering):
        return f"recall, {' and '.join(f'{n // 1024}K' for n, _ in stage.work.prompts)}"
    return str(step_of(stage))


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="table1")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100")
    args = parser.parse_args()
    overrides = [f"experiment={args.experiment}", "profile.max_hours_per_evaluation=null"]
    (job,) = load_jobs(overrides)
    graph, gpu = build(job), GPUS[args.gpu]
    columns = [lines_of(graph, gpu, step) for step in STEPS]
    print(f"| model | cell | {' | '.join(COLUMNS)} |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for line in columns[0]:
        print(f"| {line[0]} | {line[1]} | " + " | ".join(f"{c[line]:,.1f}" for c in columns) + " |")
    for model in dict.fromkeys(model for model, _ in columns[0]):
        sums = [sum(h for (name, _), h in c.items() if name == model) for c in columns]
        print(f"| **{model}** | all | " + " | ".join(f"{hours:,.1f}" for hours in sums) + " |")
    sums = [sum(column.values()) for column in columns]
    print("| **all** | all | " + " | ".join(f"**{hours:,.1f}**" for hours in sums) + " |")


if __name__ == "__main__":
    main()
