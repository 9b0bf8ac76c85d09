"""What a run survives: kills, signals, a full disk, a folder that turns read-only, cut files, a device without memory.

Each fault is a real one. ``run.py`` runs in a process forked where its imports are done already, which is what makes
many faults affordable; the kills during imports are of a process started from scratch.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hydra import compose

from metagame.errors import RecordError, UserError
from metagame.experiments import finish
from metagame.jobs.build import build_method
from metagame.jobs.records import RecordStore
from metagame.jobs.run import memory_advice, run_job
from metagame.jobs.spec import job_folder, variants
from metagame.report.experiment import write_report
from tests.tiny.jobs import ROOT, Plain, Share, job_config, shipped_configs, terminal_free_environment
from tests.tiny.runs import FORKS, PAGE, TABLES, Run, contents, n_by_an_earlier_run, n_recorded, run

pytestmark = pytest.mark.slow

FIGURES = ("figure.png", "figure.pdf")
METHODS = ("attention", "sv", "ig", "meta_ig")
JOB = (
    "name=mine", "model=adder", "model._target_=tests.tiny.jobs.SlowAdder", "benchmark=addition",
    "benchmark.examples=['3 - (-5)','4 + (-4)','-6 + 8']",
)  # fmt: skip
SWEEP = ("-m", *JOB, f"attribution={','.join(METHODS)}")
PLAIN_SWEEP = (*SWEEP, "report.figure=null")
N_SAMPLES = 4 * 3


@pytest.fixture(scope="module", autouse=True)
def ready():
    """What makes many runs cheap: few objects for each job to search for garbage."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def lines(folder):
    """The complete lines of every job's records."""
    files = sorted(folder.glob("jobs/*/records.jsonl"))
    return {file.parent.name: [line for line in file.read_bytes().splitlines(True) if line[-1:] == b"\n"]
            for file in files}  # fmt: skip


def samples(folder):
    """Sample and status of every record, by job, in an order that does not depend on who was first."""
    return {
        job: sorted((record["sample"], record["status"]) for record in map(json.loads, each))
        for job, each in lines(folder).items()
    }


def arrays(folder):
    """What a reader finds in the arrays of every finished sample."""
    found = {}
    for job in sorted(folder.glob("jobs/*")):
        store = RecordStore(job)
        for key, record in store.read().items():
            found[job.name, key] = {name: array.tobytes() for name, array in store.load_arrays(record).items()}
    return found


def array_files(folder):
    """Inode and time of the array file of every finished sample: those of a sample computed again are new."""
    keys = {json.loads(line)["key"] for each in lines(folder).values() for line in each}
    files = [file for file in folder.glob("jobs/*/arrays/*.npz") if file.stem in keys]
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    status, errors = run(*SWEEP, output_dir=folder)
    assert status == 0, errors
    assert sum(map(len, samples(folder).values())) == N_SAMPLES
    return folder


# Ten kills


