"""Compare `amnesia tune` with every peer and with random search, at the same budget.

    .venv/bin/python scripts/tune_study.py --store STORE --seeds 106,107,108 --out study

STORE is the store of `make reproduce-tiny` (or of `amnesia run experiment=table4 profile=tiny
profile.seeds=[...]`); of each seed, the base hybrid, its CoT fine-tune, the needle prompts' essays
and the texts of the last training stage are used. Each method may evaluate `--budget` checkpoints,
and all answer the same questions. Post is one of them for every method. Peers try a grid of their
main constant:

    wise_ft, qk_blend        alpha
    lm_cocktail              temperature
    step_back                number of steps, whatever the perplexity
    ties                     density
    dare                     drop rate
    layer_fisher             has no constant: one checkpoint

Random search draws shares from the same space as tune. A method is measured by the hypervolume of
recall times reasoning of the checkpoints on its front. The front is found on the questions of the
search, and the hypervolume is that on fresh questions. Also shown: the checkpoint that the rule of
tune chooses among those of each method. Answers are kept in OUT, so a stopped study resumes. For a
seed that is finished elsewhere, OUT needs only settings.json, seedN/rows.json and
seedN/tuned/tuning.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

import amnesia_bench as ab
from amnesia_bench.config.schema import LayerFisher, MeasuredRule
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import open_candidate
from amnesia_bench.inference.protocol import silent
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.reasoning.task import ProblemSet
from amnesia_bench.records import codec
from amnesia_bench.records.tuning import Fate, Tuning
from amnesia_bench.store.files import replace_text
from amnesia_bench.tuning.evaluation import Examiner, ModelEvaluator
from amnesia_bench.tuning.outcome import RULE, choose_candidate
from amnesia_bench.tuning.pareto import front_of, hypervolume
from amnesia_bench.tuning.questions import Needles
from amnesia_bench.tuning.racing import Entry, Objective
from amnesia_bench.tuning.setup import TuningInputs, engine_options, open_examiner, open_inputs
from amnesia_bench.tuning.space import POST, Mix, Space, prior_of
from amnesia_bench.tuning.tune import RECORD
from tune_study_tables import confirmation_table, hypervolume_table

GRIDS: dict[str, Callable[[int], list[str]]] = {
    "blend": lambda n: [f"restore.rule.alpha={x:.4f}" for x in np.linspace(0, 1, n + 1)[1:]],
    "lm_cocktail": lambda n: [
        f"restore.rule.temperature={x:.4g}" for x in np.geomspace(0.01, 10, n)
    ],
    "step_back": lambda n: [
        f"restore.rule.max_steps={k} restore.rule.max_perplexity_ratio=1.0"
        for k in range(1, min(n, 10) + 1)
    ],
    "ties": lambda n: [f"restore.rule.density={x:.4f}" for x in np.linspace(0, 0.95, n + 1)[1:]],
    "dare": lambda n: [f"restore.rule.drop={x:.4f}" for x in np.linspace(0, 0.95, n)],
    "layer_fisher": lambda n: [""],
}  # fmt: skip
PEERS = [
    prefix + name
    for prefix in ("", "qk_")
    for name in ("wise_ft", "lm_cocktail", "step_back", "ties", "dare", "layer_fisher")
]
PEERS[PEERS.index("qk_wise_ft")] = "qk_blend"  # its name among the variants


@dataclass(frozen=True)
class Seed:
    """The checkpoints and the questions of one seed."""

    seed: int
    pre: Path
    post: Path
    prompts: Path
    problems: Path
    texts: Path


@dataclass(frozen=True, kw_only=True)
class Study:
    """One seed's study: its inputs, the model of all mixes, and the folder of the results."""

    seed: Seed
    request: ab.TuneRequest
    inputs: TuningInputs
    examiner: Examiner
    out: Path

    def questions(self, fresh: bool) -> tuple[Needles, ProblemSet]:
        """Return the questions of the search, or the fresh ones."""
        inputs = self.inputs
        if fresh:
            return inputs.fresh_needles, inputs.fresh_problems
        return inputs.needles, inputs.problems


@dataclass(frozen=True)
class Measured:
    """A checkpoint of a method, with its answers to the questions of the search.

    `fresh` asks it the fresh questions, which only checkpoints on the front of a method need.
    """

    name: str
    search: Entry
    fresh: Callable[[], Entry]


def one(store: Path, pattern: str) -> Path:
    """Return the only finished folder of a store with a name like this."""
    found = [path for path in store.glob(pattern) if (path / "manifest.json").is_file()]
    if len(found) != 1:
        raise UserError(f"{store}: {len(found)} finished folders are named {pattern}, expected 1")
    return found[0]


