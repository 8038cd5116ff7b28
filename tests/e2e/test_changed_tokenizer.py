"""A fine-tune with more special tokens answers the same prompts; one that splits them otherwise is
refused before a model is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import amnesia_bench.recall.check as check_module
import amnesia_bench.tokenizers.known as known_module
from amnesia_bench.cli.main import main
from amnesia_bench.recall.niah import build_prompts, open_prompt_sets
from amnesia_bench.recall.niah.prompt_sets import PROMPTS, TOKENIZER
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.tokenizers.tokenizer import legacy_tokenizer_identity, load_tokenizer
from tests.support.byte_checkpoints import byte_tokenizer, save_checkpoint, write_haystack

TASKS, LENGTH = ("niah_single_1", "niah_single_2"), 2048


@pytest.fixture(scope="module")
def pre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("pre") / "base")


def build(tokenizer: Path, out: Path) -> Path:
    write_haystack(out.with_suffix(".json"))
    haystack = out.with_suffix(".json")
    build_prompts(
        BuildPromptsRequest(
            tokenizer=tokenizer, lengths=(LENGTH,), tasks=TASKS, haystack=haystack, samples=3
        ),
        out,
    )
    return out


@pytest.fixture(scope="module")
def prompts(pre: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(pre, tmp_path_factory.mktemp("prompts") / "prompts")


@pytest.fixture
def tuned(pre: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return what makes a fine-tune of `pre` with added tokens, its embedding resized for them."""

    def make(tokens: Sequence[str], *, special: bool = True) -> Path:
        folder = tmp_path / "tuned"
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(list(tokens), special_tokens=special)
        model = AutoModelForCausalLM.from_pretrained(pre)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def check(pre: Path, post: Path, prompts: Path, work: Path) -> int:
    return main(
        ["check", "--pre", str(pre), "--post", str(post), "--prompts", str(prompts),
         "--tasks", ",".join(TASKS), "--lengths", str(LENGTH), "--samples", "3",
         "--work", str(work)]
    )  # fmt: skip


@pytest.mark.parametrize("special", [True, False])
def test_more_tokens_that_no_prompt_holds_change_nothing(
    special: bool, pre: Path, prompts: Path, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    post = tuned(["<think>", "</think>", "<pad>"], special=special)
    assert check(pre, post, prompts, tmp_path / "work") == 0
    report = json.loads(next((tmp_path / "work").rglob("check.json")).read_text())
    assert [cell["n"] for cell in report["cells"]] == [3, 3]
    arguments = ["eval", "niah", "--checkpoint", str(post), "--prompts", str(prompts)]
    assert main([*arguments, "--out", str(tmp_path / "scores")]) == 0
    ours = open_prompt_sets(prompts, load_tokenizer(pre))
    theirs = open_prompt_sets(prompts, load_tokenizer(post))
    for a, b in zip(ours, theirs, strict=True):
        for i in range(3):
            whole = load_tokenizer(post)(b.prompt(i), add_special_tokens=False).input_ids
            assert a.tokens(i).tolist() == b.tokens(i).tolist() == whole


def test_prompts_of_the_fine_tune_suit_its_base(
    pre: Path, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    post = tuned(["<think>"])
    assert check(pre, post, build(post, tmp_path / "prompts"), tmp_path / "work") == 0


@pytest.mark.parametrize("token", ["magic", "grass", "special magic number", "again.\nOne of"])
def test_a_token_that_a_prompt_holds_is_named(
    token: str,
    pre: Path,
    prompts: Path,
    tuned: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check(pre, tuned([token]), prompts, tmp_path / "work") == 2
    assert f"contain {token!r}, which only one of the two" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_other_tokens_around_a_prompt_are_refused(
    pre: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    post = shutil.copytree(pre, tmp_path / "post")
    byte_tokenizer(bos=False).save_pretrained(post)
    assert check(pre, post, prompts, tmp_path / "work") == 2
    assert "different special tokens around a prompt: [256]" in capsys.readouterr().err


def test_another_vocabulary_is_refused(
    pre: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    post = shutil.copytree(pre, tmp_path / "post")
    path = post / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [["a", "n"]]
    content["model"]["vocab"]["an"] = 258
    path.write_text(json.dumps(content))
    assert check(pre, post, prompts, tmp_path / "work") == 2
    assert "were built for another tokenizer" in capsys.readouterr().err


def as_older_version(prompts: Path, out: Path, tokenizer: Path, *, parts: bool) -> Path:
    """Copy prompts as versions before the present identity wrote them, with parts or without."""
    shutil.copytree(prompts, out)
    record = json.loads((out / PROMPTS).read_text())
    record["tokenizer_sha256"] = legacy_tokenizer_identity(load_tokenizer(tokenizer))
    (out / PROMPTS).write_text(json.dumps(record))
    if not parts:
        (out / TOKENIZER).unlink()
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"] = [
        entry | {"bytes": (out / entry["path"]).stat().st_size,
                 "sha256": sha256_of(out / entry["path"])}
        for entry in manifest["files"]
        if (out / entry["path"]).is_file()
    ]  # fmt: skip
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.mark.parametrize(("parts", "suits_more_tokens"), [(True, True), (False, False)])
def test_prompts_of_an_older_version_suit_their_own_tokenizer(
    parts: bool, suits_more_tokens: bool, pre: Path, prompts: Path,
    tuned: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    old = as_older_version(prompts, tmp_path / "old", pre, parts=parts)
    assert check(pre, pre, old, tmp_path / "same") == 0
    exit_code = 0 if suits_more_tokens else 2
    assert check(pre, tuned(["<think>"]), old, tmp_path / "other") == exit_code


def test_a_check_that_an_older_version_began_finds_its_prompts_and_answers(
    pre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"

    def check_built() -> int:
        return main(
            ["check", "--pre", str(pre), "--post", str(pre), "--tasks", "niah_single_1",
             "--lengths", str(LENGTH), "--samples", "3", "--work", str(work)]
        )  # fmt: skip

    with monkeypatch.context() as older:
        for module in (check_module, known_module):
            older.setattr(module, "tokenizer_identity", legacy_tokenizer_identity)
        assert check_built() == 0
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.jsonl")}
    (built,) = (work / "prompts").iterdir()
    assert check_built() == 0
    assert list((work / "prompts").iterdir()) == [built]
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.jsonl")} == before
