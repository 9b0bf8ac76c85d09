from __future__ import annotations

import json
import multiprocessing
import os
import pty
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from typing import ClassVar

import numpy as np
import pytest
from omegaconf import OmegaConf

from metagame.contracts import WHOLE
from metagame.errors import RecordError, UserError
from metagame.experiments import finish
from metagame.jobs.build import Job
from metagame.jobs.environment import LIBRARIES
from metagame.jobs.records import RecordStore, unpack
from metagame.jobs.run import run_job
from metagame.jobs.spec import asked_path, job_folder
from metagame.report.results import read_experiment, read_job
from tests.tiny.jobs import ROOT, Numbers, Plain, Share, job_config, run_together, terminal_free_environment

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


def test_a_failing_sample_is_recorded_and_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(Share, "broken", {"2"})
    cfg = job_config(tmp_path)
    outcome = run_job(cfg)
    assert statuses(cfg) == {"1": "done", "2": "failed", "3": "done"}
    assert records(cfg)["2"].error == "RuntimeError: no memory for 2"
    assert (outcome.n_done, outcome.n_failed, outcome.errors) == (2, 1, ("RuntimeError: no memory for 2",))


def test_a_failing_sample_is_in_the_notes_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(Share, "broken", {"2"})
    cfg = job_config(tmp_path)
    run_job(cfg)
    finish([cfg])
    notes = json.loads((tmp_path / "table.json").read_text())["notes"]
    assert notes == ["Share: sample 2 failed: RuntimeError: no memory for 2"]


def test_a_failed_sample_is_tried_again_by_the_next_run(tmp_path, monkeypatch):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"))
    monkeypatch.setattr(Share, "broken", {"2"})
    run_job(cfg)
    monkeypatch.setattr(Share, "broken", set())
    outcome = run_job(cfg)
    finish([cfg])
    assert prepared(tmp_path / "log") == ["1", "2", "3", "2"]
    assert (outcome.n_done, outcome.n_failed) == (3, 0)
    assert json.loads((tmp_path / "table.json").read_text())["notes"] == []


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


def test_finished_samples_are_not_computed_again(tmp_path):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"))
    run_job(cfg)
    outcome = run_job(cfg)
    assert prepared(tmp_path / "log") == ["1", "2", "3"]
    assert outcome.n_done == 3


def test_limit_takes_the_first_samples_and_a_larger_one_only_the_rest(tmp_path):
    log = tmp_path / "log"
    first = run_job(job_config(tmp_path, model__log=str(log), limit=2))
    assert prepared(log) == ["1", "2"]
    second = run_job(job_config(tmp_path, model__log=str(log)))
    assert prepared(log) == ["1", "2", "3"]
    assert (first.n_samples, second.n_samples, second.n_done) == (2, 3, 3)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path, limit):
    with pytest.raises(UserError, match=f"limit={limit}: give a positive whole number"):
        run_job(job_config(tmp_path, limit=limit))


def test_a_game_with_a_nan_fails_its_sample_only(tmp_path):
    cfg = job_config(tmp_path, benchmark__values=[1, float("nan"), 3])
    run_job(cfg)
    finish([cfg])
    note = json.loads((tmp_path / "table.json").read_text())["notes"][0]
    assert statuses(cfg) == {"1": "done", "nan": "failed", "3": "done"}
    assert note.startswith("Share: sample nan failed: fn returned nan for target 0 on coalition [0, 1]")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_method_that_is_no_game_may_not_give_a_nan_either(tmp_path, value):
    cfg = job_config(tmp_path, benchmark__values=[1, value], **PAIRS)
    run_job(cfg)
    assert statuses(cfg) == {"1": "done", str(value): "failed"}


def test_the_environment_says_what_the_results_were_computed_with(tmp_path):
    cfg = job_config(tmp_path, seed=3)
    folder = run_job(cfg).folder
    environment = json.loads((folder / "environment.json").read_text())
    assert environment.keys() >= {"git_commit", "device", "libraries", "model_revision", "seed"}
    assert (environment["seed"], environment["model_revision"], environment["device"]) == (3, "first", "cpu")
    assert environment["libraries"] == {name: version(name) for name in LIBRARIES}


