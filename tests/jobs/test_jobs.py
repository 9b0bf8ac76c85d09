"""A job: its samples are recorded one by one, a failure costs one of them, and a later run does what is left."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
from collections import Counter
from importlib.metadata import version
from typing import ClassVar

import numpy as np
import pytest
from omegaconf import OmegaConf

from metagame.contracts import WHOLE
from metagame.errors import RecordError, UserError
from metagame.experiments import finish
from metagame.jobs.environment import LIBRARIES
from metagame.jobs.progress import JobProgress
from metagame.jobs.records import RecordStore
from metagame.jobs.run import _tell_time, run_job
from metagame.jobs.spec import asked_path, job_folder
from metagame.report.results import read_experiment, read_job
from tests.tiny.jobs import ROOT, Numbers, Plain, Share, job_config, run_on_terminal, run_together
from tests.tiny.runs import FORKS, table

PAIRS = {"attribution__name": "pairs", "attribution__method": {"_target_": "tests.tiny.jobs.Pairs"}}


def records(cfg):
    """The job's records by sample."""
    return {record.sample: record for record in RecordStore(job_folder(cfg)).read().values()}


def statuses(cfg):
    return {sample: record.status for sample, record in records(cfg).items()}


def prepared(path):
    """The samples that the model prepared, over all runs."""
    return [line.split()[1] for line in path.read_text().splitlines()]


def test_every_sample_gets_a_record_with_scores_and_arrays(tmp_path):
    cfg = job_config(tmp_path)
    outcome = run_job(cfg)
    record = records(cfg)["2"]
    assert (outcome.n_samples, outcome.n_done, outcome.n_failed, outcome.errors) == (3, 3, 0, ())
    assert (record.status, record.scores, record.arrays) == ("done", {"value": 2.0}, ["attribution"])
    assert RecordStore(outcome.folder).load_arrays(record)["attribution"].tolist() == [2.0, 2.0]
    assert record.labels == {WHOLE: {"players": ["p", "q"], "targets": ["p", "q"], "grid": None, "meta": None}}


def test_a_failing_sample_costs_itself_is_in_the_notes_and_is_tried_again_by_the_next_run(tmp_path, monkeypatch):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"))
    monkeypatch.setattr(Share, "broken", {"2"})
    outcome = run_job(cfg)
    assert statuses(cfg) == {"1": "done", "2": "failed", "3": "done"}
    assert records(cfg)["2"].error == "RuntimeError: no memory for 2"
    assert (outcome.n_done, outcome.n_failed, outcome.errors) == (2, 1, ("RuntimeError: no memory for 2",))
    assert finish([cfg])
    assert table(tmp_path)["notes"] == ["Share: sample 2 failed: RuntimeError: no memory for 2"]
    monkeypatch.setattr(Share, "broken", set())
    outcome = run_job(cfg)
    assert finish([cfg])
    assert prepared(tmp_path / "log") == ["1", "2", "3", "2"]
    assert (outcome.n_done, outcome.n_failed) == (3, 0)
    assert table(tmp_path)["notes"] == []


def test_fail_fast_stops_at_the_first_failing_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(Share, "broken", {"2"})
    cfg = job_config(tmp_path, fail_fast=True)
    with pytest.raises(RuntimeError, match="no memory for 2"):
        run_job(cfg)
    assert statuses(cfg) == {"1": "done", "2": "failed"}


def test_a_job_without_any_finished_sample_writes_no_table_and_exits_with_1(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Share, "broken", {"1", "2", "3"})
    cfg = job_config(tmp_path)
    assert run_job(cfg).n_done == 0
    assert not finish([cfg])
    assert not (tmp_path / "table.json").exists()
    assert "no sample was computed, so no table is written. RuntimeError: no memory for 1" in caplog.text


def test_limit_takes_the_first_samples_and_later_runs_only_what_is_left(tmp_path):
    expected = [(2, ["1", "2"]), (None, ["1", "2", "3"]), (None, ["1", "2", "3"])]
    for limit, done in expected:
        outcome = run_job(job_config(tmp_path, model__log=str(tmp_path / "log"), limit=limit))
        assert prepared(tmp_path / "log") == done
        assert outcome.n_samples == outcome.n_done == len(done)


