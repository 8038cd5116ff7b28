"""`amnesia analyze` as a user types it: records and figures out, or one message."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia_bench.cli.main import main
from amnesia_bench.data.sequence_store import open_store
from amnesia_bench.errors import ExitCode
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.records import codec
from amnesia_bench.records.attention import (
    Autocorrelation,
    DistanceShift,
    GradientsByDistance,
    HeadDistances,
    PooledAttention,
)
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from tests.support.full_attention import full_logits, histogram
from tests.support.small_data import TEXT, cot_row, data_config, prepare, save_tokenizer, write_rows

TOKENS = 96


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints pre and post, data of chains and of prose, prompts with needles."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    config = HypeNetConfig(
        vocab_size=300, num_attention_heads=4, num_key_value_heads=2, head_dim=16, lightning_nkv=4,
        mixer_types=["attn", "lightning-attn", "attn"], attn_use_rope=False,
        attn_logit_scale_a=50.0, initializer_range=0.2, **shape,
    )  # fmt: skip
    HypeNetForCausalLM(config).save_pretrained(folder / "pre")
    save_tokenizer(folder / "pre")
    shutil.copytree(folder / "pre", folder / "post")
    weights = load_file(folder / "post" / "model.safetensors")
    for name in weights:
        if "layers.2.self_attn.q_proj" in name:  # only this layer is moved
            weights[name] = weights[name] + 0.3 * torch.randn_like(weights[name])
    save_file(weights, folder / "post" / "model.safetensors", {"format": "pt"})
    shutil.copytree(folder / "pre", folder / "other")
    save_tokenizer(folder / "other", extra="<tool>")
    chains = write_rows(folder / "chains.jsonl", [cot_row(i) for i in range(30)])
    prepare(data_config(name="chains"), folder / "pre", folder / "chains", [chains])
    rng = np.random.default_rng(0)
    words = ["the", "quick", "fox", "jumps", "over", "a", "lazy", "dog"]
    rows = [{"text": " ".join(rng.choice(words, 60))} for _ in range(20)]
    prose = write_rows(folder / "prose.jsonl", rows)
    prepare(data_config(name="prose", **TEXT), folder / "pre", folder / "prose", [prose])
    command = f"niah build --tokenizer {folder / 'pre'} --lengths 700,800 --samples 3"
    command += f" --tasks niah_single_1 --out {folder / 'niah'}"
    assert main(command.split()) == ExitCode.DONE
    return folder


def _analyze(command: str) -> int:
    try:
        return main(["analyze", *command.split()])
    except SystemExit as end:  # argparse names a missing or unknown option
        return int(end.code or 0)


def _record(kind: type, path: Path) -> Any:
    return codec.from_json(kind, json.loads(path.read_text()), str(path))


def _check_folder(out: Path, figures: int) -> None:
    assert read_manifest(out).kind == "analysis"
    assert verify_manifest(out) == []
    drawn = list(out.glob("*.svg"))
    assert len(drawn) == figures
    for path in drawn:
        ET.fromstring(path.read_text())
        assert "n = " in path.read_text()


def test_gradients_are_those_of_autograd_on_the_first_texts(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = f"gradients --checkpoint pre={inputs / 'pre'} --data {inputs / 'chains'}"
    command += f" --data prose={inputs / 'prose'} --tokens {TOKENS} --max-distance 40"
    assert _analyze(f"{command} --samples 4 --out {out}") == ExitCode.DONE
    _check_folder(out, figures=1)
    found = _record(GradientsByDistance, out / "gradients_chains.json")
    model = HypeNetForCausalLM.from_pretrained(inputs / "pre").eval()
    store = open_store(inputs / "chains")
    documents = []
    for i in range(store.num_sequences):
        sequence, start = store.sequence(i), 0
        for length in sequence.document_lengths[: None if not sequence.padding else -1]:
            part = slice(start, start + TOKENS)
            if length >= TOKENS and sequence.loss_mask[part].any():
                documents.append((sequence.tokens[part], sequence.loss_mask[part]))
            start += length
    sums = torch.zeros(TOKENS)
    for tokens, trained in documents[:4]:
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        targets = ids.masked_fill(~torch.from_numpy(trained), -100)[:, 1:]
        with full_logits(model) as logits:
            output = model(ids, use_cache=False).logits[:, :-1]
            torch.nn.functional.cross_entropy(output.mT, targets, reduction="sum").backward()
            sums += sum(histogram(s.grad.abs()) for calls in logits.values() for s in calls)
    pairs = 4 * 4 * 2 * (TOKENS - torch.arange(TOKENS))
    expected = (sums / pairs)[:41]
    assert found.curve.mean == pytest.approx(expected.tolist(), rel=1e-3)
    assert (found.n, found.tokens) == (4, TOKENS)
    assert [each.layer for each in found.layers] == [0, 2]
    cumulated = sums.cumsum(0)
    assert found.reach.half.value == int((cumulated < cumulated[-1] / 2).sum())
    assert found.fit.rate.interval is not None
    assert {p.role for p in read_manifest(out).parents} == {"pre", "data:chains", "data:prose"}


def test_the_layer_that_was_moved_is_found_and_its_head_drawn(inputs: Path, tmp_path: Path) -> None:
    both = f"--checkpoint pre={inputs / 'pre'} --checkpoint post={inputs / 'post'}"
    both += f" --prompts {inputs / 'niah'} --length 700 --samples 3"
    assert _analyze(f"distance {both} --out {tmp_path / 'shift'}") == ExitCode.DONE
    _check_folder(tmp_path / "shift", figures=1)
    shift = _record(DistanceShift, tmp_path / "shift" / "shift_post.json")
    assert {e.layer: e.mean_shift for e in shift.layers}[0] == pytest.approx(0, abs=1e-9)
    moved = {each.head: each.shift.value for each in shift.heads if each.layer == 2}
    pre, post = (
        _record(HeadDistances, tmp_path / "shift" / f"distance_{role}.json")
        for role in ("pre", "post")
    )
    assert pre.n == 3
    for a, b in zip(pre.heads, post.heads, strict=True):
        if a.layer == 2:
            assert moved[a.head] == pytest.approx(b.distance - a.distance)
            assert 0 < a.needle_mass < 1
    assert _analyze(f"maps {both} --size 32 --out {tmp_path / 'maps'}") == ExitCode.DONE
    _check_folder(tmp_path / "maps", figures=2)
    if shift.layers[0].layer == 2:
        head = min(moved, key=lambda each: moved[each])
        drawn = _record(PooledAttention, tmp_path / "maps" / f"map_2_{head}_post.json")
        assert [len(row) for row in drawn.rows] == list(range(1, 33))
        assert drawn.rows[0][0] == pytest.approx(1)  # the first query sees itself alone


def test_autocorrelation_has_a_record_and_a_figure_per_reading(
    inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = f"autocorrelation --data {inputs / 'chains'} --data {inputs / 'prose'}"
    assert _analyze(f"{command} --max-distance 30 --out {out}") == ExitCode.DONE
    _check_folder(out, figures=2)
    found = _record(Autocorrelation, out / "ratio_of_sums_prose.json")
    assert len(found.curve.mean) == 30
    assert found.n > 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("gradients --checkpoint PRE", "arguments are required: --data"),
        ("gradients --data CHAINS", "arguments are required: --checkpoint"),
        ("gradients --checkpoint PRE --data CHAINS --tokens 5000", "no text of chains has 5000"),
        ("gradients --checkpoint PRE --data CHAINS --tokens 20", "no text of chains has a trained"),
        ("gradients --checkpoint PRE --data CHAINS --tokens 96 --max-distance 96", "too short"),
        ("gradients --checkpoint PRE --data CHAINS --heads 1.1", "unrecognized arguments: --heads"),
        ("gradients --checkpoint PRE --data NIAH", "not training data"),
        ("autocorrelation --data CHAINS --max-distance 4000", "longer than the largest distance"),
        ("distance --checkpoint PRE", "one of the arguments --prompts --data is required"),
        ("distance --checkpoint PRE --prompts NIAH", "prompts of 700, 800 tokens"),
        ("distance --checkpoint PRE --prompts CHAINS", "not NIAH prompts"),
        ("distance --checkpoint a=PRE --checkpoint a=POST --prompts NIAH", "a is given twice"),
        ("maps --checkpoint PRE --prompts NIAH --length 700", "--heads is missing"),
        ("maps --checkpoint PRE --prompts NIAH --length 700 --heads 1.0", "no softmax head 1.0"),
        ("maps --checkpoint PRE --prompts NIAH --length 700 --heads 1", "not a list of heads"),
        ("maps --checkpoint PRE", "arguments are required: --prompts"),
        ("gradients --checkpoint PRE --checkpoint a=POST --data CHAINS", "once per --checkpoint"),
        (
            "distance --checkpoint PRE --prompts NIAH --tokens 700",
            "To choose prompts: --length 700",
        ),
        ("distance --checkpoint PRE --data CHAINS --length 9", "pass --prompts DIR instead of"),
        (
            "divergence --checkpoint pre=PRE --checkpoint post=POST --data CHAINS --data a=CHAINS",
            "Run the command once per --data",
        ),
        (
            "gradients --checkpoint OTHER --data CHAINS --tokens 96",
            "prepared with another tokenizer than",
        ),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    for name in ("pre", "post", "other", "chains", "niah"):
        command = command.replace(f" {name.upper()}", f" {inputs / name}").replace(
            f"={name.upper()}", f"={inputs / name}"
        )
    assert _analyze(f"{command} --out {tmp_path / 'out'}") == ExitCode.USER_ERROR
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_softmax_layers_is_refused_by_name(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = HypeNetConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, lightning_nkv=4,
        mixer_types=["lightning-attn"],
    )  # fmt: skip
    HypeNetForCausalLM(config).save_pretrained(tmp_path / "linear")
    save_tokenizer(tmp_path / "linear")
    command = f"gradients --checkpoint {tmp_path / 'linear'} --data {inputs / 'chains'}"
    assert _analyze(f"{command} --tokens 96 --out {tmp_path / 'out'}") == ExitCode.USER_ERROR
    assert "names no softmax layer" in capsys.readouterr().err
