"""A job is model x attribution x benchmark: it explains and scores each sample and appends one record."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from metagame.attributions.method import FirstOrder, Meta
from metagame.games import GameError, Progress
from metagame.progress import JobProgress
from metagame.records import Record, RecordStore, digest, replace_atomically, sample_key

log = logging.getLogger(__name__)

LIBRARIES = (
    "metagame", "torch", "transformers", "diffusers", "lxt", "shapiq", "numpy", "scipy", "scikit-learn", "sympy",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """The parts of a job, built from its config."""

    model: Any
    method: Any
    benchmark: Any

    @classmethod
    def build(cls, cfg: DictConfig) -> Job:
        """Instantiate the parts.

        Raises:
            GameError: ``attribution.meta`` is set on a method that is no first-order attribution, or a part refuses its
                arguments.
        """
        benchmark = build(cfg.benchmark, leave_out=("name",))
        method = build(cfg.attribution.method)
        if cfg.attribution.meta:
            if not isinstance(method, FirstOrder):
                raise GameError(f"attribution.meta=true needs a first-order method; {cfg.attribution.name} is none.")
            estimator = build(cfg.estimator, leave_out=("name", "budget", "batch_size"))
            budget, batch_size = cfg.estimator.budget, cfg.estimator.batch_size
            method = Meta(method, estimator, budget=budget, seed=cfg.seed, batch_size=batch_size)
        return cls(build(cfg.model, leave_out=("name",)), method, benchmark)

    def evaluate(self, sample: Any, progress: Progress) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Explain and score one sample: its scores and arrays.

        Raises:
            GameError: the parts do not fit each other, or the explanation or a score is not finite.
        """
        if not isinstance(sample, self.model.sample_type):
            raise GameError(f"model {_name(self.model)} does not explain samples of benchmark {_name(self.benchmark)}.")
        explicand = self.model.prepare(sample)
        if not isinstance(explicand, self.method.explicand_type):
            raise GameError(f"attribution method {_name(self.method)} does not explain model {_name(self.model)}.")
        explanation = self.method.explain(explicand, progress)
        scores = self.benchmark.score(sample, explicand, explanation)
        for name, score in scores.items():
            if isinstance(score, float) and not np.isfinite(score):
                raise GameError(f"score {name} is {score}: check the model and the method on this sample.")
        return scores, explanation.arrays()


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its samples, by what became of them, and the distinct errors of those that failed."""

    folder: Path
    n_samples: int
    n_done: int
    n_failed: int
    errors: tuple[str, ...]


def run_job(cfg: DictConfig) -> Outcome:
    """Work through the samples that no earlier run has finished, one record each.

    A sample that fails is recorded with its error and does not stop the others, unless ``fail_fast``.

    Raises:
        GameError: the config makes no job.
        RecordError: the records of an earlier run cannot be read.
    """
    _check_settings(cfg)
    job = Job.build(cfg)
    identity = job_identity(cfg)
    samples = {
        sample_key(identity, job.model.revision, sample.id): sample for sample in job.benchmark.samples()[: cfg.limit]
    }
    store = RecordStore(job_folder(cfg))
    done = {key: record for key, record in store.read().items() if key in samples and record.status == "done"}
    environment = describe_environment(job.model, cfg.seed)
    _write_config(store.folder, cfg, samples, environment if len(done) < len(samples) else None)
    older = sum(record.commit != environment["git_commit"] for record in done.values())
    if older:
        log.info("%d samples were computed by other code; remove %s to compute them again.", older, store.folder)
    with JobProgress(f"{cfg.model.name} x {cfg.attribution.name}", len(samples), len(done)) as progress:
        worker = Worker(job, store, progress, commit=environment["git_commit"], fail_fast=cfg.fail_fast)
        pending = [key for key in samples if key not in done]
        held_elsewhere = [key for key in pending if not worker.work(key, samples[key], wait=False)]
        for key in held_elsewhere:
            worker.work(key, samples[key], wait=True)

    records = [record for key, record in store.read().items() if key in samples]
    errors = [record.error for record in records if record.status == "failed"]
    log.info(
        "%s: %d of %d samples done (%d by an earlier run), %d failed",
        " x ".join(cfg[part].name for part in ("model", "attribution", "benchmark")),
        len(records) - len(errors), len(samples), len(done), len(errors),
    )  # fmt: skip
    return Outcome(store.folder, len(samples), len(records) - len(errors), len(errors), tuple(dict.fromkeys(errors)))


class Worker:
    """Evaluates and records samples, one at a time; says each kind of failure once."""

    def __init__(
        self, job: Job, store: RecordStore, progress: JobProgress, *, commit: str | None, fail_fast: bool
    ) -> None:
        self.job = job
        self.store = store
        self.progress = progress
        self.commit = commit
        self.fail_fast = fail_fast
        self._said: set[str] = set()

    def work(self, key: str, sample: Any, *, wait: bool) -> bool:
        """Evaluate and record a sample that nobody has finished; False where another process holds it."""
        with self.store.claim(key, wait=wait) as claimed:
            if not claimed:
                return False
            record = self.store.read().get(key)
            if record is None or record.status == "failed":
                self._evaluate_and_append(key, sample)
            self.progress.advance()
        return True

    def _evaluate_and_append(self, key: str, sample: Any) -> None:
        try:
            scores, arrays = self.job.evaluate(sample, self.progress.within_sample)
        except Exception as error:
            message = str(error) if isinstance(error, GameError) else f"{type(error).__name__}: {error}"
            self.store.append(Record(key, sample.id, "failed", error=message, commit=self.commit), {})
            if message not in self._said:
                log.warning("sample %s failed: %s", sample.id, message)
                self._said.add(message)
            log.debug("sample %s", sample.id, exc_info=True)
            if self.fail_fast:
                raise
        else:
            self.store.append(Record(key, sample.id, "done", scores, arrays=list(arrays), commit=self.commit), arrays)


def job_identity(cfg: DictConfig) -> dict:
    """The part of the config that the results depend on."""
    identity = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in ("model", "attribution", "benchmark")}
    identity["attribution"] = {key: identity["attribution"][key] for key in ("name", "meta", "method")}
    if cfg.attribution.meta:
        identity["estimator"] = OmegaConf.to_container(cfg.estimator, resolve=True)
        del identity["estimator"]["batch_size"]
    return identity | {"seed": cfg.seed, "scale": cfg.scale.name}


def job_folder(cfg: DictConfig) -> Path:
    """Where the job keeps its files: a readable name and a hash of what the results depend on."""
    names = "-".join(cfg[part].name for part in ("model", "attribution", "benchmark"))
    return Path(cfg.output_dir) / "jobs" / f"{names}-{digest(job_identity(cfg))[:8]}"


def build(node: DictConfig, leave_out: tuple[str, ...] = ()) -> Any:
    """Instantiate a config node without the keys in ``leave_out``.

    Raises:
        GameError: as the node's target raised it, without Hydra's wrapping.
    """
    try:
        return instantiate({key: value for key, value in node.items() if key not in leave_out})
    except InstantiationException as error:
        if isinstance(error.__cause__, GameError):
            raise error.__cause__ from None
        raise


def display_label(cfg: DictConfig) -> str:
    """What tables and figures call the job's method; the metagame of a first-order one says so."""
    label = cfg.attribution.label
    return f"Meta-{label}" if cfg.attribution.meta and not label.startswith("Meta-") else label