def kill_during_imports(folder, seconds):
    command = [sys.executable, "run.py", *SWEEP, f"output_dir={folder}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def kill_after_samples(folder, n_samples, seconds):
    sweep = Run(*SWEEP, output_dir=folder)
    sweep.recorded(n_samples)
    time.sleep(seconds)
    return sweep.stop(signal.SIGKILL)[0]


def kill_while_reporting(folder, n_files):
    def inodes():
        return {(name, (folder / name).stat().st_ino) for name in (*TABLES, *FIGURES) if (folder / name).exists()}

    before = inodes()
    sweep = Run(*SWEEP, output_dir=folder)
    sweep.until(lambda: len(inodes() - before) >= n_files)
    return sweep.stop(signal.SIGKILL)[0]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The sweep of ``unbroken``, killed ten times at random moments, then run to its end.

    Twice while it imports, five times in the work on samples, three times between the files of the report. With what
    was finished at each kill.
    """
    folder = tmp_path_factory.mktemp("killed")
    rng = np.random.default_rng(0)
    in_work = sorted(rng.choice(np.arange(N_SAMPLES), 5, replace=False))
    kills = [lambda: kill_during_imports(folder, rng.uniform(0, 3))] * 2
    kills += [lambda n=n: kill_after_samples(folder, n, rng.uniform(0, 0.2)) for n in in_work]
    kills += [lambda n=n: kill_while_reporting(folder, n) for n in rng.integers(1, len(TABLES + FIGURES), 3)]
    finished = []
    for kill in kills:
        assert kill() == -signal.SIGKILL
        finished.append((lines(folder), array_files(folder)))
    status, errors = run(*SWEEP, output_dir=folder)
    assert status == 0, errors
    return folder, finished, errors


def test_ten_kills_hit_the_sweep_at_different_points_of_its_work(killed):
    n_finished = [sum(map(len, records.values())) for records, _ in killed[1]]
    assert len(n_finished) == 10
    assert n_finished == sorted(n_finished)
    assert len(set(n_finished)) >= 5
    assert 0 in n_finished
    assert N_SAMPLES in n_finished


def test_a_kill_loses_nothing_that_was_recorded(killed):
    folder, finished, _ = killed
    last = lines(folder)
    for records, _ in finished:
        assert all(last[job][: len(each)] == each for job, each in records.items())


def test_after_kills_every_sample_is_done_exactly_once(killed, unbroken):
    assert samples(killed[0]) == samples(unbroken)


def test_after_kills_nothing_finished_was_computed_again(killed):
    folder, finished, errors = killed
    last = array_files(folder)
    assert all(last[name] == file for _, files in finished for name, file in files.items())
    assert n_by_an_earlier_run(errors) == N_SAMPLES


def test_after_kills_arrays_are_those_of_an_unbroken_run(killed, unbroken):
    assert arrays(killed[0]) == arrays(unbroken)


def test_after_kills_tables_and_figures_are_those_of_an_unbroken_run(killed, unbroken):
    assert contents(killed[0], TABLES + FIGURES) == contents(unbroken, TABLES + FIGURES)


def test_kills_leave_no_half_file_under_a_name_that_anybody_reads(killed, unbroken):
    left, expected = ({path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"}
                      for root in (killed[0], unbroken))  # fmt: skip
    assert expected <= left
    assert all(re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name) for path in left - expected)


def test_one_of_two_shards_can_be_killed_and_started_again_while_the_other_works(tmp_path, unbroken):
    first, second = (Run(*PLAIN_SWEEP, "shards=2", f"shard={shard}", output_dir=tmp_path) for shard in (0, 1))
    second.recorded(4)
    assert second.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    again = Run(*PLAIN_SWEEP, "shards=2", "shard=1", output_dir=tmp_path)
    ends = [first.end(), again.end()]
    assert [status for status, _ in ends] == [0, 0], ends
    status, errors = run(*PLAIN_SWEEP, "shards=2", output_dir=tmp_path)
    assert (status, n_by_an_earlier_run(errors)) == (0, N_SAMPLES)
    assert samples(tmp_path) == samples(unbroken)
    assert contents(tmp_path) == contents(unbroken)


# Signals


SIX_SUMS = ("benchmark.examples=['1 + 2','3 + 4','5 - 6','7 - 8','9 - 3','2 + 2']", "attribution=sv")


@pytest.mark.parametrize(("arguments", "n_samples"), [(PLAIN_SWEEP, N_SAMPLES), ((*JOB, *SIX_SUMS), 6)])
def test_a_signal_stops_a_run_in_one_line_and_the_same_command_goes_on(tmp_path, unbroken, arguments, n_samples):
    for n_done, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)):
        work = Run(*arguments, output_dir=tmp_path)
        work.until(lambda: list(tmp_path.glob("jobs/*/locks/*.lock")))
        work.recorded(n_done)
        status, errors = work.stop(number)
        assert status == 128 + number, errors
        line = f"Stopped by {number.name}: run the same command again, it goes on where it stopped."
        assert errors.splitlines()[-1] == line
        assert "Traceback" not in errors
    n_done = n_recorded(tmp_path)
    status, errors = run(*arguments, output_dir=tmp_path)
    assert (status, n_by_an_earlier_run(errors)) == (0, n_done)
    assert [status for each in samples(tmp_path).values() for _, status in each] == ["done"] * n_samples
    if arguments == PLAIN_SWEEP:
        assert samples(tmp_path) == samples(unbroken)
        assert contents(tmp_path) == contents(unbroken)


def test_a_process_started_from_scratch_answers_a_signal_too(tmp_path):
    command = [sys.executable, "run.py", *JOB, "attribution=sv", f"output_dir={tmp_path}"]
    process = subprocess.Popen(command, cwd=ROOT, env=terminal_free_environment(), stderr=subprocess.PIPE, text=True)
    while not n_recorded(tmp_path):
        assert process.poll() is None
        time.sleep(0.005)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 143
    assert errors == "Stopped by SIGTERM: run the same command again, it goes on where it stopped.\n"


# A full disk


@pytest.fixture
def disk(tmp_path):
    """A disk of two megabytes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "small", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk, free_pages):
    """Take all space of the disk but so many pages."""
    free(disk)
    size = (os.statvfs(disk).f_bavail - free_pages) * PAGE
    if size > 0:
        with (disk / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def free(disk):
    (disk / "ballast").unlink(missing_ok=True)


FULL = r"{} cannot be written \(No space left on device\): free some space and run the same command again"


class Filling(Plain):
    """Before it prepares any sample but the first three it leaves ``free_pages`` pages on the disk, if given."""

    disk: ClassVar[Path]
    free_pages: ClassVar[int | None] = None

    def bind(self, sample):
        if self.free_pages is not None and sample.value > 3:
            fill(self.disk, self.free_pages)
        return super().bind(sample)


@pytest.mark.parametrize(("free_pages", "unwritten"), [(0, r"arrays/\w+\.npz"), (1, r"records\.jsonl")])
def test_a_disk_that_fills_between_samples_loses_none(disk, tmp_path, monkeypatch, free_pages, unwritten):
    """With a page left arrays can be written, until a line of the records needs a new page too, and is cut there."""
    changes = {"model___target_": "tests.system.test_faults.Filling", "benchmark__values": list(range(1, 41))}
    monkeypatch.setattr(Filling, "disk", disk, raising=False)
    monkeypatch.setattr(Filling, "free_pages", free_pages)
    cfg = job_config(disk / "results", **changes)
    with pytest.raises(RecordError, match=FULL.format(unwritten)):
        run_job(cfg)
    path = job_folder(cfg) / "records.jsonl"
    assert path.read_bytes().endswith(b"\n") == (free_pages == 0)
    before = lines(disk / "results")
    free(disk)
    monkeypatch.setattr(Filling, "free_pages", None)
    run_job(cfg)
    write_report([cfg])
    whole = job_config(tmp_path / "whole", **changes)
    run_job(whole)
    write_report([whole])
    assert all(lines(disk / "results")[job][: len(each)] == each for job, each in before.items())
    assert samples(disk / "results") == samples(tmp_path / "whole")
    assert contents(disk / "results") == contents(tmp_path / "whole")


def assert_full(end):
    """Exit status 1 and sentences, none of them twice, that tell of the full disk; these."""
    status, errors = end
    assert status == 1, errors
    assert "Traceback" not in errors
    answers = [line for line in errors.splitlines() if re.search(FULL.format(".*"), line)]
    assert len(answers) == len(set(answers))
    return answers


@pytest.mark.parametrize("free_pages", [0, 1, 3])
def test_a_full_disk_is_seen_before_work(disk, free_pages):
    """A few pages are not enough either: Hydra writes its own file before the first job."""
    fill(disk, free_pages)
    status, errors = run(*SWEEP, output_dir=disk / "results")
    assert status == 1
    assert len(errors.splitlines()) == 1
    assert re.search(FULL.format("results"), errors)
    assert not (disk / "results" / "jobs").exists()


def test_a_sweep_whose_disk_fills_says_so_and_goes_on_when_there_is_space(disk, unbroken):
    output = disk / "results"
    sweep = Run(*PLAIN_SWEEP, output_dir=output)
    sweep.recorded(1)
    fill(disk, 0)
    answers = assert_full(sweep.end())
    before = n_recorded(output)
    assert len(answers) == 4 + 1  # of each job, and of the table
    assert re.search(r"(arrays/\w+\.npz|records\.jsonl) cannot", answers[0])
    assert re.search(r"table\.json cannot", answers[-1])
    free(disk)
    status, errors = run(*PLAIN_SWEEP, output_dir=output)
    assert (status, n_by_an_earlier_run(errors)) == (0, before)
    assert samples(output) == samples(unbroken)
    assert contents(output) == contents(unbroken)


@pytest.mark.parametrize("name", FIGURES)
def test_a_disk_that_is_full_before_the_report_is_whole_keeps_the_old_files(disk, name):
    output, job = disk / "results", (*JOB, "attribution=meta_ig")
    assert run(*job, output_dir=output)[0] == 0
    expected = contents(output, TABLES + FIGURES)
    for each in expected:
        (output / each).write_text("old")
    n_pages = len(expected["figure.png"]) // PAGE
    fill(disk, n_pages - 2 if name == "figure.png" else n_pages + 4)
    (answer,) = assert_full(run(*job, output_dir=output))
    assert f"{name} cannot" in answer
    assert (output / name).read_text() == "old"
    free(disk)
    assert run(*job, output_dir=output)[0] == 0
    assert contents(output, TABLES + FIGURES) == expected


# A read-only folder


@contextmanager
def read_only(folder, mirror):
    """Within: nothing new can be written below the folder; for root by a mount, for others by its permissions.

    Root mounts a read-only ``mirror`` of the folder over it: whatever is open stays so, as with a real disk.
    """
    if os.geteuid() == 0:
        mirror.mkdir()
        do = [["mount", "--bind", folder, mirror], ["mount", "-o", "remount,bind,ro", mirror],
              ["mount", "--bind", mirror, folder]]  # fmt: skip
        undo = {2: ["umount", folder], 0: ["umount", mirror]}
    else:
        do, undo = [["chmod", "-R", "a-w", folder]], {0: ["chmod", "-R", "u+w", folder]}
    n_done = 0
    try:
        for command in do:
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode != 0:
                pytest.skip(f"no folder can be made read-only: {finished.stderr.strip()}")
            n_done += 1
        yield
    finally:
        for number, command in undo.items():
            if number < n_done:
                subprocess.run(command, check=True)


UNWRITABLE = re.compile(r"cannot be written \((Read-only file system|Permission denied)\): choose a folder that can be")


@pytest.mark.parametrize("mode", ["sweep", "job"])
def test_a_read_only_folder_is_refused_before_work(tmp_path, mode):
    (tmp_path / "results").mkdir()
    arguments = SWEEP if mode == "sweep" else (*JOB, "attribution=sv")
    with read_only(tmp_path / "results", tmp_path / "mirror"):
        status, errors = run(*arguments, output_dir=tmp_path / "results")
    assert status == 1
    assert len(errors.splitlines()) == 1
    assert UNWRITABLE.search(errors)
    assert list((tmp_path / "results").iterdir()) == []


def test_a_folder_that_turns_read_only_stops_the_sweep_and_loses_nothing(tmp_path, unbroken):
    output = tmp_path / "results"
    sweep = Run(*PLAIN_SWEEP, output_dir=output)
    sweep.recorded(1)
    with read_only(output, tmp_path / "mirror"):
        status, errors = sweep.end()
    before = n_recorded(output)
    assert status == 1
    assert UNWRITABLE.search(errors)
    assert "Traceback" not in errors
    assert before < N_SAMPLES
    status, errors = run(*PLAIN_SWEEP, output_dir=output)
    assert (status, n_by_an_earlier_run(errors)) == (0, before)
    assert samples(output) == samples(unbroken)
    assert contents(output) == contents(unbroken)


# Broken records


def test_a_last_line_cut_anywhere_costs_its_sample_only(tmp_path):
    """At a few bytes of it; ``test_records`` cuts at all of them."""
    cfg = job_config(tmp_path, model__log=str(tmp_path / "log"))
    run_job(cfg)
    write_report([cfg])
    expected, path = contents(tmp_path), job_folder(cfg) / "records.jsonl"
    whole = path.read_bytes()
    last = whole.splitlines(True)[-1]
    for n_kept in (0, 1, *range(30, len(last), 60), len(last) - 1):
        path.write_bytes(whole[: len(whole) - len(last) + n_kept])
        (tmp_path / "log").write_text("")
        run_job(cfg)
        assert path.read_bytes() == whole
        assert (tmp_path / "log").read_text().split()[1::2] == ["3"]
    write_report([cfg])
    assert contents(tmp_path) == expected


def test_a_line_that_is_no_record_is_refused_by_its_place_and_leaves_the_table(tmp_path, unbroken):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    path = sorted(tmp_path.glob("jobs/adder-sv-*/records.jsonl"))[0]
    first, second, third = path.read_bytes().splitlines(True)
    path.write_bytes(first + second[:20] + b"\n" + third)
    status, errors = run(*PLAIN_SWEEP, output_dir=tmp_path)
    assert status == 1
    assert "Traceback" not in errors
    assert re.search(r"records\.jsonl, line 2 is no record \(.*\): remove that line\.", errors.splitlines()[-1])
    assert contents(tmp_path) == contents(unbroken)
    path.write_bytes(first + third)
    assert run(*PLAIN_SWEEP, output_dir=tmp_path)[0] == 0
    assert samples(tmp_path) == samples(unbroken)
    assert contents(tmp_path) == contents(unbroken)


# Two processes


class Stuck(Plain):
    """Whoever is the first to prepare sample 2 never comes back."""

    def bind(self, sample):
        marker = Path(f"{self.log}.stuck")
        if sample.id == "2" and not marker.exists():
            marker.touch()
            signal.pause()
        return super().bind(sample)


def test_a_process_takes_over_the_sample_of_one_that_is_killed(tmp_path):
    cfg = job_config(tmp_path, model___target_="tests.system.test_faults.Stuck", model__log=str(tmp_path / "log"))
    processes = [FORKS.Process(target=run_job, args=(cfg,)) for _ in range(2)]
    for process, ready in zip(processes, (lambda: (tmp_path / "log.stuck").exists(), lambda: n_recorded(tmp_path) == 2),
                              strict=True):  # fmt: skip
        process.start()
        while not ready():
            assert process.is_alive()
            time.sleep(0.005)
    processes[0].kill()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0]
    prepared = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert prepared == [[str(processes[number].pid), sample] for number, sample in ((0, "1"), (1, "3"), (1, "2"))]
    assert list(samples(tmp_path).values()) == [[("1", "done"), ("2", "done"), ("3", "done")]]