def test_the_environment_names_the_commit_that_is_checked_out(tmp_path):
    environment = json.loads((run_job(job_config(tmp_path)).folder / "environment.json").read_text())
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert (environment["git_commit"] or "").removesuffix("-dirty") == head.stdout.strip()


def test_the_config_of_a_job_is_kept_beside_its_records(tmp_path):
    folder = run_job(job_config(tmp_path, seed=3)).folder
    assert "seed: 3" in (folder / "config.yaml").read_text()


def test_what_an_experiment_asks_of_a_job_is_kept_in_its_own_folder(tmp_path):
    cfg = job_config(tmp_path, seed=3)
    folder = run_job(cfg).folder
    asked = json.loads(asked_path(cfg).read_text())
    assert asked_path(cfg).parent == tmp_path / "samples"
    assert (tmp_path / asked["job"]).resolve() == folder.resolve()
    assert asked["config"]["seed"] == asked["identity"]["seed"] == 3
    kept = RecordStore(folder).read()
    assert [(each["id"], kept[each["records"][""]].sample) for each in asked["samples"]] == [(i, i) for i in "123"]


@pytest.mark.parametrize(
    "change",
    [
        {"attribution__label": "another"},
        {"attribution__family": "another"},
        {"limit": 1},
        {"fail_fast": True},
        {"name": "another"},
        {"estimator__budget": 100},
        {"attribution__base": "another"},
        {"reuse": "stale"},
    ],
)
def test_what_does_not_change_the_results_keeps_the_folder(tmp_path, change):
    assert job_folder(job_config(tmp_path, **change)) == job_folder(job_config(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"attribution__method__factor": 2.0},
        {"attribution__meta": True},
        {"benchmark__values": [1]},
        {"model__seconds": 0.1},
        {"seed": 1},
        {"scale__name": "paper"},
    ],
)
def test_what_changes_the_results_changes_the_folder(tmp_path, change):
    assert job_folder(job_config(tmp_path, **change)) != job_folder(job_config(tmp_path))


def test_the_estimator_counts_for_meta_attributions(tmp_path):
    folders = {job_folder(job_config(tmp_path, attribution__meta=True, estimator__budget=b)) for b in (None, 4)}
    assert len(folders) == 2


def test_meta_turns_a_first_order_method_into_its_meta_attributions(tmp_path):
    cfg = job_config(tmp_path, attribution__meta=True)
    folder = run_job(cfg).folder
    record = records(cfg)["2"]
    explanation = unpack(record, RecordStore(folder).load_arrays(record))[WHOLE]
    assert explanation.meta.values.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert explanation.meta.first_order.tolist() == explanation.attribution.tolist() == [2.0, 2.0]
    assert (explanation.meta.players, explanation.players) == (("p", "q"), ("p", "q"))


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
    assert first_order.explanations(first_order.done[1])[WHOLE].variant == "share"
    assert first_order.explanations(first_order.done[1])[WHOLE].meta is None
    assert meta.explanations(meta.done[1])[WHOLE].meta.values.tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_a_variant_that_fails_leaves_the_others_their_record_and_is_all_that_is_tried_again(tmp_path, monkeypatch):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"), **VARIANTS)
    monkeypatch.setattr(Fragile, "broken", {"2"})
    first = run_job(cfg)
    assert (first.n_done, first.n_failed) == (2, 1)
    assert by_variant(cfg)[2:4] == [("share", "2", "done"), ("meta_share", "2", "failed")]
    assert finish([cfg])
    notes = json.loads((tmp_path / "table.json").read_text())["notes"]
    assert notes == ["Share and its metagame: sample 2 failed: RuntimeError: no memory for 2"]
    monkeypatch.setattr(Fragile, "broken", set())
    second = run_job(cfg)
    assert (second.n_done, second.n_failed) == (3, 0)
    assert by_variant(cfg)[6:] == [("meta_share", "2", "done")]
    assert prepared(tmp_path / "log") == ["1", "2", "3", "2"]


