"""Base class of all schemas, and the schemas of restore variants and model shapes.

Schemas are frozen and reject unknown keys. They also check fields against each other, so that an
inconsistent config is rejected before any checkpoint is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    Tag,
    model_validator,
)

from amnesia_bench.config.cache_key import NEUTRAL
from amnesia_bench.records.roles import Role

_MATRIX_ROLES = (Role.Q, Role.K, Role.V, Role.O, Role.GATE)
# Roles whose heads can be restored separately. They exclude the output projection, whose heads are
# columns, and the norms, which all heads may share.
_HEAD_ROLES = (Role.Q, Role.K, Role.V, Role.GATE, Role.SINK)

Items = TypeVar("Items", bound=tuple[object, ...])


class Frozen(BaseModel):
    """Base class of every schema; unknown keys, values of a wrong type, NaN and inf are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def unique(items: Items) -> Items:
    """Return the items, or raise ValueError if an item occurs twice; a pydantic validator."""
    twice = [str(item) for item in dict.fromkeys(items) if items.count(item) > 1]
    if twice:
        raise ValueError(f"listed twice: {', '.join(twice)}")
    return items


def _form(value: object) -> str | None:
    """Return the tag of the form in which a selection is written: name, list or object.

    With this tag, pydantic reports errors only for that form.
    """
    forms: dict[type, str] = {
        str: "name",
        list: "list",
        tuple: "list",
        dict: "object",
        TopDrift: "object",
    }
    return forms.get(type(value))


class TopDrift(Frozen):
    """Selects the `top_drift` layers whose selected tensors drifted most between pre and post."""

    top_drift: PositiveInt


_Indices = Annotated[
    tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(unique), Tag("list")
]
_All = Annotated[Literal["all"], Tag("name")]
Layers = Annotated[
    _All | _Indices | Annotated[TopDrift, Tag("object")],
    Discriminator(
        _form,
        custom_error_type="layers",
        custom_error_message="expected all, a list of layer indices, or {top_drift: <number>}",
    ),
]


class LayerHeads(Frozen):
    """Selects KV groups of one layer; see `Select`."""

    layer: NonNegativeInt
    kv_heads: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(unique)]


def _one_entry_per_layer(heads: tuple[LayerHeads, ...]) -> tuple[LayerHeads, ...]:
    unique(tuple(entry.layer for entry in heads))
    return heads


def _form_of_heads(value: object) -> str | None:
    by_layer = isinstance(value, list | tuple) and value and isinstance(value[0], dict | LayerHeads)
    return "by layer" if by_layer else _form(value)


_HeadsByLayer = Annotated[
    tuple[LayerHeads, ...], AfterValidator(_one_entry_per_layer), Tag("by layer")
]
Heads = Annotated[
    _All | _Indices | _HeadsByLayer,
    Discriminator(
        _form_of_heads,
        custom_error_type="heads",
        custom_error_message="expected all, or a list of KV-group indices, or of "
        "{layer: <index>, kv_heads: [<indices>]}",
    ),
]


Roles = Annotated[
    _All | Annotated[tuple[Role, ...], Field(min_length=1), AfterValidator(unique), Tag("list")],
    Discriminator(lambda value: "name" if value == "all" else "list"),
]


class Select(Frozen):
    """The tensors that a variant restores.

    `roles` are the roles of tensors in softmax layers; `all` selects every weight of the
    checkpoint, also those outside the softmax layers. `layers` are indices of decoder layers; `all`
    selects every softmax layer. `heads` are indices of KV groups: group g consists of KV head g and
    the query heads that share it. They are the same in all layers, or are listed by layer; layers
    that are not listed are then not restored. `include_sliding` adds the softmax layers with a
    sliding window.
    """

    roles: Roles
    layers: Layers = "all"
    heads: Heads = "all"
    include_sliding: bool = False

    @property
    def whole_checkpoint(self) -> bool:
        """Whether every weight of the checkpoint is selected."""
        return self.roles == "all"

    @property
    def listed_roles(self) -> tuple[Role, ...]:
        """The roles that are selected by name; empty if every weight is selected."""
        return () if isinstance(self.roles, str) else self.roles

    @property
    def heads_by_layer(self) -> tuple[LayerHeads, ...]:
        """The KV groups that are listed by layer; empty if they are the same in all layers."""
        return tuple(entry for entry in self.heads if isinstance(entry, LayerHeads))

    def kv_heads(self, layer: int) -> tuple[int, ...] | None:
        """Return the KV groups that are selected in a layer, in ascending order; None for all."""
        if self.heads == "all":
            return None
        everywhere = {entry for entry in self.heads if isinstance(entry, int)}
        listed = (entry.kv_heads for entry in self.heads_by_layer if entry.layer == layer)
        return tuple(sorted(everywhere.union(*listed)))

    @model_validator(mode="after")
    def _all_weights_are_all(self) -> Self:
        if self.whole_checkpoint and (self.layers, self.heads) != ("all", "all"):
            raise ValueError(
                "roles=all selects every weight of the checkpoint, so layers and heads must be all"
            )
        if self.heads_by_layer and self.layers != "all":
            raise ValueError("heads are listed by layer, so layers must be all")
        return self


class Copy(Frozen):
    """Copy the tensors of pre, byte for byte."""

    kind: Literal["copy"] = "copy"


class Blend(Frozen):
    """Interpolate linearly from post (`alpha` 0) to pre (`alpha` 1)."""

    kind: Literal["blend"] = "blend"
    alpha: Annotated[float, Field(ge=0, le=1)]


