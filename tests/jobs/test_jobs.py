"""A job: its samples are recorded one by one, a failure costs one of them, and a later run does what is left."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
from collections import Counter
from contextlib import contextmanager
from importlib.metadata import version
from typing import ClassVar

import numpy as np
import pytest
import yaml
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

PAIRS = {"_target_": "tests.tiny.jobs.Pairs"}


@pytest.fixture
def cfg(tmp_path):
    return job_config(tmp_path, model__log=str(tmp_path / "log"))


def lines(cfg):
    """The job's records as they are written, in the order of the file."""
    return [json.loads(line) for line in (job_folder(cfg) / "records.jsonl").read_text().splitlines()]


def records(cfg):
    """The job's records by sample."""
    return {record.sample: record for record in RecordStore(job_folder(cfg)).read().values()}


def statuses(cfg):
    return {sample: record.status for sample, record in records(cfg).items()}


def prepared(cfg):
    """The samples that the model prepared, over all runs."""
    return [line.split()[1] for line in (job_folder(cfg).parents[1] / "log").read_text().splitlines()]


def notes(cfg):
    """Those of the table that is written."""
    assert finish([cfg])
    return table(job_folder(cfg).parents[1])["notes"]


def test_fail_fast_stops_at_the_first_failing_sample(cfg, monkeypatch):
    monkeypatch.setattr(Share, "broken", {"2"})
    cfg.fail_fast = True
    with pytest.raises(RuntimeError, match="no memory for 2"):
        run_job(cfg)
    assert statuses(cfg) == {"1": "done", "2": "failed"}


def test_a_job_without_any_finished_sample_writes_no_table_and_exits_with_1(cfg, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Share, "broken", {"1", "2", "3"})
    assert run_job(cfg).n_done == 0
    assert not finish([cfg])
    assert not (tmp_path / "table.json").exists()
    assert "no sample was computed, so no table is written. RuntimeError: no memory for 1" in caplog.text


def test_limit_takes_the_first_samples_each_gets_a_record_and_later_runs_do_only_what_is_left(cfg):
    for limit, done in ((2, ["1", "2"]), (None, ["1", "2", "3"]), (None, ["1", "2", "3"])):
        cfg.limit = limit
        outcome = run_job(cfg)
        assert prepared(cfg) == done
        assert (outcome.n_samples, outcome.n_done, outcome.n_failed, outcome.errors) == (len(done), len(done), 0, ())
    record = records(cfg)["2"]
    assert (record.status, record.scores, record.arrays) == ("done", {"value": 2.0}, ["attribution"])
    assert RecordStore(outcome.folder).load_arrays(record)["attribution"].tolist() == [2.0, 2.0]
    assert record.labels == {WHOLE: {"players": ["p", "q"], "targets": ["p", "q"], "grid": None, "meta": None}}


