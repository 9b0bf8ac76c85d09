"""What a table says of rows that are not over the same samples, or not computed from the same files."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

import pytest

from metagame.jobs.environment import LIBRARIES
from metagame.jobs.run import run_job
from metagame.jobs.spec import merged
from metagame.report.experiment import write_report
from metagame.report.mixture import mixture_notes
from tests.tiny.jobs import Plain, job_config
from tests.tiny.reports import Made, made_up, only, stub_config
from tests.tiny.runs import table

NAMES = ("A", "B", "C")
TWO_LIMITS = ("2 samples of A (limit=2)", "sample of B, C (limit=1)")


def configs(folder, **changes):
    return [
        job_config(folder, attribution__label=name, attribution__method__factor=float(place), **changes)
        for place, name in enumerate(NAMES)
    ]


@pytest.mark.parametrize(
    ("limits", "again", "notes"),
    [
        ((2, 2, 2), {}, ["Only the first 2 samples (limit=2)."]),
        ((None, None, None), {0: 1}, ["Only the first sample of A (limit=1)."]),
        ((1, 1, 1), {0: None}, ["Only the first sample of B, C (limit=1)."]),
        ((1, 1, 1), {0: 2}, [f"Only the first {each}." for each in TWO_LIMITS]),
        ((None, None, None), {0: 3}, []),
        ((1000, 1000, 1000), {}, []),
    ],
)
def test_jobs_that_were_last_run_with_another_limit_are_named(tmp_path, limits, again, notes):
    for limit, cfg in zip(limits, configs(tmp_path), strict=True):
        run_job(merged(cfg, {"limit": limit}))
    for place, limit in again.items():
        run_job(merged(configs(tmp_path)[place], {"limit": limit}))
    for last in {*limits, *again.values()}:  # the limit of the command that writes the table says nothing of other jobs
        write_report(configs(tmp_path, limit=last))
        assert table(tmp_path)["notes"] == notes


def test_jobs_of_a_model_whose_files_have_changed_in_between_are_told_apart(tmp_path, monkeypatch):
    first, *rest = configs(tmp_path)
    for cfg in (first, *rest):
        run_job(cfg)
    monkeypatch.setattr(Plain, "revision", "second")
    run_job(first)
    write_report([first, *rest])
    (note,) = table(tmp_path)["notes"]
    assert "different versions of the model's files: A; B, C." in note


def test_jobs_that_were_computed_with_other_versions_of_libraries_are_told_apart(tmp_path, monkeypatch):
    first, *rest = configs(tmp_path)
    run_job(merged(first, {"limit": 1}))
    versions = {name: version(name) for name in LIBRARIES} | {"torch": "0.1"}
    monkeypatch.setattr("metagame.jobs.environment._version", versions.get)
    for cfg in (first, *rest):
        run_job(cfg)
    write_report([first, *rest])
    (note,) = table(tmp_path)["notes"]
    assert f"different versions or devices: torch: {version('torch')} (A), 0.1 (A, B, C). " in note


def results(folder, files, **changes):
    """A result for each method with these versions of its samples' files."""
    found = []
    for name, versions in files.items():
        cfg = stub_config(folder, attribution={"name": name, "label": name, "method": {}}, **changes)
        result = only(made_up(cfg, {sample: Made() for sample in versions}))
        records = [replace(each, provenance={"files": versions[each.sample]}) for each in result.records]
        found.append(replace(result, records=records))
    return found


OLD, NEW = {"1": "a", "2": "b"}, {"1": "a", "2": "c"}


def test_jobs_whose_samples_or_their_files_have_changed_are_told_apart_within_a_benchmark(tmp_path):
    assert mixture_notes(results(tmp_path, {"A": OLD, "B": OLD})) == []
    (note,) = mixture_notes(results(tmp_path, {"A": OLD, "B": NEW, "C": OLD}))
    assert "different versions of the samples' files: A, C; B." in note
    (note,) = mixture_notes(results(tmp_path / "samples", {"A": OLD, "B": {"1": "a"}}))
    assert "not over the same samples: 2 of A; 1 of B." in note
    others = results(tmp_path / "other", {"B": {"1": "d", "3": "e"}}, benchmark={"name": "other"})
    assert mixture_notes([*results(tmp_path / "one", {"A": OLD}), *others]) == []
