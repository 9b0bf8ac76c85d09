"""The table that every experiment writes: typed JSON, and CSV, Markdown and LaTeX renderings of it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from metagame.errors import RecordError
from metagame.jobs.records import replace_atomically

DASH = "–"
VERSION = 1


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: its name in the rows.
        label: its heading.
        type: type of its cells: ``text``; ``expression`` (sympy syntax); ``number``; ``count`` (an integer); ``mean``
            (an object with ``mean``, ``n`` and ``two_se``, which is None for a single sample); or ``flag`` (true, false
            or absent).
    """

    key: str
    label: str
    type: Literal["text", "expression", "number", "count", "mean", "flag"]


@dataclass(frozen=True)
class Table:
    """The fields of ``table.json``. It contains neither time nor host: equal runs give equal bytes.

    Attributes:
        title: one line.
        scale: ``tiny`` or ``paper``.
        columns: in reading order.
        rows: one mapping per row, from column key to cell; a cell that is absent or None is not known.
        published: the published counterpart of each row, with the same keys; {} if none is known.
        claims: the statements of the paper, each ``{"claim": text, "holds": true | false | None}``, if known with
            the ``difference`` that speaks most against it, and the answer that the ``published`` numbers give.
        n_samples: number of samples behind the table.
        notes: footnotes: definitions, what was left out and what failed.
        version: version of this format.
    """

    title: str
    scale: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    published: list[dict[str, Any]]
    n_samples: int
    claims: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    version: int = VERSION


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write ``table.json``, ``.csv``, ``.md`` and ``.tex``, each as a whole or not at all."""
    texts = {
        "table.json": json.dumps(asdict(table), indent=1, ensure_ascii=False) + "\n",
        "table.csv": _csv(table),
        "table.md": markdown(table),
        "table.tex": _latex(table),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with replace_atomically(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def claim_text(claim: Mapping[str, Any]) -> str:
    """A claim, the difference that stands most against it, and what the published numbers answer."""
    difference = f" ({claim['difference']})" if claim.get("difference") else ""
    published = f" [published numbers: {claim['published']}]" if claim.get("published") else ""
    return claim["claim"] + difference + published


def markdown(table: Table) -> str:
    """Heading, table with published values in brackets, claims and notes."""
    frame = _frame(table, _markdown_cell).rename(columns=_cell_text)
    lines = [
        f"# {_one_line(table.title)}",
        "",
        _caption(table),
        "",
        frame.to_markdown(index=False, disable_numparse=True),
        "",
    ]
    lines += [f"- {HOLDS[claim['holds']]}: {_one_line(claim_text(claim))}" for claim in table.claims]
    lines += [f"- {_one_line(note)}" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def read_table(folder: Path) -> Table:
    """Read the table of an experiment from its ``table.json``.

    Raises:
        RecordError: the file is missing, damaged, or of another version.
    """
    path = folder / "table.json"
    if not path.exists():
        raise RecordError(f"{folder} has no table.json: give the folder of an experiment that has run.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        table = Table(**content | {"columns": [Column(**column) for column in content["columns"]]})
        _check_cells(table)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise RecordError(f"{path} is not a table ({error}): run the experiment again.") from error
    if table.version != VERSION:
        raise RecordError(
            f"{path} has version {table.version}, but this release reads version {VERSION}: run the experiment again."
        )
    return table


def _check_cells(table: Table) -> None:
    """Raise a ValueError where rows have no counterpart, or numbers are none, as in a file that was changed by hand."""
    if len(table.rows) != len(table.published):
        raise ValueError(f"it has {len(table.rows)} rows, but published values for {len(table.published)}")
    numbers = [column for column in table.columns if column.type in ("number", "count", "mean")]
    for column, row in ((column, row) for row in [*table.rows, *table.published] for column in numbers):
        cell = row.get(column.key)
        parts = [cell["mean"], cell["two_se"] or 0] if isinstance(cell, dict) else [cell or 0]
        if not all(isinstance(part, int | float) for part in parts):
            raise ValueError(f"{cell!r} in the column {column.key} is no number")


def _caption(table: Table) -> str:
    published = "; published values in brackets" if any(table.published) else ""
    return f"Scale: {table.scale}; samples: {table.n_samples}{published}."


HOLDS = {True: "yes", False: "no", None: "not decided"}
"""Whether a claim holds, in words."""


def _frame(table: Table, render: Callable[[Column, Any], str]) -> pd.DataFrame:
    """Rendered cells, ours with the published value in brackets."""

    def cell(column: Column, ours: dict, published: dict) -> str:
        text = render(column, ours.get(column.key))
        if column.type in ("text", "flag") or published.get(column.key) is None:
            return text
        return f"{text} ({render(column, without_errors(published[column.key]))})"

    rows = [
        [cell(column, ours, theirs) for column in table.columns]
        for ours, theirs in zip(table.rows, table.published, strict=True)
    ]
    return pd.DataFrame(rows, columns=[column.label for column in table.columns])


def without_errors(value: Any) -> Any:
    """Of a cell of type ``mean`` its mean: published values stand in brackets, without their errors."""
    return value["mean"] if isinstance(value, dict) else value


def plain(column: Column, value: Any) -> str:
    """A cell as text: three digits of numbers, expressions in backticks, a dash for what is not known."""
    if value is None:
        return DASH
    match column.type:
        case "flag":
            return "yes" if value else "no"
        case "expression":
            return f"`{value}`"
        case "number":
            return _three_digits(value)
        case "mean" if isinstance(value, dict):
            spread = "" if value["two_se"] is None else f" ± {_three_digits(value['two_se'])}"
            return _three_digits(value["mean"]) + spread
        case "mean":
            return _three_digits(value)
    return str(value)


def _markdown_cell(column: Column, value: Any) -> str:
    text = plain(column, value)
    return _cell_text(text) if column.type == "text" else _one_line(text).replace("|", "\\|")


def _cell_text(text: str) -> str:
    """Within a row of Markdown: no character of it ends the cell or the table, or is markup, HTML or a formula."""
    return _MARKUP.sub(r"\\\g<0>", _one_line(text))


def _three_digits(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"


def _csv(table: Table) -> str:
    """One column per column, and one more for its published value where there is any; full precision."""
    data: dict[str, list] = {}
    for column in table.columns:
        cells = [row.get(column.key) for row in table.rows]
        if column.type == "mean":
            for part in ("mean", "two_se", "n"):
                data[f"{column.key}_{part}"] = [None if cell is None else cell[part] for cell in cells]
        else:
            data[column.key] = cells
        published = [row.get(column.key) for row in table.published]
        if column.type not in ("text", "flag") and any(value is not None for value in published):
            data[f"{column.key}_published"] = [without_errors(value) for value in published]
    # of line breaks pandas quotes its own only
    breaks = any("\r" in cell for cells in data.values() for cell in cells if isinstance(cell, str))
    quoting = csv.QUOTE_NONNUMERIC if breaks else csv.QUOTE_MINIMAL
    return pd.DataFrame(data).to_csv(index=False, quoting=quoting)


def _latex(table: Table) -> str:
    frame = _frame(table, _tex)
    frame.columns = [_tex(Column("", "", "text"), label) for label in frame.columns]
    body = frame.style.hide(axis="index").to_latex(hrules=True)
    notes = [table.title, _caption(table), *table.notes]
    return "".join(f"% {_one_line(note)}\n" for note in notes) + body


def _one_line(text: str) -> str:
    """Errors may have several lines, a list item and a comment have one."""
    return " ".join(text.split())


def _tex(column: Column, value: Any) -> str:
    if column.type == "expression" and value is not None:
        import sympy  # here, since most tables hold no expressions

        from metagame.models.polynomial import parse_expression

        return f"${sympy.latex(parse_expression(value))}$"
    text = _one_line(plain(column, value)).translate(_TEX)
    return re.sub(r"(?:phi|φ)\\_((?:\w|\\_)+)", _phi, text)


def _phi(match: re.Match) -> str:
    return r"$\phi_{" + match[1].replace(r"\_", r"\,") + "}$"


_MARKUP = re.compile(r"[\\`*~$<&\[|]|(?<!\w)_|_(?!\w)")
_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "_&%#${}"},
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        DASH: "--",
        "±": r"$\pm$",
        "→": r"$\to$",
        "∅": r"$\emptyset$",
    }
)