IDLE = "attribution=all has variants, for which attribution.{} has no effect: set attribution.variants.NAME."
REFUSED = {
    "limit=0": "limit=0 must be a positive integer",
    "seed=-1": "seed=-1 must be",
    "reuse=old": "reuse=old is unknown: choose fresh, or stale",
    "shards=0": "shards=0 must be a positive integer",
    "shards=3": "shards=3 needs a sweep",
    "shards=3; shard=3": "shard=3 must be an integer from 0 to 2, since shards=3",
    "shards=3; shard=-1": "shard=-1 must be an integer from 0 to 2",
    "shard=1": "shard=1 must be an integer from 0 to 0, since shards=1",
    "scale.threads=0": "scale.threads=0 must be a positive integer",
    "scale.threads=1.5": "scale.threads=1.5 must be",
    "scale.threads=abc": "scale.threads=abc must be",
    "scale.threads=true": "scale.threads=True must be",
    "scale.needs_gpu=some": "scale.needs_gpu=some must be true or false",
    "limt=1": "unknown settings (limt)",
    "scale.thread=1": "unknown settings (scale.thread)",
    "report.figures=1": "unknown settings (report.figures)",
    "tracker.foo=1": "unknown settings (tracker.foo)",
    "attribution.idnex=ksv": "unknown settings (attribution.idnex)",
    "attribution.pointing_game.n_imags=1": "unknown settings (attribution.pointing_game.n_imags)",
    "attribution.variants.one.mta=true": "unknown settings (attribution.variants.one.mta)",
    "attribution.variants.one.pointing_game=1": "unknown settings (attribution.variants.one.pointing_game)",
    "attribution.variants.one.variants=1": "unknown settings (attribution.variants.one.variants)",
    "estimator.max_playrs=3": "unknown settings (estimator.max_playrs)",
    "attribution={name: all, meta: true, variants: {one: {}}}": IDLE.format("meta"),
    "attribution={name: all, index: sii, variants: {one: {}, two: {}}}": IDLE.format("index"),
    "attribution={name: all, method: {layers: 3}, variants: {one: {}}}": IDLE.format("method"),
    "report.figure=3": "report.figure=3 must be a mapping with a _target_",
    "report.table=null": "report.table=None must be a mapping with a _target_",
    "report.table.limt=1": "got an unexpected keyword argument 'limt'",
    "leave_out=[{}]": "leave_out has {}, which is no combination of parts",
    "leave_out=[3]": "leave_out has 3, which is no",
    "leave_out=[{modle: plain}]": "leave_out has {'modle': 'plain'}, which is no",
    "model.for_scale=paper": "model=plain has no values for scale=tiny: add configs/model/by_scale/tiny",
    "attribution={name: a, variants: {one: {name: share, for_scale: paper}}}":
        "attribution=share has no values for scale=tiny: add configs/attribution",
    "attribution.method={_target_: metagame.attributions.gradients.IntegratedGradients, steps: 0}":
        "steps=0 must be a positive integer",  # without Hydra's wrapping
    "attribution.method={_target_: tests.tiny.jobs.Pairs}; attribution.meta=true":
        "attribution=share with attribution.meta=true: Pairs has no metagame: it is not a first-order",
    "name=jobs; output_dir='outputs/${scale.name}/${name}'": "outputs/tiny/jobs is the folder of the records, not of a",
    "jobs_dir=mine; output_dir=mine": "mine is the folder of the records, not of a table",
    "benchmark.values=[]": "benchmark numbers has no samples with these settings",
    "benchmark.values=[1, 3, 3]": "benchmark numbers has several samples with the id 3",
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_job_is_refused_by_name_before_any_sample(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    changes = dict(each.split("=", 1) for each in case.split("; "))
    values = {key.replace(".", "__"): yaml.safe_load(value) for key, value in changes.items()}
    with pytest.raises(UserError) as refusal:
        run_job(job_config(**{"output_dir": "results"} | values))
    assert REFUSED[case] in str(refusal.value)
    assert list(tmp_path.rglob("*.jsonl")) == []
    assert not list(tmp_path.iterdir()) or "benchmark.values" in changes


@pytest.mark.parametrize(("method", "value"), [({"_target_": "tests.tiny.jobs.Share"}, "nan"), (PAIRS, "inf")], ids=str)
def test_a_value_that_is_not_finite_fails_its_sample_only(tmp_path, method, value):
    cfg = job_config(tmp_path, benchmark__values=[1, float(value), 3], attribution__method=method)
    run_job(cfg)
    assert statuses(cfg) == {"1": "done", value: "failed", "3": "done"}
    assert method == PAIRS or records(cfg)[value].error.startswith("fn returned nan for target 0 on coalition [0, 1]")


def test_a_jobs_folder_says_what_it_was_computed_with_and_keeps_that_and_an_experiments_what_was_asked(
    cfg, tmp_path, monkeypatch
):
    cfg.seed = 3
    folder = run_job(cfg).folder
    written = (folder / "environment.json").read_bytes()
    environment = json.loads(written)
    assert (environment["seed"], environment["model_revision"], environment["device"]) == (3, "first", "cpu")
    assert environment["libraries"] == {name: version(name) for name in LIBRARIES}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert (environment["git_commit"] or "").removesuffix("-dirty") == head.stdout.strip()
    assert "seed: 3" in (folder / "config.yaml").read_text()
    asked, kept = json.loads(asked_path(cfg).read_text()), RecordStore(folder).read()
    assert asked_path(cfg).parent == tmp_path / "samples"
    assert (tmp_path / asked["job"]).resolve() == folder.resolve()
    assert asked["config"]["seed"] == asked["identity"]["seed"] == 3
    assert [(each["id"], kept[each["records"][""]].sample) for each in asked["samples"]] == [(i, i) for i in "123"]
    monkeypatch.setattr("metagame.jobs.environment._git_commit", lambda: "new")
    run_job(cfg)
    assert (folder / "environment.json").read_bytes() == written
    assert {record.commit for record in records(cfg).values()} == {environment["git_commit"]}


# Several methods in one job


class Fragile(Share):
    """As :class:`Share`, with broken samples of its own."""

    broken: ClassVar[set[str]] = set()


@pytest.fixture
def several(cfg):
    """A job with two variants of a method."""
    method = {"name": "share", "label": "Share", "method": {"_target_": "tests.tiny.jobs.Share"}}
    meta = {"name": "meta_share", "base": "share", "meta": True, "method": {"_target_": f"{__name__}.Fragile"}}
    cfg.attribution = {
        "name": "both", "label": "Share and its metagame", "variants": {"share": method, "meta_share": method | meta},
    }  # fmt: skip
    return cfg


def by_variant(cfg):
    return [(line["variant"], line["sample"], line["status"]) for line in lines(cfg)]


def test_a_sample_is_prepared_once_for_all_variants_and_has_a_record_of_each(several):
    outcome = run_job(several)
    assert prepared(several) == ["1", "2", "3"]
    assert by_variant(several) == [(variant, s, "done") for s in "123" for variant in ("share", "meta_share")]
    assert (outcome.n_samples, outcome.n_done) == (3, 3)
    first_order, meta = read_job(several)
    assert (first_order.label, meta.label) == ("Share", "Meta-Share")
    assert (first_order.uses("share"), meta.uses("share"), meta.uses("share", meta=True)) == (True, False, True)
    assert {first_order.job_label, meta.job_label} == {"Share and its metagame"}
    explained, explained_meta = (each.explanations(each.done[1])[WHOLE] for each in (first_order, meta))
    assert (explained.variant, explained.meta) == ("share", None)
    assert explained_meta.meta.values.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert explained_meta.meta.first_order.tolist() == explained_meta.attribution.tolist() == [2.0, 2.0]
    assert (explained_meta.meta.players, explained_meta.players) == (("p", "q"), ("p", "q"))


def test_what_fails_costs_its_variant_of_its_sample_is_in_the_notes_and_is_all_that_is_tried_again(
    several, monkeypatch
):
    monkeypatch.setattr(Fragile, "broken", {"2"})
    first = run_job(several)
    assert (first.n_done, first.n_failed, first.errors) == (2, 1, ("RuntimeError: no memory for 2",))
    assert by_variant(several)[2:4] == [("share", "2", "done"), ("meta_share", "2", "failed")]
    assert lines(several)[3]["error"] == "RuntimeError: no memory for 2"
    assert notes(several) == ["Share and its metagame: sample 2 failed: RuntimeError: no memory for 2"]
    monkeypatch.setattr(Fragile, "broken", set())
    second = run_job(several)
    assert (second.n_done, second.n_failed) == (3, 0)
    assert by_variant(several)[6:] == [("meta_share", "2", "done")]
    assert prepared(several) == ["1", "2", "3", "2"]
    assert notes(several) == []


def test_each_variant_counts_for_what_a_job_is_and_its_label_does_not(several):
    folders = [job_folder(several)]
    for key in ("meta_share.meta", "share.order", "share.label"):
        changed = several.copy()
        OmegaConf.update(changed, f"attribution.variants.{key}", 0, force_add=True)
        folders.append(job_folder(changed))
    assert [folder == folders[0] for folder in folders] == [True, False, False, True]
    assert folders[1] != folders[2]


# What is broken, of another version or does not fit


def test_a_sample_whose_arrays_are_broken_counts_as_not_done_and_is_computed_again(cfg, tmp_path):
    run_job(cfg)
    assert finish([cfg])
    written = (tmp_path / "table.json").read_bytes()
    path = job_folder(cfg) / "arrays" / f"{records(cfg)['2'].key}.npz"
    arrays = path.read_bytes()
    path.write_bytes(arrays[:-30])
    assert notes(cfg) == ["Share: 1 of 3 samples not computed yet."]
    assert table(tmp_path)["rows"] == [{"method": "Share", "done": 2}]
    assert run_job(cfg).n_done == 3
    assert finish([cfg])
    assert prepared(cfg) == ["1", "2", "3", "2"]
    assert path.read_bytes() == arrays
    assert (tmp_path / "table.json").read_bytes() == written


def test_results_of_an_earlier_version_are_refused_in_a_sentence_and_leave_the_table(cfg, tmp_path):
    path = run_job(cfg).folder / "records.jsonl"
    assert finish([cfg])
    written = (tmp_path / "table.json").read_bytes()
    asked_path(cfg).write_text(asked_path(cfg).read_text().replace('{"version": 2', '{"version": 1', 1))
    with pytest.raises(RecordError, match=r"\.json has version 1, but .* version 2: run the job again"):
        read_job(cfg)
    path.write_text(json.dumps(lines(cfg)[0] | {"version": 1}) + "\n")
    with pytest.raises(RecordError, match=r"records\.jsonl, line 1 has version 1, but .* reads version 2: move"):
        run_job(cfg)
    assert not finish([cfg])
    assert (tmp_path / "table.json").read_bytes() == written


def test_a_table_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "jobs" / "plain-share-numbers-12345678").mkdir(parents=True)
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(RecordError, match=r"contains results of an earlier version"):
        read_experiment(tmp_path)


class Forgetful(Plain):
    def prepare(self, samples):
        return []


ADDITION = {"name": "add", "_target_": "metagame.benchmarks.addition.Addition", "examples": ["1 + 2"]}
SHAPLEY = {"_target_": "metagame.attributions.shapley.ShapleyValue"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"benchmark": ADDITION}, "model Plain does not explain samples of benchmark Addition"),
        ({"attribution__method": SHAPLEY}, "attribution method ShapleyValue does not explain model Plain"),
        ({"model___target_": f"{__name__}.Forgetful"}, "model Forgetful prepared 0 of 1 samples"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, changes, reason):
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
    _, reason = SCORES[kind]
    cfg = job_config(tmp_path, benchmark___target_=f"{__name__}.Scored", benchmark__kind=kind)
    errors = run_job(cfg).errors
    if reason is None:
        assert errors == ()
        assert records(cfg)["2"].scores == {"s": {"a": 0.5, "b": [3, True], "c": ["x", None]}}
    else:
        assert reason in errors[0]
        assert statuses(cfg) == {"1": "done", "2": "failed", "3": "done"}


