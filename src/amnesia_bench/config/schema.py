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
Heads = Annotated[
    _All | _Indices,
    Discriminator(
        _form,
        custom_error_type="heads",
        custom_error_message="expected all, or a list of KV-group indices",
    ),
]


class Select(Frozen):
    """The tensors that a variant restores.

    `layers` are indices of decoder layers; `all` selects every softmax layer. `heads` are indices
    of KV groups: group g consists of KV head g and the query heads that share it.
    `include_sliding` adds the softmax layers with a sliding window.
    """

    roles: Annotated[tuple[Role, ...], Field(min_length=1), AfterValidator(unique)]
    layers: Layers = "all"
    heads: Heads = "all"
    include_sliding: bool = False


class Copy(Frozen):
    """Copy the tensors of pre, byte for byte."""

    kind: Literal["copy"] = "copy"


class Blend(Frozen):
    """Interpolate linearly from post (`alpha` 0) to pre (`alpha` 1)."""

    kind: Literal["blend"] = "blend"
    alpha: Annotated[float, Field(ge=0, le=1)]


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


Rule = Annotated[Copy | Blend | QKPro | QKProcrustes | LowRank, Field(discriminator="kind")]


class Variant(Frozen):
    """A restore variant: which tensors to restore, and by which rule."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$"), NEUTRAL]
    select: Select
    rule: Rule

    @model_validator(mode="after")
    def _rule_fits_selection(self) -> Self:
        kind, roles = self.rule.kind, self.select.roles
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
            _refuse_roles("a list of select.heads", roles, _HEAD_ROLES)
            if isinstance(self.rule, QKPro) and self.rule.scope == "layer":
                raise ValueError("rule qk_pro with scope layer needs all heads: select.heads: all")
        return self


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
