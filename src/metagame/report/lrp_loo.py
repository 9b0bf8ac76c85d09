"""How far relevances of tokens agree with leave-one-out: a table, and a figure by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, cycle
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from metagame.contracts import WHOLE
from metagame.errors import UserError
from metagame.report.drawing import Drawing
from metagame.report.groups import Group, by_setting
from metagame.report.maps import COLORS
from metagame.report.results import JobResult, failure_notes
from metagame.report.scores import DECIDED, Difference, decide, mean_cell, rounded_mean_cell
from metagame.report.table import Column, Table

Correlations = dict[str, float]
"""Of each sample."""


def pearson(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float | None:
    """The correlation, from -1 to 1; None where one of them is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def spearman(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float | None:
    """The correlation of ranks, equal values sharing theirs; None where one of them is constant."""
    return pearson(rankdata(one), rankdata(other))


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {"pearson": pearson, "spearman": spearman}


def lrp_loo_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x method; cells the correlation with leave-one-out, and what it is more than AttnLRP's.

    Raises:
        UserError: leave-one-out is not among the jobs.
    """
    rows, claims = [], []
    for group in by_setting(results):
        agreement = _agreements(group)
        attnlrp = next((found for result, found in agreement if result.uses("attnlrp")), None)
        for result, found in agreement:
            row = {"model": group.name, "method": result.label, "n": len(found["spearman"])}
            for measure, values in found.items():
                row[measure] = rounded_mean_cell(list(values.values()))
                if attnlrp is not None and not result.uses("attnlrp"):
                    row[f"more_{measure}"] = rounded_mean_cell(_differences(values, attnlrp[measure]))
            rows.append(row)
        claims += [_claim(group, agreement, measure) for measure in MEASURES]
    columns = [Column("model", "model", "text"), Column("method", "method", "text")]
    columns += [Column(measure, measure.capitalize(), "mean") for measure in MEASURES]
    columns += [Column(f"more_{measure}", f"{measure.capitalize()}, more than AttnLRP", "mean") for measure in MEASURES]
    return Table(
        title=f"{results[0].config.name}: agreement with leave-one-out",
        scale=scale,
        columns=[*columns, Column("n", "prompts", "count")],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=max(len(result.done) for result in results),
        claims=claims,
        notes=[
            "Correlation, over the tokens of a prompt, of a method's relevances with what the mean logit of the answer"
            " loses without each token; mean ± 2 standard errors over prompts. A prompt whose relevances are all equal"
            " is left out. Differences from AttnLRP are prompt by prompt.",
            "CP-LRP above (below) a share of the layers: the rules of CP-LRP in the layers above (below) it, and those"
            " of AttnLRP in the others.",
            DECIDED,
            *(note for group in by_setting(results) for note in _same_layer_notes(group)),
            *failure_notes(results),
        ],
    )


def _same_layer_notes(group: Group) -> list[str]:
    """Which shares of the layers are the same in a model of few layers."""
    notes = []
    mixed = [(result, _relevances(result)) for result in group.results if result.uses("lrp_by_layer")]
    for (one, first), (other, second) in combinations(mixed, 2):
        shared = first.keys() & second.keys()
        if shared and all(np.array_equal(first[sample], second[sample]) for sample in shared):
            notes.append(f"{group.name}: {one.label} and {other.label} are the same, since the model has few layers.")
    return notes


def _agreements(group: Group) -> list[tuple[JobResult, dict[str, Correlations]]]:
    """Of each job but leave-one-out the correlations with it, by measure."""
    reference = next((result for result in group.results if result.uses("leave_one_out")), None)
    if reference is None:
        raise UserError(f"{group.name}: relevances are compared with leave-one-out: add attribution=leave_one_out.")
    expected = _relevances(reference)
    found = []
    for result in group.results:
        if result is reference:
            continue
        own: dict[str, Correlations] = {measure: {} for measure in MEASURES}
        for sample, values in _relevances(result).items():
            for measure, correlate in MEASURES.items():
                value = correlate(values, expected[sample]) if sample in expected else None
                if value is not None:
                    own[measure][sample] = value
        found.append((result, own))
    return found


def _relevances(result: JobResult) -> dict[str, np.ndarray]:
    explanations = {record.sample: result.explanations(record)[WHOLE].attribution for record in result.done}
    return {sample: values for sample, values in explanations.items() if values is not None}


def _differences(values: Correlations, other: Correlations) -> list[float]:
    return [value - other[sample] for sample, value in values.items() if sample in other]


def _claim(group: Group, agreement: Sequence[tuple[JobResult, dict[str, Correlations]]], measure: str) -> dict:
    """Whether CP-LRP agrees more than AttnLRP."""
    cp, attnlrp = (
        next((found[measure] for result, found in agreement if result.uses(base)), {}) for base in ("cp_lrp", "attnlrp")
    )
    cell = rounded_mean_cell(_differences(cp, attnlrp))
    return decide(
        f"CP-LRP agrees with leave-one-out more than AttnLRP does, by {measure.capitalize()} ({group.name})",
        [Difference("CP-LRP - AttnLRP", cell)],
    )


def layers_figure(results: list[JobResult]) -> Drawing | None:
    """A panel for each model: Spearman over the layer at which the rules change; None without such jobs."""
    groups = [group for group in by_setting(results) if any(result.uses("lrp_by_layer") for result in group.results)]
    if not groups:
        return None
    figure = Figure(figsize=(7.0, 1.2 + 3.4 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        _draw(axes, group)
    panels[-1].set_xlabel("share of the layers below the boundary")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return Drawing.single(
        figure,
        "How well relevances agree with leave-one-out when the layers on one side of a boundary use the rules of CP-LRP"
        " and those on the other side the rules of AttnLRP.",
        "Vertical axis: Spearman's rank correlation over the tokens of a prompt, from -1 to 1, the mean over prompts."
        " At the two ends of the horizontal axis, all layers use the rules of one method.",
    )


SIDES = {"above": "CP-LRP above the boundary, AttnLRP below", "below": "CP-LRP below the boundary, AttnLRP above"}


def _draw(axes: Axes, group: Group) -> None:
    agreement = _agreements(group)
    cells: list[tuple[JobResult, dict[str, Any]]] = [
        (result, mean_cell(list(found["spearman"].values()))) for result, found in agreement if found["spearman"]
    ]
    ends = {base: cell for result, cell in cells for base in ("attnlrp", "cp_lrp") if result.uses(base)}
    for (side, label), color, marker, shift in zip(SIDES.items(), COLORS, "os", (-0.006, 0.006), strict=False):
        first, last = ("cp_lrp", "attnlrp") if side == "above" else ("attnlrp", "cp_lrp")
        points = {0.0: ends.get(first), 1.0: ends.get(last)}
        for result, cell in cells:
            settings = result.method_identity["method"]
            if result.uses("lrp_by_layer") and settings["cp_side"] == side:
                points[settings["share"]] = cell
        drawn = sorted((share, cell) for share, cell in points.items() if cell is not None)
        axes.errorbar(
            [share + shift for share, _ in drawn], [cell["mean"] for _, cell in drawn],
            yerr=[cell["two_se"] or 0.0 for _, cell in drawn], color=color, marker=marker, capsize=3, label=label,
        )  # fmt: skip
    others = [
        (result, cell)
        for result, cell in cells
        if not any(result.uses(base) for base in ("attnlrp", "cp_lrp", "lrp_by_layer"))
    ]
    for (result, cell), style in zip(others, cycle((":", "--", "-.")), strict=False):
        axes.axhline(cell["mean"], color="0.4", linestyle=style, linewidth=1, label=result.label)
    axes.set_title(group.name, fontsize=10)
    axes.set_ylabel("Spearman with leave-one-out,\nmean ± 2 standard errors")
