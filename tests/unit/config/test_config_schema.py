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
