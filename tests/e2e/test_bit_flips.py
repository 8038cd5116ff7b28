"""One flipped bit in any file that outlives its process: refused, made again, or of no effect.

The same is done to answers that are being generated (tests/unit/inference/test_generation.py, 900
bits) and to half-done trainings (tests/e2e/test_train_folder.py, 500).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from amnesia_bench.data.parts import PartsFolder
from amnesia_bench.data.sequence_store import open_store
from amnesia_bench.errors import AmnesiaError
from amnesia_bench.lm_eval_bridge.evaluation import NiahEvaluation
from amnesia_bench.lm_eval_bridge.layer_ranking import measure_layers
from amnesia_bench.reasoning.score import read_cells
from amnesia_bench.recall.niah import build_prompts, open_prompt_sets
from amnesia_bench.reporting.artifact_files import ArtifactFiles
from amnesia_bench.reporting.sources import read_source
from amnesia_bench.requests.experiments import LabelledCells
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.surgery.ranked_layers import read_ranking
from amnesia_bench.training.inputs import data_parent
from tests.support import checkpoints
from tests.support.byte_checkpoints import byte_tokenizer
from tests.support.fake_engine import FakeEngine
from tests.support.fake_prompt_sets import PlantedEngine, candidate
from tests.support.reasoning import answer, compare_answers, run_task, score_answers, write_problems
from tests.support.small_data import cot_row, data_config, prepare, save_tokenizer, write_rows
from tests.support.surgery import restore, verify
from tests.unit.lm_eval_bridge.test_layer_ranking import LAYERS, PLAN, Measured

# What a command reads of a folder: numbers and texts, equal where nothing was changed.
Look = Callable[[], object]


@dataclass(frozen=True)
class Written:
    """Files of one kind, and how they are read by whoever uses them next."""

    folder: Path
    look: Look
    flips: int


class DamagedError(Exception):
    """What `verify` says of an artifact that it finds changed."""


def restored(tmp_path: Path) -> Written:
    model = checkpoints.random_model(1)
    checkpoints.save(tmp_path / "pre", model)
    checkpoints.save(tmp_path / "post", checkpoints.drifted(model, 2), shards=2)
    out = tmp_path / "out"
    restore(tmp_path / "pre", tmp_path / "post", out)

    def look() -> object:
        if verify(out).findings:
            raise DamagedError
        return checkpoints.tensor_bytes(out)

    return Written(out, look, 400)


def data(tmp_path: Path) -> Written:
    rows = write_rows(tmp_path / "rows.jsonl", [cot_row(i) for i in range(40)])
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    out = tmp_path / "out"
    prepare(data_config(), tokenizer, out, [rows])

    def look() -> object:
        data_parent("sft", out)  # as a training does
        store = open_store(out)
        rows = [store.sequence(i) for i in range(store.num_sequences)]
        return [(row.tokens.tolist(), row.loss_mask.tolist(), row.document_lengths) for row in rows]

    return Written(out, look, 200)


def parts(tmp_path: Path) -> Written:
    folder, out = tmp_path / "parts", tmp_path / "out"
    rows = write_rows(tmp_path / "rows.jsonl", [cot_row(i) for i in range(40)])
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    kept: dict[str, object] = {}
    tidy = PartsFolder.tidy

    def keep(self: PartsFolder) -> None:
        # The folder as a process would leave it that was killed before packing.
        kept["parts"] = PartsFolder(folder, {}, 2)
        kept["parts"]._settings = self._settings  # type: ignore[attr-defined]
        for path in self.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        tidy(self)

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PartsFolder, "tidy", keep)
        prepare(data_config(), tokenizer, out, [rows])
    from amnesia_bench.data.sources import local_files

    (file,) = local_files([rows])

    def look() -> object:
        found = kept["parts"].finished(file.identity)  # type: ignore[attr-defined]
        if found is None:
            raise DamagedError  # it is made again
        part = kept["parts"].open(file.identity)  # type: ignore[attr-defined]
        return found, part.tokens.tolist(), part.mask.tolist(), part.lengths.tolist()

    return Written(folder, look, 200)


def write_prompts(tokenizer: Path, out: Path) -> None:
    byte_tokenizer().save_pretrained(tokenizer)
    tasks = ("niah_single_1",)
    build_prompts(
        BuildPromptsRequest(
            tokenizer=tokenizer, lengths=(1024,), tasks=tasks, haystack=None, samples=3
        ),
        out,
    )


def prompts(tmp_path: Path) -> Written:
    write_prompts(tmp_path / "tokenizer", tmp_path / "out")

    def look() -> object:
        (prompt_set,) = open_prompt_sets(tmp_path / "out", byte_tokenizer())
        return [
            (prompt_set.prompt(i), prompt_set.values(i)[0], prompt_set.needle_span(i))
            for i in range(3)
        ]

    return Written(tmp_path / "out", look, 100)


def scores(tmp_path: Path) -> Written:
    problems = write_problems("gsm8k", tmp_path / "problems.jsonl")
    for name in ("first", "other"):
        run_task("gsm8k", problems, tmp_path / name, PlantedTexts(), "eval.repeats=2")
    first = score_answers(tmp_path / "first")
    score_answers(tmp_path / "other")
    folder = tmp_path / "other" / first.folder.name

    def look() -> object:
        cells = read_cells(folder)
        found, _ = read_source(LabelledCells(folder=folder), tmp_path, ArtifactFiles())
        return (
            [cell.value for cell in cells],
            [each.cell.value for each in found],
            compare_answers(tmp_path / "first", tmp_path / "other"),
        )

    return Written(folder, look, 200)


def recall(tmp_path: Path) -> Written:
    write_prompts(tmp_path / "tokenizer", tmp_path / "prompts")
    (prompt_set,) = open_prompt_sets(tmp_path / "prompts", byte_tokenizer())
    engine = FakeEngine(lambda request: prompt_set.values(request.key.doc)[0])
    NiahEvaluation(engine, candidate("post"), 3, tmp_path / "out").evaluate(prompt_set)
    folder = tmp_path / "out" / prompt_set.name

    def look() -> object:
        found, _ = read_source(LabelledCells(folder=folder), tmp_path, ArtifactFiles())
        return [each.cell.value for each in found]

    return Written(folder, look, 100)


def ranking(tmp_path: Path) -> Written:
    folder = tmp_path / "out"
    folder.mkdir()
    measure_layers(PLAN, LAYERS, Measured(), folder / "ranking.json")

    def look() -> object:
        found = read_ranking(folder / "ranking.json")
        return found.layers, found.accuracy

    return Written(folder, look, 100)


def half_a_ranking(tmp_path: Path) -> Written:
    folder = tmp_path / ".ranking.json.measured"
    with pytest.raises(KeyboardInterrupt):
        measure_layers(PLAN, LAYERS, Measured(dies_before=5), tmp_path / "ranking.json")
    content = {path.name: path.read_bytes() for path in folder.iterdir()}

    def look() -> object:
        now = {path.name: path.read_bytes() for path in folder.iterdir()}
        try:
            return measure_layers(PLAN, LAYERS, Measured(), tmp_path / "ranking.json").layers
        finally:
            (tmp_path / "ranking.json").unlink(missing_ok=True)
            folder.mkdir(exist_ok=True)
            for name in content:
                (folder / name).write_bytes(now[name])

    return Written(folder, look, 100)


class PlantedTexts(PlantedEngine):
    """Answers as `tests.support.reasoning.answer` does."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def text(self, request: object) -> str:
        return answer(request)  # type: ignore[arg-type]


