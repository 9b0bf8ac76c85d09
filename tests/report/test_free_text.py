"""Captions, prompts and file names in tables of all formats: nothing is split, dropped or set as a formula."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
from matplotlib.figure import Figure

from metagame.report.experiment import save_figure
from metagame.report.table import Column, Table, read_table, write_table

PIECES = [*"$_^%#{}\\|,='\"<>&~*`\t\n ", "😀", "漢字", "é", "e\u0301", "عربي", "x" * 200, "phi_1", "word"]


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return ["a" + "".join(rng.choice(PIECES, rng.integers(0, 9))) + "z" for _ in range(count)]


def test_a_table_of_any_texts_has_a_row_for_each_in_every_format(tmp_path):
    given = texts(10_000)
    columns = [Column("text", "a | b", "text"), Column("n", "n", "text")]
    rows = [{"text": text, "n": str(number)} for number, text in enumerate(given)]
    write_table(Table("any | text\nat all", "tiny", columns, rows, [{} for _ in rows], n_samples=1), tmp_path)
    assert [row["text"] for row in read_table(tmp_path).rows] == given
    assert [row["text"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]] == given
    with io.StringIO((tmp_path / "table.csv").read_bytes().decode(), newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == given
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(given)
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)
    tex = (tmp_path / "table.tex").read_text().split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert [line.rsplit(" & ", 1)[1] for line in tex] == [f"{number} \\\\" for number in range(len(given))]


def test_any_text_can_be_drawn(tmp_path):
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # as the report of an experiment does
        figure = Figure(figsize=(4, 30))
        for number, text in enumerate(texts(300, seed=1)):
            figure.text(0, number / 300, text.replace("\t", " "), fontsize=3)
        save_figure(figure, tmp_path)
    assert (tmp_path / "figure.png").stat().st_size > 0
