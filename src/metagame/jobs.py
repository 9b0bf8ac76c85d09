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
    "metagame",
    "torch",
    "transformers",
    "diffusers",
    "lxt",
    "shapiq",
    "numpy",
    "scipy",
    "scikit-learn",
    "sympy",
)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its samples, by what became of them."""

    folder: Path
    n_samples: int
    n_done: int
    n_failed: int
    errors: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Some sample is done, or there was none."""
        return self.n_done > 0 or self.n_samples == 0


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
            estimator = build(cfg.estimator, leave_out=("name", "budget"))
            method = Meta(method, seed=cfg.seed, estimator=estimator, budget=cfg.estimator.budget)
        return cls(build(cfg.model, leave_out=("name",)), method, benchmark)

    def evaluate(self, sample: Any, progress: Progress) -> tuple[dict[str, Any], dict]:
        """Explain and score one sample: its scores and arrays."""
        if not isinstance(sample, self.model.sample_type):
            raise GameError(f"model {_name(self.model)} does not explain samples of benchmark {_name(self.benchmark)}.")
        explicand = self.model.prepare(sample)
        if not isinstance(explicand, self.method.explicand_type):
            raise GameError(f"attribution method {_name(self.method)} does not explain model {_name(self.model)}.")
        explanation = self.method.explain(explicand, progress)
        return self.benchmark.score(sample, explicand, explanation), explanation.arrays()


def _name(part: Any) -> str:
    return type(part).__name__


def run_job(cfg: DictConfig) -> Outcome:
    """Work through the samples that no earlier run has finished, one record each.

    A sample that fails is recorded with its error and does not stop the others, unless ``fail_fast``.
    """
    job = Job.build(cfg)
    samples = job.benchmark.samples()[: cfg.limit]
    identity = job_identity(cfg)
    keys = {sample_key(identity, job.model.revision, sample.id): sample for sample in samples}
    folder = job_folder(cfg)
    store = RecordStore(folder)
    _write_config(folder, cfg, job.model.revision, keys)
    finished = {key for key, record in store.read().items() if record.status == "done"}
    pending = [key for key in keys if key not in finished]
    with JobProgress(f"{cfg.model.name} x {cfg.attribution.name}", len(keys), len(keys) - len(pending)) as progress:
        held_elsewhere = [key for key in pending if not _work(job, store, key, keys[key], cfg, progress, wait=False)]
        for key in held_elsewhere:
            _work(job, store, key, keys[key], cfg, progress, wait=True)
    records = store.read()
    failed = [records[key] for key in keys if key in records and records[key].status == "failed"]
    outcome = Outcome(
        folder,
        len(keys),
        sum(key in records and records[key].status == "done" for key in keys),
        len(failed),
        tuple(dict.fromkeys(record.error for record in failed)),
    )
    log.info(
        "%s x %s x %s: %d of %d samples done (%d by an earlier run), %d failed",
        *(cfg[part].name for part in ("model", "attribution", "benchmark")),
        outcome.n_done, outcome.n_samples, len(keys) - len(pending), outcome.n_failed,
    )  # fmt: skip
    return outcome


def job_identity(cfg: DictConfig) -> dict:
    """The part of the config that the results depend on."""
    identity = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in ("model", "attribution", "benchmark")}
    identity["attribution"] = {key: identity["attribution"][key] for key in ("name", "meta", "method")}
    if cfg.attribution.meta:
        identity["estimator"] = OmegaConf.to_container(cfg.estimator, resolve=True)
    return identity | {"seed": cfg.seed, "scale": cfg.scale.name}


def job_folder(cfg: DictConfig) -> Path:
    """Where the job keeps its files: a readable name and a hash of what the results depend on."""
    names = "-".join(cfg[part].name for part in ("model", "attribution", "benchmark"))
    return Path(cfg.output_dir) / "jobs" / f"{names}-{digest(job_identity(cfg))[:8]}"


def _work(
    job: Job, store: RecordStore, key: str, sample: Any, cfg: DictConfig, progress: JobProgress, *, wait: bool
) -> bool:
    """Evaluate and record one sample; False where another process holds it."""
    with store.claim(key, wait=wait) as claimed:
        if not claimed:
            return False
        record = store.read().get(key)
        if record is None or record.status == "failed":
            _evaluate_and_append(job, store, key, sample, cfg, progress)
        progress.advance()
    return True


def _evaluate_and_append(
    job: Job, store: RecordStore, key: str, sample: Any, cfg: DictConfig, progress: JobProgress
) -> None:
    try:
        scores, arrays = job.evaluate(sample, progress.within_sample)
    except Exception as error:
        message = str(error) if isinstance(error, GameError) else f"{type(error).__name__}: {error}"
        store.append(Record(key, sample.id, "failed", error=message), {})
        log.warning("sample %s failed: %s", sample.id, message)
        log.debug("sample %s", sample.id, exc_info=True)
        if cfg.fail_fast:
            raise
    else:
        store.append(Record(key, sample.id, "done", scores, arrays=list(arrays)), arrays)


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


def _write_config(folder: Path, cfg: DictConfig, model_revision: str, keys: dict[str, Any]) -> None:
    """``config.yaml``, ``environment.json``, and ``samples.json``: this run's samples in order, with their keys."""
    with replace_atomically(folder / "config.yaml") as path:
        path.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    environment = describe_environment() | {"model_revision": model_revision, "seed": cfg.seed}
    for name, content in (
        ("environment.json", environment),
        ("samples.json", [{"id": sample.id, "key": key} for key, sample in keys.items()]),
    ):
        with replace_atomically(folder / name) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def describe_environment() -> dict[str, Any]:
    """Git commit, device and versions that a result was computed with."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "libraries": {name: _version(name) for name in LIBRARIES},
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
