"""The search space: how much of pre each role of each softmax layer gets, and all other weights.

A mix is a point of this space. Post has no share of pre anywhere; QK-Restore has all of W_Q and
W_K; the average of two checkpoints (WiSE-FT) has the same share everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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
_REST_STEP = 0.125  # all other weights are most of the model, so the same share changes more
_ROLE_ORDER = {role: i for i, role in enumerate(TUNED_ROLES)}


@dataclass(frozen=True)
class Mix:
    """The shares of pre, above 0 and at most 1, by layer and role.

    Places without a share have post's weights. `rest` is the share in all weights that have no
    place. `shares` are sorted, so that equal mixes are equal objects.
    """

    shares: tuple[tuple[int, Role, float], ...]
    rest: float = 0.0

    @classmethod
    def of(cls, shares: Mapping[tuple[int, Role], float], rest: float = 0.0) -> Mix:
        """Return the mix with these shares; those of 0 are left out."""
        ordered = sorted(shares, key=lambda place: (place[0], _ROLE_ORDER[place[1]]))
        return cls(tuple((*place, shares[place]) for place in ordered if shares[place] > 0), rest)

    @property
    def by_place(self) -> dict[tuple[int, Role], float]:
        """The shares by layer and role."""
        return {(layer, role): alpha for layer, role, alpha in self.shares}

    @property
    def change(self) -> float:
        """The sum of the shares by place: how far the mix is from post, if `rest` is equal."""
        return sum(alpha for _, _, alpha in self.shares)

    @property
    def sha256(self) -> str:
        """A hash of the shares."""
        shares = [self.shares, self.rest] if self.rest else self.shares
        return hashlib.sha256(json.dumps(shares).encode()).hexdigest()

    def variant(self, name: str, places: Sequence[tuple[int, Role]]) -> Variant:
        """Return the restore variant that writes this mix.

        Args:
            name: the name of the variant.
            places: all places of the model. Those without a share are listed too if other weights
                have one, and the first of them if nothing has.
        """
        own = self.by_place
        listed = places if self.rest else [place for place in places if place in own] or places[:1]
        select = Select(
            roles=tuple(role for role in TUNED_ROLES if role in {role for _, role in listed}),
            layers=tuple(sorted({layer for layer, _ in listed})),
        )
        return Variant(
            name=name,
            select=Select(roles="all") if self.rest else select,
            rule=RoleBlend(
                shares=tuple(
                    LayerShare(layer=layer, role=role, alpha=own.get((layer, role), 0.0))
                    for layer, role in listed
                ),
                rest=self.rest,
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
        parts = [
            f"{', '.join(names)} {alpha:g} in layer{'s' if len(where) > 1 else ''} "
            + ", ".join(map(str, where))
            for (alpha, where), names in roles.items()
        ]
        parts += [f"all other weights {self.rest:g}"] if self.rest else []
        return "; ".join(parts) or "no change"


POST = Mix(())


@dataclass(frozen=True, kw_only=True)
class Space:
    """The places whose shares are searched, and a prior over layers.

    `places` are pairs of a layer and a role. `rest` says whether all other weights can be given a
    share too. `prior` maps each layer to its weight; the weights sum to 1. It decides what is tried
    first and most often, and no candidate is dropped because of it.
    """

    places: tuple[tuple[int, Role], ...]
    prior: Mapping[int, float]
    rest: bool = False

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

    def everywhere(self, alpha: float) -> Mix:
        """Return the mix with the same share in every weight: the average of two checkpoints."""
        return Mix.of(dict.fromkeys(self.places, alpha), rest=alpha)

    def planned(self) -> Iterator[Mix]:
        """Yield the proposals that need no result, the most promising first."""
        layers = self.layers
        if self.rest:
            for alpha in (0.25, 0.5, 0.125, 0.375):
                yield self.everywhere(alpha)
            yield replace(self.qk_restore, rest=0.25)
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
        """Return a random change of one parent.

        It changes one or two groups of one layer, or all other weights, or is a crossover.
        """
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
                },
                rest=other.rest if self.rest and rng.random() < 0.5 else parent.rest,
            )
        if self.rest and rng.random() < 0.4:
            return self._shifted(parent, rng)
        weights = [self.prior[layer] for layer in self.layers]
        for _ in range(int(rng.integers(1, 3))):
            layer = self.layers[int(rng.choice(len(weights), p=weights))]
            group = self.groups[int(rng.integers(len(self.groups)))]
            step = _STEP * int(rng.choice((-2, -1, 1, 2)))
            for place in self.places:
                if place[0] == layer and place[1] in ROLE_GROUPS[group]:
                    shares[place] = _within(shares.get(place, 0.0) + step)
        return Mix.of(shares, parent.rest)

    def _shifted(self, parent: Mix, rng: np.random.Generator) -> Mix:
        """Change the share of all other weights; half of the time that of all places, too."""
        step = _REST_STEP * int(rng.choice((-2, -1, 1, 2)))
        shares = parent.by_place
        if rng.random() < 0.5:
            shares = {place: _within(shares.get(place, 0.0) + step) for place in self.places}
        return Mix.of(shares, _within(parent.rest + step))


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


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
