"""What differs between two runs of an experiment: their tables, and the scores of their samples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from metagame.errors import RecordError, UserError
from metagame.report.results import read_table_jobs
from metagame.report.table import HOLDS, Table, plain, read_table

ABSENT = "absent"
"""In place of a score that a sample does not have."""
MOST = 5
"""Of the samples of a method so many are shown, those with the largest changes."""

SAME = "Nothing differs: the cells, claims and notes of the tables and the scores of all samples are the same."

Key = tuple[str, ...]


def compare_runs(one: Path, other: Path) -> list[str]:
    """What changed from the first experiment's folder to the second, one line each; empty where nothing did.

    Raises:
        UserError: one of them has no table.
    """
    return [*table_changes(one, other), *sample_changes(one, other)]


def table_changes(one: Path, other: Path) -> list[str]:
    """What differs between the tables of two folders: cells, claims and notes, one line each.

    Raises:
        UserError: one of them has no table.
    """
    try:
        before, after = read_table(one), read_table(other)
    except RecordError as error:
        raise UserError(str(error)) from error
    return [*_cells(before, after), *_claims(before, after), *_notes(before, after)]


def sample_changes(one: Path, other: Path) -> list[str]:
    """What differs between the scores of the samples behind the tables of two folders, one line each.

    Raises:
        UserError: a folder has no results that can be read.
    """
    return list(_samples(_scores(one), _scores(other)))


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


def _claims(before: Table, after: Table) -> Iterator[str]:
    """A line for each claim that is in one table only, or is answered otherwise."""
    ours, theirs = _answers(before), _answers(after)
    yield from _only("claim", [claim for claim in ours if claim not in theirs], "first")
    yield from _only("claim", [claim for claim in theirs if claim not in ours], "second")
    for claim in (claim for claim in ours if claim in theirs and ours[claim] != theirs[claim]):
        yield f"claim: {claim}: {ours[claim]} -> {theirs[claim]}"


def _answers(table: Table) -> dict[str, str]:
    """Whether each claim holds and, where it is known, by what difference; a claim may be made of several models."""
    found: dict[str, str] = {}
    for claim in table.claims:
        answer = HOLDS[claim["holds"]] + (f" ({claim['difference']})" if claim.get("difference") else "")
        text = claim["claim"]
        found[text] = f"{found[text]}, {answer}" if text in found else answer
    return found


def _notes(before: Table, after: Table) -> Iterator[str]:
    yield from _only("note", [note for note in before.notes if note not in after.notes], "first")
    yield from _only("note", [note for note in after.notes if note not in before.notes], "second")


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
    """Scores of each sample of each method of each model in the table of a folder."""
    return {
        (result.model, result.label): {record.sample: dict(_flat(record.scores)) for record in result.done}
        for result in read_table_jobs(folder)
    }


def _flat(scores: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value among the scores, by a name such as ``multi.ap.0``."""
    if not isinstance(scores, Mapping | list) or (name and not scores):
        yield name, scores
        return
    entries = scores.items() if isinstance(scores, Mapping) else enumerate(scores)
    for key, value in entries:
        yield from _flat(value, f"{name}.{key}" if name else str(key))


def _samples(before: Mapping[Key, Mapping[str, Any]], after: Mapping[Key, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each method that is in one run only or whose samples changed, and for its largest changes."""
    for where, ours, theirs in (("first", before, after), ("second", after, before)):
        yield from (f"samples: {' '.join(key)} is in the {where} run only" for key in ours if key not in theirs)
    for key in (key for key in before if key in after):
        name, ours, theirs = " ".join(key), before[key], after[key]
        for where, only in (("first", ours.keys() - theirs.keys()), ("second", theirs.keys() - ours.keys())):
            if only:
                yield f"samples: {name}: {len(only)} in the {where} run only ({', '.join(sorted(only)[:MOST])})"
        shared = [sample for sample in ours if sample in theirs]
        changes = {sample: dict(_changes(ours[sample], theirs[sample])) for sample in shared}
        changed = [sample for sample in shared if changes[sample]]
        if changed:
            yield f"samples: {name}: {len(changed)} of {len(shared)} have other scores; the largest changes:"
            found = [(size, f"    {each}, {line}") for each in changed for line, size in changes[each].items()]
            yield from (line for _, line in sorted(found, key=lambda change: -change[0])[:MOST])


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What is said of each score that differs, and by how much: infinitely where it is no number in both runs."""
    for score in dict.fromkeys([*before, *after]):
        values = [each.get(score, ABSENT) for each in (before, after)]
        if values[0] != values[1]:
            numbers = [value for value in values if isinstance(value, int | float)]
            size = abs(numbers[1] - numbers[0]) if len(numbers) == 2 else inf
            yield f"{score}: {' -> '.join(_shown(values))}", size


def _shown(values: Sequence[Any]) -> list[str]:
    """Values in four digits, or in all where these are the same."""
    short = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(short) else [repr(value) for value in values]


def main(arguments: Sequence[str]) -> None:
    """Show what changed from one run of an experiment to another: cells, claims and notes, and scores of samples."""
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
    print("\n".join(lines) or SAME)  # noqa: T201
    sys.exit(1 if lines else 0)
