"""What differs between two runs of an experiment: cells of their tables, and scores of their samples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagame.errors import RecordError, UserError
from metagame.report.results import read_experiment
from metagame.report.table import Table, plain, read_table

MOST = 5
"""Of the samples of a method so many are shown, those with the largest changes."""

Key = tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A score of a sample in both runs."""

    sample: str
    score: str
    before: float
    after: float

    @property
    def size(self) -> float:
        return abs(self.after - self.before)


def compare_runs(one: Path, other: Path) -> list[str]:
    """What changed from the first experiment's folder to the second, one line each; empty where nothing did.

    Raises:
        UserError: one of them has no table.
    """
    return [*changed_cells(one, other), *_samples(_scores(one), _scores(other))]


def changed_cells(one: Path, other: Path) -> list[str]:
    """What differs between the tables of two folders, one line each.

    Raises:
        UserError: one of them has no table.
    """
    try:
        return list(_cells(read_table(one), read_table(other)))
    except RecordError as error:
        raise UserError(str(error)) from error


def _cells(before: Table, after: Table) -> Iterator[str]:
    """A line for each cell that differs, and for each row or column that only one of the tables has."""
    columns = {column.key: column for column in before.columns}
    theirs = {column.key for column in after.columns}
    yield from _only("column", [column.label for key, column in columns.items() if key not in theirs], "first")
    yield from _only("column", [column.label for column in after.columns if column.key not in columns], "second")
    rows, others = _rows(before), _rows(after)
    yield from _only("row", [" ".join(key) for key in rows if key not in others], "first")
    yield from _only("row", [" ".join(key) for key in others if key not in rows], "second")
    for key in (key for key in rows if key in others):
        for name, column in columns.items():
            cells = [plain(column, row.get(name)) for row in (rows[key], others[key])]
            if name in theirs and column.type != "text" and cells[0] != cells[1]:
                yield f"table: {' '.join(key)}, {column.label}: {cells[0]} -> {cells[1]}"


def _only(what: str, names: Sequence[str], where: str) -> Iterator[str]:
    yield from (f"table: {what} {name!r} is in the {where} run only" for name in names)


def _rows(table: Table) -> dict[Key, Mapping[str, Any]]:
    """Rows by their texts, numbered where these are the same; how many samples are behind a row is no part of it."""
    names = [column.key for column in table.columns if column.type == "text" and column.key != "n"]
    found: dict[Key, Mapping[str, Any]] = {}
    for row in table.rows:
        key = tuple(str(row.get(name, "")) for name in names)
        number = sum(other[: len(key)] == key for other in found)
        found[key if not number else (*key, f"({number + 1})")] = row
    return found


def _scores(folder: Path) -> dict[Key, dict[str, dict[str, Any]]]:
    """Scores of each sample of each method of each model."""
    return {
        (result.model, result.label): {record.sample: record.scores for record in result.done}
        for result in read_experiment(folder)
    }


def _samples(before: Mapping[Key, Mapping[str, Any]], after: Mapping[Key, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each method whose samples changed, and for its largest changes."""
    for key in (key for key in before if key in after):
        name, ours, theirs = " ".join(key), before[key], after[key]
        for where, only in (("first", ours.keys() - theirs.keys()), ("second", theirs.keys() - ours.keys())):
            if only:
                yield f"samples: {name}: {len(only)} in the {where} run only ({', '.join(sorted(only)[:MOST])})"
        shared = [sample for sample in ours if sample in theirs]
        changes = [change for sample in shared for change in _changes(sample, ours[sample], theirs[sample])]
        changed = {change.sample for change in changes}
        if changed:
            yield f"samples: {name}: {len(changed)} of {len(shared)} have other scores; the largest changes:"
            largest = sorted(changes, key=lambda change: -change.size)[:MOST]
            yield from (f"    {each.sample}, {each.score}: {each.before:.4g} -> {each.after:.4g}" for each in largest)


def _changes(sample: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for score, value in before.items():
        other = after.get(score)
        if isinstance(value, int | float) and isinstance(other, int | float) and value != other:
            yield Change(sample, score, float(value), float(other))


def main(arguments: Sequence[str]) -> None:
    """Show what changed from one run of an experiment to another: cells of the table, and scores of samples."""
    parser = argparse.ArgumentParser(prog="metagame diff", description=main.__doc__)
    parser.add_argument("first", type=Path, help="folder of an experiment, such as outputs/tiny/table2")
    parser.add_argument("second", type=Path, help="another one, for example of a run with another output_dir")
    parser.add_argument("--page", type=Path, metavar="FOLDER", help="write an HTML page of both runs into this folder")
    asked = parser.parse_args(list(arguments))
    try:
        if asked.page is not None:
            from metagame.viewer.compare import write_comparison  # here, since it takes a second to import

            print(f"wrote {write_comparison(asked.first, asked.second, asked.page)}")  # noqa: T201
            return
        lines = compare_runs(asked.first, asked.second)
    except UserError as error:
        sys.exit(str(error))
    print("\n".join(lines) or "Nothing differs: the tables and the scores of all samples are the same.")  # noqa: T201
    sys.exit(1 if lines else 0)
