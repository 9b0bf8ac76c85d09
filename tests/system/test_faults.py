"""What a run survives: kills, signals, a full disk, a folder that turns read-only.

Each fault is a real one. ``run.py`` runs in a process forked where its imports are done already, which is what makes
many faults affordable; the kills during imports are of a process started from scratch.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from metagame.jobs.records import RecordStore
from metagame.report.experiment import FIGURES
from tests.tiny.jobs import ROOT
from tests.tiny.runs import PAGE, TABLES, Run, contents, n_by_an_earlier_run, n_recorded, records, run

pytestmark = pytest.mark.slow

JOB = (
    "name=mine", "model=adder", "model._target_=tests.tiny.jobs.SlowAdder", "benchmark=addition",
    "benchmark.examples=['3 - (-5)','4 + (-4)','-6 + 8']",
)  # fmt: skip
SWEEP = ("-m", *JOB, "attribution=attention,sv,ig,meta_ig")
PLAIN_SWEEP = (*SWEEP, "report.figure=null")
N_SAMPLES = 4 * 3


def lines(folder):
    """The complete lines of every job's records."""
    whole = {}
    for file in sorted(folder.glob("jobs/*/records.jsonl")):
        whole[file.parent.name] = [line for line in file.read_bytes().splitlines(True) if line[-1:] == b"\n"]
    return whole


def samples(folder):
    """Sample and status of every record, by job, in an order that does not depend on who was first."""
    return {
        job: sorted((record["sample"], record["status"]) for record in map(json.loads, each))
        for job, each in lines(folder).items()
    }


def still_begin_with(folder, before):
    """Whether the records are those of before and more."""
    return all(lines(folder)[job][: len(each)] == each for job, each in before.items())


def arrays(folder):
    """What a reader finds in the arrays of every finished sample."""
    found = {}
    for store in map(RecordStore, sorted(folder.glob("jobs/*"))):
        for key, record in store.read().items():
            found[store.folder.name, key] = {k: array.tobytes() for k, array in store.load_arrays(record).items()}
    return found


def array_files(folder):
    """Inode and time of the array file of every finished sample: those of a sample computed again are new."""
    keys = {json.loads(line)["key"] for each in lines(folder).values() for line in each}
    files = [file for file in folder.glob("jobs/*/arrays/*.npz") if file.stem in keys]
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def goes_on(folder, n_done, unbroken):
    """The same sweep again goes on after so many samples and ends as one that was not broken."""
    status, errors = run(*PLAIN_SWEEP, output_dir=folder)
    assert (status, n_by_an_earlier_run(errors)) == (0, n_done), errors
    assert samples(folder) == samples(unbroken)
    assert contents(folder) == contents(unbroken)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    status, errors = run(*SWEEP, output_dir=folder)
    assert status == 0, errors
    assert n_recorded(folder) == N_SAMPLES
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
    kills += [lambda n=n: kill_while_reporting(folder, n) for n in rng.integers(1, len((*TABLES, *FIGURES)), 3)]
    finished = []
    for kill in kills:
        assert kill() == -signal.SIGKILL
        finished.append((lines(folder), array_files(folder)))
    status, errors = run(*SWEEP, output_dir=folder)
    assert status == 0, errors
    return folder, finished, errors


def test_a_kill_loses_nothing_that_was_recorded_and_nothing_is_computed_again(killed):
    folder, finished, errors = killed
    n_finished = [sum(map(len, records.values())) for records, _ in finished]
    assert n_finished == sorted(n_finished)
    assert len(set(n_finished)) >= 5, "the kills hit different points of the work"
    assert {0, N_SAMPLES} <= set(n_finished)
    files = array_files(folder)
    for lines_then, files_then in finished:
        assert still_begin_with(folder, lines_then)
        assert all(files[name] == file for name, file in files_then.items())
    assert n_by_an_earlier_run(errors) == N_SAMPLES


