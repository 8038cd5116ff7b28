"""`amnesia export`: the readers of the other tools accept the files, and no number changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.records import codec
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.store.hashing import sha256_of
from tests.support.fake_engine import FakeEngine
from tests.support.reasoning import answer, run_task, score_answers, write_problems
from tests.support.report_cells import LENGTHS, forgetful, write_recall, write_scores

SCHEMAS = Path(__file__).resolve().parents[1] / "golden" / "schemas"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recall and scores of two models, and answers that were really scored."""
    root = tmp_path_factory.mktemp("sources")
    for method in ("post", "restored"):
        write_recall(root / method / "recall", method, forgetful(method), samples=20)
    write_scores(root / "restored" / "scores", "restored", {"math500": 0.5})
    data = write_problems("gsm8k", root / "data.jsonl")
    run_task("gsm8k", data, root / "answers", FakeEngine(answer), "eval.repeats=4")
    score_answers(root / "answers")
    return root


def cells_of(*files: Path) -> list[Cell]:
    found = []
    for file in files:
        data = json.loads(file.read_text())
        found += [codec.from_json(Cell, item, "cell") for item in data]
    return found


def export(format: str, out: Path, *words: str) -> dict[str, Path]:
    """Export folders, and return the files by name."""
    assert main(["export", f"--format={format}", *words, "--out", str(out)]) == 0
    return {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}


def one(files: dict[str, Path], *parts: str) -> Path:
    (path,) = (path for name, path in files.items() if all(part in name for part in parts))
    return path


def test_lm_eval_reads_its_files(sources: Path, tmp_path: Path) -> None:
    from lm_eval import utils
    from lm_eval.result_schema import SampleResult

    files = export(
        "lm-eval",
        tmp_path / "out",
        f"org/restored={sources / 'restored'}",
        f"org/post={sources / 'post'}",
    )
    names = [f"out/{name}" for name in files]
    assert len(utils.get_results_filenames(names)) == 2
    assert len(utils.get_sample_results_filenames(names)) == 3 + 3 + 1
    latest = utils.get_latest_filename(utils.get_results_filenames(names))
    assert "/results_" in latest
    results = json.loads(one(files, "restored/results_").read_text())
    table = utils.make_table(results)
    # RULER's metrics are the lengths.
    cells = cells_of(*(sources / "restored").rglob("cells.json"))
    for cell in cells:
        values = results["results"][cell.task]
        key = f"{cell.context_tokens},none" if cell.context_tokens else f"{cell.metric},strict"
        assert values[key] == cell.value
        assert f"{cell.value:.4f}" in table
        kept = results["amnesia_bench"]["cells"][f"{cell.task}/{key}"]
        assert (kept["n"], kept["interval"]["low"]) == (cell.n, cell.interval and cell.interval.low)
    assert results["n-samples"]["niah_single_3"] == {"original": 20, "effective": 20}
    lines = one(files, "restored/samples_niah_single_3").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == 20 * len(LENGTHS)
    for sample in samples:
        assert SampleResult.__required_keys__ <= set(sample)
        (metric,) = sample["metrics"]
        assert sample[metric] == float(sample["target"] in sample["resps"][0][0])
    of_longest = [s[str(max(LENGTHS))] for s in samples if str(max(LENGTHS)) in s]
    assert sum(of_longest) / 20 == results["results"]["niah_single_3"][f"{max(LENGTHS)},none"]


