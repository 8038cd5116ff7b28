"""The gate on models with planted accuracies: verdicts, savings, resuming, records."""

import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.recall import measure as recall
from amnesia_bench.recall.check import publish_check
from amnesia_bench.recall.check_summary import check_markdown, headline
from amnesia_bench.recall.sequential_check import (
    CheckPlan,
    CheckResult,
    compare_checkpoints,
    overall_verdict,
    restore_command,
)
from amnesia_bench.records import codec
from amnesia_bench.records.evaluation import Cell, Generation, Outcome, Sampling
from amnesia_bench.records.recall import CheckReport, CheckVerdict, RecallSample, Rule
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.store.provenance import collect_provenance
from tests.support.fake_prompt_sets import FakePromptSet, PlantedEngine, candidate

GREEDY = Sampling(max_new_tokens=8, temperature=0.0, top_p=1.0, top_k=None, stop=())
LENGTHS = (1024, 8192)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of answers, and no power cut to survive: that is tested in test_generation."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def plan(*, samples: int = 100, restored: bool = False, post: str = "post") -> CheckPlan:
    return CheckPlan(
        pre=candidate("pre"),
        post=candidate(post),
        restored=candidate("restored") if restored else None,
        prompt_sets=tuple(FakePromptSet(context_tokens=length, size=samples) for length in LENGTHS),
        sampling=GREEDY,
        rule=Rule(samples=samples, margin=0.0, error_rate=0.025),
    )


class Models:
    """Loads planted engines by the name of their folder, and remembers what happened."""

    def __init__(self, **accuracies: float) -> None:
        self.accuracies = accuracies
        self.loads: list[str] = []
        self.engines: list[weakref.ref[PlantedEngine]] = []
        self.asked: list[tuple[str, int, int]] = []

    def load(self, candidate: Candidate) -> PlantedEngine:
        assert not any(engine() for engine in self.engines), "two models in memory at once"
        name, models = candidate.folder.name, self
        self.loads.append(name)

        class Watched(PlantedEngine):
            def text(self, request: PromptRequest) -> str:
                models.asked.append((name, *map(int, request.tokens)))
                return super().text(request)

        engine = Watched(self.accuracies[name], seed=len(name))
        self.engines.append(weakref.ref(engine))
        return engine


def run(models: Models, work: Path, what: CheckPlan | None = None) -> CheckResult:
    return compare_checkpoints(what or plan(), models.load, work, lambda line: None)


def test_a_large_drop_is_found_at_the_longest_length_and_most_answers_are_saved(
    tmp_path: Path,
) -> None:
    models = Models(pre=0.95, post=0.3)
    report = run(models, tmp_path).report
    assert report.verdict is CheckVerdict.REGRESSION
    assert report.advice == (
        "amnesia restore --pre models/pre --post models/post --out models/post-restored"
    )
    assert {length for _, length, _ in models.asked} == {8192}
    assert report.generations == len(models.asked) == 50
    assert report.generations <= report.generations_planned / 2
    assert [(cell.context_tokens, cell.n) for cell in report.cells] == [(1024, 0), (8192, 25)]
    assert "350 (88 %) saved" in headline(report)


def test_a_drop_at_the_short_length_alone_is_found_too(tmp_path: Path) -> None:
    class Short(Models):
        def load(self, candidate: Candidate) -> PlantedEngine:
            engine = super().load(candidate)
            text = engine.text
            if candidate.folder.name == "post":
                engine.text = lambda request: (  # type: ignore[method-assign]
                    "" if request.tokens[0] == 1024 else text(request)
                )
            return engine

    report = run(Short(pre=1.0, post=1.0), tmp_path).report
    assert report.verdict is CheckVerdict.REGRESSION
    assert [cell.verdict for cell in report.cells] == [
        CheckVerdict.REGRESSION,
        CheckVerdict.UNDECIDED,
    ]
    assert report.warnings == ("post: 25 of 25 answers to niah_single_2@1024 are empty; they count "
                               "as wrong",)  # fmt: skip


def test_equal_models_are_cleared_before_the_prompts_are_used_up(tmp_path: Path) -> None:
    models = Models(pre=1.0, post=1.0)
    report = run(models, tmp_path, plan(samples=500)).report
    assert report.verdict is CheckVerdict.NO_REGRESSION
    assert report.advice is None
    assert [cell.n for cell in report.cells] == [200, 200]
    assert report.generations == 800 <= report.generations_planned / 2