def test_each_variant_counts_for_what_a_job_is(tmp_path):
    folders = {job_folder(job_config(tmp_path, **VARIANTS)), job_folder(job_config(tmp_path))}
    for key in ("meta_share__meta", "share__order"):
        changed = job_config(tmp_path, **VARIANTS)
        OmegaConf.update(changed, f"attribution.variants.{key.replace('__', '.')}", 0, force_add=True)
        folders.add(job_folder(changed))
    relabelled = job_config(tmp_path, **VARIANTS)
    relabelled.attribution.variants.share.label = "another"
    folders.add(job_folder(relabelled))
    assert len(folders) == 4


def test_an_unknown_key_of_a_variant_is_refused_by_its_place(tmp_path):
    cfg = job_config(tmp_path, **VARIANTS)
    OmegaConf.update(cfg, "attribution.variants.share.mta", True, force_add=True)
    with pytest.raises(UserError, match=r"^attribution\.variants\.share\.mta: a job has no such setting"):
        run_job(cfg)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_sample_whose_arrays_are_gone_or_broken_counts_as_not_done_and_is_computed_again(tmp_path, damage):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"))
    run_job(cfg)
    assert finish([cfg])
    tables = [(tmp_path / "table.json").read_bytes()]
    path = job_folder(cfg) / "arrays" / f"{records(cfg)['2'].key}.npz"
    arrays = path.read_bytes()
    DAMAGES[damage](path)
    assert finish([cfg])
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["notes"] == ["Share: 1 of 3 samples not computed yet."]
    assert table["rows"] == [{"method": "Share", "done": 2}]
    (tmp_path / "log").write_text("")
    outcome = run_job(cfg)
    assert finish([cfg])
    tables.append((tmp_path / "table.json").read_bytes())
    assert prepared(tmp_path / "log") == ["2"]
    assert outcome.n_done == 3
    assert path.read_bytes() == arrays
    assert tables[0] == tables[1]


def test_results_of_an_earlier_version_are_refused_in_a_sentence(tmp_path):
    cfg = job_config(tmp_path)
    folder = run_job(cfg).folder
    asked_path(cfg).write_text(asked_path(cfg).read_text().replace('{"version": 2', '{"version": 1', 1))
    with pytest.raises(RecordError, match=r"\.json has version 1, this is version 2: run the job again\.$"):
        read_job(cfg)
    line = json.loads((folder / "records.jsonl").read_text().splitlines()[0])
    (folder / "records.jsonl").write_text(json.dumps(line | {"version": 1}) + "\n")
    with pytest.raises(RecordError, match=r"records\.jsonl, line 1 has version 1, this is version 2: move"):
        run_job(cfg)
    assert not finish([cfg])


def test_a_folder_of_an_earlier_version_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "jobs" / "plain-share-numbers-12345678").mkdir(parents=True)
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(RecordError, match=r"holds results of an earlier version, which are not read: run the exp"):
        read_experiment(tmp_path)


def test_meta_of_a_method_that_is_not_first_order_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match=r"^attribution=pairs with attribution\.meta=true: Pairs has no metagame: it is not a first-order",
    ):
        Job.build(job_config(tmp_path, attribution__meta=True, **PAIRS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"benchmark": {"name": "add", "_target_": "metagame.benchmarks.addition.Addition", "examples": ["1 + 2"]}},
            "model Plain does not explain samples of benchmark Addition.",
        ),
        (
            {"attribution__method": {"_target_": "metagame.attributions.shapley.ShapleyValue"}},
            "attribution method ShapleyValue does not explain model Plain.",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, change, message):
    assert run_job(job_config(tmp_path, **change)).errors == (message,)


class Scored(Numbers):
    """Numbers whose scores are as they are told."""

    def __init__(self, values, kind):
        super().__init__(values)
        self.kind = kind

    def score(self, sample, inputs, explanations):
        return {"s": SCORES[self.kind]} if sample.id == "2" else {"s": 1.0}


