"""The search space: mixes, proposals, and the prior over layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from amnesia_bench.config.load import load_variant
from amnesia_bench.records.roles import Role
from amnesia_bench.tuning.space import POST, TUNED_ROLES, Mix, Space, prior_of

LAYERS = (2, 5)
SPACE = Space(
    places=tuple((layer, role) for layer in LAYERS for role in TUNED_ROLES),
    prior=prior_of(LAYERS, [{2: 1.0, 5: 3.0}]),
)


def test_equal_shares_are_equal_mixes_whatever_their_order() -> None:
    shares = {(5, Role.O): 0.5, (2, Role.K): 1.0, (2, Role.Q): 0.25, (5, Role.Q): 0.0}
    mix = Mix.of(shares)
    assert mix == Mix.of(dict(reversed(shares.items())))
    assert mix.sha256 == Mix.of(mix.by_place).sha256
    assert mix.change == 1.75
    assert mix.described() == "q 0.25 in layer 2; k 1 in layer 2; o 0.5 in layer 5"
    assert SPACE.qk_restore.described() == "q, k 1 in layers 2, 5"
    assert POST.described() == "no change"


def test_planned_proposals_are_ordered_by_the_prior_and_within_the_space() -> None:
    planned = list(SPACE.planned())
    singles = [mix for mix in planned if {layer for layer, _, _ in mix.shares} == {5}]
    assert SPACE.layers == (5, 2)
    assert singles
    assert not [mix for mix in planned if {layer for layer, _, _ in mix.shares} == {2}]
    assert SPACE.mix(("norms", LAYERS, 1.0), ("qk", LAYERS, 1.0)) in planned


def test_a_model_without_norms_gets_no_proposals_for_them() -> None:
    bare = Space(places=((0, Role.Q), (0, Role.K)), prior={0: 1.0})
    assert bare.groups == ("q", "k", "qk")
    assert all(role in (Role.Q, Role.K) for mix in bare.planned() for _, role, _ in mix.shares)


def test_offspring_stay_in_the_space_and_differ() -> None:
    rng = np.random.default_rng(0)
    found = {SPACE.offspring([POST, SPACE.qk_restore], rng) for _ in range(300)}
    assert len(found) > 50
    for mix in found:
        for layer, role, alpha in mix.shares:
            assert (layer, role) in SPACE.places
            assert alpha in (0.25, 0.5, 0.75, 1.0)
    most = [layer for mix in found for layer, _, _ in mix.shares]
    assert most.count(5) > most.count(2), "the prior weights changes"


def test_no_screen_decides_alone() -> None:
    prior = prior_of((0, 1, 2), [{0: 1.0, 1: 0.0, 2: 0.0}, {0: 5.0, 1: -2.0, 2: 0.0}])
    assert prior == pytest.approx({0: 0.5 + 0.5 / 3, 1: 0.5 / 3, 2: 0.5 / 3})
    uniform = pytest.approx({0: 0.5, 1: 0.5})
    assert prior_of((0, 1), []) == prior_of((0, 1), [{0: -1.0, 1: 0.0}]) == uniform


def test_a_mix_is_a_variant_that_a_file_can_hold(tmp_path) -> None:
    mix = SPACE.mix(("qk", [5], 0.5), ("o", [2], 1.0))
    variant = mix.variant("tuned", SPACE.places)
    file = tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(variant.model_dump(mode="json", exclude={"name"})))
    assert load_variant(file) == variant
    unchanged = POST.variant("tuned", SPACE.places)
    assert [share.alpha for share in unchanged.rule.shares] == [0.0]
    assert not unchanged.select.whole_checkpoint


def test_all_other_weights_are_a_dimension_of_their_own(tmp_path) -> None:
    space = replace(SPACE, rest=True)
    mix = space.mix(("qk", [5], 0.5))
    with_rest = replace(mix, rest=0.25)
    assert with_rest.sha256 != mix.sha256
    assert with_rest.described() == "q, k 0.5 in layer 5; all other weights 0.25"
    variant = with_rest.variant("tuned", space.places)
    assert variant.select.whole_checkpoint
    # A place without a share stays post's, so the variant lists it.
    assert len(variant.rule.shares) == len(space.places)
    assert {share.alpha for share in variant.rule.shares} == {0.0, 0.5}
    file = tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(variant.model_dump(mode="json", exclude={"name"})))
    assert load_variant(file) == variant
    planned = list(space.planned())
    assert planned[0] == space.everywhere(0.25)
    assert planned[5:] == list(SPACE.planned())
    rng = np.random.default_rng(0)
    found = {space.offspring([POST, space.everywhere(0.25)], rng) for _ in range(300)}
    assert {mix.rest for mix in found} == {0.0, 0.125, 0.25, 0.375, 0.5}
    assert all(mix.rest == 0 for mix in (SPACE.offspring([POST], rng) for _ in range(100)))
