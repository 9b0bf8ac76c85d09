"""Tables and figure of sentences with known evidence: how well relevances find the subject of a verb."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metagame.jobs.records import Record
from metagame.report.groups import Group, by_setting
from metagame.report.maps import COLORS
from metagame.report.results import JobResult, failure_notes
from metagame.report.scores import DECIDED, Difference, decide, mean_cell, rounded_mean_cell
from metagame.report.table import Column, Table

SCORES = {"reciprocal_rank": "MRR", "mass": "mass accuracy", "top_1": "top 1", "top_2": "top 2"}
BASELINES = ("recency", "random_tokens")
Chosen = Callable[[Record], bool]


def evidence_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x method; cells the scores of the subject, MRR also by the number of attractors."""
    levels = _levels(results)
    rows, claims = [], []
    for group in by_setting(results):
        baselines = [result for result in group.results if any(result.uses(base) for base in BASELINES)]
        for result in group.results:
            row: dict[str, Any] = {"model": group.name, "method": result.label, "n": str(len(_scored(result)))}
            row |= {score: rounded_mean_cell(list(_values(result, score).values())) for score in SCORES}
            for level in levels:
                row[f"of_{level}"] = rounded_mean_cell(list(_values(result, "reciprocal_rank", _has(level)).values()))
            rows.append(row)
            if baselines and result not in baselines:
                text = " and ".join(each.label for each in baselines)
                claims.append(
                    decide(
                        f"{result.label} finds the subject better than {text}, by MRR, where there are attractors"
                        f" ({group.name})",
                        [_gain(result, each) for each in baselines],
                    )
                )
    columns = [Column("model", "model", "text"), Column("method", "method", "text")]
    columns += [Column(score, label, "mean") for score, label in SCORES.items()]
    columns += [Column(f"of_{level}", f"MRR, {_attractors(level)}", "mean") for level in levels]
    return Table(
        title=f"{results[0].config.name}: the subject as evidence for its verb",
        scale=scale,
        columns=[*columns, Column("n", "sentences", "text")],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=max(len(result.done) for result in results),
        claims=claims,
        notes=[
            "What is explained is the logit of the verb's form that agrees with the subject less that of the form that"
            " does not. Attractors are nouns of the other number between subject and verb. Mean ± 2 standard errors"
            " over sentences.",
            "Recency ranks tokens by their closeness to the verb, Random by random numbers.",
            "MRR: the mean reciprocal rank of the subject among the tokens. Mass accuracy: the share of the"
            " positive relevance on the subject; sentences without positive relevance are left out. Top k: the"
            " subject is among the k most relevant tokens; if there are only two tokens, this says nothing for k"
            " = 2.",
            DECIDED,
            *_common_notes(results),
        ],
    )