KINDS = (restored, data, parts, prompts, scores, recall, ranking, half_a_ranking)


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_a_flipped_bit_changes_no_number(
    write: Callable[[Path], Written],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of them
    written = write(tmp_path)
    right, drawn = written.look(), Random(0)
    files = sorted(path for path in written.folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    outcomes: Counter[str] = Counter()
    for turn in range(written.flips):
        # Every other bit in a file drawn by size, the others in each file as often.
        path = drawn.choices(files, sizes)[0] if turn % 2 else files[turn // 2 % len(files)]
        if not path.stat().st_size:
            continue
        outcomes[flip_one_bit(path, drawn, written.look, right)] += 1
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    with capsys.disabled():
        sys.stdout.write(f"\n{written.flips} flipped bits of {write.__name__}: {said}\n")
    assert outcomes["refused"] > written.flips / 10  # the rest is not read, or says no number


def flip_one_bit(path: Path, drawn: Random, look: Look, right: object) -> str:
    honest, stat = path.read_bytes(), path.stat()
    flipped = bytearray(honest)
    flipped[drawn.randrange(len(honest))] ^= 1 << drawn.randrange(8)
    path.write_bytes(flipped)
    try:
        assert look() == right, f"{path.name}: another number was taken over"
    except (AmnesiaError, DamagedError):
        return "refused"
    finally:
        path.write_bytes(honest)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return "without effect"
