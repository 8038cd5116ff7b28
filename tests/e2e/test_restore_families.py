"""Restore checkpoints of every family that transformers can build, and look with its own eyes.

pre and post are two random models that share nothing but the norms of q and k, and sinks; the
restored one must attend like pre on equal inputs and be post everywhere else.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amnesia_bench.config.load import load_variant
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import Role
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.support import pico
from tests.support.surgery import diff, restore

WITH_SLIDING = ["restore.select.include_sliding=true"]
KEPT = (Role.Q_NORM, Role.K_NORM, Role.SINK)  # `qk` leaves post's
ADAPTERS = "zamba2"  # low-rank adapters on W_Q and W_K: not one matrix


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def pair(family: str, folders: Path) -> tuple[Path, Path]:
    """Build pre and post once per family; post gets the norms and sinks of pre."""
    pre, post = folders / family / "pre", folders / family / "post"
    if not post.exists():
        pico.build(family, pre, seed=1)
        pico.build(family, post, seed=2)
        checkpoint = open_checkpoint(pre)
        mapped = attention_map(checkpoint.config, checkpoint.shapes)
        norms = {t.name for t in mapped.tensors if t.role in KEPT}
        for shard in post.glob("*.safetensors"):
            theirs = load_file(pre / shard.name)
            ours = load_file(shard)
            save_file({n: theirs[n] if n in norms else ours[n] for n in ours}, shard)
    return pre, post


@pytest.mark.parametrize("family", pico.PICOS)
def test_restored_layers_attend_like_pre_and_nothing_else_changes(
    family: str, folders: Path, tmp_path: Path
) -> None:
    pre, post = pair(family, folders)
    record = restore(pre, post, tmp_path / "out", load_variant("qk", WITH_SLIDING))
    models = [pico.load(family, folder) for folder in (pre, post, tmp_path / "out")]
    calls = pico.attention_calls(models[0], family, pico.prompt())
    assert set(calls) == set(pico.PICOS[family].softmax)
    before, after, restored = (pico.replay(model, family, calls) for model in models)
    for layer in calls:
        torch.testing.assert_close(
            restored[layer].weights, before[layer].weights, rtol=0, atol=1e-6
        )
        assert (after[layer].weights - before[layer].weights).abs().max() > 1e-3
        # W_V and W_O stay post's, so the output is neither's.
        assert (restored[layer].output - before[layer].output).abs().max() > 1e-4
    assert set(record.restored_layers) == {tensor.layer for tensor in record.tensors}
    edited = {tensor.name for tensor in record.tensors}
    changed = {difference.name for difference in diff(post, tmp_path / "out").different}
    assert changed == edited
    restored_parameters = dict(models[2].named_parameters())
    same = [
        name
        for name, parameter in models[1].named_parameters()
        if torch.equal(parameter, restored_parameters[name])
    ]
    routing = [n for n in restored_parameters if n not in same]
    assert routing
    assert all(any(word in name for word in ("attn", "attention", "mixer", "transf", "temporal"))
               for name in routing)  # fmt: skip


@pytest.mark.parametrize(
    "variant", ["qk_pro", "qk_procrustes", "qk_blend", "qk_low_rank", "qk_ties", "qk_dare", "v"]
)
@pytest.mark.parametrize(
    "family", ["qwen3_next", "phi3", "gpt_neox", "qwen2", "olmo_hybrid", "gemma4"]
)
def test_every_rule_moves_only_the_rows_of_its_roles(
    family: str, variant: str, folders: Path, tmp_path: Path
) -> None:
    pre, post = pair(family, folders)
    rank = ["restore.rule.rank=2"] if variant == "qk_low_rank" else []
    chosen = load_variant(variant, rank)
    record = restore(pre, post, tmp_path / "out", chosen)
    assert all(tensor.changed_values for tensor in record.tensors)  # each role of a fused tensor
    before, after = (
        load_file(post / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    checkpoint = open_checkpoint(post)
    mapped = attention_map(checkpoint.config, checkpoint.shapes)
    allowed = {name: torch.zeros(tensor.shape[:1]) for name, tensor in before.items()}
    for tensor in mapped.tensors:
        if tensor.role in chosen.select.roles and tensor.rows is not None:
            for head in range(tensor.rows.num_heads):
                rows = tensor.rows.rows(head)
                allowed[tensor.name][rows.start : rows.stop] = 1
    moved = 0
    for name in before:
        rows = (before[name] != after[name]).reshape(len(before[name]), -1).any(1)
        assert not (rows & (allowed[name] == 0)).any(), name
        moved += int(rows.sum())
    assert moved > 0


def test_one_kv_head_is_restored_with_the_queries_that_read_it(
    folders: Path, tmp_path: Path
) -> None:
    pre, post = pair("qwen3", folders)
    restore(pre, post, tmp_path / "out", load_variant("qk", ["restore.select.heads=[1]"]))
    models = [pico.load("qwen3", folder) for folder in (pre, post, tmp_path / "out")]
    calls = pico.attention_calls(models[0], "qwen3", pico.prompt())
    before, after, restored = (pico.replay(model, "qwen3", calls) for model in models)
    for layer in calls:
        torch.testing.assert_close(restored[layer].weights[:, 2:], before[layer].weights[:, 2:])
        torch.testing.assert_close(restored[layer].weights[:, :2], after[layer].weights[:, :2])


def test_adapters_of_shared_blocks_move_whole_or_not_at_all(folders: Path, tmp_path: Path) -> None:
    pre, post = pair(ADAPTERS, folders)
    with pytest.raises(UserError, match="adapter that all heads share"):
        restore(pre, post, tmp_path / "out", load_variant("qk", ["restore.select.heads=[1]"]))
    for variant in ("qk_pro", "qk_procrustes", "qk_low_rank", "qk_blend", "qk_ties", "qk_dare"):
        with pytest.raises(UserError, match="adapter") as refused:
            restore(pre, post, tmp_path / variant, variant)
        assert refused.value.hint is not None
        assert not (tmp_path / variant).exists()


@pytest.mark.parametrize("layer", [1, 2])  # with a window: head_dim 8; without: 16
def test_heads_have_the_size_of_their_layer(layer: int, folders: Path, tmp_path: Path) -> None:
    pre, post = pair("gemma4", folders)
    choice = [*WITH_SLIDING, f"restore.select.layers=[{layer}]"]
    restore(pre, post, tmp_path / "out", load_variant("qk_procrustes", choice))

    def products(folder: Path) -> torch.Tensor:
        """W_Q^T W_K of every query head: what a rotation of both leaves as it is."""
        tensors = load_file(folder / "model.safetensors")
        block, size = f"model.layers.{layer}.self_attn.", {1: 8, 2: 16}[layer]
        q, k = (tensors[f"{block}{x}_proj.weight"].double().view(-1, size, 32) for x in "qk")
        return torch.einsum("hdi,hdj->hij", q, k.repeat_interleave(2, 0))

    torch.testing.assert_close(products(tmp_path / "out"), products(pre), rtol=0, atol=1e-5)
    assert (products(post) - products(pre)).abs().max() > 0.1


def test_layers_that_read_the_keys_of_others(folders: Path, tmp_path: Path) -> None:
    pre, post = pair("gemma4_shared", folders)
    record = restore(pre, post, tmp_path / "out")
    roles = {(tensor.layer, tensor.role) for tensor in record.tensors}
    assert roles == {(2, Role.Q), (2, Role.K), (5, Role.Q)}
    for rule in ("qk_pro", "qk_procrustes"):
        with pytest.raises(UserError, match="Layer 5 reads the keys of an earlier layer"):
            restore(pre, post, tmp_path / rule, rule)
    with_old_keys = load_file(post / "model.safetensors")  # released ones hold them, unread
    for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
        block = "model.layers.{}.self_attn." + name
        with_old_keys[block.format(5)] = with_old_keys[block.format(2)].clone()
    released = tmp_path / "released"
    released.mkdir()
    (released / "config.json").write_text((post / "config.json").read_text())
    save_file(with_old_keys, released / "model.safetensors")
    checkpoint = open_checkpoint(released)
    mapped = attention_map(checkpoint.config, checkpoint.shapes)
    assert {t.role for t in mapped.tensors if t.layer == 5} == {Role.Q, Role.O, Role.Q_NORM}


def test_sinks_stay_unless_they_are_named(folders: Path, tmp_path: Path) -> None:
    pre, post = folders / "sinks_pre", folders / "sinks_post"
    pico.build("gpt_oss", pre, seed=3)
    pico.build("gpt_oss", post, seed=4)
    name = "model.layers.1.self_attn.sinks"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (pre, post))
    assert not torch.equal(before, after)
    restore(pre, post, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], after)
    restore(pre, post, tmp_path / "named", load_variant("qk", ["restore.select.roles=[q,k,sink]"]))
    assert torch.equal(load_file(tmp_path / "named" / "model.safetensors")[name], before)