class LayerShare(Frozen):
    """The share `alpha` of pre in the tensors with one role in one softmax layer."""

    layer: NonNegativeInt
    role: Role
    alpha: Annotated[float, Field(ge=0, le=1)]


class RoleBlend(Frozen):
    """Interpolate from post to pre with one share of pre per layer and role.

    `rest` is the share in all other selected tensors. `amnesia tune` writes variants with this
    rule; they fit only the model for which they were found.
    """

    kind: Literal["role_blend"] = "role_blend"
    shares: Annotated[tuple[LayerShare, ...], Field(min_length=1)]
    rest: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _each_place_once(self) -> Self:
        unique(tuple(f"layer {share.layer}, {share.role.value}" for share in self.shares))
        return self


class QKPro(Frozen):
    """For W_Q and W_K, remove the part of the drift in the row space of the other one of pre.

    This space is spanned by the heads in the same KV group (`scope` head) or by all heads of the
    layer (`scope` layer).
    """

    kind: Literal["qk_pro"] = "qk_pro"
    scope: Literal["head", "layer"] = "head"


class QKProcrustes(Frozen):
    """Copy W_Q and W_K of pre, both rotated towards post by one common rotation per KV group."""

    kind: Literal["qk_procrustes"] = "qk_procrustes"


class LowRank(Frozen):
    """Remove the `rank` largest singular directions of the drift."""

    kind: Literal["low_rank"] = "low_rank"
    rank: PositiveInt


class Ties(Frozen):
    """Keep the `density` largest entries of each tensor's task vector post - pre, times `scale`.

    All other entries become those of pre. Of entries of equal magnitude, the first are kept.
    """

    kind: Literal["ties"] = "ties"
    density: Annotated[float, Field(gt=0, le=1)]
    scale: Annotated[float, Field(gt=0)] = 1.0


class Dare(Frozen):
    """Drop each entry of the task vector post - pre with probability `drop`, and rescale the rest.

    The remaining entries are divided by 1 - `drop`. `seed` and the name of a tensor determine which
    of its entries are dropped.
    """

    kind: Literal["dare"] = "dare"
    drop: Annotated[float, Field(ge=0, lt=1)]
    seed: NonNegativeInt = 0


class LMCocktail(Frozen):
    """Average pre and post, weighted by the softmax of their negative losses / `temperature`."""

    kind: Literal["lm_cocktail"] = "lm_cocktail"
    temperature: Annotated[float, Field(gt=0)]


class StepBack(Frozen):
    """Move post towards pre by the fraction `step` at a time, while the perplexity is too high.

    This ends when the perplexity is at most `max_perplexity_ratio` times that of pre, or after
    `max_steps` steps.
    """

    kind: Literal["step_back"] = "step_back"
    step: Annotated[float, Field(gt=0, le=1)]
    max_steps: Annotated[PositiveInt, Field(le=100)]
    max_perplexity_ratio: Annotated[float, Field(ge=1)]


class LayerFisher(Frozen):
    """Average pre and post, in each layer weighted by the mean diagonal Fisher information."""

    kind: Literal["layer_fisher"] = "layer_fisher"


MeasuredRule = LMCocktail | StepBack | LayerFisher
Rule = Annotated[
    Copy | Blend | RoleBlend | QKPro | QKProcrustes | LowRank | Ties | Dare | MeasuredRule,
    Field(discriminator="kind"),
]
# These rules treat each number of a tensor alike, so they can be applied to a whole checkpoint.
_RULES_FOR_ALL_WEIGHTS = (Copy, Blend, RoleBlend, Ties, Dare, MeasuredRule)


class Variant(Frozen):
    """A restore variant: which tensors to restore, and by which rule."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$"), NEUTRAL]
    select: Select
    rule: Rule

    @model_validator(mode="after")
    def _rule_fits_selection(self) -> Self:
        kind, roles = self.rule.kind, self.select.listed_roles
        if self.select.whole_checkpoint and not isinstance(self.rule, _RULES_FOR_ALL_WEIGHTS):
            raise ValueError(
                f"rule {kind} is for projections of softmax layers: select.roles must be a list"
            )
        routing = {Role.Q, Role.K}
        if kind == "qk_procrustes" and set(roles) != routing:
            raise ValueError(
                "rule qk_procrustes rotates q and k together: select.roles must be q, k"
            )
        allowed: tuple[Role, ...] = tuple(Role)
        if kind == "qk_pro":
            allowed = (Role.Q, Role.K)
        elif kind == "low_rank":
            allowed = _MATRIX_ROLES
        _refuse_roles(f"rule {kind}", roles, allowed)
        if self.select.heads != "all":
            self.check_heads_apart()
        return self

    def check_heads_apart(self) -> None:
        """Raise ValueError unless the roles and the rule allow restoring some heads only."""
        _refuse_roles("a list of heads", self.select.listed_roles, _HEAD_ROLES)
        if isinstance(self.rule, QKPro) and self.rule.scope == "layer":
            raise ValueError("rule qk_pro with scope layer needs all heads: select.heads: all")


def _refuse_roles(what: str, roles: tuple[Role, ...], allowed: tuple[Role, ...]) -> None:
    refused = [role for role in roles if role not in allowed]
    if refused:
        raise ValueError(f"{what} works with roles {', '.join(allowed)}, not {', '.join(refused)}")


class ModelFile(Frozen):
    """The shape of a model, loaded from a config in configs/model or from a config.json.

    The keys of `values` are those of a config.json.
    """

    name: Annotated[str, NEUTRAL]
    values: Mapping[str, JsonValue]
