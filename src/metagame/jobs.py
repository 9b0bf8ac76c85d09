"""A job is model x attribution x benchmark: it explains and scores each sample and appends one record."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from metagame.attributions.method import Explanation, FirstOrder, Meta, MetaInteractions
from metagame.environment import describe_environment
from metagame.games import GameError, Progress
from metagame.progress import JobProgress
from metagame.records import RecordStore, digest, replace_atomically, sample_key, writing
from metagame.settings import check_shard, check_values
from metagame.tracking import Tracker, track_job
from metagame.worker import Worker, free_memory, memory_advice, own_batches

log = logging.getLogger(__name__)

IRRELEVANT = (
    "label", "scales", "device", "batch_size", "tokens_per_batch", "n_threads", "ids", "offload", "expected",
)  # fmt: skip
"""Keys of the parts of a job that its results do not depend on, up to the rounding of the model's numbers.

``scales`` lists values to choose from, ``ids`` samples, which have keys of their own, ``expected`` how many there are.
"""

REFUSALS = "refused-*.txt"
"""Files in a job's folder that say why the job, or a shard of it, could not start."""


@dataclass(frozen=True)
class Job:
    """The parts of a job, built from its config."""

    model: Any
    method: Any
    benchmark: Any

    @classmethod
    def build(cls, cfg: DictConfig) -> Job:
        """Instantiate the parts, the model last.

        Raises:
            GameError: there is no GPU where the scale needs one; ``attribution.meta`` is set on a method that is no
                first-order attribution; a part refuses its arguments or misses its data.
        """
        _check_gpu(cfg)
        benchmark = build(cfg.benchmark)
        method = build(cfg.attribution.method)
        if cfg.attribution.meta:
            if not isinstance(method, FirstOrder):
                raise GameError(
                    f"attribution.meta=true needs a first-order method that attributes masked inputs;"
                    f" {cfg.attribution.name} is none."
                )
            estimator = build(cfg.estimator, leave_out=("name", "budget", "batch_size"))
            budget, batch_size = cfg.estimator.budget, cfg.estimator.batch_size
            method = Meta(method, estimator, budget=budget, seed=cfg.seed, batch_size=batch_size)
            if "index" in cfg.attribution:
                method = MetaInteractions(method, cfg.attribution.index)
        return cls(build(cfg.model), method, benchmark)

    def prepare(self, samples: Sequence[Any]) -> list[Any]:
        """The explicand of each sample, or the error that it met.

        A sample that asks several questions of one input has a dictionary of explicands. A model with ``prepare_batch``
        takes the samples together.
        """
        fitting = [isinstance(sample, self.model.sample_type) for sample in samples]
        if not all(fitting):
            names = f"model {_name(self.model)} does not explain samples of benchmark {_name(self.benchmark)}."
            return [GameError(names)] * len(samples)
        if hasattr(self.model, "prepare_batch"):
            prepared = _result_or_error(self.model.prepare_batch, samples)
            return [prepared] * len(samples) if isinstance(prepared, Exception) else prepared
        return [_result_or_error(self.model.prepare, sample) for sample in samples]

    def evaluate(self, sample: Any, explicand: Any, progress: Progress) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Explain and score one sample: its scores and arrays; of several questions ``question.array``.

        A sample whose ``keeps_arrays`` is False has scores only.

        Raises:
            GameError: the parts do not fit each other, or the explanation or a score is not finite.
        """
        if isinstance(explicand, dict):
            explanation = {question: self._explain(each, progress) for question, each in explicand.items()}
            named = [(f"{question}.", each) for question, each in explanation.items()]
        else:
            explanation = self._explain(explicand, progress)
            named = [("", explanation)]
        scores = self.benchmark.score(sample, explicand, explanation)
        for name, score in scores.items():
            if isinstance(score, float) and not np.isfinite(score):
                raise GameError(f"score {name} is {score}: check the model and the method on this sample.")
        if not getattr(sample, "keeps_arrays", True):
            return scores, {}
        return scores, {f"{prefix}{name}": array for prefix, each in named for name, array in each.arrays().items()}

    def _explain(self, explicand: Any, progress: Progress) -> Explanation:
        if not isinstance(explicand, self.method.explicand_type):
            raise GameError(f"attribution method {_name(self.method)} does not explain model {_name(self.model)}.")
        return self.method.explain(explicand, progress)


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

    A sample that fails is recorded with its error and does not stop the others, unless ``fail_fast``. With ``shards``
    above 1 only the samples of this ``shard`` are worked on; all shards share the job's folder.

    Raises:
        GameError: the config makes no job.
        RecordError: the records of an earlier run cannot be read.
    """
    check_values(cfg)
    check_shard(cfg)
    _check_report(cfg)
    tracker = build_tracker(cfg)
    free_memory()
    job = Job.build(cfg)
    identity = job_identity(cfg)
    samples = {
        sample_key(identity, job.model.revision, sample.id): sample for sample in job.benchmark.samples()[: cfg.limit]
    }
    store = RecordStore(job_folder(cfg))
    with writing(store.folder):
        for path in store.folder.glob(_refusal_name(cfg) if cfg.shards > 1 else REFUSALS):
            path.unlink(missing_ok=True)
    batches = own_batches(samples, getattr(job.model, "batch_size", 1), cfg.shards, cfg.shard)
    own = {key for batch in batches for key in batch}
    done = {key: record for key, record in store.read().items() if key in own and record.status == "done"}
    environment = describe_environment(job.model, cfg.seed)
    _write_config(store.folder, cfg, samples, environment if len(done) < len(own) else None)
    older = sum(record.commit != environment["git_commit"] for record in done.values())
    if older:
        log.info("%d samples were computed by other code; remove %s to compute them again.", older, store.folder)
    title = f"{cfg.model.name} x {cfg.attribution.name}"
    with (
        track_job(tracker, cfg, store.folder, own) as update_tracker,
        JobProgress(title, len(own), len(done)) as progress,
    ):
        commit, advice = environment["git_commit"], memory_advice(cfg)
        worker = Worker(
            job, store, progress, update_tracker, commit=commit, memory_advice=advice, fail_fast=cfg.fail_fast
        )
        held_elsewhere = {}
        for batch in batches:
            held_elsewhere |= worker.work(batch, [key for key in batch if key not in done], wait=False)
        for key, sample in held_elsewhere.items():
            worker.work({key: sample}, [key], wait=True)

    records = [record for key, record in store.read().items() if key in own]
    errors = [record.error for record in records if record.status == "failed"]
    log.info(
        "%s: %d of %d samples done (%d by an earlier run), %d failed",
        " x ".join(cfg[part].name for part in ("model", "attribution", "benchmark")) + _shard_name(cfg),
        len(records) - len(errors), len(own), len(done), len(errors),
    )  # fmt: skip
    return Outcome(store.folder, len(own), len(records) - len(errors), len(errors), tuple(dict.fromkeys(errors)))


