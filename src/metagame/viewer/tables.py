"""An experiment's section on the page: its table, claims, notes and figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metagame.report.drawing import CAPTION, pictures_in
from metagame.report.table import Column, Table, claim_text, plain, read_table, without_errors
from metagame.viewer.errors import UNREADABLE, error_text
from metagame.viewer.pack import figure_uri

VERDICTS = {
    True: ("holds", "✓ holds"), False: ("fails", "✗ does not hold"), None: ("open", "? not decided"),
}  # fmt: skip
FEW_NOTES, SHORT_NOTES = 3, 500
"""More notes, or more letters of them, are folded."""


@dataclass(frozen=True)
class Cell:
    """A cell as it is shown.

    Attributes:
        text: ours.
        published: the published value; empty where only others of the column have one, None where none has.
        kind: of the column.
    """

    text: str
    published: str | None
    kind: str


@dataclass(frozen=True)
class Section:
    """An experiment on the page.

    Attributes:
        name: of the experiment.
        table: None if it is missing or cannot be read.
        rows: the table's cells.
        claims: each with the class of its badge, its verdict and its text.
        figures: data URIs.
        caption: of the figures; empty if they have no caption.
        errors: what could not be read, in sentences.
    """

    name: str
    table: Table | None
    rows: list[list[Cell]]
    claims: list[tuple[str, str, str]]
    figures: list[str]
    caption: str
    errors: list[str]

    @property
    def title(self) -> str:
        """The table's title without the experiment's name."""
        return self.table.title.removeprefix(f"{self.name}: ") if self.table else "no table"

    @property
    def has_published(self) -> bool:
        return any(cell.published for row in self.rows for cell in row)

    @property
    def folds_notes(self) -> bool:
        notes = self.table.notes if self.table else []
        return len(notes) > FEW_NOTES or sum(map(len, notes)) > SHORT_NOTES


def read_section(folder: Path) -> Section:
    """The section of an experiment's folder; what is missing or broken in it is told there."""
    table, rows, claims, figures, errors = None, [], [], [], []
    if (folder / "table.json").exists():
        try:
            table = read_table(folder)
            rows = _rows(table)
            claims = [(*VERDICTS[claim.get("holds")], claim_text(claim)) for claim in table.claims]
        except UNREADABLE as error:
            errors.append(error_text(error, folder.parent))
    for path in pictures_in(folder):
        try:
            figures.append(figure_uri(path.read_bytes()))
        except UNREADABLE as error:
            errors.append(error_text(error, folder.parent))
    text = ""
    try:
        text = " ".join((folder / CAPTION).read_text(encoding="utf-8").split())
    except FileNotFoundError:
        pass
    except UNREADABLE as error:
        errors.append(f"{CAPTION} cannot be read: {error_text(error, folder.parent)}")
    return Section(folder.name, table, rows, claims, figures, text, errors)


def _rows(table: Table) -> list[list[Cell]]:
    compared = {
        column.key
        for column in table.columns
        if column.type not in ("text", "flag") and any(row.get(column.key) is not None for row in table.published)
    }
    return [
        [
            _cell(column, ours.get(column.key), theirs.get(column.key), compared=column.key in compared)
            for column in table.columns
        ]
        for ours, theirs in zip(table.rows, table.published, strict=True)
    ]


def _cell(column: Column, ours: object, theirs: object, *, compared: bool) -> Cell:
    published = "" if theirs is None else plain(column, without_errors(theirs)).strip("`")
    return Cell(plain(column, ours).strip("`"), published if compared else None, column.type)
