"""Turn a measured rule into a blend, with the values that `amnesia measure` wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from amnesia_bench.config.schema import Blend, LMCocktail, MeasuredRule, StepBack, Variant
from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.measurement import Measurement
from amnesia_bench.requests.checkpoints import RestoreRequest
from amnesia_bench.store.files import read_json
from amnesia_bench.store.sealed_json import unsealed
from amnesia_bench.surgery.edits import ApplicableRule
from amnesia_bench.surgery.elementwise import LayerBlend
from amnesia_bench.surgery.plan import LayerPlan
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.identity import parent_by_contents


def applicable_rule(
    request: RestoreRequest,
    variant: Variant,
    checkpoints: tuple[Checkpoint, Checkpoint],
    plans: Iterable[LayerPlan],
) -> ApplicableRule:
    """Return the rule of a variant; if it depends on measured values, the blend that they give.

    Args:
        request: the restore, with the file of the measured values.
        variant: its variant, with the layers that are restored.
        checkpoints: pre and post.
        plans: the layers to which the rule will be applied.

    Raises:
        UserError: the file is not an intact measurement, or it is about another variant or about
            other checkpoints.
    """
    rule = variant.rule
    if not isinstance(rule, MeasuredRule):
        return rule
    assert request.measured is not None, request  # its validator requires it
    measurement = read_measurement(request.measured)
    check_measurement(request.measured, measurement, variant, checkpoints)
    return measured_blend(rule, measurement, [plan.layer for plan in plans])


def measured_values(request: RestoreRequest, rule: ApplicableRule) -> dict[str, object]:
    """Return the shares of pre that a measured rule gives, for the record of the variant."""
    if request.measured is None:
        return {}
    if isinstance(rule, LayerBlend):
        return {"measured": {"alphas": [[layer, alpha] for layer, alpha in rule.alphas.items()]}}
    assert isinstance(rule, Blend), rule
    return {"measured": {"alpha": rule.alpha}}


def read_measurement(path: Path) -> Measurement:
    """Return the measurement in a file that `measure` wrote.

    Raises:
        UserError: the file is not a measurement, or it was changed after `measure` wrote it.
    """
    content = unsealed(read_json(path), str(path), "Measure again, to another file.")
    return codec.from_json(Measurement, content, str(path))


def measured_blend(
    rule: MeasuredRule, measurement: Measurement, layers: Iterable[int | None]
) -> Blend | LayerBlend:
    """Return the blend that a rule derives from measured values.

    Args:
        rule: the rule.
        measurement: the values, measured for this rule.
        layers: the layers to which the blend will be applied; None for weights outside of them.

    Raises:
        UserError: the measurement has no value for a layer.
    """
    if isinstance(rule, LMCocktail | StepBack):
        assert measurement.loss_pre is not None, measurement  # `measure` wrote it for this rule
        if isinstance(rule, LMCocktail):
            losses = measurement.loss_pre, measurement.losses[0]
            return Blend(alpha=lm_cocktail_alpha(losses, rule.temperature))
        steps = steps_back(rule, measurement.loss_pre, measurement.losses)
        return Blend(alpha=step_back_alpha(rule, rule.max_steps if steps is None else steps))
    information = {entry.layer: entry for entry in measurement.fisher}
    alphas: dict[int | None, float] = {}
    for layer in layers:
        if layer not in information:
            raise UserError(f"the measurement has no Fisher information of layer {layer}")
        entry = information[layer]
        total = entry.pre + entry.post
        alphas[layer] = entry.pre / total if total else 0.5
    return LayerBlend(alphas=alphas)


def lm_cocktail_alpha(losses: tuple[float, float], temperature: float) -> float:
    """Return the weight of pre: the first of softmax(-losses / temperature), for pre and post."""
    shift = min(losses)  # so that the smaller loss does not overflow
    weights = [math.exp((shift - loss) / temperature) for loss in losses]
    return weights[0] / sum(weights)


def step_back_alpha(rule: StepBack, steps: int) -> float:
    """Return the share of pre after some steps: each keeps the fraction 1 - step of the drift."""
    return 1 - (1 - rule.step) ** steps


def steps_back(rule: StepBack, loss_pre: float, losses: Iterable[float]) -> int | None:
    """Return after how many steps the perplexity is low enough; None if it never is.

    `losses` are those after 0, 1, ... steps.
    """
    limit = loss_pre + math.log(rule.max_perplexity_ratio)
    return next((steps for steps, loss in enumerate(losses) if loss <= limit), None)


def check_measurement(
    path: Path, measurement: Measurement, variant: Variant, pair: tuple[Checkpoint, Checkpoint]
) -> None:
    """Check that a measurement is about this variant and these checkpoints, pre and post.

    Raises:
        UserError: it is about others.
    """
    hint = "Measure again: amnesia measure --pre PRE --post POST --variant VARIANT --out FILE"
    measured = {"select": dict(measurement.select), "rule": dict(measurement.rule)}
    requested = variant.model_dump(mode="json", exclude={"name"})
    for part, values in requested.items():
        for key, value in values.items():
            if measured[part].get(key) != value:
                raise UserError(
                    f"{path}: was measured with {part}.{key}={measured[part].get(key)}, but the "
                    f"variant has {value}",
                    hint=hint,
                )
    for parent, checkpoint in zip((measurement.pre, measurement.post), pair, strict=True):
        if parent_by_contents(parent.role, checkpoint).identity != parent.identity:
            raise UserError(
                f"{path}: was measured with another checkpoint as {parent.role}: "
                f"{parent.location}, not {checkpoint.folder}",
                hint=hint,
            )
