"""A real SLURM of one node, started for a test and stopped after it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
PATIENCE = 120
"""Seconds after which what is awaited counts as not happening."""

# cred_expire: a requeue waits until a task's credential expires, two minutes by default. config_overrides: more CPUs
# are declared than there are.
CONFIG = """
ClusterName=metagame
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
MinJobAge=86400
KillWait=1
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# Stands for accounting, which submitit asks for the states of tasks: what the controller knows, in sacct's format.
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
scontrol -o show job | sed -n 's/^JobId=\\([0-9]*\\) \\(.*\\)$/\\1 \\2/p' | while read -r id rest; do
    array=$(echo "$rest" | sed -n 's/.*ArrayJobId=\\([0-9]*\\) ArrayTaskId=\\([0-9]*\\) .*/\\1_\\2/p')
    state=$(echo "$rest" | sed -n 's/.*JobState=\\([A-Z_]*\\).*/\\1/p')
    echo "${array:-$id}|$state|localhost"
done
"""


def install() -> None:
    """SLURM's programs from Debian's packages, or a skip that says what is missing."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("SLURM is not installed, and installing it needs root and apt-get")
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"SLURM could not be installed: {done.stderr.strip().splitlines()[-1]}")


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Within: SLURM runs, with its files in ``folder``; yields the environment of its clients."""
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    _write_programs(folder)
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    try:
        _start_munge(folder)
        for daemon in (["slurmctld"], ["slurmd", "-N", "localhost"]):
            subprocess.run(daemon, env=environment, check=True, timeout=PATIENCE)
        wait_until(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environment), "an idle node")
        yield environment
    finally:
        subprocess.run(["scancel", "--full", "--signal=KILL", "--state=RUNNING"], env=environment, check=False)
        for name in ("slurmd", "slurmctld", "munged"):
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


def _write_programs(folder: Path) -> None:
    config = CONFIG.format(folder=folder, controller_port=_free_port(), node_port=_free_port())
    (folder / "slurm.conf").write_text(config)
    for number in range(4):  # GPUs are files to SLURM
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"NodeName=localhost Name=gpu File={folder}/gpu[0-3]\n")
    sacct = folder / "bin" / "sacct"
    sacct.write_text(SACCT)
    sacct.chmod(0o755)


def _start_munge(folder: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log",
             "seed-file": "munge.seed"}  # fmt: skip
    # root may be its user, since its folders are no one else's
    options = [f"--{option}={folder / name}" for option, name in files.items()]
    subprocess.run(["munged", "--force", *options], check=True, timeout=PATIENCE)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as ``condition`` holds; fail after two minutes."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, f"no {what} after {PATIENCE} seconds"
        time.sleep(0.05)
