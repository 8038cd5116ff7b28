"""A variant that makes no sense is refused before a checkpoint is opened."""

import pytest

from amnesia_bench.config.load import load_variant
from amnesia_bench.errors import UserError


@pytest.mark.parametrize(
    ("variant", "override", "says"),
    [
        ("qk_procrustes", "restore.select.roles=[q]", "q, k"),
        ("qk_procrustes", "restore.select.roles=[q,k,v]", "q, k"),
        ("qk_pro", "restore.select.roles=[q,v]", "v"),
        ("qk_low_rank", "restore.select.roles=[q,q_norm]", "q_norm"),
        ("qk", "restore.select.roles=[]", "roles"),
        ("qk", "restore.select.roles=[q,q]", "twice"),
        ("qk", "restore.select.layers=[]", "layers"),
        ("qk", "restore.select.layers=[1,1]", "twice"),
        ("qk", "restore.select.layers=[-1]", "layers"),
        ("qk", "restore.select.layers={top_drift: 0}", "top_drift"),
        ("qk", "restore.select.layers=some", "all"),
        ("qk_norms", "restore.select.heads=[0]", "q_norm"),
        ("qk", "restore.select.heads=[{layer: 1, kv_heads: []}]", "kv_heads"),
        ("qk", "restore.select.heads=[{layer: 1, kv_heads: [0, 0]}]", "twice"),
        ("qk", "restore.select.heads=[{layer: -1, kv_heads: [0]}]", "layer"),
        ("qk", "restore.select.heads=[0, {layer: 1, kv_heads: [0]}]", "heads"),
        ("qk_norms", "restore.select.heads=[{layer: 1, kv_heads: [0]}]", "q_norm"),
        ("qk_blend", "restore.rule.alpha=1.5", "alpha"),
        ("qk_low_rank", "restore.rule.rank=0", "rank"),
        ("qk_pro", "restore.rule.scope=model", "scope"),
        ("qk", "restore.rule.kind=paste", "paste"),
    ],
)
def test_variants_that_make_no_sense(variant: str, override: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        load_variant(variant, [override])
    assert says in str(refused.value)


def test_heads_and_one_scope_of_qk_pro_exclude_each_other() -> None:
    load_variant("qk_pro", ["restore.select.heads=[0]"])
    with pytest.raises(UserError, match="scope layer needs all heads"):
        load_variant("qk_pro", ["restore.select.heads=[0]", "restore.rule.scope=layer"])


def test_heads_by_layer_choose_the_layers() -> None:
    override = "restore.select.heads=[{layer: 4, kv_heads: [1, 0]}, {layer: 2, kv_heads: [1]}]"
    select = load_variant("qk", [override]).select
    assert [select.kv_heads(layer) for layer in (2, 4, 5)] == [(1,), (0, 1), ()]
    assert [entry.layer for entry in select.heads_by_layer] == [4, 2]
    everywhere = load_variant("qk", ["restore.select.heads=[1,0]"]).select
    assert (everywhere.kv_heads(7), everywhere.heads_by_layer) == ((0, 1), ())
    assert load_variant("qk").select.kv_heads(0) is None
    for extra in ("restore.select.layers=[2]", "restore.select.layers={top_drift: 1}"):
        with pytest.raises(UserError, match="heads are listed by layer, so layers must be all"):
            load_variant("qk", [override, extra])
    with pytest.raises(UserError, match="listed twice: 4"):
        load_variant("qk", [override.replace("2", "4")])
