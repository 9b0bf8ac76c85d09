"""Sweeps through a real SLURM: `make test-slurm`. Elsewhere these tests are left out."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.tiny.jobs import ROOT, terminal_free_environment
from tests.tiny.slurm_cluster import install, slurm, wait_until

pytestmark = pytest.mark.slurm

FILES = ("table.json", "table.csv", "table.md", "table.tex", "figure.png", "figure.pdf")
EXAMPLES = [f"{first} + {second}" for first in range(1, 5) for second in range(1, 5)]
SWEEP = ("-m", "name=sums", "model=adder", "benchmark=addition", f"benchmark.examples={EXAMPLES}", "attribution=sv,ig")
SHARDED = (*SWEEP, "model._target_=tests.tiny.jobs.SlowestAdder", "shards=2", "hydra/launcher=slurm_local")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    install()
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield terminal_free_environment() | environment


def start(*arguments, output_dir, environment):
    command = [sys.executable, "run.py", *arguments, f"output_dir={output_dir}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def run(*arguments, output_dir, environment):
    """The exit status, and what was written to standard error."""
    process = start(*arguments, output_dir=output_dir, environment=environment)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def records(folder, method):
    files = list(folder.glob(f"jobs/adder-{method}-*/records.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def n_done_of_shard(folder, method, shard):
    places = [EXAMPLES.index(record["sample"]) for record in records(folder, method)]
    return sum(place % 2 == shard for place in places)


def state(task, environment):
    listed = subprocess.run(["sacct"], env=environment, capture_output=True, text=True, check=True).stdout
    return dict(line.split("|")[:2] for line in listed.splitlines()).get(task)


def array_id(folder):
    """Number of the job array, from the name of its first task's folder."""
    found = []
    wait_until(lambda: found.extend(folder.glob("slurm/*_0")) or found, "folder of a task")
    return found[0].name.removesuffix("_0")


def task_log(folder, task):
    return (folder / "slurm" / task / f"{task}_0_log.err").read_text()


def n_by_an_earlier_run(log):
    return [int(number) for number in re.findall(r"(\d+) by an earlier run", log)]


@pytest.fixture(scope="module")
def local(tmp_path_factory, cluster):
    """The sweep in one process here, without shards."""
    folder = tmp_path_factory.mktemp("local")
    status, errors = run(*SWEEP, output_dir=folder, environment=cluster)
    assert status == 0, errors
    return folder


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, cluster):
    """An array of four tasks: one is requeued, one told that its time is over, one cancelled and put back."""
    folder = tmp_path_factory.mktemp("disturbed")
    sweep = start(*SHARDED, output_dir=folder, environment=cluster)
    array = array_id(folder)
    order = [(method, shard) for shard in (0, 1) for method in ("sv", "ig")]
    tasks = {task: f"{array}_{place}" for place, task in enumerate(order)}

    def when_running(method, shard, *command):
        wait_until(lambda: n_done_of_shard(folder, method, shard) > 0, f"sample of {method}, shard {shard}")
        subprocess.run([*command, tasks[method, shard]], env=cluster, check=True)

    when_running("sv", 0, "scontrol", "requeue")
    when_running("ig", 0, "scancel", "--signal=USR2")
    when_running("sv", 1, "scancel")
    wait_until(lambda: state(tasks["sv", 1], cluster) == "CANCELLED", "end of the cancelled task")
    subprocess.run(["scontrol", "requeue", tasks["sv", 1]], env=cluster, check=True)
    _, errors = sweep.communicate(timeout=300)
    return folder, tasks, sweep.returncode, errors


def test_a_disturbed_sweep_ends_well(disturbed):
    _, _, status, errors = disturbed
    assert status == 0, errors
    assert "Traceback" not in errors


def test_its_table_and_figure_are_those_of_a_local_run(disturbed, local):
    assert contents(disturbed[0]) == contents(local)


@pytest.mark.parametrize("method", ["sv", "ig"])
def test_every_sample_is_computed_once(disturbed, method):
    lines = records(disturbed[0], method)
    assert sorted(record["sample"] for record in lines) == sorted(EXAMPLES)
    assert {record["status"] for record in lines} == {"done"}


@pytest.mark.parametrize("task", [("sv", 0), ("ig", 0), ("sv", 1)])
def test_a_task_that_was_put_back_goes_on_where_it_stopped(disturbed, task):
    folder, tasks, _, _ = disturbed
    earlier = n_by_an_earlier_run(task_log(folder, tasks[task]))
    assert len(earlier) == 1
    assert 0 < earlier[0] < len(EXAMPLES) / 2


def test_a_task_that_nobody_disturbed_ran_once(disturbed):
    folder, tasks, _, _ = disturbed
    assert n_by_an_earlier_run(task_log(folder, tasks["ig", 1])) == [0]


@pytest.fixture(scope="module")
def half_refused(tmp_path_factory, cluster):
    """Two jobs on nodes with a GPU, of which one cannot start."""
    folder = tmp_path_factory.mktemp("refused")
    resources = {"partition": "main", "account": "lab", "gres": "gpu:2", "timeout_min": 7, "mem_gb": 3}
    launcher = [f"hydra.launcher.{key}={value}" for key, value in ({"cpus_per_task": 1} | resources).items()]
    jobs = (*SWEEP[:-1], "attribution=attention,sv", "attribution.meta=true", "limit=1")
    status, errors = run(*jobs, "hydra/launcher=slurm", *launcher, output_dir=folder, environment=cluster)
    return folder, status, errors


def test_what_a_task_asks_of_its_node_can_be_overridden(half_refused):
    script = next(half_refused[0].glob("slurm/*/*_submission.sh")).read_text()
    asked = [
        "partition=main", "account=lab", "gres=gpu:2", "time=7", "mem=3GB", "cpus-per-task=1", "job-name=metagame-sums",
    ]  # fmt: skip
    assert [f"#SBATCH --{each}\n" in script for each in asked] == [True] * len(asked)


def test_a_job_that_cannot_start_on_its_node_is_told_here_and_in_the_table(half_refused):
    folder, status, errors = half_refused
    table = json.loads((folder / "table.json").read_text())
    assert status == 1
    assert errors.count("AttentionWeights has no metagame") == 1
    assert any("Meta-attention could not start" in note for note in table["notes"])
    assert [row["method"] for row in table["rows"]] == ["Meta-SV"]
