"""What is said of two runs of an experiment that differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metagame.jobs.run import run_job
from metagame.jobs.spec import merged
from metagame.report.diff import compare_runs, main
from metagame.report.experiment import write_report
from metagame.report.results import read_jobs
from metagame.report.table import read_table, write_table
from metagame.viewer.compare import write_comparison
from tests.tiny.jobs import Numbers, job_config
from tests.tiny.vision_language import refused

SCORES = {"accuracy": 0.5, "recall": 0.25, "tokens": ["a"]}


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Make the folder of an experiment whose samples, numbers, have these scores."""

    def run(name, samples):
        folder = tmp_path / name
        monkeypatch.setattr(Numbers, "score", lambda _, sample, *__: SCORES | samples[int(sample.value)])
        cfg = job_config(
            folder, benchmark__values=list(samples), report__table={"_target_": "metagame.report.scores.scores_table"}
        )
        run_job(cfg)
        write_report([cfg])
        return folder

    return run


@pytest.fixture
def equal(ran):
    """Two runs of one sample."""
    return ran("one", {1: {}}), ran("other", {1: {}})


def test_runs_with_the_same_numbers_do_not_differ(equal, capsys):
    one, other = equal
    assert compare_runs(one, other) == []
    with pytest.raises(SystemExit) as stopped:
        main([str(one), str(other)])
    assert stopped.value.code == 0
    assert "Nothing differs" in capsys.readouterr().out


def test_cells_and_samples_that_changed_are_told_the_largest_change_first(ran):
    one = ran("one", {1: {}, 2: {}, 3: {}})
    other = ran("other", {1: {"accuracy": 0.75}, 2: {"recall": 1.0}, 4: {}})
    lines = compare_runs(one, other)
    assert any(line.endswith("accuracy: 0.500 ± 0.000 -> 0.583 ± 0.167") for line in lines)
    at = next(number for number, line in enumerate(lines) if "2 of 2 have other scores" in line)
    assert lines[at + 1 :] == ["    2, recall: 0.25 -> 1", "    1, accuracy: 0.5 -> 0.75"]
    assert any("1 in the first run only (3)" in line for line in lines)
    assert any("1 in the second run only (4)" in line for line in lines)


NESTED = {"single": {"correct": 3, "iou": [0.5, None, "x"]}}


def test_scores_within_scores_are_compared_and_those_that_are_no_numbers_come_first(ran):
    changes = [{"correct": -300}, {"iou": [0.5, 1, "x"]}, {"iou": [0.50001, None, "y"]}, {"new": {}}]
    one = ran("one", dict.fromkeys(range(1, 5), NESTED))
    other = ran("other", {place: {"single": NESTED["single"] | each} for place, each in enumerate(changes, 1)})
    head, *lines = compare_runs(one, other)
    assert "4 of 4 have other scores" in head
    assert lines == [
        "    2, single.iou.1: None -> 1",
        "    3, single.iou.2: x -> y",
        "    4, single.new: absent -> {}",
        "    1, single.correct: 3 -> -300",
        "    3, single.iou.0: 0.5 -> 0.50001",
    ]
    page = write_comparison(one, other, one.parent / "page").read_text(encoding="utf-8")
    assert all(f"<li>{line.replace('->', '-&gt;')}</li>" in page for line in (head, *lines))


def test_jobs_that_are_not_in_the_table_are_left_out_and_methods_of_one_run_alone_are_named(equal, tmp_path):
    one, other = equal
    page = write_comparison(one, other, tmp_path / "page").read_bytes()
    (cfg,) = read_jobs(other).values()
    for label, factor in {"Share": 2.0, "Second": 3.0}.items():
        added = merged(cfg, {"attribution": {"label": label, "method": {"factor": factor}}})
        run_job(added)
        assert compare_runs(one, other) == []
        assert write_comparison(one, other, tmp_path / "page").read_bytes() == page
    write_report([cfg, added])
    for runs, where in (((one, other), "second"), ((other, one), "first")):
        lines = [line for line in compare_runs(*runs) if line.startswith("samples:")]
        assert lines == [f"samples: plain Second is in the {where} run only"]


def test_claims_and_notes_are_compared(equal):
    one, other = equal
    claims = [{"claim": "a", "holds": True}, {"claim": "a", "holds": True, "difference": "+1"}]
    others = [{"claim": "a", "holds": True}, {"claim": "a", "holds": None}, {"claim": "b", "holds": False}]
    write_table(replace(read_table(one), claims=claims, notes=["same", "old"]), one)
    write_table(replace(read_table(other), claims=others, notes=["new", "same"]), other)
    assert compare_runs(one, other) == [
        "table: claim 'b' is in the second run only",
        "claim: a: yes, yes (+1) -> yes, not decided",
        "table: note 'old' is in the first run only",
        "table: note 'new' is in the second run only",
    ]


def test_rows_and_columns_of_one_table_alone_are_named(equal):
    one, other = equal
    table = read_table(other)
    (row,) = table.rows
    write_table(replace(table, rows=[row, row], published=[{}, {}], columns=table.columns[:3]), other)
    lines = compare_runs(one, other)
    assert any(line.endswith("(2)' is in the second run only") for line in lines)
    assert "table: column 'recall' is in the first run only" in lines
    with refused("has no table.json: give the folder of an experiment that has run"):
        compare_runs(one, one.parent)


@pytest.mark.parametrize(
    ("damage", "accuracy", "told", "untold"),
    [
        ("table.json", 0.75, ["<p>Not compared.</p>", "accuracy: 0.5 -&gt; 0.75"], "None of them differs"),
        ("samples/*.json", 0.5, ["None of them differs", "Not all scores were", "Not compared: no sample"], "No score"),
    ],
)
def test_the_page_says_what_it_could_not_compare(ran, damage, accuracy, told, untold):
    one, other = ran("one", {1: {}}), ran("other", {1: {"accuracy": accuracy}})
    for path in other.glob(damage):
        path.write_text(path.read_text()[:50])
    page = write_comparison(one, other, one.parent / "page").read_text(encoding="utf-8")
    assert [text for text in (*told, untold) if text in page] == told