SCORES = {
    "numpy": {"a": np.float32(0.5), "b": [np.int64(3), True], "c": ("x", None)},
    "nan": {"a": {"b": [1.0, float("nan")]}},
    "inf": np.float64("inf"),
    "array": np.ones(2),
    "object": object(),
}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("numpy", None),
        ("nan", "score s.a.b is nan: check the model and the method on this sample."),
        ("inf", "score s is inf: check the model and the method on this sample."),
        ("array", "score s is a ndarray: give a number, a text, or lists and mappings of them."),
        ("object", "score s is a object: give a number, a text, or lists and mappings of them."),
    ],
)
def test_a_score_that_no_record_can_hold_costs_its_sample_only(tmp_path, kind, error):
    cfg = job_config(tmp_path, benchmark___target_="tests.jobs.test_jobs.Scored", benchmark__kind=kind)
    outcome = run_job(cfg)
    assert outcome.errors == (() if error is None else (error,))
    assert statuses(cfg) == {"1": "done", "2": "done" if error is None else "failed", "3": "done"}
    if error is None:
        assert records(cfg)["2"].scores == {"s": {"a": 0.5, "b": [3, True], "c": ["x", None]}}


def test_a_model_that_prepares_fewer_samples_than_it_is_given_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Plain, "prepare", lambda self, samples: [])
    reason = "model Plain prepared 0 of 1 samples: its method prepare must give one result for each."
    assert run_job(job_config(tmp_path)).errors == (reason,)


def test_samples_with_the_same_id_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^benchmark numbers has several samples with the id 3: tell them apart\.$"):
        run_job(job_config(tmp_path, benchmark__values=[1, 3, 3]))


def test_an_argument_that_a_part_refuses_is_told_without_hydras_wrapping(tmp_path):
    method = {"_target_": "metagame.attributions.gradients.IntegratedGradients", "steps": 0}
    with pytest.raises(UserError, match=r"^steps=0: give a positive whole number"):
        run_job(job_config(tmp_path, attribution__method=method))


def test_two_processes_share_a_job_and_do_every_sample_once(tmp_path):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"), model__seconds=0.1, benchmark__values=list(range(10)))
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    processes = [spawn.Process(target=run_together, args=(cfg, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    samples = [json.loads(line)["sample"] for line in (job_folder(cfg) / "records.jsonl").read_text().splitlines()]
    workers = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert [process.exitcode for process in processes] == [0, 0]
    assert Counter(samples) == Counter(map(str, range(10)))
    assert Counter(prepared(tmp_path / "log")) == Counter(samples)
    assert len(workers) == 2


STUB_RUN = """
import sys
from metagame.jobs.run import run_job
from tests.tiny.jobs import job_config
run_job(job_config(sys.argv[1]))
"""


def test_progress_bars_are_drawn_on_a_terminal(tmp_path):
    controller, terminal = pty.openpty()
    environment = terminal_free_environment(TERM="xterm-256color", COLUMNS="100")
    with subprocess.Popen([sys.executable, "-c", STUB_RUN, tmp_path], cwd=ROOT, env=environment, stderr=terminal):
        os.close(terminal)
        drawn = read_until_closed(controller)
    assert "plain x share" in drawn
    assert "━" in drawn
    assert "3/3" in drawn


def read_until_closed(descriptor):
    parts = []
    try:
        while part := os.read(descriptor, 4096):
            parts.append(part)
    except OSError:  # what Linux answers once the other side is closed
        pass
    finally:
        os.close(descriptor)
    return b"".join(parts).decode()


def test_progress_bars_are_quiet_without_a_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    run_job(job_config(tmp_path))
    out, err = capfd.readouterr()
    assert out == ""
    assert "━" not in err
    assert "\x1b" not in err


def test_a_resumed_job_keeps_the_environment_its_samples_were_computed_in(tmp_path, monkeypatch, caplog):
    cfg = job_config(tmp_path)
    monkeypatch.setattr("metagame.jobs.environment._git_commit", lambda: "old")
    run_job(cfg)
    monkeypatch.setattr("metagame.jobs.environment._git_commit", lambda: "new")
    with caplog.at_level("INFO"):
        run_job(cfg)
    folder = job_folder(cfg)
    assert json.loads((folder / "environment.json").read_text())["git_commit"] == "old"
    assert {record.commit for record in RecordStore(folder).read().values()} == {"old"}
    assert "changed" not in caplog.text  # another commit, but the code that computes is the same


@pytest.mark.parametrize("change", [{"limit": "abc"}, {"limit": 1.5}, {"seed": "abc"}, {"seed": -1}])
def test_a_setting_of_the_wrong_type_is_refused_by_name(tmp_path, change):
    (name,) = change
    with pytest.raises(UserError, match=f"^{name}="):
        run_job(job_config(tmp_path, **change))
