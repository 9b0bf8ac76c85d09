"""The table of any benchmark: a row for each job, the mean of each score over its samples."""

from __future__ import annotations

import numpy as np

from metagame.report.results import JobResult, failure_notes
from metagame.report.table import Column, Table

DECIDED = "A claim is decided where the mean difference, prompt by prompt, is more than two standard errors."


def scores_table(results: list[JobResult], scale: str) -> Table:
    """Mean ± 2 standard errors of every score that is a number."""
    rows: list[dict] = []
    names: dict[str, None] = {}
    for result in results:
        row = {"model": result.model, "method": result.label}
        for name in result.done[0].scores if result.done else {}:
            values = [record.scores[name] for record in result.done]
            if all(isinstance(value, int | float) for value in values):
                names[name] = None
                row[name] = mean_cell(values)
        rows.append(row)
    benchmarks = ", ".join(dict.fromkeys(result.config.benchmark.name for result in results))
    return Table(
        title=f"{results[0].config.name}: scores of benchmark {benchmarks}",
        scale=scale,
        columns=[Column("model", "model", "text"), Column("method", "method", "text")]
        + [Column(name, name, "mean") for name in names],
        rows=rows,
        published=[{} for _ in rows],
        n_samples=max(len(result.done) for result in results),
        notes=failure_notes(results),
    )


def mean_cell(values: list[float]) -> dict[str, float | int | None]:
    """A cell of type ``mean``: mean, two standard errors of it (None of a single value) and n."""
    two_se = float(2 * np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "two_se": two_se, "n": len(values)}


def rounded_mean_cell(values: list[float]) -> dict[str, float | int | None] | None:
    """As :func:`mean_cell`, of six decimals; None of no values.

    What was computed in another batch differs by the rounding of the model's numbers (in float32 in the last digits),
    and equal runs are to give equal bytes.
    """
    if not values:
        return None
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in mean_cell(values).items()}


def is_positive(differences: list[float]) -> bool | None:
    """Whether a mean difference is above 0, or below, by more than two standard errors; None: not decided."""
    if not differences:
        return None
    cell = mean_cell(differences)
    mean, two_se = cell["mean"], cell["two_se"]
    return None if mean is None or two_se is None or abs(mean) <= two_se else mean > 0


def all_hold(answers: list[bool | None]) -> bool | None:
    """Whether all hold; None where none is false and one is not known, or there is none."""
    if False in answers:
        return False
    return None if None in answers or not answers else True