def test_few_prompts_leave_it_undecided(tmp_path: Path) -> None:
    report = run(Models(pre=0.9, post=0.9), tmp_path, plan(samples=10)).report
    assert report.verdict is CheckVerdict.UNDECIDED
    assert [cell.n for cell in report.cells] == [10, 10]


def test_one_model_is_loaded_at_a_time_and_seldom(tmp_path: Path) -> None:
    models = Models(pre=1.0, post=1.0)
    run(models, tmp_path, plan(samples=200))
    # Four looks at two lengths: eight turns, and whoever is loaded goes first.
    assert models.loads == ["pre", *["post", "pre"] * 4]


def test_restored_answers_the_same_prompts_and_its_gain_is_measured(tmp_path: Path) -> None:
    models = Models(pre=1.0, post=0.3, restored=0.9)
    result = run(models, tmp_path, plan(restored=True))
    (cell,) = [cell for cell in result.report.cells if cell.n]
    gain = {(c.first, c.second): c for c in cell.comparisons}
    assert set(gain) == {("pre", "post"), ("restored", "post"), ("pre", "restored")}
    assert gain["restored", "post"].difference > 0.3
    assert gain["restored", "post"].p_value < 0.01
    prompts = {role: [s.key for s in result.samples if s.role == role] for role in cell.recall}
    assert prompts["pre"] == prompts["post"] == prompts["restored"]
    assert "restored is +" in check_markdown(result.report)


class Dies(Models):
    """After some answers the process ends."""

    def __init__(self, after: int, **accuracies: float) -> None:
        super().__init__(**accuracies)
        self.after = after

    def load(self, candidate: Candidate) -> PlantedEngine:
        engine = super().load(candidate)
        answers = engine.generate

        def generate(requests: Sequence[PromptRequest]) -> Iterator[Generation]:
            for generation in answers(requests):
                if len(self.asked) > self.after:
                    raise KeyboardInterrupt
                yield generation

        engine.generate = generate  # type: ignore[method-assign]
        return engine


@pytest.mark.parametrize("after", [0, 30, 60, 130])
def test_a_check_that_was_killed_goes_on_where_it_stopped(after: int, tmp_path: Path) -> None:
    whole = run(Models(pre=0.95, post=0.85), tmp_path / "whole", plan(samples=50))
    with pytest.raises(KeyboardInterrupt):
        run(Dies(after, pre=0.95, post=0.85), tmp_path / "killed", plan(samples=50))
    models = Models(pre=0.95, post=0.85)
    resumed = run(models, tmp_path / "killed", plan(samples=50))
    assert resumed == whole
    assert len(models.asked) == whole.report.generations - after


def test_checks_of_two_fine_tunes_share_the_answers_of_their_base(tmp_path: Path) -> None:
    run(Models(pre=1.0, post=1.0), tmp_path, plan(samples=50))
    models = Models(pre=1.0, other=1.0)
    other = candidate("other")
    what = plan(samples=50, post="other")
    assert what.post == other
    # Its role is "post" whatever its folder is called.
    run(models, tmp_path, replace(what, post=replace(other, role="post")))
    assert {name for name, _, _ in models.asked} == {"other"}


def test_the_same_weights_twice_are_noted_and_answered_once(tmp_path: Path) -> None:
    what = plan(samples=25)
    what = replace(what, post=replace(what.pre, role="post"))
    models = Models(pre=0.5)
    report = run(models, tmp_path, what).report
    assert report.warnings == ("pre and post hold the same weights",)
    assert len(models.asked) == 50


def test_cells_say_what_they_are_made_of(tmp_path: Path) -> None:
    result = run(Models(pre=0.95, post=0.3), tmp_path)
    cells: Mapping[tuple[str, int | None], Cell] = {
        (cell.method, cell.context_tokens): cell for cell in result.cells
    }
    assert set(cells) == {(role, length) for role in ("pre", "post") for length in LENGTHS}
    ran, not_run = cells["post", 8192], cells["post", 1024]
    correct = sum(sample.correct for sample in result.samples if sample.role == "post")
    assert (ran.value, ran.n, ran.metric) == (correct / 25, 25, "recall")
    assert ran.interval is not None
    assert ran.interval.method == "wilson"
    assert ran.settings["engine"] == "planted"
    assert ran.settings["temperature"] == "0.0"
    assert [parent.role for parent in ran.parents] == ["post", "prompts"]
    assert (not_run.value, not_run.n) == (None, 0)
    assert not_run.incomplete == "not run: the verdict was clear before"