def inputs_of(store: Path, seed: int, args: argparse.Namespace, out: Path) -> Seed:
    """Find a seed's checkpoints, and build as many prompts and problems as the study needs."""
    pre = one(store, f"trained/trained.tiny_stage3-s{seed}-*")
    # Prompts and problems of the profile are too few to keep half of them fresh.
    prompts, problems = out / "prompts", out / "problems.jsonl"
    if not (prompts / "manifest.json").is_file():
        essays = one(store, f"rows/rows.haystack-s{seed}-*")
        build = ab.BuildPromptsRequest(
            tokenizer=pre,
            tasks=("niah_single_1", "niah_single_2", "niah_single_3"),
            lengths=(1024, 2048),
            samples=2 * args.samples,
            haystack=next(essays.glob("*.jsonl")),
        )
        ab.build_prompts(build, prompts)
    if not problems.is_file():
        source = one(store, f"rows/rows.test_problems-s{seed}-*")
        shutil.copyfile(next(source.glob("*.jsonl")), problems)
    return Seed(
        seed=seed,
        pre=pre,
        post=one(store, f"trained/trained.tiny_sft_cot-s{seed}-*"),
        prompts=prompts,
        problems=problems,
        texts=one(store, args.texts),
    )


def request_of(seed: Seed, args: argparse.Namespace, work: Path) -> ab.TuneRequest:
    config = ab.load_eval("gsm8k", ["eval.repeats=1", "eval.max_new_tokens=96"])
    return ab.TuneRequest(
        pre=seed.pre,
        post=seed.post,
        prompts=seed.prompts,
        reasoning=ab.ReasoningProblems(
            task="gsm8k", problems=args.problems, config=config, data=seed.problems
        ),
        budget=float(args.budget),
        samples=args.samples,
        max_new_tokens=32,
        seed=seed.seed,
        work=work,
    )


def tuning_of(out: Path) -> Tuning:
    """Return the record of a seed's search."""
    path = out / "tuned" / RECORD
    return codec.from_json(Tuning, json.loads(path.read_text(encoding="utf-8")), str(path))


def by_tune(study: Study) -> list[Measured]:
    """Return the finished candidates of a search."""
    folder = study.out / "tuned"
    if not folder.exists():
        ab.tune(study.request, folder, progress=print)
    return [
        measured_mix(
            study,
            candidate.label,
            Mix.of({(s.layer, s.role): s.alpha for s in candidate.shares}, candidate.rest),
        )
        for candidate in tuning_of(study.out).candidates
        if candidate.fate is Fate.FINISHED
    ]


def by_random_search(study: Study, count: int) -> list[Measured]:
    """Return post, QK-Restore and mixes of random shares: 0, 0.25, ..., 1 at each place.

    All other weights have a share of 0, 0.125, ..., 0.5.
    """
    rng = np.random.default_rng([study.seed.seed, 3])
    places = study.examiner.model.places
    space = Space(places=places, prior=prior_of(study.inputs.layers, []))
    mixes = [POST, space.qk_restore]
    while len(mixes) < count:
        drawn = rng.integers(0, 5, len(places)) / 4
        rest = int(rng.integers(0, 5)) / 8
        mixes.append(Mix.of(dict(zip(places, drawn.tolist(), strict=True)), rest))
    return [measured_mix(study, mix.described(), mix) for mix in mixes]


def measured_mix(study: Study, name: str, mix: Mix) -> Measured:
    def entry(fresh: bool) -> Entry:
        needles, problems = study.questions(fresh)
        evaluator = ModelEvaluator(study.examiner, needles, problems, silent)
        answered = Entry(mix, name, Fate.FINISHED)
        for objective, size in zip(Objective, (len(needles), len(problems.rows)), strict=True):
            answered.correct[objective] += evaluator.answers(mix, objective, 0, size)
        return answered

    return Measured(name, entry(fresh=False), partial(entry, fresh=True))


def by_peer(study: Study, peer: str, count: int) -> list[Measured]:
    """Return post, and the checkpoints of a peer on the grid of its constant."""
    grid = GRIDS[ab.load_variant(peer).rule.kind](count - 1)
    points = [measured_point(study, peer, overrides) for overrides in grid]
    return [measured_mix(study, "post", POST), *points]


def measured_point(study: Study, peer: str, overrides: str) -> Measured:
    name = overrides or peer

    def entry(fresh: bool) -> Entry:
        record = (
            study.out / f"{peer}-{name.replace(' ', '-')}-{'fresh' if fresh else 'search'}.json"
        )
        if not record.exists():
            record.write_text(json.dumps(peer_answers(study, peer, overrides.split(), fresh)))
        answered = Entry(POST, name, Fate.FINISHED)
        for objective, correct in json.loads(record.read_text()).items():
            answered.correct[Objective(objective)] += correct
        return answered

    return Measured(name, entry(fresh=False), partial(entry, fresh=True))