# Several processes, and a terminal


def test_two_processes_share_a_job_and_do_every_sample_once(cfg, tmp_path):
    cfg.model.seconds, cfg.benchmark["values"] = 0.05, list(range(8))
    barrier = FORKS.Barrier(2)
    processes = [FORKS.Process(target=run_together, args=(cfg, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    workers = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert [process.exitcode for process in processes] == [0, 0]
    assert Counter(line["sample"] for line in lines(cfg)) == Counter(prepared(cfg)) == Counter(map(str, range(8)))
    assert len(workers) == 2


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


def test_the_time_that_a_sample_still_takes_is_told_for_each_sample_and_each_part_of_its_work():
    progress = JobProgress("title", 2, 0)

    def remaining(done, total):
        progress.within_sample(done, total)
        return progress._bars.tasks[progress._inside].time_remaining

    for _ in range(2):
        assert [remaining(done, 20) == 0 for done in (5, 10, 20)] == [False, False, True]
        assert [remaining(done, 3) == 0 for done in (1, 2, 3)] == [False, False, True]
        progress.advance()


def test_a_job_that_takes_a_minute_or_more_says_how_long_after_its_first_batch(caplog):
    caplog.set_level("INFO")
    for n_done, seconds in ((2, 19), (2, 20), (2, 60), (2, 1200), (0, 3600)):  # 0: another process held them
        _tell_time("model x method", n_done, 6, seconds)
    told = [message.rpartition("the other 6 will take about ")[2] for message in caplog.messages]
    assert told == ["1 min.", "3 min.", "1.0 h."]


def test_a_sample_that_another_process_holds_is_waited_for_in_the_end(cfg, monkeypatch):
    claim, asked = RecordStore.claim, []

    @contextmanager
    def held_at_first(store, key, *, wait):
        asked.append(wait)
        with claim(store, key, wait=wait) as claimed:
            yield claimed and len(asked) != 2

    monkeypatch.setattr(RecordStore, "claim", held_at_first)
    assert run_job(cfg).n_done == 3
    assert prepared(cfg) == ["1", "3", "2"]
    assert asked == [False, False, False, True]


def test_an_interrupted_job_keeps_what_is_done_and_takes_nothing_for_failed(cfg, monkeypatch):
    score, calls = Numbers.score, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Numbers, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_job(cfg)
    assert [(line["sample"], line["status"]) for line in lines(cfg)] == [("1", "done")]
    outcome = run_job(cfg)
    assert (outcome.n_done, outcome.n_failed) == (3, 0)
    assert [line["sample"] for line in lines(cfg)] == ["1", "2", "3"]
