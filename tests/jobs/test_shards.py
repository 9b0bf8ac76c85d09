"""Shards of a job: what each works on, and that their records and reasons come together."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from metagame.jobs.grid import read_refusal, refuse
from metagame.jobs.run import run_job
from metagame.jobs.spec import asked_path, job_folder
from metagame.report.experiment import write_report
from tests.tiny.jobs import Plain, job_config
from tests.tiny.runs import table

VALUES = list(range(1, 12))


def config(folder, **changes):
    return job_config(folder, benchmark__values=VALUES, **changes)


def samples(folder):
    return [record["sample"] for file in folder.rglob("records.jsonl") for record in map(json.loads, file.open())]


@pytest.mark.parametrize(("shards", "batch_size"), [(1, 3), (3, 1), (3, 3), (3, 50), (13, 3)])
def test_shards_do_every_sample_once_and_share_a_folder_and_a_table(tmp_path, monkeypatch, shards, batch_size):
    monkeypatch.setattr(Plain, "batch_size", batch_size)
    order = [*range(shards)[::2], *range(shards)[1::2]]
    outcomes = [run_job(config(tmp_path / "shards", shards=shards, shard=shard)) for shard in order]
    run_job(config(tmp_path / "whole"))
    assert sum(outcome.n_samples for outcome in outcomes) == len(VALUES)
    assert sorted(samples(tmp_path / "shards")) == sorted(samples(tmp_path / "whole"))
    assert {outcome.folder for outcome in outcomes} == {job_folder(config(tmp_path / "shards"))}
    (result,) = write_report([config(tmp_path / "shards")])
    write_report([config(tmp_path / "whole")])
    assert [record.sample for record in result.done] == list(result.sample_ids) == list(map(str, VALUES))
    tables = [(tmp_path / name / "table.json").read_bytes() for name in ("shards", "whole")]
    assert tables[0] == tables[1]


def test_samples_are_split_in_whole_batches_so_that_each_has_the_same_company(tmp_path, monkeypatch):
    companies, prepare = [], Plain.prepare
    monkeypatch.setattr(Plain, "batch_size", 3)
    monkeypatch.setattr(
        Plain,
        "prepare",
        lambda self, batch: companies.append([sample.id for sample in batch]) or prepare(self, batch),
    )
    run_job(config(tmp_path / "whole"))
    whole = list(companies)
    companies.clear()
    for shard in (0, 1):
        run_job(config(tmp_path / "shards", shards=2, shard=shard))
    assert companies == [*whole[::2], *whole[1::2]]


def test_no_shard_is_idle_while_another_has_two_batches_to_split(tmp_path, monkeypatch):
    monkeypatch.setattr(Plain, "batch_size", 50)
    shares = [run_job(config(tmp_path, shards=4, shard=shard)).n_samples for shard in range(4)]
    assert sorted(shares) == [2, 3, 3, 3]


def test_a_table_counts_the_samples_of_shards_that_have_not_run(tmp_path):
    run_job(config(tmp_path, shards=2, shard=0))
    write_report([config(tmp_path)])
    assert any("5 of 11 samples not computed yet" in note for note in table(tmp_path)["notes"])


def test_the_shared_config_is_the_same_whichever_shard_wrote_it_last(tmp_path):
    written = []
    for shard in (1, 0):
        folder = run_job(config(tmp_path, shards=2, shard=shard)).folder
        written.append([path.read_bytes() for path in (folder / "config.yaml", asked_path(config(tmp_path)))])
    assert written[0] == written[1]
    assert OmegaConf.load(folder / "config.yaml").shard is None
    assert len(json.loads(asked_path(config(tmp_path)).read_text())["samples"]) == len(VALUES)


def test_why_a_job_could_not_start_is_in_the_table_until_it_starts(tmp_path):
    good, bad = config(tmp_path), config(tmp_path, attribution__method__factor=2.0, attribution__label="Twice")
    run_job(good)
    refuse(bad, "no weights here.")
    write_report([good, bad])
    assert read_refusal(bad) == "no weights here."
    assert table(tmp_path)["notes"] == ["Twice could not start: no weights here."]
    run_job(bad)
    write_report([good, bad])
    assert read_refusal(bad) is None
    assert table(tmp_path)["notes"] == []


def test_a_shard_that_starts_does_not_hide_why_another_could_not(tmp_path):
    shards = [config(tmp_path, shards=2, shard=shard) for shard in (0, 1)]
    refuse(shards[0], "no GPU here.")
    run_job(shards[1])
    assert read_refusal(config(tmp_path)) == "no GPU here."
    run_job(config(tmp_path))
    assert read_refusal(config(tmp_path)) is None