def peer_answers(
    study: Study, peer: str, overrides: Sequence[str], fresh: bool
) -> dict[str, list[bool]]:
    """Write a peer's checkpoint into a temporary folder, and have it answer all questions."""
    variant, seed = ab.load_variant(peer, overrides), study.seed
    folder, values = study.out / "merged", study.out / "measured.json"
    shutil.rmtree(folder, ignore_errors=True)
    values.unlink(missing_ok=True)
    pair = {"pre": seed.pre, "post": seed.post, "variant": variant}
    if isinstance(variant.rule, LayerFisher):
        ab.measure(ab.MeasureRequest(**pair, random_tokens=ab.RandomTokens()), values)
    elif isinstance(variant.rule, MeasuredRule):
        ab.measure(ab.MeasureRequest(**pair, data=seed.texts), values)
    measured = values if values.exists() else None
    ab.restore(ab.RestoreRequest(**pair, measured=measured, allow_noop=True), folder)
    # Points of several peers may have the same weights, and then share their answers.
    candidate = open_candidate(folder, "merged")
    engine = TransformersEngine.load(folder, engine_options(study.request))
    needles, problems = study.questions(fresh)
    # Some points have the weights of post, whose answers were recorded under another name.
    examiner = replace(study.examiner, work=study.out / "answers_of_peers")
    answers = {
        Objective.RECALL.value: list(examiner.recall(engine, candidate, needles)),
        Objective.REASONING.value: list(examiner.reasoning(engine, candidate, problems)),
    }
    shutil.rmtree(folder)
    return answers


def row_of(method: str, measured: Sequence[Measured]) -> dict[str, object]:
    """Return the hypervolumes of a method, and what the rule chooses."""
    front = [measured[i] for i in front_of([each.search.point() for each in measured])]
    chosen = choose_candidate([each.search for each in measured])
    fresh = next(each.fresh() for each in measured if each.search is chosen)
    return {
        "method": method,
        "evaluated": len(measured),
        "hypervolume_search": hypervolume([each.search.point() for each in measured]),
        "hypervolume_fresh": hypervolume([each.fresh().point() for each in front]),
        "chosen": chosen.label,
        "chosen_recall_fresh": fresh.share(Objective.RECALL),
        "chosen_reasoning_fresh": fresh.share(Objective.REASONING),
    }


def rows_of(seed: Seed, args: argparse.Namespace, out: Path) -> Iterator[dict[str, object]]:
    request = request_of(seed, args, out / "answers")
    inputs = open_inputs(request)
    examiner = open_examiner(request, inputs, silent)
    study = Study(seed=seed, request=request, inputs=inputs, examiner=examiner, out=out)
    yield row_of("tune", by_tune(study))
    yield row_of("random search", by_random_search(study, args.budget))
    for peer in args.peers.split(","):
        yield row_of(peer, by_peer(study, peer, args.budget))


def finished_rows(args: argparse.Namespace, number: int, out: Path) -> list[dict[str, object]]:
    """Return the rows of a seed; if `out` has them, from this or another machine, compute none."""
    record = out / "rows.json"
    if record.is_file():
        rows: list[dict[str, object]] = json.loads(record.read_text())
        return rows
    rows = []
    for row in rows_of(inputs_of(args.store, number, args, out), args, out):
        print(json.dumps(row), flush=True)
        rows.append(row)
    replace_text(record, json.dumps(rows, indent=2) + "\n")
    return rows


def check_settings(args: argparse.Namespace) -> None:
    """Refuse a folder with results of another budget, other questions or other peers."""
    path = args.out / "settings.json"
    settings = {name: getattr(args, name) for name in ("budget", "samples", "problems", "peers")}
    args.out.mkdir(parents=True, exist_ok=True)
    if path.is_file() and (kept := json.loads(path.read_text())) != settings:
        raise UserError(f"{args.out}: has results with {kept}, not {settings}")
    replace_text(path, json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True, help="store of the laptop profile")
    parser.add_argument("--seeds", required=True, help="for example 106,107,108")
    parser.add_argument("--out", type=Path, required=True, help="folder for answers and results")
    parser.add_argument("--budget", type=int, default=24, help="full evaluations per method (24)")
    parser.add_argument("--samples", type=int, default=18, help="prompts per task and length (18)")
    parser.add_argument("--problems", type=int, default=48, help="word problems (48)")
    parser.add_argument("--peers", default=",".join(PEERS), help="variants (all peers)")
    parser.add_argument(
        "--texts",
        default="data/data.tiny_prose_long-*",
        help="folder in STORE on which lm_cocktail and step_back measure losses",
    )
    args = parser.parse_args()
    check_settings(args)
    rows: dict[int, list[dict[str, object]]] = {}
    for number in map(int, args.seeds.split(",")):
        out = args.out / f"seed{number}"
        out.mkdir(parents=True, exist_ok=True)
        rows[number] = finished_rows(args, number, out)
    title = (
        f"Seeds {args.seeds}; budget {args.budget} full evaluations of {6 * args.samples} prompts "
        f"and {args.problems} problems; hypervolume on fresh questions. Chosen by: {RULE}.\n"
    )
    searches = {seed: tuning_of(args.out / f"seed{seed}") for seed in rows}
    (args.out / "study.md").write_text(
        f"{title}\n{hypervolume_table(rows)}\n{confirmation_table(searches)}"
    )
    print((args.out / "study.md").read_text())


if __name__ == "__main__":
    main()