def pairs_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x metagame x number of attractors; cells what the subject and the attractors do to each other."""
    rows, claims = [], []
    metas = [result for result in results if result.variant.meta]
    for group in by_setting(metas):
        for result in group.results:
            attracted = [level for level in _levels([result]) if level > 0]
            for name, chosen in [("any", _is_attracted), *((str(level), _has(level)) for level in attracted)]:
                on, by = (_values(result, score, chosen) for score in ("on_subject", "by_subject"))
                rows.append(
                    {"model": group.name, "method": result.label, "attractors": name, "n": str(len(on))}
                    | {"on": rounded_mean_cell(list(on.values())), "by": rounded_mean_cell(list(by.values()))}
                    | {"more": rounded_mean_cell([abs(by[sample]) - abs(on[sample]) for sample in on])}
                )
            for score, text in (
                ("on_subject", "attractors suppress the subject"),
                ("by_subject", "the subject suppresses attractors"),
            ):
                values = [-value for value in _values(result, score, _is_attracted).values()]
                difference = Difference("minus the mean influence", rounded_mean_cell(values))
                claims.append(decide(f"{result.label}, {group.name}: {text}", [difference]))
    return Table(
        title=f"{results[0].config.name}: what subject and attractors do to each other",
        scale=scale,
        columns=[
            Column("model", "model", "text"), Column("method", "method", "text"),
            Column("attractors", "attractors", "text"), Column("on", "attractors → subject", "mean"),
            Column("by", "subject → attractors", "mean"), Column("more", "|second| - |first|", "mean"),
            Column("n", "sentences", "text"),
        ],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=max(len(result.done) for result in results),
        claims=claims,
        notes=[
            "Attractors → subject: the sum over the attractors of their influence on the subject's attribution;"
            " negative where they suppress it. Subject → attractors: its influence on theirs. In logits of the form"
            " that agrees less the form that does not; mean ± 2 standard errors over sentences.",
            DECIDED,
            *_common_notes(results),
        ],
    )  # fmt: skip


def _common_notes(results: list[JobResult]) -> list[str]:
    notes = []
    for group in by_setting(results):
        result = max(group.results, key=lambda each: len(each.done))
        right = Counter(record.scores["attractors"] for record in result.done if record.scores["margin"] > 0)
        asked = Counter(record.scores["attractors"] for record in result.done)
        shares = ", ".join(f"{right[level]} of {n} with {_attractors(level)}" for level, n in sorted(asked.items()))
        notes.append(f"{group.name} prefers the form that agrees in {shares}; the others are scored, too.")
        skipped = [record.scores["skipped"] for record in result.done if record.scores["skipped"] is not None]
        if skipped:
            words = ", ".join(dict.fromkeys(skipped))
            notes.append(
                f"{group.name}: {len(skipped)} sentences are skipped, because their subject is several tokens: {words}."
            )
        # only records of metagames have them
        known = {
            record.sample: record.scores.get("split_attractors")
            for each in group.results
            for record in each.done
            if each.variant.meta
        }
        if split := [nouns for nouns in known.values() if nouns]:
            words = ", ".join(dict.fromkeys(noun for nouns in split for noun in nouns))
            notes.append(
                f"{group.name}: {len(split)} sentences have no influence between subject and attractors, because an"
                f" attractor is several tokens: {words}."
            )
    return [*notes, *failure_notes(results)]


def _levels(results: list[JobResult]) -> list[int]:
    return sorted({record.scores["attractors"] for result in results for record in result.done})


def _attractors(level: int) -> str:
    return "1 attractor" if level == 1 else f"{level} attractors"


def _has(level: int) -> Chosen:
    return lambda record: record.scores["attractors"] == level


def _is_attracted(record: Record) -> bool:
    return record.scores["attractors"] > 0


def _scored(result: JobResult) -> list[Record]:
    return [record for record in result.done if record.scores["skipped"] is None]


def _values(result: JobResult, score: str, chosen: Chosen = lambda record: True) -> dict[str, float]:
    """The score of each sample that has one."""
    records = [record for record in _scored(result) if chosen(record) and record.scores[score] is not None]
    return {record.sample: record.scores[score] for record in records}


def _differences(result: JobResult, other: JobResult, score: str, chosen: Chosen) -> list[float]:
    known = _values(other, score, chosen)
    return [value - known[sample] for sample, value in _values(result, score, chosen).items() if sample in known]


def _gain(result: JobResult, baseline: JobResult) -> Difference:
    cell = rounded_mean_cell(_differences(result, baseline, "reciprocal_rank", _is_attracted))
    return Difference(f"{result.label} - {baseline.label}", cell)


def evidence_figure(results: list[JobResult]) -> Figure:
    """A panel for each model: MRR of the subject over the number of attractors, ± 2 standard errors."""
    groups = by_setting(results)
    figure = Figure(figsize=(7.0, 1.2 + 3.2 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        _draw(axes, group)
    panels[-1].set_xlabel("attractors")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, group: Group) -> None:
    levels = _levels(group.results)
    places = np.linspace(-0.15, 0.15, len(group.results))
    for result, shift, color, marker in zip(group.results, places, cycle(COLORS), cycle("os^DvPX"), strict=False):
        found = {level: list(_values(result, "reciprocal_rank", _has(level)).values()) for level in levels}
        cells: dict[int, dict[str, Any]] = {level: mean_cell(values) for level, values in found.items() if values}
        axes.errorbar(
            [level + shift for level in cells],
            [cell["mean"] for cell in cells.values()],
            yerr=[cell["two_se"] or 0.0 for cell in cells.values()],
            color=color, marker=marker, markersize=5, capsize=2, linewidth=1, label=result.label,
        )  # fmt: skip
    axes.set_xticks(levels)
    axes.set_ylim(0, 1.03)
    axes.set_title(group.name, fontsize=10)
    axes.set_ylabel("mean reciprocal rank\nof the subject")
