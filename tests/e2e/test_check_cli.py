"""`amnesia check` as its users meet it: exit codes, files, and mistakes found before any model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from amnesia_bench.cli.main import main
from tests.support.checkpoints import drifted, random_model, save
from tests.support.fake_prompt_sets import FakePromptSet, PlantedEngine

Run = Callable[..., int]
PROMPTS = ["--prompts", "prompts"]


def with_tokenizer(folder: Path, *more: str) -> Path:
    """Give a checkpoint folder a tokenizer of some words."""
    words = ["<unk>", "The", "quick", *more]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    model = random_model(0)
    return {
        role: with_tokenizer(save(tmp_path / role, drifted(model, seed)))
        for seed, role in enumerate(("pre", "post", "restored"))
    }


@pytest.fixture
def check(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, float]], Run]:
    """Return what makes a command of planted accuracies; without any, loading a model fails."""
    from amnesia_bench.recall import check as opening
    from amnesia_bench.recall import measure

    def planted(accuracies: dict[str, float]) -> Run:
        monkeypatch.setattr(
            opening,
            "open_prompt_sets_for",
            lambda folder, tokenizer, choice: measure.pick_prompt_sets(
                [FakePromptSet("niah_single_2", length, 100) for length in (1024, 8192)],
                choice,
            ),
        )
        monkeypatch.setattr(
            opening,
            "open_engine",
            lambda choice, candidate, **_: PlantedEngine(accuracies[candidate.folder.name]),
        )

        def run(*arguments: str) -> int:
            return main(
                ["check", "--pre", str(folders["pre"]), "--post", str(folders["post"]),
                 "--work", str(tmp_path / "work"), "--tasks", "niah_single_2",
                 "--lengths", "1024,8192", *PROMPTS, *arguments]
            )  # fmt: skip

        return run

    return planted


def test_a_regression_exits_with_3_and_names_the_repair(
    check: Callable[[dict[str, float]], Run],
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = ["--json", str(tmp_path / "check.json"), "--markdown", str(tmp_path / "check.md")]
    run = check({"pre": 1.0, "post": 0.2, "restored": 0.9})
    code = run("--samples", "100", "--restored", str(folders["restored"]), *files)
    printed = capsys.readouterr()
    assert code == 3
    advice = (
        f"amnesia restore --pre {folders['pre']} --post {folders['post']} "
        f"--out {folders['post']}-restored"
    )
    assert advice in printed.out
    assert "recall regression: 75 of 600 answers were needed" in printed.out
    assert "niah_single_2@8192: pre 25" in printed.err
    report = json.loads((tmp_path / "check.json").read_text())
    assert (report["verdict"], report["advice"]) == ("regression", advice)
    assert advice in (tmp_path / "check.md").read_text()
    (records,) = (tmp_path / "work" / "checks").iterdir()
    assert main(["verify", str(records)]) == 0


def test_no_regression_exits_with_0_and_undecided_with_a_warning(
    check: Callable[[dict[str, float]], Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = check({"pre": 1.0, "post": 1.0})
    assert run("--samples", "100", "--margin", "20") == 0
    printed = capsys.readouterr()
    assert "Long-range recall: no recall regression" in printed.out
    assert "warning" not in printed.err
    assert run("--samples", "25") == 0
    assert "warning: undecided" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "--samples 0: must be at least 1"),
        (["--samples", "-5"], "--samples -5"),
        (["--samples", "101"], "holds 100 prompts, but 101 are requested"),
        (["--margin", "-1"], "--margin -1: must be from 0 to below 95 points"),
        (["--margin", "nan"], "--margin nan: must be"),
        (["--tasks", "niah_single_9"], "no task 'niah_single_9'"),
        (["--tasks", ","], "no task ''"),
        (["--tasks", "niah_single_3", "--samples", "5"], "no prompts of niah_single_3 at 8192"),
        (["--lengths", "4096", "--samples", "5"], "no prompts of niah_single_2 at 4096"),
        (["--lengths", "0"], "not a list of lengths"),
        (["--lengths", "32K"], "not a list of lengths"),
        (["--json", "absent/check.json"], "the folder absent does not exist"),
        (["--max-context-tokens", "0"], "--max-context-tokens 0: must be at least 1"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(
    arguments: list[str],
    message: str,
    check: Callable[[dict[str, float]], Run],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check({})(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_without_torch_it_says_what_to_install(folders: dict[str, Path]) -> None:
    without = (
        "import sys; sys.modules['torch'] = None; "
        "from amnesia_bench.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    checkpoints = ["--pre", str(folders["pre"]), "--post", str(folders["post"])]
    command = [sys.executable, "-c", without, "check", *checkpoints, *PROMPTS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 6
    assert "check needs packages that are not installed" in done.stderr
    assert 'pip install "amnesia-bench[eval]"' in done.stderr


def test_without_a_choice_all_prompts_of_the_folder_are_taken(
    check: Callable[[dict[str, float]], Run],
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check({"pre": 1.0, "post": 1.0})
    checkpoints = ["--pre", str(folders["pre"]), "--post", str(folders["post"])]
    work = ["--work", str(tmp_path / "work"), "--margin", "10"]
    assert main(["check", *checkpoints, *work, *PROMPTS]) == 0
    printed = capsys.readouterr().err
    looked = re.findall(r"niah_single_2@(\d+): pre (\d+)", printed)
    assert looked == [("8192", "25"), ("1024", "25"), ("8192", "50"), ("1024", "50")]


def test_an_engine_is_chosen_by_name(
    check: Callable[[dict[str, float]], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from amnesia_bench.recall import check as opening

    run = check({})
    names: list[str] = []
    monkeypatch.setattr(
        opening,
        "open_engine",
        lambda choice, *_, **__: (names.append(choice.name), PlantedEngine(1.0))[1],
    )
    assert run("--samples", "5", "--engine", "vllm") == 0
    assert set(names) == {"vllm"}
    with pytest.raises(SystemExit, match="2"):
        run("--engine", "vlm")


def spoil(folder: Path, how: str) -> None:
    if how == "no checkpoint":
        for path in folder.iterdir():
            path.unlink()
    else:
        for path in folder.glob("tokenizer*"):
            path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no checkpoint", "holds neither model.safetensors nor"),
        ("no tokenizer", "its tokenizer cannot be loaded"),
    ],
)
def test_checkpoints_that_cannot_be_compared_are_refused_before_a_model_is_loaded(
    how: str,
    message: str,
    check: Callable[[dict[str, float]], Run],
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(folders["post"], how)
    assert check({})("--samples", "5") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


CHILD = """
import sys, time
from amnesia_bench.cli.main import main
from amnesia_bench.recall import check as opening, measure
from tests.support.fake_prompt_sets import FakePromptSet, PlantedEngine

class Slow(PlantedEngine):
    def text(self, request):
        time.sleep(0.01)
        return super().text(request)

held = [FakePromptSet("niah_single_2", length, 100) for length in (1024, 8192)]
opening.open_prompt_sets_for = lambda *args: measure.pick_prompt_sets(held, args[2])
opening.open_engine = lambda choice, candidate, **_: Slow(0.9, seed=len(candidate.role))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_and_typed_again_a_check_prints_what_it_would_have(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["check", "--pre", str(folders["pre"]), "--post", str(folders["post"]),
                 *PROMPTS, "--tasks", "niah_single_2", "--lengths", "8192",
                 "--samples", "50"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(work: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", CHILD, *arguments, "--work", str(tmp_path / work)]
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    killed = start("killed")
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 2000 for path in tmp_path.rglob("generations.jsonl")):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    assert not (tmp_path / "killed" / "checks").exists()
    runs = [start(work) for work in ("killed", "whole")]
    printed = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert printed[0][0].replace("/killed/", "/whole/") == printed[1][0]
    records = [next((tmp_path / work / "checks").iterdir()) for work in ("killed", "whole")]
    assert records[0].name == records[1].name
