"""The rules against independent formulas and by their properties, in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.surgery.rules import Routing, blend, low_rank, qk_pro, qk_procrustes

SHAPES = st.tuples(
    st.integers(1, 3),  # KV heads
    st.integers(1, 3),  # query heads per KV head
    st.integers(1, 4),  # head dim
    st.integers(1, 12),  # inputs; may be below head dim: rank-deficient
    st.integers(0, 2**32 - 1),  # seed
)


def routings(shape: tuple[int, ...]) -> tuple[Routing, Routing]:
    groups, per_group, head_dim, inputs, seed = shape
    rng = np.random.default_rng(seed)

    def draw() -> Routing:
        return Routing(
            q=rng.standard_normal((groups * per_group, head_dim, inputs)),
            k=rng.standard_normal((groups, head_dim, inputs)),
        )

    pre, noise = draw(), draw()
    return pre, Routing(q=pre.q + 0.1 * noise.q, k=pre.k + 0.1 * noise.k)


def logit_maps(routing: Routing) -> np.ndarray:
    """Return W_Q^T W_K per query head: all that a logit can depend on."""
    k = np.repeat(routing.k, routing.queries_per_key, axis=0)
    return np.einsum("hdm,hdn->hmn", routing.q, k)


@given(SHAPES)
def test_without_drift_every_rule_is_the_identity_bit_for_bit(shape: tuple[int, ...]) -> None:
    pre, _ = routings(shape)
    pre.q.flat[0] = -0.0  # a sum with 0.0 would turn it into +0.0
    for ruled in (
        qk_pro(pre, pre, "head"),
        qk_pro(pre, pre, "layer"),
        qk_procrustes(pre, pre),
        Routing(q=blend(pre.q, pre.q, 0.3), k=low_rank(pre.k[0], pre.k[0], 1)[None]),
    ):
        assert ruled.q.tobytes() == pre.q.tobytes()
        assert ruled.k[0].tobytes() == pre.k[0].tobytes()


@given(SHAPES, st.floats(0, 1))
def test_blend_is_exact_at_its_ends_and_straight_between(
    shape: tuple[int, ...], alpha: float
) -> None:
    pre, post = routings(shape)
    assert blend(pre.q, post.q, 0.0).tobytes() == post.q.tobytes()
    assert blend(pre.q, post.q, 1.0).tobytes() == pre.q.tobytes()
    np.testing.assert_allclose(
        blend(pre.q, post.q, alpha), (1 - alpha) * post.q + alpha * pre.q, atol=1e-12
    )


@settings(deadline=None)
@given(SHAPES)
def test_qk_pro_removes_the_drift_inside_the_row_space_and_none_outside(
    shape: tuple[int, ...],
) -> None:
    pre, post = routings(shape)
    groups, per_group, _, inputs, _ = shape
    fixed = qk_pro(pre, post, "head")
    for head in range(groups * per_group):
        seen_by = pre.k[head // per_group]
        inside = np.linalg.pinv(seen_by) @ seen_by  # W^T (W W^T)^-1 W where that exists
        outside = np.eye(inputs) - inside
        np.testing.assert_allclose(fixed.q[head] @ inside, pre.q[head] @ inside, atol=1e-8)
        np.testing.assert_allclose(fixed.q[head] @ outside, post.q[head] @ outside, atol=1e-8)
    for group in range(groups):
        queries = pre.q[group * per_group : (group + 1) * per_group].reshape(-1, inputs)
        inside = np.linalg.pinv(queries) @ queries
        outside = np.eye(inputs) - inside
        np.testing.assert_allclose(fixed.k[group] @ inside, pre.k[group] @ inside, atol=1e-8)
        np.testing.assert_allclose(fixed.k[group] @ outside, post.k[group] @ outside, atol=1e-8)


@given(SHAPES)
def test_qk_pro_keeps_the_routing_product_with_the_least_change(shape: tuple[int, ...]) -> None:
    pre, post = routings(shape)
    fixed = qk_pro(pre, post, "layer")
    keys = pre.k.reshape(-1, pre.k.shape[-1])
    np.testing.assert_allclose(fixed.q @ keys.T, pre.q @ keys.T, atol=1e-8)
    # Least change: any other solution differs by something keys cannot see, at a right angle.
    change = fixed.q - post.q
    unseen = np.eye(keys.shape[1]) - np.linalg.pinv(keys) @ keys
    np.testing.assert_allclose(change @ unseen, np.zeros_like(change), atol=1e-8)
    # The same for W_K, held by the queries of all heads.
    queries = pre.q.reshape(-1, pre.q.shape[-1])
    np.testing.assert_allclose(fixed.k @ queries.T, pre.k @ queries.T, atol=1e-8)
    change = fixed.k - post.k
    unseen = np.eye(queries.shape[1]) - np.linalg.pinv(queries) @ queries
    np.testing.assert_allclose(change @ unseen, np.zeros_like(change), atol=1e-8)


def test_qk_pro_of_a_projection_that_lost_rank_takes_rounding_for_nothing() -> None:
    pre, post = routings((1, 1, 4, 12, 0))
    pre.k[0, 3] = pre.k[0, 0] / 3 + pre.k[0, 1] / 7  # zero but for rounding, once decomposed
    fixed = qk_pro(pre, post, "head")
    basis = np.linalg.qr(pre.k[0, :3].T)[0]
    expected = post.q[0] + (pre.q[0] - post.q[0]) @ basis @ basis.T
    np.testing.assert_allclose(fixed.q[0], expected, atol=1e-12)


@given(SHAPES)
def test_procrustes_keeps_every_pre_logit_and_comes_closer_to_post(shape: tuple[int, ...]) -> None:
    pre, post = routings(shape)
    turned = qk_procrustes(pre, post)
    np.testing.assert_allclose(logit_maps(turned), logit_maps(pre), atol=1e-10)

    def distance(routing: Routing) -> float:
        return float(np.sum((routing.q - post.q) ** 2) + np.sum((routing.k - post.k) ** 2))

    assert distance(turned) <= distance(pre) + 1e-10


def test_procrustes_finds_a_planted_rotation() -> None:
    rng = np.random.default_rng(0)
    pre, _ = routings((2, 2, 4, 12, 0))
    rotations = [np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2)]
    post = Routing(
        q=np.stack([rotations[h // 2] @ pre.q[h] for h in range(4)]),
        k=np.stack([rotations[g] @ pre.k[g] for g in range(2)]),
    )
    turned = qk_procrustes(pre, post)
    np.testing.assert_allclose(turned.q, post.q, atol=1e-12)
    np.testing.assert_allclose(turned.k, post.k, atol=1e-12)


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_low_rank_leaves_exactly_the_small_singular_directions(
    rows: int, inputs: int, rank: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pre, post = rng.standard_normal((2, rows, inputs))
    fixed = low_rank(pre, post, rank)
    sizes = np.linalg.svd(pre - post, compute_uv=False)
    left = np.linalg.svd(pre - fixed, compute_uv=False)
    np.testing.assert_allclose(left[: max(len(sizes) - rank, 0)], sizes[rank:], atol=1e-10)
    assert np.linalg.matrix_rank(fixed - post, tol=1e-9) <= rank


def test_low_rank_of_full_rank_is_pre() -> None:
    rng = np.random.default_rng(1)
    pre, post = rng.standard_normal((2, 5, 3))
    assert low_rank(pre, post, 3) == pytest.approx(pre, abs=1e-12)
