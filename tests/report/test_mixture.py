"""What a table says of rows that are not over the same samples, or not computed from the same files."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from metagame.jobs.environment import LIBRARIES
from metagame.jobs.records import Record
from metagame.jobs.run import run_job
from metagame.jobs.spec import merged
from metagame.report.experiment import write_report
from metagame.report.mixture import mixture_notes
from tests.tiny.jobs import Plain, job_config
from tests.tiny.reports import only, stub_config, with_records
from tests.tiny.runs import table

NAMES = ("A", "B", "C")
TWO_LIMITS = [f"Only the first {each}." for each in ("2 samples of A (limit=2)", "sample of B, C (limit=1)")]


def configs(folder, **changes):
    return [
        job_config(folder, attribution__label=name, attribution__method__factor=float(place), **changes)
        for place, name in enumerate(NAMES)
    ]


def limited(name, limit):
    """A method's job of three samples with a limit."""
    records = [Record(f"{place}", f"{place}", "done") for place in range(min(3, limit or 3))]
    return only(with_records(stub_config("unused", attribution={"name": name, "label": name}, limit=limit), records))


@pytest.mark.parametrize(
    ("limits", "notes"),
    [
        ((2, 2, 2), ["Only the first 2 samples (limit=2)."]),
        ((1, None, None), ["Only the first sample of A (limit=1)."]),
        ((None, 1, 1), ["Only the first sample of B, C (limit=1)."]),
        ((2, 1, 1), TWO_LIMITS),
        ((3, None, None), []),
        ((1000, 1000, 1000), []),
    ],
)
def test_jobs_with_another_limit_are_named(limits, notes):
    assert mixture_notes(list(map(limited, NAMES, limits))) == notes


def test_the_limit_of_the_command_that_writes_the_table_says_nothing_of_jobs_that_ran_before(tmp_path):
    for cfg, limit in zip(configs(tmp_path), (2, 1, 1), strict=True):
        run_job(merged(cfg, {"limit": limit}))
    for last in (1, 2, None):
        write_report(configs(tmp_path, limit=last))
        assert table(tmp_path)["notes"] == TWO_LIMITS


def test_jobs_of_other_files_of_the_model_or_with_other_versions_of_libraries_are_told_apart(tmp_path, monkeypatch):
    first, *rest = configs(tmp_path)
    run_job(merged(first, {"limit": 1}))
    versions = {name: version(name) for name in LIBRARIES} | {"torch": "0.1"}
    monkeypatch.setattr("metagame.jobs.environment._version", versions.get)
    for cfg in (first, *rest):
        run_job(cfg)
    write_report([first, *rest])
    (note,) = table(tmp_path)["notes"]
    assert f"different versions or devices: torch: {version('torch')} (A), 0.1 (A, B, C). " in note
    monkeypatch.setattr(Plain, "revision", "second")
    run_job(first)
    write_report([first, *rest])
    (note,) = table(tmp_path)["notes"]
    assert "different versions of the model's files: A; B, C." in note


def computed(files, **changes):
    """A result for each method with these versions of its samples' files."""
    return [
        only(
            with_records(
                stub_config("unused", attribution={"name": name, "label": name}, **changes),
                [Record(each, each, "done", provenance={"files": version}) for each, version in versions.items()],
            )
        )
        for name, versions in files.items()
    ]


OLD, NEW = {"1": "a", "2": "b"}, {"1": "a", "2": "c"}


def test_jobs_whose_samples_or_their_files_have_changed_are_told_apart_within_a_benchmark():
    assert mixture_notes(computed({"A": OLD, "B": OLD})) == []
    (note,) = mixture_notes(computed({"A": OLD, "B": NEW, "C": OLD}))
    assert "different versions of the samples' files: A, C; B." in note
    (note,) = mixture_notes(computed({"A": OLD, "B": {"1": "a"}}))
    assert "not over the same samples: 2 of A; 1 of B." in note
    others = computed({"B": {"1": "d", "3": "e"}}, benchmark={"name": "other"})
    assert mixture_notes([*computed({"A": OLD}), *others]) == []