def test_records_are_published_once_and_read_back(tmp_path: Path) -> None:
    result = run(Models(pre=0.95, post=0.3), tmp_path)
    folder = publish_check(result, tmp_path, collect_provenance(["amnesia", "check"], {}))
    assert publish_check(result, tmp_path, collect_provenance(["again"], {})) == folder
    assert not verify_manifest(folder)
    assert read_manifest(folder).kind == "check"
    assert {parent.role for parent in read_manifest(folder).parents} == {"pre", "post", "prompts"}
    report = json.loads((folder / "check.json").read_text())
    assert codec.from_json(CheckReport, report, "check.json") == result.report
    lines = (folder / "samples.jsonl").read_text().splitlines()
    samples = [codec.from_json(RecallSample, json.loads(line), "samples") for line in lines]
    assert tuple(samples) == result.samples
    cells = json.loads((folder / "cells.json").read_text())
    assert tuple(codec.from_json(Cell, cell, "cells") for cell in cells) == result.cells


def test_the_summary_says_the_verdict_the_table_and_the_command(tmp_path: Path) -> None:
    report = run(Models(pre=0.95, post=0.3), tmp_path).report
    text = check_markdown(report)
    assert text.startswith("### Long-range recall: recall regression: 50 of 400 answers")
    assert f"```sh\n{report.advice}\n```" in text
    assert "| niah_single_2 | 1024 | - | - | 0 | - | - | - | not run |" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table[:4]} == {10}
    assert "0-20 %" in text


def test_an_empty_answer_is_wrong(tmp_path: Path) -> None:
    class Silent(Models):
        def load(self, candidate: Candidate) -> PlantedEngine:
            engine = super().load(candidate)
            engine.wrong = "\x00 "
            return engine

    result = run(Silent(pre=1.0, post=0.0), tmp_path)
    post = [sample for sample in result.samples if sample.role == "post"]
    assert {sample.outcome for sample in post} == {Outcome.NO_ANSWER}
    assert result.report.verdict is CheckVerdict.REGRESSION


def test_a_base_that_recalls_nothing_is_warned_of(tmp_path: Path) -> None:
    report = run(Models(pre=0.0, post=0.0), tmp_path, plan(samples=25)).report
    assert [warning for warning in report.warnings if "no recall to lose" in warning] == [
        f"pre itself scores only 0 % on 25 prompts of niah_single_2@{length}: "
        "there is no recall to lose"
        for length in LENGTHS
    ]


def test_the_verdict_on_all_cells() -> None:
    bad, good, open_ = CheckVerdict.REGRESSION, CheckVerdict.NO_REGRESSION, CheckVerdict.UNDECIDED
    assert overall_verdict([good, bad, open_]) is bad
    assert overall_verdict([good, good]) is good
    assert overall_verdict([good, open_]) is open_


def test_the_advice_can_be_typed_whatever_the_folders_are_called(tmp_path: Path) -> None:
    assert restore_command(Path("a b"), Path("c/d/")) == (
        "amnesia restore --pre 'a b' --post c/d --out c/d-restored"
    )
    assert "--out .-restored" not in restore_command(Path("pre"), Path())


@pytest.mark.slow
def test_a_whole_check_of_equal_models_rarely_raises_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 200 checks of two cells, 10 to 50 % of the prompts discordant; only the disk is left out.
    monkeypatch.setattr(
        recall,
        "generate_missing",
        lambda engine, requests, *_, **__: tuple(engine.generate(requests)),
    )
    alarms = 0
    for trial in range(200):
        accuracy = (0.5, 0.7, 0.95)[trial % 3]
        seeds = {"pre": 2 * trial, "post": 2 * trial + 1}

        def load(
            each: Candidate, accuracy: float = accuracy, seeds: Mapping[str, int] = seeds
        ) -> PlantedEngine:
            return PlantedEngine(accuracy, seed=seeds[each.folder.name])

        result = compare_checkpoints(plan(samples=50), load, tmp_path, lambda line: None)
        alarms += result.report.verdict is CheckVerdict.REGRESSION
    assert alarms / 200 <= 0.05
