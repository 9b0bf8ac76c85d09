"""Shards of a job: what each works on, and that their records and reasons come together."""

from __future__ import annotations

import json
from itertools import zip_longest

from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from metagame.jobs.fingerprint import Provenance
from metagame.jobs.grid import read_refusal, refuse
from metagame.jobs.run import Task, own_batches, run_job
from metagame.jobs.spec import asked_path
from metagame.report.experiment import write_report
from tests.tiny.jobs import Number, job_config
from tests.tiny.runs import contents, records, table

TASK = Task(Number("1", 1.0), "key", Provenance("code", "weights", "files"), {})


@given(n=st.integers(1, 40), size=st.integers(1, 50), shards=st.integers(1, 13))
def test_batches_are_dealt_whole_to_all_shards_and_are_smaller_where_there_would_be_too_few(n, size, shards):
    tasks = dict.fromkeys(map(str, range(n)), TASK)
    parts = [own_batches(tasks, size, shards, shard) for shard in range(shards)]
    dealt = [batch for turn in zip_longest(*parts) for batch in turn if batch is not None]
    assert [key for batch in dealt for key in batch] == list(tasks)
    if n > size * shards:
        assert dealt == own_batches(tasks, size, 1, None)
        assert {len(batch) for batch in dealt[:-1]} == {size}
    else:
        assert max(map(len, parts)) == 1


def test_shards_do_every_sample_once_and_share_a_folder_and_a_table(tmp_path):
    parts, whole = job_config(tmp_path / "parts", shards=2), job_config(tmp_path / "whole")
    written = []
    for shard in (1, 0):
        parts.shard = shard
        outcome = run_job(parts)
        write_report([parts])
        assert outcome.n_samples == outcome.n_done == (2 if shard == 0 else 1)
        assert table(tmp_path / "parts")["notes"] == (["Share: 2 of 3 samples not computed yet."] if shard else [])
        written.append([path.read_bytes() for path in (outcome.folder / "config.yaml", asked_path(parts))])
    assert written[0] == written[1]
    assert OmegaConf.load(outcome.folder / "config.yaml").shard is None
    assert [each["id"] for each in json.loads(written[0][1])["samples"]] == ["1", "2", "3"]
    run_job(whole)
    (result,) = write_report([whole])
    assert [record.sample for record in result.done] == list(result.sample_ids) == ["1", "2", "3"]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    (lines,) = records(tmp_path / "parts").values()
    assert [line["sample"] for line in lines] == ["2", "1", "3"]


def test_why_a_job_could_not_start_is_in_the_table_until_it_starts(tmp_path):
    good, bad = job_config(tmp_path), job_config(tmp_path, seed=1, attribution__label="Other")
    run_job(good)
    refuse(bad, "no weights here.")
    write_report([good, bad])
    assert read_refusal(bad) == "no weights here."
    assert table(tmp_path)["notes"] == ["Other could not start: no weights here."]
    run_job(bad)
    write_report([good, bad])
    assert read_refusal(bad) is None
    assert table(tmp_path)["notes"] == []


def test_a_shard_that_starts_does_not_hide_why_another_could_not(tmp_path):
    refuse(job_config(tmp_path, shards=2, shard=0), "no GPU here.")
    run_job(job_config(tmp_path, shards=2, shard=1))
    assert read_refusal(job_config(tmp_path)) == "no GPU here."
    run_job(job_config(tmp_path))
    assert read_refusal(job_config(tmp_path)) is None
