"""Stub parts of a job, named by ``_target_`` where the tests need a job that counts, fails or is slow."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from metagame.attributions.method import FirstOrder
from metagame.contracts import WHOLE, Benchmark, Explanation, Method, Model, Sample, prepare_each
from metagame.games import AttributionGame
from metagame.jobs.grid import read_configs_once
from metagame.jobs.run import run_job
from metagame.jobs.spec import register
from metagame.meta import MetaAttributions
from metagame.models.adder import Adder
from metagame.report.results import failure_notes
from metagame.report.table import Column, Table

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Number(Sample):
    """A sample, and its own bound input of two players."""

    id: str
    value: float
    players = ("p", "q")
    targets = ("p", "q")
    grid = None
    picture = None


class Numbers(Benchmark):
    """A benchmark of numbers."""

    def __init__(self, values):
        self.values = values

    def samples(self):
        return [Number(str(value), float(value)) for value in self.values]

    def score(self, sample, inputs, explanations):
        return {"value": sample.value}


class Plain(Model):
    """A model that writes down which samples it prepared, also for other processes."""

    sample_type = Number
    revision = "first"
    device = "cpu"

    def __init__(self, log=None, seconds=0.0):
        self.log = log
        self.seconds = seconds

    def prepare(self, samples):
        return prepare_each(self.bind, samples)

    def bind(self, sample):
        time.sleep(self.seconds)
        if self.log is not None:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()} {sample.id}\n")
        return {WHOLE: sample}


class SlowAdder(Adder):
    """The adder, slow enough to be killed in the middle of a sample."""

    seconds: ClassVar[float] = 0.2

    def bind(self, sample):
        time.sleep(self.seconds)
        return super().bind(sample)


class SlowestAdder(SlowAdder):
    """The adder, slow enough for a cluster to take notice."""

    seconds = 1.0


class Share(FirstOrder):
    """Two present players get the number each; ids in ``broken`` raise."""

    input_type = Number
    broken: ClassVar[set[str]] = set()

    def __init__(self, factor=1.0):
        self.factor = factor

    def game(self, bound):
        if bound.id in self.broken:
            raise RuntimeError(f"no memory for {bound.id}")
        return AttributionGame(lambda coalitions: coalitions * self.factor * bound.value, 2)


class Pairs(Method):
    """A second-order method that is no game."""

    input_type = Number

    def explain(self, bound, progress=None):
        phi = MetaAttributions(np.full((2, 2), bound.value), players=bound.players, targets=bound.targets)
        return Explanation(bound.players, bound.targets, meta=phi)


def numbers_table(results, scale):
    rows = [{"method": result.label, "done": len(result.done)} for result in results]
    columns = [Column("method", "method", "text"), Column("done", "done", "number")]
    return Table("Numbers", scale, columns, rows, [{} for _ in rows], n_samples=1, notes=failure_notes(results))


def broken_table(results, scale):
    raise KeyError("entries")


def job_config(output_dir, **changes) -> DictConfig:
    """The config of a stub job; ``changes`` by dotted key with ``__`` for the dot."""
    cfg = OmegaConf.create(
        {
            "name": "numbers",
            "scale": {"name": "tiny"},
            "model": {"name": "plain", "_target_": "tests.tiny.jobs.Plain"},
            "attribution": {
                "name": "share",
                "label": "Share",
                "family": "stub",
                "meta": False,
                "method": {"_target_": "tests.tiny.jobs.Share"},
            },
            "benchmark": {"name": "numbers", "_target_": "tests.tiny.jobs.Numbers", "values": [1, 2, 3]},
            "estimator": {
                "name": "exact",
                "_target_": "metagame.estimators.exact",
                "_partial_": True,
                "budget": None,
                "batch_size": None,
            },
            "report": {"table": {"_target_": "tests.tiny.jobs.numbers_table"}, "figure": None},
            "seed": 0,
            "limit": None,
            "tracker": {"name": "none"},
            "shards": 1,
            "shard": None,
            "fail_fast": False,
            "reuse": "fresh",
            "leave_out": [],
            "output_dir": str(output_dir),
            "jobs_dir": None,
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return cfg


def run_together(cfg: DictConfig, barrier) -> None:
    """A process's work: wait until the others are there too, then run the job."""
    barrier.wait(timeout=120)
    run_job(cfg)


def run_on_terminal(cfg: DictConfig, terminal: str) -> None:
    """A process's work: the job, whose standard error is this terminal."""
    os.environ.clear()
    os.environ.update(terminal_free_environment(TERM="xterm-256color", COLUMNS="100"))
    os.dup2(os.open(terminal, os.O_RDWR), 2)
    run_job(cfg)


def terminal_free_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what makes rich believe in a terminal."""
    return {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")} | extra


READ = {}
"""What Hydra has read under ``configs/``, which no test changes."""


@contextmanager
def shipped_configs():
    """Within: the configs under ``configs/`` can be composed, and their relative paths are found."""
    before = Path.cwd()
    os.chdir(ROOT)
    register()
    try:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            read_configs_once()
            GlobalHydra.instance().config_loader().repository.cache = READ
            yield
    finally:
        os.chdir(before)