def test_after_kills_all_files_are_those_of_an_unbroken_run_and_no_half_one_has_a_name_that_anybody_reads(
    killed, unbroken
):
    assert samples(killed[0]) == samples(unbroken)
    assert arrays(killed[0]) == arrays(unbroken)
    assert contents(killed[0], (*TABLES, *FIGURES)) == contents(unbroken, (*TABLES, *FIGURES))
    left, expected = (
        {path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"}
        for root in (killed[0], unbroken)
    )
    assert expected <= left
    assert all(re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name) for path in left - expected)


# Several processes, and signals


def test_of_two_sweeps_into_one_folder_one_does_what_the_other_leaves_when_it_is_killed(tmp_path, unbroken):
    killed, other = (Run(*PLAIN_SWEEP, output_dir=tmp_path) for _ in range(2))
    killed.recorded(3)
    assert killed.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    assert other.end()[0] == 0
    assert samples(tmp_path) == samples(unbroken)  # each once
    assert contents(tmp_path) == contents(unbroken)


ONE_PROMPT = (
    "model=gemma3_1b_it", "attribution=meta_attnlrp", "benchmark=prompts", "limit=1", "model.device=cpu",
    "model.tokens_per_batch=64", "estimator.budget_per_player=10",
)  # fmt: skip


def kept(folder):
    """The complete lines of what a run keeps of the sample in work, a line for each batch."""
    return [line for file in folder.glob("jobs/*/unfinished/*.txt") for line in file.read_text().splitlines()]


def test_a_kill_inside_a_prompt_loses_a_batch_and_the_result_is_the_same_to_the_last_bit(tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    killed = Run(*ONE_PROMPT, output_dir=cut)
    killed.until(lambda: len(kept(cut)) > 5)
    killed.stop(signal.SIGKILL)
    before = kept(cut)
    assert n_recorded(cut) == 0
    again = Run(*ONE_PROMPT, output_dir=cut)
    again.until(lambda: len(kept(cut)) > len(before))
    assert kept(cut)[: len(before)] == before, "nothing is evaluated again"
    assert again.end()[0] == 0
    assert run(*ONE_PROMPT, output_dir=whole)[0] == 0
    assert kept(cut) == kept(whole) == []
    assert (records(cut), contents(cut), arrays(cut)) == (records(whole), contents(whole), arrays(whole))


STOPPED = "Stopped by {}: rerun the same command to resume."
SIX_SUMS = ("benchmark.examples=['1 + 2','3 + 4','5 - 6','7 - 8','9 - 3','2 + 2']", "attribution=sv")


@pytest.mark.parametrize(("arguments", "n_samples"), [(PLAIN_SWEEP, N_SAMPLES), ((*JOB, *SIX_SUMS), 6)])
def test_a_signal_stops_a_run_in_one_line_and_the_same_command_goes_on(tmp_path, arguments, n_samples):
    for n_done, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)):
        work = Run(*arguments, output_dir=tmp_path)
        work.until(lambda: list(tmp_path.glob("jobs/*/locks/*.lock")))
        work.recorded(n_done)
        status, errors = work.stop(number)
        assert status == 128 + number, errors
        assert errors.splitlines()[-1] == STOPPED.format(number.name)
        assert "Traceback" not in errors
    n_done = n_recorded(tmp_path)
    status, errors = run(*arguments, output_dir=tmp_path)
    assert (status, n_by_an_earlier_run(errors)) == (0, n_done)
    assert [status for each in samples(tmp_path).values() for _, status in each] == ["done"] * n_samples


def in_a_terminal(arguments, keys, after):
    """Run in a terminal of its own, and press keys when ``after`` is written; exit status, and all that was written."""
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell has its jobs ignore it
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, "TERM": "xterm", "COLUMNS": "100"})
    written, pressed = b"", False
    while select.select([terminal], [], [], 120)[0]:
        try:
            written += os.read(terminal, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not pressed and after in written:
            os.write(terminal, keys)
            pressed = True
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), written


HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


def test_ctrl_c_in_the_middle_of_a_bar_leaves_the_cursor_to_be_seen(tmp_path):
    arguments = ["run.py", *JOB, "attribution=sv", "model._target_=tests.tiny.jobs.SlowestAdder"]
    status, written = in_a_terminal([*arguments, f"output_dir={tmp_path}"], b"\x03", after=b"1/3")
    assert status == 128 + signal.SIGINT, written
    assert STOPPED.format("SIGINT") in written.decode()
    assert written.rindex(HIDE) < written.rindex(SHOW)
    assert written.count(b"[?25h") == written.count(SHOW)  # none as letters
    assert b"2/3" not in written


