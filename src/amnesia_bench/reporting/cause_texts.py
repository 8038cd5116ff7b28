"""Write the cause of the loss as HTML and as Markdown: claims, ranked layers, figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from amnesia_bench.markdown import escape as escape_markdown
from amnesia_bench.records.causes import CauseClaim, CauseCondition, Causes, ModelAnalysis
from amnesia_bench.records.claim_verdict import ClaimVerdict
from amnesia_bench.reporting.cause_figures import figures_of_analysis

_RULE = (
    "A claim holds if, in every line, the 95 % bootstrap interval over the units is above 0 and "
    "the randomisation test has p < 0.05; it does not hold if the interval of a line is below 0 "
    "and p < 0.05. With fewer than 6 units there is not enough data. Neither the interval nor the "
    "test covers other training runs; the seeds show how those differ."
)


def format_condition_of_cause(condition: CauseCondition, unit: str) -> str:
    """Format a condition's numbers as one line."""
    if condition.estimate is None:
        numbers = f"not measured, n = {condition.n} {unit}"
    else:
        numbers = f"{condition.estimate:+.3g}"
        if condition.low is not None and condition.high is not None:
            numbers += f" ({condition.low:.3g} to {condition.high:.3g})"
        if condition.p_value is not None:
            numbers += f", p = {condition.p_value:.2g}"
        numbers += f", n = {condition.n} {unit}"
    if len(condition.by_seed) > 1:
        seeds = (f"{seed} {value:+.3g}" for seed, value in condition.by_seed.items())
        numbers += f"; by seed {', '.join(seeds)}"
    return f"{condition.subject}: {numbers}. {condition.note}."


def ranked_layers(analysis: ModelAnalysis) -> Iterator[tuple[str, ...]]:
    """Yield a row per layer and checkpoint, ranked by the heads whose distance fell."""
    for shift in analysis.shifts.values():
        for place, layer in enumerate(shift.layers, start=1):
            yield (
                shift.second,
                str(place),
                str(layer.layer),
                f"{layer.shortened} of {layer.heads}",
                f"{layer.mean_shift:+.3g}",
            )


_RANKING_HEAD = (
    "checkpoint", "rank", "layer", "heads with a shorter distance than before SFT",
    "mean change in tokens",
)  # fmt: skip


def _title(analysis: ModelAnalysis) -> str:
    finetune = "" if analysis.finetune is None else f", {analysis.finetune}"
    return f"{analysis.model}{finetune}, seed {analysis.seed}"


def causes_markdown(causes: Causes) -> str:
    """Return the claims and the ranked layers as Markdown."""
    lines = ["# Why recall is lost", ""]
    for claim in causes.claims:
        lines += [f"- **{claim.verdict}**: {claim.text} ({claim.measure}; unit: {claim.unit})"]
        lines += [
            f"  - {condition.verdict}: {format_condition_of_cause(condition, claim.unit)}"
            for condition in claim.conditions
        ]
    lines += ["", _RULE, ""]
    for analysis in causes.analyses:
        if rows := [*ranked_layers(analysis)]:
            lines += [f"## Layers by shifted heads: {_title(analysis)}", ""]
            lines += [_row(_RANKING_HEAD), _row(["---"] * len(_RANKING_HEAD)), *map(_row, rows), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escape_markdown, cells))} |"


def causes_html(causes: Causes, signs: Mapping[ClaimVerdict, tuple[str, str]]) -> str:
    """Return the section of the report's page.

    Args:
        causes: the analyses and claims.
        signs: the CSS class and the sign of each verdict.
    """
    rows = "".join(_claim_row(claim, signs) for claim in causes.claims)
    parts = ["<section id=why><h2>Why recall is lost</h2>"]
    if rows:
        head = "<thead><tr><th>our numbers<th>claim<th>unit</tr></thead>"
        parts.append(f"<table class=claims>{head}<tbody>{rows}</tbody></table>")
        parts.append(f"<p class=muted>{escape(_RULE)}</p>")
    first = causes.analyses[0].seed
    others: list[str] = []
    for analysis in causes.analyses:
        block = _block(analysis)
        (parts if analysis.seed == first else others).append(block)
    if others:
        parts.append(f"<details><summary>other seeds</summary>{''.join(others)}</details>")
    return "\n".join([*filter(None, parts), "</section>"])


def _claim_row(claim: CauseClaim, signs: Mapping[ClaimVerdict, tuple[str, str]]) -> str:
    name, sign = signs[claim.verdict]
    lines = "".join(
        f"<li><b>{signs[condition.verdict][1]}</b> "
        f"{escape(format_condition_of_cause(condition, claim.unit))}</li>"
        for condition in claim.conditions
    )
    return (
        f'<tr><td class="verdict {name}">{sign} {claim.verdict}</td>'
        f"<td>{escape(claim.text)}<details open><summary>{escape(claim.measure)}</summary>"
        f"<ul>{lines}</ul></details></td><td class=muted>{escape(claim.unit)}</td></tr>"
    )


def _block(analysis: ModelAnalysis) -> str:
    figures = "".join(_figure(drawing) for _, drawing in figures_of_analysis(analysis))
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in ranked_layers(analysis)
    )
    ranking = ""
    if rows:
        head = "".join(f"<th>{escape(name)}" for name in _RANKING_HEAD)
        ranking = f"<table class=claims><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    title = f"<h3>{escape(_title(analysis))}</h3>" if figures or ranking else ""
    return f"{title}{ranking}{figures}"


def _figure(drawing: str) -> str:
    # The captions of these figures are part of the drawings.
    return f"<figure>{drawing}</figure>"
