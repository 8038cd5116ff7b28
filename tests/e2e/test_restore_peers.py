"""The peers of QK-Restore: averages, TIES and DARE, against formulas written here."""

from __future__ import annotations

import hashlib
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia_bench.cli.main import main
from amnesia_bench.config.load import load_variant
from amnesia_bench.errors import UserError
from amnesia_bench.surgery import tensor_pieces
from tests.support import pico
from tests.support.checkpoints import (
    SOFTMAX_LAYERS,
    drifted,
    random_model,
    save,
    tensor_bytes,
    write_index,
    write_safetensors,
)
from tests.support.surgery import restore, verify

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
NUMPY: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
ROUTING = {
    f"model.layers.{i}.self_attn.{p}_proj.weight" for i in SOFTMAX_LAYERS for p in ("q", "k")
}
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def values(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """Return every tensor of a folder in float64, flattened."""
    return {
        name: torch.from_numpy(np.frombuffer(data, NUMPY[dtype]).astype(np.float64))
        for name, data in tensor_bytes(folder).items()
    }


def average(pre: torch.Tensor, post: torch.Tensor) -> torch.Tensor:
    """The formula of WiSE-FT, exact in float64: the only rounding is that to the stored dtype."""
    return 0.75 * post + 0.25 * pre


def ties(pre: torch.Tensor, post: torch.Tensor) -> torch.Tensor:
    """What mergekit 0.1.5 computes for one task vector: trim by magnitude, add with a weight."""
    change = post - pre
    largest = change.abs().argsort(descending=True, stable=True)[: max(1, int(0.2 * len(change)))]
    mask = torch.zeros_like(change)
    mask[largest] = 1
    return pre + 1.5 * change * mask


FORMULAS: dict[str, tuple[Callable[..., torch.Tensor], list[str]]] = {
    "blend": (average, ["restore.rule.alpha=0.25"]),
    "ties": (ties, ["restore.rule.scale=1.5"]),
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    pre = save(tmp_path / "pre", random_model(0), shards=3)
    return pre, save(tmp_path / "post", drifted(random_model(0), 1), shards=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["wise_ft", "qk_blend", "ties", "qk_ties"])
def test_averages_and_ties_are_those_of_their_formulas(
    variant: str, dtype: str, tmp_path: Path
) -> None:
    pre = save(tmp_path / "pre", random_model(0), dtype=dtype, shards=3)
    post = save(tmp_path / "post", drifted(random_model(0), 1), dtype=dtype, shards=5)
    formula, overrides = FORMULAS["ties" if "ties" in variant else "blend"]
    record = restore(pre, post, tmp_path / "out", load_variant(variant, overrides))
    before, after, out = (values(folder, dtype) for folder in (pre, post, tmp_path / "out"))
    chosen = ROUTING if variant.startswith("qk_") else set(after)
    assert {tensor.name for tensor in record.tensors} == chosen
    for name, result in out.items():
        expected = after[name]
        if name in chosen:
            expected = formula(before[name], after[name]).to(DTYPES[dtype]).double()
        if dtype == "F64":  # here the order of additions can be seen
            torch.testing.assert_close(result, expected, rtol=1e-14, atol=1e-15)
        else:
            assert torch.equal(result, expected), name
    hashes = {n: hashlib.sha256(b).hexdigest() for n, b in tensor_bytes(tmp_path / "out").items()}
    assert {t.name: t.sha256_restored for t in record.tensors} == {n: hashes[n] for n in chosen}
    assert not verify(tmp_path / "out").findings


@pytest.mark.parametrize("variant", ["dare", "qk_dare"])
def test_dare_drops_at_random_and_rescales_the_rest(variant: str, tmp_path: Path) -> None:
    pre = save(tmp_path / "pre", random_model(0), dtype="F32")
    post = save(tmp_path / "post", drifted(random_model(0), 1), dtype="F32")
    overrides = ["restore.rule.drop=0.75"]
    restore(pre, post, tmp_path / "out", load_variant(variant, overrides))
    before, after, out = (values(folder, "F32") for folder in (pre, post, tmp_path / "out"))
    kept = total = 0
    for name in ROUTING if variant == "qk_dare" else after:
        rescaled = (before[name] + (after[name] - before[name]) / 0.25).float().double()
        dropped = out[name] == before[name]
        assert torch.equal(out[name][~dropped], rescaled[~dropped])
        kept, total = kept + int((~dropped).sum()), total + len(dropped)
    deviation = (total * 0.25 * 0.75) ** 0.5
    assert abs(kept - 0.25 * total) < 5 * deviation
    if variant == "qk_dare":
        untouched = after.keys() - ROUTING
        assert all(torch.equal(out[name], after[name]) for name in untouched)
        # The same entries are dropped if everything is merged.
        restore(pre, post, tmp_path / "all", load_variant("dare", overrides))
        everything = tensor_bytes(tmp_path / "all")
        assert all(everything[n] == tensor_bytes(tmp_path / "out")[n] for n in ROUTING)


def test_what_dare_drops_depends_on_seed_and_name_alone(tmp_path: Path) -> None:
    model, moved = random_model(0), drifted(random_model(0), 1)
    backwards = dict(reversed(moved.items()))
    wrapped = {name.replace("model.", "model.language_model.", 1): x for name, x in moved.items()}
    pre = save(tmp_path / "pre", model)
    results = []
    for number, (stored, shards) in enumerate([(moved, 1), (backwards, 7), (wrapped, 3)]):
        post = save(tmp_path / f"post{number}", stored, shards=shards)
        restore(pre, post, tmp_path / f"out{number}", "dare")
        out = tensor_bytes(tmp_path / f"out{number}")
        results.append({n.replace("language_model.", ""): data for n, data in out.items()})
    assert results[0] == results[1] == results[2]
    variant = load_variant("dare", ["restore.rule.seed=1"])
    restore(pre, tmp_path / "post0", tmp_path / "other", variant)
    assert tensor_bytes(tmp_path / "other") != results[0]
    # Pinned: no release of numpy may change which weights are dropped.
    name = "model.layers.0.mlp.gate_proj.weight"
    first = np.frombuffer(results[0][name], np.uint16) != np.frombuffer(
        tensor_bytes(pre)[name], np.uint16
    )
    assert np.flatnonzero(first)[:8].tolist() == [4, 16, 25, 41, 49, 52, 61, 77]


@pytest.mark.parametrize("variant", ["wise_ft", "ties", "dare", "qk_ties", "qk_dare"])
def test_the_sizes_of_pieces_change_nothing(
    variant: str, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = restore(*pair, tmp_path / "whole", variant)
    monkeypatch.setattr(tensor_pieces, "PIECE_BYTES", 26)
    parts = restore(*pair, tmp_path / "parts", variant)
    assert tensor_bytes(tmp_path / "whole") == tensor_bytes(tmp_path / "parts")
    assert [t.sha256_restored for t in whole.tensors] == [t.sha256_restored for t in parts.tensors]
    assert [t.changed_values for t in whole.tensors] == [t.changed_values for t in parts.tensors]


def test_of_equal_changes_ties_keeps_the_first(tmp_path: Path) -> None:
    model = {name: np.zeros_like(x) for name, x in random_model(0).items()}
    moved = {name: np.resize([-1.0, 1.0], x.shape) for name, x in model.items()}
    pre, post = save(tmp_path / "pre", model), save(tmp_path / "post", moved)
    restore(pre, post, tmp_path / "out", "ties")
    out = values(tmp_path / "out", "BF16")
    for name, x in moved.items():
        kept = max(1, int(0.2 * x.size))
        expected = np.where(np.arange(x.size) < kept, x.ravel(), 0.0)
        assert out[name].tolist() == expected.tolist()


@pytest.mark.parametrize("variant", ["wise_ft", "ties", "dare"])
def test_weights_that_did_not_move_keep_their_bits(variant: str, tmp_path: Path) -> None:
    model = random_model(0)
    moved = drifted(model, 1)
    for name, x in model.items():
        x.flat[:4] = [0.0, -0.0, 0.0, -0.0]
        moved[name].flat[:4] = [0.0, -0.0, -0.0, 0.0]  # equal numbers, in part other bits
        moved[name].flat[4] = x.flat[4]
    pre, post = save(tmp_path / "pre", model), save(tmp_path / "post", moved)
    restore(pre, post, tmp_path / "out", variant)
    out, after = tensor_bytes(tmp_path / "out"), tensor_bytes(post)
    assert all(out[name][:10] == after[name][:10] for name in after)


def with_head(folder: Path, model: dict[str, np.ndarray]) -> Path:
    """Save a model with a tied head that is stored twice, in another shard than the embeddings."""
    save(folder, model)
    (folder / "model.safetensors").unlink()
    stored = {**model, HEAD: model[EMBEDDINGS]}
    shards = {"a.safetensors": list(model), "b.safetensors": [HEAD]}
    for shard, names in shards.items():
        write_safetensors(folder / shard, stored, names, "BF16")
    write_index(folder, {name: shard for shard, names in shards.items() for name in names})
    return folder


@pytest.mark.parametrize("variant", ["wise_ft", "ties", "dare"])
def test_a_tied_head_that_is_stored_twice_stays_tied(variant: str, tmp_path: Path) -> None:
    pre = with_head(tmp_path / "pre", random_model(0))
    post = with_head(tmp_path / "post", drifted(random_model(0), 1))
    restore(pre, post, tmp_path / "out", variant)
    out = tensor_bytes(tmp_path / "out")
    assert out[HEAD] == out[EMBEDDINGS]
    assert out[HEAD] not in (tensor_bytes(pre)[HEAD], tensor_bytes(post)[HEAD])


def test_a_fused_projection_is_trimmed_by_role(tmp_path: Path) -> None:
    pre, post = tmp_path / "pre", tmp_path / "post"
    pico.build("phi3", pre, seed=1)
    pico.build("phi3", post, seed=2)
    restore(pre, post, tmp_path / "out", load_variant("qk_ties", ["restore.rule.scale=1.5"]))
    before, after, out = (load_file(f / "model.safetensors") for f in (pre, post, tmp_path / "out"))
    config = json.loads((post / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config["hidden_size"] // heads
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    fused = [name for name in after if name.endswith("qkv_proj.weight")]
    assert fused
    for name in fused:
        q, k, v = out[name].split(sizes)
        for part, role in ((q, 0), (k, 1)):
            a, b = (x[name].split(sizes)[role].double().flatten() for x in (before, after))
            assert torch.equal(part.flatten(), ties(a, b).float())
        assert torch.equal(v, after[name].split(sizes)[2])


@pytest.mark.parametrize("variant", ["wise_ft", "ties", "dare"])
def test_memory_does_not_grow_with_the_size_of_a_tensor(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_pieces, "PIECE_BYTES", 1 << 14)

    def peak(rows: int, folder: Path) -> int:
        model = random_model(0)
        model[EMBEDDINGS] = np.random.default_rng(0).standard_normal((rows, 16))
        sizes = {"vocab_size": rows}
        folders = [folder / name for name in ("pre", "post")]
        save(folders[0], model, config_changes=sizes)
        save(folders[1], drifted(model, 1), config_changes=sizes)
        tracemalloc.start()
        restore(*folders, None, variant)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(32, tmp_path / "imports")
    small, large = peak(32, tmp_path / "small"), peak(1 << 17, tmp_path / "large")
    assert large < small + (1 << 20)  # the large tensor has 4 MiB in each checkpoint


def test_an_integer_buffer_stays_posts(tmp_path: Path) -> None:
    pre, post = tmp_path / "pre", tmp_path / "post"
    for folder, seed in ((pre, 1), (post, 2)):
        pico.build("llama", folder, seed=seed)
        stored = load_file(folder / "model.safetensors")
        stored["position_ids"] = torch.arange(4) + seed
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
    record = restore(pre, post, tmp_path / "out", "wise_ft")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert out["position_ids"].tolist() == [2, 3, 4, 5]
    assert "position_ids" not in {tensor.name for tensor in record.tensors}


@pytest.mark.parametrize("variant", ["wise_ft", "ties", "dare"])
def test_verify_finds_a_changed_bit_in_any_tensor(
    variant: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    record = restore(*pair, tmp_path / "out", variant)
    assert {tensor.layer for tensor in record.tensors} == {0, 1, 2, 3, 4, None}
    (tensor,) = (t for t in record.tensors if t.name == "model.norm.weight")
    path = tmp_path / "out" / tensor.shard
    blob = bytearray(path.read_bytes())
    blob[blob.find(tensor_bytes(tmp_path / "out")[tensor.name])] ^= 1
    path.write_bytes(blob)
    assert any(finding.startswith(tensor.name) for finding in verify(tmp_path / "out").findings)


def test_the_command_shows_one_row_per_layer(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post = map(str, pair)
    command = ["restore", "--pre", pre, "--post", post, "--variant", "wise_ft"]
    assert main([*command, "restore.rule.alpha=1", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "wise_ft: all 49 weight tensors (hypenet)" in printed
    first_words = [line.split()[0] for line in printed.splitlines() if line.strip()]
    assert first_words[3:9] == ["0", "1", "2", "3", "4", "others"]
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(pair[0])
    for row in printed.splitlines()[4:10]:  # all drift is undone
        assert len(set(re.findall(r"[\d.]+ %", row)[:2])) == 1


@pytest.mark.parametrize(
    ("variant", "override", "problem"),
    [
        ("wise_ft", "restore.rule.alpha=1.5", "less than or equal to 1"),
        ("wise_ft", "restore.rule.alpha=-0.1", "greater than or equal to 0"),
        ("ties", "restore.rule.density=0", "greater than 0"),
        ("ties", "restore.rule.scale=-1", "greater than 0"),
        ("dare", "restore.rule.drop=1", "less than 1"),
        ("dare", "restore.rule.seed=-1", "greater than or equal to 0"),
        ("wise_ft", "restore.select.layers=[1]", "layers and heads must be all"),
        ("wise_ft", "restore.select.heads=[0]", "layers and heads must be all"),
        ("qk_pro", "restore.select.roles=all", "select.roles must be a list"),
        ("qk_low_rank", "restore.select.roles=all", "select.roles must be a list"),
        ("qk", "restore.select.roles=everything", "roles=everything: expected a list"),
    ],
)
def test_what_no_rule_can_do_is_refused(variant: str, override: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_variant(variant, [override])


def test_checkpoints_with_different_weights_are_not_merged(tmp_path: Path) -> None:
    model = random_model(0)
    pre = save(tmp_path / "pre", model)
    cases = {
        "larger": ({**model, EMBEDDINGS: np.ones((40, 16))}, r"shape \[32, 16\] in pre and \[40"),
        "head": ({**model, HEAD: model[EMBEDDINGS]}, "lm_head.weight', but .*pre does not"),
    }
    for name, (stored, problem) in cases.items():
        post = save(tmp_path / name, drifted(stored, 1))
        with pytest.raises(UserError, match=problem) as refused:
            restore(pre, post, tmp_path / "out", "wise_ft")
        assert refused.value.hint is not None
        assert "--variant qk" in refused.value.hint
    broken = drifted(model, 1)
    broken["model.norm.weight"][3] = np.nan
    post = save(tmp_path / "broken", broken)
    for variant in ("wise_ft", "ties", "dare"):
        with pytest.raises(UserError, match=r"broken: 'model.norm.weight' contains NaN"):
            restore(pre, post, tmp_path / "out", variant)
    assert not (tmp_path / "out").exists()


def test_shares_by_role_and_one_for_the_rest_also_divide_fused_projections(tmp_path: Path) -> None:
    """phi3 stores W_Q, W_K and W_V as rows of one tensor."""
    for folder, seed in (("pre", 1), ("post", 2)):
        pico.build("phi3", tmp_path / folder, seed=seed, dtype=torch.float64)
    shares = [{"layer": i, "role": r, "alpha": a} for i in (0, 1) for r, a in (("q", 1), ("k", 0))]
    rule = {"kind": "role_blend", "shares": shares, "rest": 0.25}
    variant = tmp_path / "tuned.yaml"
    variant.write_text(json.dumps({"select": {"roles": "all"}, "rule": rule}))
    out = tmp_path / "out"
    restore(tmp_path / "pre", tmp_path / "post", out, variant=load_variant(variant))
    config = json.loads((out / "config.json").read_text())
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    q_rows, kv_rows = (dim * config[f"num_{n}_heads"] for n in ("attention", "key_value"))
    pre, post, new = (load_file(tmp_path / n / "model.safetensors") for n in ("pre", "post", "out"))
    fused = 0
    for name, values_ in new.items():
        expected = 0.75 * post[name] + 0.25 * pre[name]
        if name.endswith("qkv_proj.weight") and re.search(r"layers\.[01]\.", name):
            fused += 1
            expected[:q_rows] = pre[name][:q_rows]
            expected[q_rows : q_rows + kv_rows] = post[name][q_rows : q_rows + kv_rows]
        torch.testing.assert_close(values_, expected, rtol=1e-12, atol=1e-12, msg=name)
    assert fused == 2
    assert verify(out).findings == ()
