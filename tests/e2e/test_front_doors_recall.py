"""The front doors of recall, called from Python, do what the commands do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.records.codec import to_json
from amnesia_bench.records.recall import CheckVerdict
from amnesia_bench.requests.engines import EngineChoice
from amnesia_bench.requests.recall import (
    BuildPromptsRequest,
    CheckRequest,
    EvaluateRequest,
    HubEssays,
    RankLayersRequest,
)
from amnesia_bench.store.hashing import read_manifest
from amnesia_bench.store.layout import MANIFEST
from tests.support.byte_checkpoints import save_checkpoint, write_haystack

TASKS, LENGTHS, SAMPLES = ("niah_single_1", "niah_single_2"), (1024,), 2
CHOICE = ["--tasks", ",".join(TASKS), "--lengths", "1024", "--samples", "2"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints pre and post, essays, and prompts that the front door built of them."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, role in enumerate(("pre", "post")):
        save_checkpoint(folder / role, seed)
    write_haystack(folder / "essays.json")
    ab.build_prompts(build_request(folder), folder / "prompts")
    return folder


def build_request(folder: Path) -> BuildPromptsRequest:
    return BuildPromptsRequest(
        tokenizer=folder / "pre",
        tasks=TASKS,
        lengths=LENGTHS,
        samples=SAMPLES,
        haystack=folder / "essays.json",
    )


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder; of a manifest, which knows command and times, the hashes."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    if (folder / MANIFEST).is_file():
        entries = read_manifest(folder).files
        files[MANIFEST] = repr([(entry.path, entry.sha256) for entry in entries]).encode()
    return files


def typed(*words: object) -> int:
    return main([*map(str, words)])


def test_build_prompts(inputs: Path, tmp_path: Path) -> None:
    given = ["--tokenizer", inputs / "pre", "--haystack", inputs / "essays.json", *CHOICE]
    assert typed("niah", "build", *given, "--out", tmp_path / "out") == ExitCode.DONE
    assert content(tmp_path / "out") == content(inputs / "prompts")


def test_evaluate(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = EvaluateRequest(
        checkpoint=inputs / "post",
        prompts=inputs / "prompts",
        max_new_tokens=4,
        method="+SFT",
        engine=EngineChoice(max_context_tokens=4096),
    )
    lines: list[str] = []
    cells = ab.evaluate(request, tmp_path / "python", progress=lines.append)
    given = ["--checkpoint", inputs / "post", "--prompts", inputs / "prompts", "--method", "+SFT"]
    given += ["--max-new-tokens", 4, "--max-context-tokens", 4096]
    code = typed("eval", "niah", *given, "--out", tmp_path / "command", "--json")
    printed = capsys.readouterr()
    assert code == ExitCode.DONE
    assert json.loads(printed.out) == to_json(cells)
    # Between them are bars of libraries, which this process imported before.
    assert [line for line in printed.err.splitlines() if line in lines] == lines
    assert [(cell.task, cell.method, cell.n) for cell in cells] == [
        (task, "+SFT", SAMPLES) for task in TASKS
    ]
    assert content(tmp_path / "command") == content(tmp_path / "python")


def test_check(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = CheckRequest(
        pre=inputs / "pre",
        post=inputs / "post",
        haystack=inputs / "essays.json",
        tasks=TASKS,
        lengths=LENGTHS,
        samples=SAMPLES,
        margin=0.2,
        work=tmp_path / "python",
    )
    counted: list[tuple[int, int]] = []
    finished = ab.check(request, count=lambda *numbers: counted.append(numbers))
    given = ["--pre", inputs / "pre", "--post", inputs / "post", "--margin", 20, *CHOICE]
    given += ["--haystack", inputs / "essays.json", "--work", tmp_path / "command"]
    code = typed("check", *given, "--json", tmp_path / "check.json")
    assert code == ExitCode.DONE
    assert finished.report.verdict is CheckVerdict.UNDECIDED
    assert "warning: undecided" in capsys.readouterr().err
    assert json.loads((tmp_path / "check.json").read_text()) == to_json(finished.report)
    (records,) = (tmp_path / "command" / "checks").iterdir()
    assert records.name == finished.folder.name
    assert content(records) == content(finished.folder)
    assert counted[-1] == (SAMPLES, SAMPLES)


def test_rank_layers(inputs: Path, tmp_path: Path) -> None:
    row = {"text": " swde: the key is ", "value": "a"}
    (tmp_path / "swde.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    request = RankLayersRequest(
        checkpoint=inputs / "pre", tasks=("swde",), samples=1, data=tmp_path
    )
    lines: list[str] = []
    ranking = ab.rank_layers(request, tmp_path / "python.json", progress=lines.append)
    given = ["--checkpoint", inputs / "pre", "--tasks", "swde", "--samples", 1]
    given += ["--data", tmp_path, "--out", tmp_path / "command.json"]
    assert typed("rank-layers", *given) == ExitCode.DONE
    written = [(tmp_path / f"{name}.json").read_bytes() for name in ("command", "python")]
    assert written[0] == written[1]
    assert len(ranking.layers) == 3
    assert lines[0] == "evaluating the whole model"


def test_mistakes_are_the_same_in_python(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task 'niah_single_9'"):
        ab.build_prompts(
            build_request(inputs).model_copy(update={"tasks": ("niah_single_9",)}), tmp_path / "out"
        )
    for request in (
        EvaluateRequest(checkpoint=inputs / "pre", prompts=None, tasks=("niah_single_9",)),
        EvaluateRequest(checkpoint=tmp_path / "absent", prompts=None),
    ):
        with pytest.raises(UserError, match=r"no task .niah_single_9.|absent: no such folder"):
            ab.evaluate(request, tmp_path / "out")
    with pytest.raises(ValidationError, match="either prompts or a haystack"):
        CheckRequest(pre=Path("a"), post=Path("b"), prompts=Path("c"), haystack=HubEssays())
    with pytest.raises(ValidationError, match="margin"):
        CheckRequest(pre=Path("a"), post=Path("b"), margin=float("nan"))
    assert list(tmp_path.iterdir()) == []
