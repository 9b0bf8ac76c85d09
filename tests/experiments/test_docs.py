"""What the pages of the documentation show runs as it stands there."""

import hashlib
import json
import shlex

import pytest
from matplotlib.figure import Figure

from tests.tiny.documents import PAGES, blocks
from tests.tiny.jobs import ROOT
from tests.tiny.runs import run


@pytest.mark.slow
def test_recipes_run_one_after_the_other():
    namespace = {}
    for block in blocks("python", PAGES["recipes.md"]):
        exec(block, namespace)
    assert namespace["phi"].values.shape == (16, 3)
    assert namespace["maps"].shape == (40, 256)


@pytest.mark.slow
def test_one_s_own_model_is_explained_as_the_page_says(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("matplotlib.pyplot.subplots", lambda **settings: (None, Figure().subplots()))
    namespace = {}
    for block in blocks("python", PAGES["explain.md"]):
        exec(block, namespace)
    assert "strongest: never → rude +0.598; rude → never +0.597" in capsys.readouterr().out
    assert [phi.grid for phi in namespace["results"]] == [(4, 4)] * 2
    assert namespace["phi"].players == ("a", "b", "c", "d")


PUBLISHED = ROOT / "docs/results/small"


@pytest.mark.parametrize("made", sorted(PUBLISHED.glob("*/*/made.json")), ids=lambda made: f"{made.parent.name}")
def test_results_of_real_weights_are_the_files_that_their_run_wrote(made):
    files = json.loads(made.read_text(encoding="utf-8"))["files"]
    assert files == {name: hashlib.sha256((made.parent / name).read_bytes()).hexdigest() for name in files}


def test_code_of_the_tour_gives_what_its_comments_say(capsys):
    (block,) = blocks("python", PAGES["tour.md"])
    exec(block, {})
    assert capsys.readouterr().out == "[[1. 1.]\n [2. 0.]]\n[2. 2.]\n"


@pytest.mark.slow
def test_results_are_read_in_ten_lines_of_pandas(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").symlink_to(ROOT / "data")
    (command,) = blocks("bash", PAGES["reading_results.md"])
    status, errors = run(*shlex.split(command)[2:], cwd=tmp_path)
    assert status == 0, errors
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python", PAGES["reading_results.md"])
    namespace = {}
    exec(block, namespace)
    assert namespace["means"]["objects_4.mean"].tolist() == pytest.approx(
        namespace["scores"]["objects_4"].groupby("method", sort=False).mean().tolist(), abs=1e-6
    )
    assert namespace["phi"].shape == (16, 4)
    assert "two_se" in capsys.readouterr().out


def test_every_field_of_the_results_is_described():
    from dataclasses import fields

    from metagame.jobs.records import ARRAYS, OF_META, PICTURE, SHARED, Record
    from metagame.report.table import Column, Table

    text = (ROOT / "docs/reading_results.md").read_text()
    names = {each.name for kind in (Record, Table, Column) for each in fields(kind)}
    missing = [name for name in (*names, *OF_META, SHARED, *ARRAYS, PICTURE) if f"`{name}`" not in text]
    assert not missing
