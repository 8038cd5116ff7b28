"""`amnesia rank-heads` as a user types it, and `restore --heads`, on a model made by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah import open_prompt_sets
from amnesia_bench.requests.recall import RankHeadsRequest
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.store.sealed_json import seal, sealed_text
from amnesia_bench.surgery.ranked_heads import read_head_ranking
from amnesia_bench.tokenizers.tokenizer import load_tokenizer
from tests.support.byte_checkpoints import byte_tokenizer
from tests.support.induction import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    RETRIEVAL,
    expected_copies,
    induction_model,
)
from tests.support.pico import build

SAMPLES = 4
ATTENTION = "model.layers.1.self_attn."


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with known retrieval heads, a fine-tune that breaks them, and prompts."""
    folder = tmp_path_factory.mktemp("inputs")
    induction_model().save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    command = f"niah build --tokenizer {folder / 'base'} --lengths 800,1000 --samples {SAMPLES}"
    assert main([*command.split(), "--tasks", "niah_single_1", "--out", f"{folder / 'niah'}"]) == 0
    shutil.copytree(folder / "base", folder / "post")
    weights = load_file(folder / "post" / "model.safetensors")
    rng = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if "_proj.weight" in name and ".layers.0." not in name:
            weight += 0.01 * torch.randn(weight.shape, generator=rng)  # as a fine-tune moves all
    noise = 30 * torch.randn(HEADS * HEAD_DIM, weight_of(weights, "q").shape[1], generator=rng)
    for _, head in RETRIEVAL:
        rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        weight_of(weights, "q")[rows] += noise[rows]
    weight_of(weights, "k")[HEAD_DIM:] += noise[:HEAD_DIM]
    save_file(weights, folder / "post" / "model.safetensors", {"format": "pt"})
    return folder


def weight_of(weights: dict[str, torch.Tensor], role: str) -> torch.Tensor:
    return weights[f"{ATTENTION}{role}_proj.weight"]


def rank(inputs: Path, out: Path, *options: str, base: str = "base") -> int:
    given = ["--checkpoint", str(inputs / base), "--prompts", str(inputs / "niah")]
    try:
        return main(["rank-heads", *given, "--out", str(out), *options])
    except SystemExit as end:  # argparse names a missing option
        return int(end.code or 0)