def test_a_run_of_lm_eval_has_the_same_structure(sources: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    class Says2(LM):
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return ["2" for _ in requests]

        loglikelihood = loglikelihood_rolling = generate_until

    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    task = {
        "task": "sum",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(tmp_path / "c")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"]},
    }
    tracker = EvaluationTracker(output_path=str(tmp_path / "real"))
    ran = simple_evaluate(
        model=Says2(),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    samples = ran.pop("samples")
    tracker.save_results_aggregated(ran, samples)
    ((name, of_task),) = samples.items()
    tracker.save_results_samples(name, of_task)
    (results_file,) = (tmp_path / "real").rglob("results_*.json")
    (samples_file,) = (tmp_path / "real").rglob("samples_*.jsonl")
    files = export("lm-eval", tmp_path / "out", f"org/restored={sources / 'restored'}")

    real, ours = (json.loads(path.read_text()) for path in (results_file, one(files, "/results_")))
    assert real["group_subtasks"] == ours["group_subtasks"]
    per_task = {"results", "configs", "versions", "n-shot", "n-samples"}
    assert per_task <= set(real) & set(ours)
    assert set(ours) - {"amnesia_bench"} <= set(real)
    for part in per_task:
        assert type(real[part][name]) is type(ours[part]["niah_single_3"]) or part == "versions"
    first, second = (
        json.loads(path.read_text().splitlines()[0])
        for path in (samples_file, one(files, "samples_niah_single_3"))
    )
    shared = set(first) - set(first["metrics"])
    assert shared == set(second) - set(second["metrics"])
    assert {name: type(first[name]) for name in shared} == {
        name: type(second[name]) for name in shared
    }


def validator(name: str) -> Any:
    return jsonschema.Draft7Validator(json.loads((SCHEMAS / name).read_text()))


def test_every_eval_ever_accepts_its_records(sources: Path, tmp_path: Path) -> None:
    files = export(
        "every-eval-ever",
        tmp_path / "out",
        f"tiny/restored={sources / 'restored'}",
        f"tiny/answered={sources / 'answers'}",
    )
    records = {name: json.loads(path.read_text()) for name, path in files.items()
               if name.endswith(".json") and name != "manifest.json"}  # fmt: skip
    assert records
    found = {}
    for record in records.values():
        validator("every_eval_ever.json").validate(record)
        details = record["detailed_evaluation_results"]
        samples = tmp_path / "out" / details["file_path"]
        assert sha256_of(samples) == details["checksum"]
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        assert len(lines) == details["total_rows"] > 0
        ids = {result["evaluation_result_id"] for result in record["evaluation_results"]}
        for line in lines:
            validator("every_eval_ever_instance.json").validate(line)
            assert line["evaluation_result_id"] in ids
            assert line["evaluation_id"] == record["evaluation_id"]
        for result in record["evaluation_results"]:
            key = (record["model_info"]["name"], result["evaluation_result_id"])
            found[key] = result["score_details"]
            of_result = [
                line["evaluation"]["score"]
                for line in lines
                if line["evaluation_result_id"] == key[1]
            ]
            if of_result:
                score = result["score_details"]["score"]
                assert sum(of_result) / len(of_result) == pytest.approx(score)
    for cell in cells_of(*(sources / "restored").rglob("cells.json")):
        scorer = cell.settings.get("scorer", "none")
        task = f"{cell.task}@{cell.context_tokens}" if cell.context_tokens else cell.task
        details = found["tiny/restored", f"{task}/{cell.metric}/{scorer}"]
        assert details["score"] == cell.value
        assert details["uncertainty"]["num_samples"] == cell.n
        assert cell.interval is not None
        assert details["uncertainty"]["confidence_interval"]["lower"] == cell.interval.low
    answered = [line for path in files.values() if path.suffix == ".jsonl"
                for line in map(json.loads, path.read_text().splitlines())
                if line["model_id"] == "tiny/answered"]  # fmt: skip
    # The texts of the answers, and their lengths.
    assert all(len(line["output"]["raw"]) == 4 for line in answered)
    assert all(line["token_usage"]["total_tokens"] > 0 for line in answered)


def as_benchmark(root: Path, location: str, documents: str) -> Path:
    """Publish a score on GSM8K whose problems are from `location`."""
    folder = write_scores(root / "made", "restored", {"gsm8k": 0.5}) / "gsm8k"
    copy = root / "gsm8k"
    copy.mkdir(parents=True)
    cells = json.loads((folder / "cells.json").read_text())
    for cell in cells:
        cell["parents"][0]["location"] = location
        cell["settings"] |= {"documents": documents, "benchmark_documents": "1319"}
    (copy / "cells.json").write_text(json.dumps(cells))
    return copy


def test_the_hub_gets_registered_benchmarks_only(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import parse_eval_result_entries

    scores = as_benchmark(tmp_path, "openai/gsm8k@740312add88f", "1319")
    labels = (f"M/restored={scores}", f"M/recall={sources / 'restored'}")
    files = export("hub-eval-results", tmp_path / "out", *labels)
    path = one(files, "/.eval_results/")
    assert path.name == "gsm8k.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    (cell,) = (c for c in cells_of(scores / "cells.json") if c.metric == "avg@16")
    assert (entry.dataset_id, entry.task_id) == ("openai/gsm8k", "gsm8k")
    assert entry.dataset_revision == "740312add88f"
    assert entry.value == pytest.approx(100 * cell.value)
    assert entry.notes is not None
    assert f"n = {cell.n} problems" in entry.notes
    assert "95 % interval [" in entry.notes
    left_out = capsys.readouterr().err
    assert "M/recall, niah_single_3@1024: left out, its benchmark is not registered" in left_out
    assert "M/recall, math500: left out" in left_out


@pytest.mark.parametrize(
    ("location", "documents", "reason"),
    [
        ("/data/my_problems.jsonl", "1319", "the problems are not those of openai/gsm8k"),
        ("openai/gsm8k@740312add88f", "100", "only a part of the problems"),
    ],
)
def test_the_hub_gets_no_other_problems_as_gsm8k(
    location: str, documents: str, reason: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    scores = as_benchmark(tmp_path, location, documents)
    command = ["export", "--format=hub-eval-results", str(scores)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unfinished_and_damaged_evaluations_are_named(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    unfinished = store / "recall" / ".recall.x-0123.parts" / "niah_single_3@1024"
    unfinished.mkdir(parents=True)
    (unfinished / "generations.jsonl").write_text("")
    command = ["export", "--format=lm-eval", "--out", str(out), str(store)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "no finished cells to export" in said
    assert f"{store / 'recall' / 'recall.x-0123'}: is not finished" in said
    assert not out.exists()

    recall = write_recall(store / "recall" / "y", "post", forgetful("post"), samples=4)
    assert main(command) == 0  # what is finished is exported, and what is not is named
    assert "recall.x-0123: is not finished" in capsys.readouterr().err
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err

    cells = recall / "cells.json"
    cells.write_text(cells.read_text().replace("0.", "1.", 1))
    assert main([*command[:2], "--out", str(tmp_path / "other"), str(store)]) == 2
    assert str(cells) in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_from_python(sources: Path, tmp_path: Path) -> None:
    source = ab.LabelledCells(folder=sources / "post", model="tiny", method="post")
    request = ab.ExportRequest(format="lm-eval", sources=(source,))
    result = ab.export(request, tmp_path / "out")
    assert result.models == ("tiny/post",)
    assert all(path.is_file() for path in result.files)
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_a_folder_that_does_not_exist_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--format=lm-eval", str(tmp_path / "none"), "--out", str(tmp_path / "o")]
    assert main(command) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