def test_two_sweeps_into_one_folder_do_every_sample_once_and_write_the_same_table(tmp_path, unbroken):
    sweeps = [Run(*PLAIN_SWEEP, output_dir=tmp_path) for _ in range(2)]
    ends = [sweep.end() for sweep in sweeps]
    assert [status for status, _ in ends] == [0, 0], ends
    assert samples(tmp_path) == samples(unbroken)
    assert contents(tmp_path) == contents(unbroken)


# A device without memory


class Tensor:
    """Stands for what a device holds; ``alive`` is what nobody has let go of."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self):
        self.alive.add(self)


class Batched(Plain):
    """A model that takes samples together, but ``fitting`` at most."""

    fitting: ClassVar[int] = 2
    wraps: ClassVar[bool] = False
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    n_alive: ClassVar[list[int]] = []

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def prepare(self, samples):
        self.n_alive.append(len(Tensor.alive))
        try:
            self._encode(samples)
        except torch.OutOfMemoryError as error:
            if self.wraps:
                raise UserError("lower model.batch_size.") from error
            raise
        return super().prepare(samples)

    def _encode(self, samples):
        images = Tensor()  # noqa: F841
        if len(samples) > self.fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Hungry(Share):
    """Sample 2 does not fit the device, unless the device ``has_grown``."""

    has_grown: ClassVar[bool] = False
    n_alive: ClassVar[list[int]] = []

    def explain(self, bound, progress=None):
        self.n_alive.append(len(Tensor.alive))
        gradients = Tensor()  # noqa: F841
        if bound.id == "2" and not self.has_grown:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().explain(bound, progress)


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(Tensor, "alive", weakref.WeakSet())
    monkeypatch.setattr(Batched, "n_alive", [])
    monkeypatch.setattr(Hungry, "n_alive", [])


def batched(folder, batch_size):
    return job_config(
        folder, model___target_="tests.system.test_faults.Batched", model__batch_size=batch_size,
        benchmark__values=list(range(1, 9)),
    )  # fmt: skip


def test_a_batch_that_does_not_fit_fails_its_samples_only_and_a_smaller_one_does_them(tmp_path, device):
    cfg = batched(tmp_path, 3)
    outcome = run_job(cfg)
    assert (outcome.n_done, outcome.n_failed) == (2, 6)
    assert len(outcome.errors) == 1
    assert "model.batch_size" in outcome.errors[0]
    assert finish([cfg])
    notes = json.loads((tmp_path / "table.json").read_text())["notes"]
    assert notes == [f"Share: sample {number} failed: {outcome.errors[0]}" for number in range(1, 7)]
    smaller = batched(tmp_path, 2)
    assert run_job(smaller).folder == outcome.folder
    write_report([smaller])
    whole = batched(tmp_path / "whole", 2)
    run_job(whole)
    write_report([whole])
    assert contents(tmp_path) == contents(tmp_path / "whole")
    done = [sample for sample, status in samples(tmp_path)[outcome.folder.name] if status == "done"]
    assert Counter(done) == Counter(map(str, range(1, 9)))


def test_a_job_of_which_no_batch_fits_writes_no_table_and_exits_with_1(tmp_path, device, caplog):
    cfg = batched(tmp_path, 8)
    assert run_job(cfg).n_failed == 8
    assert not finish([cfg])
    assert "so no table is written. the device's memory is too small" in caplog.text
    assert not (tmp_path / "table.json").exists()


def test_a_sample_that_does_not_fit_is_recorded_and_what_it_held_is_free_for_the_next(tmp_path, device, monkeypatch):
    cfg = job_config(tmp_path, attribution__method___target_="tests.system.test_faults.Hungry")
    outcome = run_job(cfg)
    assert samples(tmp_path)[outcome.folder.name] == [("1", "done"), ("2", "failed"), ("3", "done")]
    assert Hungry.n_alive == [0, 0, 0]
    monkeypatch.setattr(Hungry, "has_grown", True)
    assert run_job(cfg).n_done == 3
    assert len(lines(tmp_path)[outcome.folder.name]) == 4


@pytest.mark.parametrize("wraps", [False, True])
def test_what_a_batch_that_does_not_fit_held_is_free_for_the_next(tmp_path, device, monkeypatch, wraps):
    monkeypatch.setattr(Batched, "wraps", wraps)
    run_job(batched(tmp_path, 3))
    assert Batched.n_alive == [0, 0, 0]


# What a job has, and what it is told to change
ADVICE = {
    ("model=clip_vitb16", "attribution=meta_grad_eclip"): ["estimator.batch_size", "model.batch_size"],
    ("model=clip_vitb16", "attribution=fixlip"): ["attribution.method.batch_size", "model.batch_size"],
    ("model=gemma3_1b_it", "attribution=attnlrp"): ["model.tokens_per_batch"],
    ("model=flux_schnell", "attribution=concept_maps"): ["model.offload=true"],
    ("model=flux_schnell", "attribution=concept_maps", "model.offload=true"): [],
    ("model=adder", "attribution=sv"): [],
}


@pytest.mark.parametrize("parts", ADVICE)
def test_who_runs_out_of_memory_is_told_settings_that_the_job_has(parts):
    with shipped_configs():
        cfg = compose("config", overrides=list(parts))
        advice = memory_advice(cfg, [build_method(variant, cfg) for variant in variants(cfg)])
    assert re.findall(r"[a-z_]+\.[a-z_.=]+", advice) == ADVICE[parts]
    assert advice.startswith(("lower", "set", "choose a smaller model"))