@pytest.fixture(scope="module")
def ranking(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranking") / "heads.json"
    assert rank(inputs, out, "--post", str(inputs / "post")) == 0
    return out


def expected_shares(folder: Path, checkpoint: Path) -> list[float]:
    """The share of each prompt that induction copies, from the texts of the prompts alone."""
    tokenizer = load_tokenizer(checkpoint)
    shares = []
    for prompt_set in open_prompt_sets(folder, tokenizer):
        for i in range(len(prompt_set)):
            text, value = prompt_set.prompt(i) + " ", prompt_set.value(i)
            before = tokenizer(text).input_ids
            tokens = tokenizer(text + value).input_ids
            first, end = (1 + edge for edge in prompt_set.needle_span(i))  # a BOS comes first
            copied, copyable = expected_copies(tokens, (first, end), len(before))
            assert copyable == 7
            shares.append(copied / copyable)
    return shares


def test_the_scores_of_known_heads_are_exact(inputs: Path, ranking: Path) -> None:
    record = read_head_ranking(ranking)
    shares = expected_shares(inputs / "niah", inputs / "base")
    assert len(shares) == record.n == 2 * SAMPLES
    score = sum(shares) / len(shares)
    assert 0.3 < score < 1
    assert [(entry.layer, entry.head) for entry in record.heads[:2]] == list(RETRIEVAL)
    for entry in record.heads[:2]:
        assert entry.score == pytest.approx(score)
        interval = wilson(sum(shares), 2 * SAMPLES)
        assert entry.interval.low == pytest.approx(interval.low)
        assert entry.interval.high == pytest.approx(interval.high)
        assert entry.kv_head == 1
    assert all(entry.score == 0 for entry in record.heads[2:])
    assert len(record.heads) == 2 * HEADS
    assert record.recalled == 0  # induction cannot predict the first digit
    assert record.tokens[0] < 800 <= record.tokens[1] < 1000


def test_drift_that_was_planted_in_these_heads_is_found_there(inputs: Path, ranking: Path) -> None:
    record = read_head_ranking(ranking)
    before, after = (load_file(inputs / n / "model.safetensors") for n in ("base", "post"))
    for entry in record.heads:
        for role, head, found in (
            ("q", entry.head, entry.drift_q), ("k", entry.kv_head, entry.drift_k)
        ):  # fmt: skip
            name = f"model.layers.{entry.layer}.self_attn.{role}_proj."
            rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            a, b = (
                torch.cat([w[f"{name}weight"][rows], w[f"{name}bias"][rows, None]], dim=1).double()
                for w in (before, after)
            )
            expected = ((b - a).norm() / a.norm()).item()
            assert found == (pytest.approx(expected) if np.isfinite(expected) else None)
    of_q = {overlap.role: overlap for overlap in record.overlaps}["q"]
    assert (of_q.top, of_q.common) == (2, 2)
    assert of_q.n == sum(entry.drift_q is not None for entry in record.heads)
    assert of_q.expected == pytest.approx(4 / of_q.n)
    broken = ab.rank_heads(
        RankHeadsRequest(checkpoint=inputs / "post", prompts=inputs / "niah", samples=1)
    )
    scores = {(entry.layer, entry.head): entry.score for entry in broken.heads}
    assert all(scores[head] < record.heads[0].score / 2 for head in RETRIEVAL)


def test_restoring_the_top_heads_restores_their_group_and_says_so(
    inputs: Path, ranking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ["--pre", str(inputs / "base"), "--post", str(inputs / "post")]
    out = tmp_path / "out"
    command = ["restore", *pair, "--heads", f"top2@{ranking}", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    output = capsys.readouterr()
    record = json.loads(output.out)
    assert record["variant"]["select"]["heads"] == [{"layer": 1, "kv_heads": [1]}]
    assert record["restored_layers"] == [1]
    assert "Heads chosen (layer.head): 1.3, 1.5. 3 query heads share a KV head" in output.err
    assert "3 query heads and 1 KV heads, in 1 layers" in output.err
    before, after, restored = (
        load_file(folder / "model.safetensors")
        for folder in (inputs / "base", inputs / "post", out)
    )
    for name, weight in restored.items():
        source = after[name].clone()
        if name.startswith((f"{ATTENTION}q_proj", f"{ATTENTION}k_proj")):
            half = len(source) // KV_HEADS  # the rows of the second KV head and its query heads
            source[half:] = before[name][half:]
        assert torch.equal(weight, source), name
    assert main(["verify", str(out)]) == 0
    again = ab.rank_heads(RankHeadsRequest(checkpoint=out, prompts=inputs / "niah", samples=1))
    assert {(entry.layer, entry.head) for entry in again.heads[:2]} == set(RETRIEVAL)


def test_a_killed_ranking_resumes_with_the_next_prompt(
    inputs: Path, ranking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import amnesia_bench.heads.ranking as module

    request = RankHeadsRequest(
        checkpoint=inputs / "base", prompts=inputs / "niah", post=inputs / "post"
    )
    out, measured = tmp_path / "heads.json", []

    def kill_after(count: int, real: Any = module.copied_tokens) -> Any:
        def measure(*args: Any) -> Any:
            if len(measured) == count:
                raise KeyboardInterrupt
            measured.append(args)
            return real(*args)

        return measure

    monkeypatch.setattr(module, "copied_tokens", kill_after(3))
    with pytest.raises(KeyboardInterrupt):
        ab.rank_heads(request, out)
    assert not out.exists()
    (work,) = tmp_path.glob(".heads.json.measured")
    work.write_bytes(work.read_bytes()[:-20])  # of the third prompt only a part was written
    monkeypatch.setattr(module, "copied_tokens", kill_after(100))
    resumed = ab.rank_heads(request, out)
    assert len(measured) == 3 + 2 * SAMPLES - 2
    assert resumed == read_head_ranking(out) == read_head_ranking(ranking)
    assert not work.exists()
    with pytest.raises(UserError, match="already exists"):
        ab.rank_heads(request, out)


def test_measurements_of_other_prompts_are_not_mixed_in(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heads.json"
    (tmp_path / ".heads.json.measured").write_text('{"plan": {}, "crc32": "00000000"}\n')
    assert rank(inputs, out, "--samples", "1", "--lengths", "800") == 0  # damaged, so ignored
    out.unlink()
    (tmp_path / ".heads.json.measured").write_text(seal({"plan": {}}) + "\n")
    assert rank(inputs, out, "--samples", "1", "--lengths", "800") == 2
    assert "holds measurements of another ranking" in capsys.readouterr().err


def _change(ranking: Path, out: Path, **changes: Any) -> Path:
    """Write a ranking whose first head was changed by hand, with or without a valid checksum."""
    content = json.loads(ranking.read_text())
    del content["crc32"]
    content["heads"][0].update(changes)
    out.write_text(sealed_text(content))
    return out


@pytest.mark.parametrize(
    ("heads", "problem"),
    [
        ("top3@{ranking}", "top3: only 2 of the 12 heads copy anything"),
        ("top8", "expected topN@FILE, such as top8@heads.json"),
        ("top0@{ranking}", "expected topN@FILE"),
        ("1.3,1.5", "expected topN@FILE"),
        ("top2@{missing}", "missing.json: no such file"),
        ("top2@{base}/config.json", "config.json: unknown key"),
        ("top2@{of_layers}", "of_layers.json: unknown key"),
        ("top2@{damaged}", "was changed since it was written"),
        ("top2@{wrong_head}", "1.6 is not a head of this llama; a layer has 6 (0..5)"),
        ("top2@{wrong_layer}", "select.heads: layer 7 is not a softmax layer of this llama"),
        ("top2@{of_post} --pre {third}", "ranks the heads of another checkpoint"),
        ("top2@{ranking} --layers 1", "ranked heads choose the layers and the heads"),
        ("top2@{ranking} restore.select.heads=[0]", "ranked heads choose the layers"),
        ("top2@{ranking} --variant wise_ft", "restores all weights, so it takes no ranked heads"),
        ("top2@{ranking} --variant qk_norms", "a list of heads"),
        ("top2@{ranking} --variant qk_pro_layer", "needs all heads"),
    ],
)
def test_wrong_heads_are_refused_before_anything_is_written(
    heads: str,
    problem: str,
    inputs: Path,
    ranking: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "of_layers.json").write_text('{"accuracy": {}, "layers": []}')
    (tmp_path / "damaged.json").write_text(ranking.read_text().replace('"head": 3', '"head": 2'))
    base, *options = heads.format(
        ranking=ranking,
        base=inputs / "base",
        missing=tmp_path / "missing.json",
        of_layers=tmp_path / "of_layers.json",
        damaged=tmp_path / "damaged.json",
        wrong_head=_change(ranking, tmp_path / "head.json", head=6),
        wrong_layer=_change(ranking, tmp_path / "layer.json", layer=7),
        of_post=ranking,
        third=inputs / "post",
    ).split()
    pre = options[1] if "--pre" in options else str(inputs / "base")
    command = ["restore", "--pre", pre, "--post", str(inputs / "post"), "--heads", base]
    command += [option for option in options if option not in ("--pre", pre)]
    assert main([*command, "--allow-noop", "--out", str(tmp_path / "out")]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _pico(folder: Path, family: str) -> Path:
    build(family, folder, seed=0)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _other_config(base: Path, **changes: object) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _other_tokenizer(base: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save_pretrained(base)


def _no_prompts(niah: Path) -> None:
    path = niah / "manifest.json"
    path.write_text(path.read_text().replace("niah_prompts", "restored"))


def _without_softmax(base: Path) -> None:
    shutil.rmtree(base)
    _other_config(_pico(base, "jamba"), attn_layer_period=100, attn_layer_offset=99)


def _with_softcap(base: Path) -> None:
    shutil.rmtree(base)
    _pico(base, "gemma2")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: _other_config(f / "base", model_type="x"), "unknown model_type 'x'"),
        (lambda f: _with_softcap(f / "base"), "Gemma2Attention: its attention has softcap"),
        (lambda f: _without_softmax(f / "base"), "names no softmax layer"),
        (lambda f: _other_tokenizer(f / "base"), "were built for another tokenizer"),
        (lambda f: _no_prompts(f / "niah"), "an artifact of kind restored, not NIAH prompts"),
        (lambda f: shutil.rmtree(f / "niah"), "niah"),
    ],
)
def test_inputs_that_cannot_be_ranked_are_named(
    damage: Callable[[Path], object],
    problem: str,
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "in"
    for name in ("base", "niah"):
        shutil.copytree(inputs / name, folder / name)
    damage(folder)
    assert rank(folder, tmp_path / "out" / "heads.json") == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--tasks niah_single_2", "no prompts of niah_single_2 at"),
        ("--lengths 4096", "no prompts of niah_single_1 at 4096 tokens"),
        ("--samples 9", "holds 4 prompts, but 9 are requested"),
        ("--samples 0", "samples"),
        ("--post {base}", "so no head has drifted"),
        ("--post {other}", "Different numbers of layers"),
    ],
)
def test_wrong_options_are_named(
    options: str,
    problem: str,
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = _pico(tmp_path / "other", "llama") if "{other}" in options else tmp_path
    given = options.format(base=inputs / "base", other=other).split()
    assert rank(inputs, tmp_path / "out" / "heads.json", *given) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_exists_is_not_replaced(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    out.write_text("mine")
    assert rank(inputs, out) == 2
    assert out.read_text() == "mine"
