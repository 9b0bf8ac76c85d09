"""Captions, prompts and file names in tables of all formats: nothing is split, dropped or set as a formula."""

from __future__ import annotations

import csv
import io

from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from metagame.report import experiment
from metagame.report.experiment import free_text, save_figure
from metagame.report.table import Column, Table, read_table, write_table
from tests.tiny.pages import page_of_texts
from tests.tiny.texts import texts


def test_a_table_of_any_texts_has_a_row_for_each_in_every_format(tmp_path):
    given = texts(2_000)
    numbers, columns = [str(number) for number in range(len(given))], [Column("text", "a | b", "text")]
    rows = [{"text": text, "n": number} for text, number in zip(given, numbers, strict=True)]
    columns.append(Column("n", "n", "text"))
    write_table(Table("any | text\nat all", "tiny", columns, rows, [{} for _ in rows], n_samples=1), tmp_path)
    assert [row["text"] for row in read_table(tmp_path).rows] == given
    with io.StringIO((tmp_path / "table.csv").read_bytes().decode(), newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == given
    tokens = MarkdownIt("commonmark").enable(["table"]).parse((tmp_path / "table.md").read_text())
    cells = [token.children for token in tokens if token.type == "inline"][-2 * len(given) :]
    assert {each.type for cell in cells for each in cell} <= {"text", "text_special"}
    shown = ["".join(each.content for each in cell) for cell in cells]
    assert shown[::2] == [" ".join(text.split()) for text in given]
    assert shown[1::2] == numbers
    tex = (tmp_path / "table.tex").read_text().split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert [line.rsplit(" & ", 1)[1] for line in tex] == [f"{number} \\\\" for number in numbers]


def test_any_text_can_be_drawn_and_what_no_font_has_is_told_once(tmp_path, caplog, monkeypatch, recwarn):
    monkeypatch.setattr(experiment, "FALLBACK_FONTS", ())
    with free_text():
        figure = Figure(figsize=(4, 10))
        for number, text in enumerate([*texts(100, seed=1), "\ue123"]):
            figure.text(0, number / 100, text.replace("\t", " "), fontsize=3)
        save_figure(figure, tmp_path)
    assert (tmp_path / "figure.png").stat().st_size > 0
    (line,) = caplog.messages
    assert "\ue123" in line
    assert "install one that does, such as Noto Sans CJK" in line
    assert [str(each.message) for each in recwarn if "Glyph" in str(each.message)] == []


def test_characters_that_matplotlibs_font_lacks_are_drawn_by_one_that_is_installed(tmp_path, caplog, monkeypatch):
    drawn = []
    for fonts in (["No such font"], ["No such font", "STIXGeneral"]):
        monkeypatch.setattr(experiment, "FALLBACK_FONTS", fonts)
        with free_text():
            figure = Figure(figsize=(2, 1))
            figure.text(0.1, 0.4, "dog ⌚")
            save_figure(figure, tmp_path)
        drawn.append((tmp_path / "figure.png").read_bytes())
    assert drawn[0] != drawn[1]
    (line,) = caplog.messages  # without the font
    assert "⌚" in line


def test_the_page_holds_any_text_as_it_is(tmp_path):
    page_of_texts(tmp_path / "tiny", 100)