REFUSED = {
    **{f"limit={value}": ({"limit": value}, f"limit={value} must be a positive") for value in (0, -1, "abc", 1.5)},
    **{f"seed={value}": ({"seed": value}, f"seed={value} must be") for value in ("abc", -1)},
    "reuse": ({"reuse": "old"}, "reuse=old is unknown: choose fresh, or stale"),
    **{f"shards={value}": ({"shards": value}, f"shards={value} must be a positive integer") for value in (0, 2.5)},
    "which shard": ({"shards": 3}, "shards=3 needs a sweep"),
    "shard 3 of 3": ({"shards": 3, "shard": 3}, "shard=3 must be an integer from 0 to 2, since shards=3"),
    "shard -1": ({"shards": 3, "shard": -1}, "shard=-1 must be an integer from 0 to 2"),
    "shard of one": ({"shard": 1}, "shard=1 must be an integer from 0 to 0, since shards=1"),
    "another key": ({"limt": 1}, "unknown settings (limt)"),
    "a key of an attribution": ({"attribution__idnex": "ksv"}, "unknown settings (attribution.idnex)"),
    "a key of a variant": (
        {"attribution__variants": {"one": {"mta": True}}}, "unknown settings (attribution.variants.one.mta)",
    ),
    **{f"{key}=1": ({key.replace(".", "__"): 1}, f"unknown settings ({key})") for key in (
        "scale.thread", "report.figures", "tracker.foo", "attribution.pointing_game.n_imags",
        "attribution.variants.one.pointing_game", "attribution.variants.one.variants",
    )},
    **{f"scale.threads={value}": ({"scale__threads": value}, f"scale.threads={value} must be a positive integer")
       for value in ("abc", 0, 1.5, True)},
    "scale.needs_gpu": ({"scale__needs_gpu": "no"}, "scale.needs_gpu=no must be true or false"),
    "a figure": ({"report__figure": 3}, "report.figure=3 must be a mapping with a _target_"),
    "no table": ({"report__table": None}, "report.table=None must be a mapping with a _target_"),
    **{f"leave_out={value}": ({"leave_out": [value]}, f"leave_out has {value}, which is no combination of parts")
       for value in ({}, 3, {"modle": "plain"}, {"seed": 0})},
    "a model of another scale": (
        {"model__for_scale": "paper"}, "model=plain has no values for scale=tiny: add configs/model/by_scale/tiny",
    ),
    "a variant of another scale": (
        {"attribution": {"name": "a", "variants": {"one": {"name": "share", "label": "Share", "for_scale": "paper"}}}},
        "attribution=share has no values for scale=tiny: add configs/attribution",
    ),
    "a report's argument": ({"report__table__limt": 1}, "got an unexpected keyword argument 'limt'"),
    "a part's argument": (
        {"attribution__method": {"_target_": "metagame.attributions.gradients.IntegratedGradients", "steps": 0}},
        "steps=0 must be a positive integer",  # without Hydra's wrapping
    ),
    "an estimator's argument": ({"estimator__max_playrs": 3}, "unknown settings (estimator.max_playrs)"),
    **{f"{key} beside variants": (
        {"attribution": {"name": "all", key: value, "variants": {"one": {"name": "share"}, "two": {"name": "share"}}}},
        f"attribution=all has variants, for which attribution.{key} has no effect: set attribution.variants.NAME.{key}"
        " instead, with NAME one of one, two.",
    ) for key, value in {"meta": True, "order": 2, "index": "banzhaf", "method": {"layers": 3}}.items()},
    "no samples": ({"benchmark__values": []}, "benchmark numbers has no samples with these settings"),
    "samples with the same id": (
        {"benchmark__values": [1, 3, 3]}, "benchmark numbers has several samples with the id 3",
    ),
    "no first-order method": (
        {"attribution__meta": True} | PAIRS,
        "attribution=pairs with attribution.meta=true: Pairs has no metagame: it is not a first-order",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_job_is_refused_by_name_before_any_sample(tmp_path, case):
    changes, reason = REFUSED[case]
    with pytest.raises(UserError) as refusal:
        run_job(job_config(tmp_path, **changes))
    assert reason in str(refusal.value)
    assert list(tmp_path.rglob("*.jsonl")) == []
    assert not list(tmp_path.iterdir()) or case in ("no samples", "samples with the same id")


@pytest.mark.parametrize("settings", [{"name": "jobs"}, {"jobs_dir": "outputs/tiny/numbers"}])
def test_a_table_in_the_folder_of_the_records_is_refused(settings):
    cfg = job_config("outputs/tiny/${name}", **settings)
    with pytest.raises(UserError, match=r"outputs/tiny/\w+ is the folder of the records, not of a table"):
        run_job(cfg)


@pytest.mark.parametrize(("method", "value"), [({}, "nan"), (PAIRS, "nan"), (PAIRS, "inf")], ids=str)
def test_a_value_that_is_not_finite_fails_its_sample_only(tmp_path, method, value):
    cfg = job_config(tmp_path, benchmark__values=[1, float(value), 3], **method)
    run_job(cfg)
    assert statuses(cfg) == {"1": "done", value: "failed", "3": "done"}
    assert method or records(cfg)[value].error.startswith("fn returned nan for target 0 on coalition [0, 1]")


def test_the_folder_of_a_job_says_what_it_was_computed_with_and_keeps_that(tmp_path, monkeypatch):
    cfg = job_config(tmp_path, seed=3)
    folder = run_job(cfg).folder
    written = (folder / "environment.json").read_bytes()
    environment = json.loads(written)
    assert (environment["seed"], environment["model_revision"], environment["device"]) == (3, "first", "cpu")
    assert environment["libraries"] == {name: version(name) for name in LIBRARIES}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert (environment["git_commit"] or "").removesuffix("-dirty") == head.stdout.strip()
    assert "seed: 3" in (folder / "config.yaml").read_text()
    monkeypatch.setattr("metagame.jobs.environment._git_commit", lambda: "new")
    run_job(cfg)
    assert (folder / "environment.json").read_bytes() == written
    assert {record.commit for record in records(cfg).values()} == {environment["git_commit"]}


def test_what_an_experiment_asks_of_a_job_is_kept_in_its_own_folder(tmp_path):
    cfg = job_config(tmp_path, seed=3)
    folder = run_job(cfg).folder
    asked = json.loads(asked_path(cfg).read_text())
    assert asked_path(cfg).parent == tmp_path / "samples"
    assert (tmp_path / asked["job"]).resolve() == folder.resolve()
    assert asked["config"]["seed"] == asked["identity"]["seed"] == 3
    kept = RecordStore(folder).read()
    assert [(each["id"], kept[each["records"][""]].sample) for each in asked["samples"]] == [(i, i) for i in "123"]


# Several methods in one job


class Fragile(Share):
    """As :class:`Share`, with broken samples of its own."""

    broken: ClassVar[set[str]] = set()


VARIANTS = {
    "attribution": {
        "name": "both",
        "label": "Share and its metagame",
        "variants": {
            "share": {"name": "share", "label": "Share", "method": {"_target_": "tests.tiny.jobs.Share"}},
            "meta_share": {
                "name": "meta_share", "label": "Share", "base": "share", "meta": True,
                "method": {"_target_": "tests.jobs.test_jobs.Fragile"},
            },
        },
    }
}  # fmt: skip


def by_variant(cfg):
    """Status of each record, by variant and sample, in the order of the file."""
    lines = map(json.loads, (job_folder(cfg) / "records.jsonl").read_text().splitlines())
    return [(line["variant"], line["sample"], line["status"]) for line in lines]


def test_a_sample_is_prepared_once_for_all_variants_and_has_a_record_of_each(tmp_path):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"), **VARIANTS)
    outcome = run_job(cfg)
    assert prepared(tmp_path / "log") == ["1", "2", "3"]
    assert by_variant(cfg) == [(variant, s, "done") for s in "123" for variant in ("share", "meta_share")]
    assert (outcome.n_samples, outcome.n_done) == (3, 3)
    first_order, meta = read_job(cfg)
    assert (first_order.label, meta.label) == ("Share", "Meta-Share")
    assert (first_order.uses("share"), meta.uses("share"), meta.uses("share", meta=True)) == (True, False, True)
    assert {first_order.job_label, meta.job_label} == {"Share and its metagame"}
    explained, explained_meta = (each.explanations(each.done[1])[WHOLE] for each in (first_order, meta))
    assert (explained.variant, explained.meta) == ("share", None)
    assert explained_meta.meta.values.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert explained_meta.meta.first_order.tolist() == explained_meta.attribution.tolist() == [2.0, 2.0]
    assert (explained_meta.meta.players, explained_meta.players) == (("p", "q"), ("p", "q"))


def test_a_variant_that_fails_leaves_the_others_their_record_and_is_all_that_is_tried_again(tmp_path, monkeypatch):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"), **VARIANTS)
    monkeypatch.setattr(Fragile, "broken", {"2"})
    first = run_job(cfg)
    assert (first.n_done, first.n_failed) == (2, 1)
    assert by_variant(cfg)[2:4] == [("share", "2", "done"), ("meta_share", "2", "failed")]
    assert finish([cfg])
    assert table(tmp_path)["notes"] == ["Share and its metagame: sample 2 failed: RuntimeError: no memory for 2"]
    monkeypatch.setattr(Fragile, "broken", set())
    second = run_job(cfg)
    assert (second.n_done, second.n_failed) == (3, 0)
    assert by_variant(cfg)[6:] == [("meta_share", "2", "done")]
    assert prepared(tmp_path / "log") == ["1", "2", "3", "2"]


def test_each_variant_counts_for_what_a_job_is_and_its_label_does_not(tmp_path):
    folders = {job_folder(job_config(tmp_path))}
    for changed in (None, "meta_share.meta", "share.order", "share.label"):
        cfg = job_config(tmp_path, **VARIANTS)
        if changed is not None:
            OmegaConf.update(cfg, f"attribution.variants.{changed}", 0, force_add=True)
        folders.add(job_folder(cfg))
    assert len(folders) == 4


# What is broken, of another version or does not fit


def test_a_sample_whose_arrays_are_broken_counts_as_not_done_and_is_computed_again(tmp_path):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"))
    run_job(cfg)
    assert finish([cfg])
    written = (tmp_path / "table.json").read_bytes()
    path = job_folder(cfg) / "arrays" / f"{records(cfg)['2'].key}.npz"
    arrays = path.read_bytes()
    path.write_bytes(arrays[:-30])
    assert finish([cfg])
    assert table(tmp_path)["notes"] == ["Share: 1 of 3 samples not computed yet."]
    assert table(tmp_path)["rows"] == [{"method": "Share", "done": 2}]
    assert run_job(cfg).n_done == 3
    assert finish([cfg])
    assert prepared(tmp_path / "log") == ["1", "2", "3", "2"]
    assert path.read_bytes() == arrays
    assert (tmp_path / "table.json").read_bytes() == written


def test_results_of_an_earlier_version_are_refused_in_a_sentence_and_leave_the_table(tmp_path):
    cfg = job_config(tmp_path / "results")
    folder = run_job(cfg).folder
    assert finish([cfg])
    written = (tmp_path / "results/table.json").read_bytes()
    asked_path(cfg).write_text(asked_path(cfg).read_text().replace('{"version": 2', '{"version": 1', 1))
    with pytest.raises(RecordError, match=r"\.json has version 1, but .* version 2: run the job again"):
        read_job(cfg)
    line = json.loads((folder / "records.jsonl").read_text().splitlines()[0])
    (folder / "records.jsonl").write_text(json.dumps(line | {"version": 1}) + "\n")
    with pytest.raises(RecordError, match=r"records\.jsonl, line 1 has version 1, but .* reads version 2: move"):
        run_job(cfg)
    assert not finish([cfg])
    assert (tmp_path / "results/table.json").read_bytes() == written
    (tmp_path / "jobs" / "plain-share-numbers-12345678").mkdir(parents=True)
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(RecordError, match=r"contains results of an earlier version"):
        read_experiment(tmp_path)


def few(self, samples):
    return []


ADDITION = {"name": "add", "_target_": "metagame.benchmarks.addition.Addition", "examples": ["1 + 2"]}
SHAPLEY = {"_target_": "metagame.attributions.shapley.ShapleyValue"}


@pytest.mark.parametrize(
    ("changes", "prepare", "reason"),
    [
        ({"benchmark": ADDITION}, Plain.prepare, "model Plain does not explain samples of benchmark Addition"),
        (
            {"attribution__method": SHAPLEY}, Plain.prepare,
            "attribution method ShapleyValue does not explain model Plain",
        ),
        ({}, few, "model Plain prepared 0 of 1 samples"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(tmp_path, monkeypatch, changes, prepare, reason):
    monkeypatch.setattr(Plain, "prepare", prepare)
    (error,) = run_job(job_config(tmp_path, **changes)).errors
    assert reason in error


class Scored(Numbers):
    """Numbers of which the second is scored as it is told."""

    def __init__(self, values, kind):
        super().__init__(values)
        self.kind = kind

    def score(self, sample, inputs, explanations):
        return {"s": SCORES[self.kind][0] if sample.id == "2" else 1.0}


SCORES = {
    "numpy": ({"a": np.float32(0.5), "b": [np.int64(3), True], "c": ("x", None)}, None),
    "nan": ({"a": {"b": [1.0, float("nan")]}}, "score s.a.b is nan"),
    "inf": (np.float64("inf"), "score s is inf"),
    "array": (np.ones(2), "score s is of type ndarray"),
    "object": (object(), "score s is of type object"),
}


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_that_no_record_can_hold_costs_its_sample_only(tmp_path, kind):
    _, error = SCORES[kind]
    cfg = job_config(tmp_path, benchmark___target_="tests.jobs.test_jobs.Scored", benchmark__kind=kind)
    errors = run_job(cfg).errors
    assert not errors if error is None else error in errors[0]
    assert statuses(cfg) == {"1": "done", "2": "done" if error is None else "failed", "3": "done"}
    if error is None:
        assert records(cfg)["2"].scores == {"s": {"a": 0.5, "b": [3, True], "c": ["x", None]}}


# Several processes, and a terminal


def test_two_processes_share_a_job_and_do_every_sample_once(tmp_path):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"), model__seconds=0.05, benchmark__values=list(range(8)))
    barrier = FORKS.Barrier(2)
    processes = [FORKS.Process(target=run_together, args=(cfg, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    samples = [json.loads(line)["sample"] for line in (job_folder(cfg) / "records.jsonl").read_text().splitlines()]
    workers = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert [process.exitcode for process in processes] == [0, 0]
    assert Counter(samples) == Counter(prepared(tmp_path / "log")) == Counter(map(str, range(8)))
    assert len(workers) == 2


def test_the_time_that_a_sample_still_takes_is_told_for_each_sample_and_each_part_of_its_work():
    progress = JobProgress("title", 2, 0)

    def remaining(done, total):
        progress.within_sample(done, total)
        return progress._bars.tasks[progress._inside].time_remaining

    for _ in range(2):
        assert [remaining(done, 20) == 0 for done in (5, 10, 20)] == [False, False, True]
        assert [remaining(done, 3) == 0 for done in (1, 2, 3)] == [False, False, True]
        progress.advance()


def test_progress_bars_are_drawn_on_a_terminal(tmp_path):
    controller, terminal = pty.openpty()
    process = FORKS.Process(target=run_on_terminal, args=(job_config(tmp_path), os.ttyname(terminal)))
    process.start()
    process.join(timeout=120)
    drawn = b""
    while select.select([controller], [], [], 0)[0]:
        drawn += os.read(controller, 4096)
    os.close(terminal)
    os.close(controller)
    assert all(text in drawn.decode() for text in ("plain x share", "━", "3/3"))


@pytest.mark.parametrize(
    ("n_done", "seconds", "told"),
    [
        (2, 0.1, None),
        (2, 19, None),
        (2, 60, "the other 6 will take about 3 min"),
        (2, 3600, "the other 6 will take about 3.0 h"),
        (0, 3600, None),  # another process held them
    ],
)
def test_a_job_that_takes_a_minute_or_more_says_how_long_after_its_first_batch(n_done, seconds, told, caplog):
    with caplog.at_level("INFO"):
        _tell_time("model x method", n_done, 6, seconds)
    assert [told in message for message in caplog.messages] == [True] * (told is not None)