# A full disk


@contextmanager
def mounted(*commands, undo):
    """Within: what these commands make, if they may be run here."""
    done = 0
    try:
        for command in commands:
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode != 0:
                pytest.skip(f"{' '.join(map(str, command))}: {finished.stderr.strip()}")
            done += 1
        yield
    finally:
        for needs, command in undo:
            if done >= needs:
                subprocess.run(command, check=True)


@pytest.fixture
def disk(tmp_path):
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, unmount = ["mount", "-t", "tmpfs", "-o", "size=2m", "small", folder], ["umount", folder]
    with mounted(mount, undo=[(1, unmount)]):
        yield folder


def fill(disk, free_pages):
    """Take all space of the disk but so many pages."""
    free(disk)
    size = (os.statvfs(disk).f_bavail - free_pages) * PAGE
    if size > 0:
        with (disk / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def free(disk):
    (disk / "ballast").unlink(missing_ok=True)


FULL = r"{} cannot be written \(No space left on device\): free some space and rerun the same command"


def told_of_full_disk(end):
    """Of a run that ended with 1 the sentences, none of them twice, that tell of the full disk."""
    status, errors = end
    assert status == 1, errors
    assert "Traceback" not in errors
    answers = [line for line in errors.splitlines() if re.search(FULL.format(".*"), line)]
    assert len(answers) == len(set(answers))
    return answers


@pytest.mark.parametrize("free_pages", [0, 3])
def test_a_full_disk_is_seen_before_work(disk, free_pages):
    """A few pages are not enough either: Hydra writes its own file before the first job."""
    fill(disk, free_pages)
    status, errors = run(*SWEEP, output_dir=disk / "results")
    assert (status, len(errors.splitlines())) == (1, 1)
    assert re.search(FULL.format("results"), errors)
    assert not (disk / "results" / "jobs").exists()


def test_a_sweep_whose_disk_fills_says_so_and_goes_on_when_there_is_space(disk, unbroken):
    output = disk / "results"
    sweep = Run(*PLAIN_SWEEP, output_dir=output)
    sweep.recorded(1)
    fill(disk, 0)
    answers = told_of_full_disk(sweep.end())
    before = n_recorded(output)
    assert len(answers) == 4 + 1  # of each job, and of the table
    assert re.search(r"(arrays/\w+\.npz|records\.jsonl) cannot", answers[0])
    assert re.search(r"table\.json cannot", answers[-1])
    free(disk)
    goes_on(output, before, unbroken)


# A read-only folder


def read_only(folder, mirror):
    """Within: nothing new can be written below the folder; for root by a mount, for others by its permissions.

    Root mounts a read-only ``mirror`` of the folder over it: whatever is open stays so, as with a real disk.
    """
    if os.geteuid() != 0:
        return mounted(["chmod", "-R", "a-w", folder], undo=[(1, ["chmod", "-R", "u+w", folder])])
    mirror.mkdir()
    return mounted(
        ["mount", "--bind", folder, mirror],
        ["mount", "-o", "remount,bind,ro", mirror],
        ["mount", "--bind", mirror, folder],
        undo=[(3, ["umount", folder]), (1, ["umount", mirror])],
    )


UNWRITABLE = re.compile(r"cannot be written \((Read-only file system|Permission denied)\): choose a folder that can be")


@pytest.mark.parametrize("arguments", [SWEEP, (*JOB, "attribution=sv")], ids=["sweep", "job"])
def test_a_read_only_folder_is_refused_before_work(tmp_path, arguments):
    (tmp_path / "results").mkdir()
    with read_only(tmp_path / "results", tmp_path / "mirror"):
        status, errors = run(*arguments, output_dir=tmp_path / "results")
    assert (status, len(errors.splitlines())) == (1, 1)
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
    goes_on(output, before, unbroken)
