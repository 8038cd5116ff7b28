"""The search space: how much of pre each role of each softmax layer gets.

A mix is a point of this space. Post has no share of pre anywhere; QK-Restore has all of W_Q and
W_K.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amnesia_bench.config.schema import LayerShare, RoleBlend, Select, Variant
from amnesia_bench.records.roles import Role

# Roles that get the same share when a proposal changes one of them.
ROLE_GROUPS: Mapping[str, tuple[Role, ...]] = {
    "q": (Role.Q,),
    "k": (Role.K,),
    "qk": (Role.Q, Role.K),
    "norms": (Role.Q_NORM, Role.K_NORM),
    "o": (Role.O,),
}
TUNED_ROLES = (Role.Q, Role.K, Role.Q_NORM, Role.K_NORM, Role.O)
_STEP = 0.25  # proposals change shares by multiples of this
_ROLE_ORDER = {role: i for i, role in enumerate(TUNED_ROLES)}


@dataclass(frozen=True)
class Mix:
    """The shares of pre, above 0 and at most 1, by layer and role; all other weights are post's.

    `shares` are sorted, so that equal mixes are equal objects.
    """

    shares: tuple[tuple[int, Role, float], ...]

    @classmethod
    def of(cls, shares: Mapping[tuple[int, Role], float]) -> Mix:
        """Return the mix with these shares; those of 0 are left out."""
        ordered = sorted(shares, key=lambda place: (place[0], _ROLE_ORDER[place[1]]))
        return cls(tuple((*place, shares[place]) for place in ordered if shares[place] > 0))

    @property
    def by_place(self) -> dict[tuple[int, Role], float]:
        """The shares by layer and role."""
        return {(layer, role): alpha for layer, role, alpha in self.shares}

    @property
    def change(self) -> float:
        """The sum of all shares: how far the mix is from post."""
        return sum(alpha for _, _, alpha in self.shares)

    @property
    def sha256(self) -> str:
        """A hash of the shares."""
        return hashlib.sha256(json.dumps(self.shares).encode()).hexdigest()

    def variant(self, name: str, unchanged: tuple[int, Role]) -> Variant:
        """Return the restore variant that writes this mix.

        Args:
            name: the name of the variant.
            unchanged: any layer and role of the model; a variant has to name one, and a mix without
                a share of pre has none.
        """
        shares = self.shares or ((*unchanged, 0.0),)
        return Variant(
            name=name,
            select=Select(
                roles=tuple(role for role in TUNED_ROLES if role in {r for _, r, _ in shares}),
                layers=tuple(sorted({layer for layer, _, _ in shares})),
            ),
            rule=RoleBlend(
                shares=tuple(
                    LayerShare(layer=layer, role=role, alpha=alpha) for layer, role, alpha in shares
                )
            ),
        )

    def described(self) -> str:
        """Return a short text such as `q, k 1 in layers 1, 3; o 0.5 in layer 3`."""
        roles: dict[tuple[float, tuple[int, ...]], list[str]] = {}
        for role in TUNED_ROLES:
            layers: dict[float, list[int]] = {}
            for layer, own, alpha in self.shares:
                if own is role:
                    layers.setdefault(alpha, []).append(layer)
            for alpha, where in layers.items():
                roles.setdefault((alpha, tuple(where)), []).append(role.value)
        return (
            "; ".join(
                f"{', '.join(names)} {alpha:g} in layer{'s' if len(where) > 1 else ''} "
                + ", ".join(map(str, where))
                for (alpha, where), names in roles.items()
            )
            or "no change"
        )


POST = Mix(())


@dataclass(frozen=True, kw_only=True)
class Space:
    """The places whose shares are searched, and a prior over layers.

    `places` are pairs of a layer and a role. `prior` maps each layer to its weight; the weights sum
    to 1. It decides what is tried first and most often, and no candidate is dropped because of it.
    """

    places: tuple[tuple[int, Role], ...]
    prior: Mapping[int, float]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, those with the largest prior first."""
        return tuple(sorted(self.prior, key=lambda layer: (-self.prior[layer], layer)))

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of roles that the model has."""
        own = {role for _, role in self.places}
        return tuple(name for name, roles in ROLE_GROUPS.items() if own & set(roles))

    def mix(self, *parts: tuple[str, Iterable[int], float]) -> Mix:
        """Return the mix of parts: a group of roles, layers, and their share of pre."""
        shares: dict[tuple[int, Role], float] = {}
        for group, layers, alpha in parts:
            for place in self.places:
                if place[1] in ROLE_GROUPS[group] and place[0] in set(layers):
                    shares[place] = alpha
        return Mix.of(shares)

    @property
    def qk_restore(self) -> Mix:
        """QK-Restore: all of W_Q and W_K."""
        return self.mix(("qk", self.layers, 1.0))

    def planned(self) -> Iterator[Mix]:
        """Yield the proposals that need no result, the most promising first."""
        layers = self.layers
        yield self.mix(("qk", layers, 0.5))
        yield self.mix(("qk", layers, 0.75))
        for group in ("norms", "o"):
            if group in self.groups:
                yield self.mix(("qk", layers, 1.0), (group, layers, 1.0))
        for count in range(1, len(layers)):
            yield self.mix(("qk", layers[:count], 1.0))
        yield self.mix(("q", layers, 1.0))
        yield self.mix(("k", layers, 1.0))
        yield self.mix(("qk", layers, 0.25))
        for count in range(1, len(layers)):
            yield self.mix(("qk", layers[:count], 0.5))
        for group in self.groups[3:]:
            yield self.mix((group, layers, 1.0))

    def offspring(self, parents: Sequence[Mix], rng: np.random.Generator) -> Mix:
        """Return a random change of one parent: one or two groups of one layer, or a crossover."""
        parent = parents[int(rng.integers(len(parents)))]
        other = parents[int(rng.integers(len(parents)))]
        shares = parent.by_place
        if other != parent and rng.random() < 0.3:
            theirs = other.by_place
            from_other = {layer for layer in self.layers if rng.random() < 0.5}
            return Mix.of(
                {
                    place: (theirs if place[0] in from_other else shares).get(place, 0.0)
                    for place in self.places
                }
            )
        weights = [self.prior[layer] for layer in self.layers]
        for _ in range(int(rng.integers(1, 3))):
            layer = self.layers[int(rng.choice(len(weights), p=weights))]
            group = self.groups[int(rng.integers(len(self.groups)))]
            step = _STEP * int(rng.choice((-2, -1, 1, 2)))
            for place in self.places:
                if place[0] == layer and place[1] in ROLE_GROUPS[group]:
                    shares[place] = min(1.0, max(0.0, shares.get(place, 0.0) + step))
        return Mix.of(shares)


def prior_of(layers: Sequence[int], screens: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return the prior of each layer: half uniform, half the mean of the screens' shares.

    Args:
        layers: the softmax layers.
        screens: for each screen, a value per layer; larger values are more promising, values below
            0 count as 0. A screen without a value above 0 says nothing and is left out.
    """
    shares = []
    for screen in screens:
        values = [max(0.0, screen.get(layer, 0.0)) for layer in layers]
        if (total := sum(values)) > 0:
            shares.append([value / total for value in values])
    uniform = 1 / len(layers)
    if not shares:
        return dict.fromkeys(layers, uniform)
    means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    return {layer: 0.5 * uniform + 0.5 * mean for layer, mean in zip(layers, means, strict=True)}