def _shard_name(cfg: DictConfig) -> str:
    return f", shard={cfg.shard} of {cfg.shards}" if cfg.shards > 1 else ""


def _result_or_error(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:
        return error


def job_identity(cfg: DictConfig) -> dict:
    """The part of the config that the results depend on."""
    parts = {"model": cfg.model, "benchmark": cfg.benchmark} | (
        {"estimator": cfg.estimator} if cfg.attribution.meta else {}
    )
    identity = {name: _without_irrelevant(OmegaConf.to_container(part, resolve=True)) for name, part in parts.items()}
    attribution = OmegaConf.to_container(cfg.attribution, resolve=True)
    relevant = ("name", "meta", "index", "method")
    identity["attribution"] = _without_irrelevant({key: attribution[key] for key in relevant if key in attribution})
    return identity | {"seed": cfg.seed, "scale": cfg.scale.name}


def _check_gpu(cfg: DictConfig) -> None:
    undecided = "device" in cfg.model and cfg.model.device is None
    if undecided and cfg.scale.get("needs_gpu", False) and not torch.cuda.is_available():
        raise GameError(
            f"scale={cfg.scale.name} is for a GPU and none is visible: run on a GPU node, or add model.device=cpu and"
            " have patience."
        )


def is_left_out(cfg: DictConfig) -> bool:
    """Whether the experiment leaves this combination out of its grid: an entry of ``leave_out`` names all its parts."""
    return any(all(cfg[part].name == name for part, name in entry.items()) for entry in cfg.leave_out)


def job_folder(cfg: DictConfig) -> Path:
    """Where the job keeps its files, all shards together: a readable name and a hash of what the results depend on."""
    names = "-".join(cfg[part].name for part in ("model", "attribution", "benchmark"))
    return Path(cfg.output_dir) / "jobs" / f"{names}-{digest(job_identity(cfg))[:8]}"


def refuse(cfg: DictConfig, reason: str) -> None:
    """Leave in the job's folder why it, or its shard, could not start; ``run_job`` removes it.

    The sweep's own process, which writes the table, may be on another machine.
    """
    folder = job_folder(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    with replace_atomically(folder / _refusal_name(cfg)) as path:
        path.write_text(reason + "\n", encoding="utf-8")


def read_refusal(cfg: DictConfig) -> str | None:
    """Why the job, or shards of it, could not start when last tried; None where they could."""
    files = sorted(job_folder(cfg).glob(REFUSALS))
    return " ".join(dict.fromkeys(path.read_text(encoding="utf-8").strip() for path in files)) or None


def _refusal_name(cfg: DictConfig) -> str:
    return REFUSALS.replace("*", str(cfg.shard or 0))


def build(node: DictConfig, leave_out: tuple[str, ...] = ("name", "label", "scales")) -> Any:
    """Instantiate a config node without the keys in ``leave_out``, which are no arguments.

    Raises:
        GameError: as the node's target raised it, without Hydra's wrapping; or the target, maybe a function that is
            called later, does not take an argument of the node.
    """
    try:
        content = OmegaConf.to_container(node, resolve=True)
        built = instantiate({key: value for key, value in content.items() if key not in leave_out})
    except InstantiationException as error:
        if isinstance(error.__cause__, GameError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, TypeError) and "argument" in str(error.__cause__):
            raise GameError(f"{node.get('_target_')}: {error.__cause__}; correct its config.") from error
        raise
    if isinstance(built, partial):
        try:
            inspect.signature(built.func).bind_partial(*built.args, **built.keywords)
        except TypeError as error:
            raise GameError(f"{content['_target_']}: {error}; correct its config.") from error
    return built


def build_tracker(cfg: DictConfig) -> Tracker | None:
    """What the job is tracked by; None with ``tracker=none``.

    Raises:
        GameError: a setting of the tracker has no such value.
    """
    return build(cfg.tracker) if "_target_" in cfg.tracker else None


def display_label(cfg: DictConfig) -> str:
    """What tables and figures call the job's method; the metagame of a first-order one says so."""
    label = cfg.attribution.label
    return f"Meta-{label}" if cfg.attribution.meta and not label.startswith("Meta-") else label


def _without_irrelevant(node: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_irrelevant(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if key not in IRRELEVANT
    }


def job_label(cfg: DictConfig, jobs: Sequence[DictConfig]) -> str:
    """What notes call a job: its method, and its model where ``jobs`` have several."""
    if len({each.model.name for each in jobs}) == 1:
        return display_label(cfg)
    return f"{display_label(cfg)} of {cfg.model.get('label', cfg.model.name)}"


def _check_report(cfg: DictConfig) -> None:
    """Build what is called after all work, which a misspelt argument would stop then."""
    for node in filter(None, (cfg.report.table, cfg.report.get("figure"))):
        build(OmegaConf.create(OmegaConf.to_container(node, resolve=True) | {"_partial_": True}))


def _name(part: Any) -> str:
    return type(part).__name__


def _write_config(folder: Path, cfg: DictConfig, samples: dict[str, Any], environment: dict[str, Any] | None) -> None:
    """``config.yaml``, ``samples.json`` (this run's samples in order, with keys), ``environment.json`` if given."""
    ids = [{"id": sample.id, "key": key} for key, sample in samples.items()]
    texts = {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.merge(cfg, {"shard": None}), resolve=True),  # of all shards
        "samples.json": json.dumps(ids, indent=1, ensure_ascii=False) + "\n",
    }
    if environment is not None:
        texts["environment.json"] = json.dumps(environment, indent=1) + "\n"
    for name, text in texts.items():
        with replace_atomically(folder / name) as path:
            path.write_text(text, encoding="utf-8")
