"""Records and report tables as columns and rows of a W&B Table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

Columns = list[str]
Rows = list[list[Any]]


def samples_table(records: Sequence[dict[str, Any]]) -> tuple[Columns, Rows]:
    """A row for each record: sample, status, error and a column for each score."""
    names = list(dict.fromkeys(name for record in records for name in record["scores"]))
    rows = [
        [record["sample"], record["status"], record["error"], *(_plain(record["scores"].get(name)) for name in names)]
        for record in records
    ]
    return ["sample", "status", "error", *names], rows


def mean_scores(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of each score that is a number in every finished sample."""
    scores = [record["scores"] for record in records if record["status"] == "done"]
    names = dict.fromkeys(name for each in scores for name in each)
    values = {name: [each[name] for each in scores if name in each] for name in names}
    return {
        name: sum(each) / len(each) for name, each in values.items() if all(isinstance(v, int | float) for v in each)
    }


def metrics_table(table: dict[str, Any]) -> tuple[Columns, Rows]:
    """The content of a ``table.json``: ours under the column's label, the published value beside it, full precision.

    A column of means has its two standard errors in one more.
    """
    columns: dict[str, list[Any]] = {}
    common = Counter(column["label"] for column in table["columns"])
    for column in table["columns"]:
        key, label = column["key"], column["label"]
        if common[label] > 1:
            label = f"{label} [{key}]"
        ours = [row.get(key) for row in table["rows"]]
        columns[label] = [_mean(cell) for cell in ours]
        if column["type"] == "mean":
            columns[f"{label}, 2 SE"] = [cell and cell["two_se"] for cell in ours]
        published = [row.get(key) for row in table["published"]]
        if column["type"] not in ("text", "flag") and any(cell is not None for cell in published):
            columns[f"{label}, published"] = [_mean(cell) for cell in published]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _mean(cell: Any) -> Any:
    return cell["mean"] if isinstance(cell, dict) else cell


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