def _check_settings(cfg: DictConfig) -> None:
    if cfg.limit is not None and (not isinstance(cfg.limit, int) or cfg.limit < 1):
        raise GameError(f"limit={cfg.limit}: give a positive whole number of samples, or null for all.")
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise GameError(f"seed={cfg.seed}: give a whole number, not negative.")


def _name(part: Any) -> str:
    return type(part).__name__


def _write_config(folder: Path, cfg: DictConfig, samples: dict[str, Any], environment: dict[str, Any] | None) -> None:
    """``config.yaml``, ``samples.json`` (this run's samples in order, with keys), ``environment.json`` if given."""
    ids = [{"id": sample.id, "key": key} for key, sample in samples.items()]
    texts = {
        "config.yaml": OmegaConf.to_yaml(cfg, resolve=True),
        "samples.json": json.dumps(ids, indent=1, ensure_ascii=False) + "\n",
    }
    if environment is not None:
        texts["environment.json"] = json.dumps(environment, indent=1) + "\n"
    for name, text in texts.items():
        with replace_atomically(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def describe_environment(model: Any, seed: int) -> dict[str, Any]:
    """What a result was computed with: git commit, versions, device, model revision and seed."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "device": model.device,
        "model_revision": model.revision,
        "seed": seed,
    }


def _git_commit() -> str | None:
    """The commit of the working tree, with ``-dirty`` where tracked files differ; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
