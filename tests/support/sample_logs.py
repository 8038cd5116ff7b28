"""Sample logs of two models, as lm-evaluation-harness 0.4.13 and inspect_ai 0.3.285 write them.

`python -m tests.support.sample_logs lm-eval` runs lm-eval on two random Qwen2-shaped models and
writes tests/golden/sample_logs/lm_eval. `... inspect` needs inspect_ai on PYTHONPATH; no test does.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

SAMPLE_LOGS = Path(__file__).resolve().parents[1] / "golden" / "sample_logs"
WORDS = ("fox", "owl", "hare", "pike", "wren", "toad", "lynx", "newt")


def _rows(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    rows = []
    for i in range(count):
        choices = draw.sample(WORDS, 4)
        seen = draw.randrange(4)
        rows.append({"id": i, "text": f"I saw a {choices[seen]} today. What was it?",
                     "choices": choices, "seen": seen})  # fmt: skip
    return rows


def _letters_shared(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score a generated answer with the share of the word's letters that it contains."""
    word = doc["choices"][doc["seen"]]
    shared = sum(letter in results[0] for letter in word)
    return {"letters": shared / len(word), "any_letter": float(shared > 0)}


def write_lm_eval_logs(folder: Path) -> None:
    """Evaluate two models on two tasks with lm-eval, and keep the files that it logs."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    from tests.support.byte_checkpoints import save_checkpoint

    work = Path(tempfile.mkdtemp())
    rows = work / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in _rows(40)))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(work / "cache")},
        "test_split": "test",
        "doc_to_text": "{{text}}",
    }
    choose = data | {
        "task": "choose_word",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{seen}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    write = data | {
        "task": "write_word",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[seen]}}",
        "process_results": _letters_shared,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("letters", "any_letter")
        ],
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
    }
    for name, seed in (("a", 1), ("b", 2)):
        checkpoint = save_checkpoint(work / name, seed)
        tracker = EvaluationTracker(output_path=str(work / "logs" / name))
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(checkpoint), "device": "cpu", "dtype": "float32"},
            tasks=[choose, write],
            batch_size=1,
            log_samples=True,
            bootstrap_iters=0,
            evaluation_tracker=tracker,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, logged in samples.items():
            tracker.save_results_samples(task_name=task, samples=logged)
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in (work / "logs" / name).rglob("*.json*"):
            # The paths of this machine have no meaning elsewhere.
            text = file.read_text(encoding="utf-8").replace(str(work), "/tmp/logs")
            (target / file.name).write_text(text, encoding="utf-8")
    shutil.rmtree(work)


def write_inspect_logs(folder: Path) -> None:
    """Have inspect_ai log two models without weights as .eval, and convert the logs to .json.

    The .json logs lose their events, which are the larger part, and nothing reads them.
    """
    import tiktoken
    from inspect_ai import Task
    from inspect_ai import eval as run_task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.log import write_eval_log
    from inspect_ai.model import ModelOutput, get_model
    from inspect_ai.scorer import Score, accuracy, match, mean, scorer
    from inspect_ai.solver import generate

    class Encoding:  # inspect_ai counts tokens with a vocabulary from the network
        def encode(self, text: str, **_: Any) -> list[int]:
            return list(text.encode())

    tiktoken.get_encoding = lambda name: Encoding()

    @scorer(metrics={"close": [mean()], "exact": [accuracy()]})
    def graded() -> Any:
        async def judge(state: Any, target: Any) -> Any:
            off = abs(int(state.output.completion) - int(target.text))
            return Score(value={"close": 1 / (1 + off), "exact": "I" if off else "C"})

        return judge

    samples = [
        Sample(id=i if i % 2 else f"q{i}", input=f"What is {i}+{i}?", target=str(2 * i))
        for i in range(12)
    ]
    for name, seed in (("a", 1), ("b", 2)):
        shutil.rmtree(folder / name, ignore_errors=True)
        draw = random.Random(seed)
        answers = (str(2 * (i // 2) + draw.choice((0, 0, 1, 2))) for i in range(24))
        (log,) = run_task(
            Task(
                dataset=MemoryDataset(samples, name="sums"),
                solver=generate(),
                scorer=[match(), graded()],
                epochs=2,
                name="sums",
            ),
            model=get_model(
                "mockllm/model",
                custom_outputs=(ModelOutput.from_content("mockllm/model", a) for a in answers),
            ),
            log_dir=str(folder / name / "eval"),
            log_format="eval",
            display="none",
            max_connections=1,
            max_samples=1,
        )
        (folder / name / "json").mkdir()
        converted = folder / name / "json" / Path(log.location).with_suffix(".json").name
        write_eval_log(log, str(converted), format="json")
        content = json.loads(converted.read_text(encoding="utf-8"))
        for sample in content["samples"]:
            sample["events"] = []
        converted.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["lm-eval"]:
        write_lm_eval_logs(SAMPLE_LOGS / "lm_eval")
    else:
        write_inspect_logs(SAMPLE_LOGS / "inspect")
