"""Folders of cells for the report: planted models through the real recording and scoring."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from amnesia_bench.config.load import load_option
from amnesia_bench.config.report_schema import TableConfig
from amnesia_bench.reasoning.problem_statistics import mean_estimate
from amnesia_bench.recall.measure import prompt_requests, recall_cell, recall_of, recall_sample
from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.reasoning import ProblemValues
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from tests.support.fake_prompt_sets import BareTokenizer, FakePromptSet, PlantedEngine, candidate

LENGTHS = (1024, 4096)
TASKS = ("niah_single_1", "niah_single_2", "niah_single_3")
METHODS = ("pre", "post", "restored")


def tiny_table(name: str = "table1") -> TableConfig:
    """Return a table of one model, `tiny`, at two lengths."""
    return load_option("report", name, tiny_overrides(), TableConfig)


def tiny_overrides() -> list[str]:
    return ["report.models=[tiny]", f"report.recall.lengths=[{','.join(map(str, LENGTHS))}]"]


# Accuracy of a method by task and length.
Accuracy = Callable[[str, int], float]


def forgetful(method: str) -> Accuracy:
    """Return what the paper claims: SFT loses the harder needles far back, the restore helps."""

    def accuracy(task: str, length: int) -> float:
        if task == "niah_single_1" or method == "pre":
            return 1.0 if task == "niah_single_1" else 0.95
        hard = 0.9 if length == min(LENGTHS) else 0.3
        return hard if method == "post" else (0.9 + hard) / 2

    return accuracy


def write_recall(
    folder: Path,
    method: str,
    accuracy: Accuracy,
    *,
    samples: int = 60,
    seed: int = 0,
    dirty: bool = False,
    tasks: Sequence[str] = TASKS,
    lengths: Sequence[int] = LENGTHS,
) -> Path:
    """Publish cells.json and samples.jsonl of a planted model; same seed, same luck."""
    found, cells, tested = [], [], candidate(method)
    for task in tasks:
        for length in lengths:
            prompts = FakePromptSet(task=task, context_tokens=length, size=samples)
            engine = PlantedEngine(accuracy(task, length), seed)
            requests = prompt_requests(prompts, samples, NIAH_SAMPLING, BareTokenizer())
            answers = [recall_sample(each, tested, prompts) for each in engine.generate(requests)]
            cells.append(
                recall_cell(
                    recall_of([each.outcome for each in answers], [each.score for each in answers]),
                    [each.score for each in answers],
                    tested,
                    prompts,
                    {"engine": "planted"},
                )
            )
            found += answers
    return publish(folder, {"cells.json": cells, "samples.jsonl": found}, dirty=dirty)


def write_scores(
    folder: Path,
    method: str,
    means: dict[str, float],
    *,
    scorer: str = "strict",
    repeats: int = 16,
    seed: int = 0,
) -> Path:
    """Publish the cells of avg@k and maj@k of reasoning tasks; 40 problems each."""
    for task, mean in means.items():
        random = np.random.default_rng(len(task) + seed)
        average = (random.random((40, repeats)) < mean).mean(axis=1)
        values = {f"avg@{repeats}": average, f"maj@{repeats}": (average > 0.5).astype(float)}
        problems = [
            ProblemValues(doc=i, values={name: float(v[i]) for name, v in values.items()})
            for i in range(40)
        ]
        cells = []
        for name, each in values.items():
            summed = mean_estimate(each.tolist())
            cells.append(
                Cell(
                    model=f"models/{method}",
                    method=method,
                    task=task,
                    context_tokens=None,
                    metric=name,
                    value=summed.value,
                    n=summed.n,
                    repeats=repeats,
                    stderr=summed.stderr,
                    interval=summed.interval,
                    incomplete=None,
                    settings={"scorer": scorer},
                    parents=(Parent(role="problems", location=task, identity=f"sha256:{task}"),),
                )
            )
        publish(folder / task, {"cells.json": cells, "problems.jsonl": problems})
    return folder


def publish(
    folder: Path,
    files: dict[str, Sequence[object]],
    *,
    dirty: bool = False,
    kind: str = "test",
    seconds: float | None = None,
) -> Path:
    """Publish records as an artifact, from a clean tree unless said otherwise."""
    provenance = replace(
        collect_provenance(["amnesia", "test"], {}),
        commit="0" * 40,
        dirty=dirty,
        training_seconds=seconds,
    )
    with publishing(folder) as work:
        for name, records in files.items():
            plain = [codec.to_json(record) for record in records]
            lines = "".join(json.dumps(each) + "\n" for each in plain)
            text = json.dumps(plain) if name.endswith(".json") else lines
            (work.folder / name).write_text(text)
        work.finish(kind, (), provenance)
    return folder


def write_all(root: Path) -> list[str]:
    """Publish a whole tiny Table 1 and return the labelled folders, as for --cells."""
    labelled = []
    for method in METHODS:
        write_recall(root / method, method, forgetful(method))
        mean = 0.05 if method == "pre" else 0.6
        write_scores(root / f"{method}_scores", method, {"math500": mean, "gsm8k": mean})
        labelled += [f"tiny/{method}={root / method}", f"tiny/{method}={root / method}_scores"]
    return labelled


TINY_TABLES = (
    *(f"tiny_table{i}" for i in (1, 2, 3, 4)),
    *("tiny_controls", "tiny_trade_off"),
)
# Of every row of the tiny profile's tables: recall of the hardest needle at the longest context,
# and of word problems. Made up, after what a prototype measured.
TINY_ROWS = {
    "pre": (0.90, 0.02),
    "post@tiny_cot": (0.30, 0.80),
    "restored@tiny_cot": (0.65, 0.76),
    "qk_pro@tiny_cot": (0.55, 0.79),
    "q@tiny_cot": (0.48, 0.78),
    "k@tiny_cot": (0.42, 0.78),
    "v@tiny_cot": (0.31, 0.77),
    "qk_frozen@tiny_cot": (0.35, 0.60),
    "post@tiny_cot_half": (0.55, 0.50),
    "restored@tiny_cot_half": (0.75, 0.48),
    "post@tiny_programs": (0.38, 0.10),
    "restored@tiny_programs": (0.62, 0.09),
    "post@tiny_instruct_short": (0.40, 0.02),
    "restored@tiny_instruct_short": (0.58, 0.02),
    "post@tiny_instruct_long": (0.88, 0.02),
    "restored@tiny_instruct_long": (0.89, 0.02),
    "wise_ft@tiny_cot": (0.60, 0.45),
    "lm_cocktail@tiny_cot": (0.61, 0.44),
    "step_back@tiny_cot": (0.50, 0.60),
    "ties@tiny_cot": (0.70, 0.30),
    "dare@tiny_cot": (0.25, 0.35),
    "layer_fisher@tiny_cot": (0.58, 0.46),
    "qk_blend@tiny_cot": (0.52, 0.78),
    "qk_lm_cocktail@tiny_cot": (0.53, 0.78),
    "qk_step_back@tiny_cot": (0.45, 0.79),
    "qk_ties@tiny_cot": (0.60, 0.77),
    "qk_dare@tiny_cot": (0.20, 0.70),
    "qk_layer_fisher@tiny_cot": (0.51, 0.78),
}


def write_tiny(
    root: Path, *, seeds: Sequence[int], samples: int, lengths: Sequence[int] = (1024, 4096)
) -> list[str]:
    """Publish all rows of the tiny profile and return the labelled folders, as for --cells.

    All seeds share their prompts.
    """
    labelled = []
    for seed in seeds:
        for i, (row, (hardest, mean)) in enumerate(TINY_ROWS.items()):

            def accuracy(task: str, length: int, hardest: float = hardest) -> float:
                far = lengths.index(length) / max(1, len(lengths) - 1)
                hard = {"niah_single_1": 0.1, "niah_single_2": 0.6, "niah_single_3": 1.0}[task]
                return 1 - (1 - hardest) * hard * (0.2 + 0.8 * far)

            folder = root / str(seed) / row.replace("@", "_")
            luck = 100 * seed + i
            write_recall(folder, row, accuracy, samples=samples, seed=luck, lengths=lengths)
            scores = folder.with_name(f"{folder.name}_scores")
            write_scores(scores, row, {"gsm8k": mean}, repeats=4, seed=luck)
            labelled += [f"tiny/{row}/{seed}={each}" for each in (folder, scores)]
    return labelled
