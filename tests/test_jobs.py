from __future__ import annotations

import json
import multiprocessing
import os
import pty
import subprocess
import sys
from collections import Counter
from importlib.metadata import version

import pytest

from metagame.environment import LIBRARIES
from metagame.games import GameError
from metagame.jobs import Job, job_folder, run_job
from metagame.records import RecordStore
from metagame.sweep import finish
from tests.jobs_fixtures import ROOT, Plain, Share, job_config, run_together, terminal_free_environment

PAIRS = {"attribution__name": "pairs", "attribution__method": {"_target_": "tests.jobs_fixtures.Pairs"}}


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
    assert (record.status, record.scores, record.arrays) == ("done", {"value": 2.0}, ["first_order"])
    assert RecordStore(outcome.folder).load_arrays(record)["first_order"].tolist() == [2.0, 2.0]


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
    assert "no sample was computed, no table is written. RuntimeError: no memory for 1" in caplog.text


def test_finished_samples_are_not_computed_again(tmp_path):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"))
    run_job(cfg)
    outcome = run_job(cfg)
    assert prepared(tmp_path / "log") == ["1", "2", "3"]
    assert outcome.n_done == 3


def test_new_weights_are_new_samples(tmp_path, monkeypatch):
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"))
    run_job(cfg)
    monkeypatch.setattr(Plain, "revision", "second")
    run_job(cfg)
    assert prepared(tmp_path / "log") == ["1", "2", "3"] * 2


def test_limit_takes_the_first_samples_and_a_larger_one_only_the_rest(tmp_path):
    log = tmp_path / "log"
    first = run_job(job_config(tmp_path, model__log=str(log), limit=2))
    assert prepared(log) == ["1", "2"]
    second = run_job(job_config(tmp_path, model__log=str(log)))
    assert prepared(log) == ["1", "2", "3"]
    assert (first.n_samples, second.n_samples, second.n_done) == (2, 3, 3)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path, limit):
    with pytest.raises(GameError, match=f"limit={limit}: give a positive whole number"):
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
    assert [sample["id"] for sample in json.loads((folder / "samples.json").read_text())] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "change",
    [
        {"attribution__label": "another"},
        {"attribution__family": "another"},
        {"limit": 1},
        {"fail_fast": True},
        {"name": "another"},
        {"estimator__budget": 100},
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
    assert RecordStore(folder).load_arrays(records(cfg)["2"])["matrix"].tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_meta_of_a_method_that_is_not_first_order_is_refused(tmp_path):
    with pytest.raises(
        GameError,
        match=r"attribution.meta=true needs a first-order method that attributes masked inputs; pairs is none",
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


def test_an_argument_that_a_part_refuses_is_told_without_hydras_wrapping(tmp_path):
    method = {"_target_": "metagame.attributions.gradients.IntegratedGradients", "steps": 0}
    with pytest.raises(GameError, match=r"^steps=0: give a positive whole number"):
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
from metagame.jobs import run_job
from tests.jobs_fixtures import job_config
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
    monkeypatch.setattr("metagame.environment._git_commit", lambda: "old")
    run_job(cfg)
    monkeypatch.setattr("metagame.environment._git_commit", lambda: "new")
    with caplog.at_level("INFO"):
        run_job(cfg)
    folder = job_folder(cfg)
    assert json.loads((folder / "environment.json").read_text())["git_commit"] == "old"
    assert {record.commit for record in RecordStore(folder).read().values()} == {"old"}
    assert "3 samples were computed by other code" in caplog.text


@pytest.mark.parametrize("change", [{"limit": "abc"}, {"limit": 1.5}, {"seed": "abc"}, {"seed": -1}])
def test_a_setting_of_the_wrong_type_is_refused_by_name(tmp_path, change):
    (name,) = change
    with pytest.raises(GameError, match=f"^{name}="):
        run_job(job_config(tmp_path, **change))
