"""The work on a job: its samples in batches, each recorded as soon as it is done, or has failed."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metagame.attributions.method import Metagame
from metagame.contracts import BoundInput, Failure, Method, Sample
from metagame.digests import digest
from metagame.errors import UserError, is_out_of_memory
from metagame.jobs.accelerator import free_memory, use_full_precision, use_threads
from metagame.jobs.build import Job, check_report
from metagame.jobs.checks import check_scale, check_shard, check_values
from metagame.jobs.environment import computed_with, describe_environment, environment_path
from metagame.jobs.fingerprint import Provenance, files_digest
from metagame.jobs.grid import REFUSALS, refusal_name
from metagame.jobs.manifest import changed_modules, job_manifest, keep_manifest
from metagame.jobs.progress import JobProgress
from metagame.jobs.records import (
    VERSION,
    Record,
    RecordStore,
    pack,
    record_key,
    replace_atomically,
    sample_key,
    writing,
)
from metagame.jobs.spec import (
    asked_path,
    job_folder,
    job_identity,
    job_name,
    jobs_folder,
    merged,
    plain,
)
from metagame.kept_values import KeptValues

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One sample of a job, to be done.

    Attributes:
        sample: of the benchmark.
        key: see :func:`metagame.jobs.records.sample_key`.
        provenance: what it is computed from.
        kept: of each variant the key of a record that counts although its provenance is another (``reuse=stale``).
    """

    sample: Sample
    key: str
    provenance: Provenance
    kept: Mapping[str, str]

    def record_key(self, variant: str) -> str:
        """The key of the record that counts for a variant."""
        return self.kept.get(variant, record_key(self.key, variant))


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its samples, by what became of them, and the distinct errors of those that failed."""

    folder: Path
    n_samples: int
    n_done: int
    n_failed: int
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A job with its store and its tasks, before the work.

    Attributes:
        cfg: its config.
        job: its parts.
        store: of its records.
        tasks: of all shards, by key, in the benchmark's order.
    """

    cfg: DictConfig
    job: Job
    store: RecordStore
    tasks: dict[str, Task]

    def missing(self, task: Task, records: Mapping[str, Record]) -> list[str]:
        """The variants of a sample that no run has finished; arrays that are gone or broken count as unfinished."""
        found = {variant: records.get(task.record_key(variant)) for variant in self.job.methods}
        return [
            variant
            for variant, record in found.items()
            if record is None or record.status == "failed" or not self.store.has_arrays(record)
        ]


Track = Callable[[DictConfig, Path, frozenset[str]], AbstractContextManager[Callable[[], None]]]
"""Within it a job is followed: its config, folder and record keys; call what it yields when records were appended."""


@contextmanager
def untracked(cfg: DictConfig, folder: Path, keys: frozenset[str]) -> Generator[Callable[[], None], None, None]:
    """Within: nobody follows the job."""
    yield lambda: None


def run_job(cfg: DictConfig, track: Track = untracked) -> Outcome:
    """Work through the samples that no earlier run has finished, one record for each variant.

    A sample that fails is recorded with its error and does not stop the others, unless ``fail_fast``. With ``shards``
    above 1 only the samples of this ``shard`` are worked on; all shards share the job's folder.

    Raises:
        UserError: the config makes no job.
        RecordError: the records of an earlier run cannot be read.
    """
    check_values(cfg)
    check_scale(cfg)
    check_shard(cfg)
    check_report(cfg)
    free_memory()
    job = Job.build(cfg)
    use_threads(cfg.scale.get("threads"))
    use_full_precision()
    job.model.keep_in(jobs_folder(cfg))
    plan = _plan(cfg, job)
    store = plan.store
    _remove_refusals(cfg, store.folder)
    batches = own_batches(plan.tasks, plan.job.model.batch_size, cfg.shards, cfg.shard)
    own = {key: task for batch in batches for key, task in batch.items()}
    records = store.read()
    missing = {key: variants for key, task in own.items() if (variants := plan.missing(task, records))}
    environment = describe_environment(plan.job.model, cfg.seed)
    _write_description(plan, environment if missing else None)
    keys = frozenset(task.record_key(variant) for task in own.values() for variant in plan.job.methods)
    title = f"{cfg.model.name} x {cfg.attribution.name}"
    with (
        track(cfg, store.folder, keys) as update_tracker,
        JobProgress(title, len(own), len(own) - len(missing)) as progress,
    ):
        worker = Worker(plan, progress, update_tracker, environment)
        held_elsewhere: dict[str, Task] = {}
        waiting = [(batch, pending) for batch in batches if (pending := [key for key in batch if key in missing])]
        for place, (batch, pending) in enumerate(waiting):
            start = monotonic()
            upcoming = waiting[place + 1][0] if place + 1 < len(waiting) else {}
            held_elsewhere |= worker.work(batch, pending, upcoming, wait=False)
            if place == 0 and len(waiting) > 1:
                _tell_time(title, worker.n_evaluated, len(missing) - len(pending), monotonic() - start)
        for key, task in held_elsewhere.items():
            worker.work({key: task}, [key], {}, wait=True)
    outcome = _outcome(plan, own)
    log.info(
        "%s: %d of %d samples done (%d by an earlier run), %d failed",
        " x ".join(cfg[part].name for part in ("model", "attribution", "benchmark")) + _shard_name(cfg),
        outcome.n_done, outcome.n_samples, len(own) - len(missing), outcome.n_failed,
    )  # fmt: skip
    return outcome


def _tell_time(title: str, n_done: int, n_left: int, seconds: float) -> None:
    """Say how long a job will take, at the speed of its first batch, where that is a minute or more."""
    minutes = n_left * seconds / n_done / 60 if n_done else 0.0
    if minutes >= 1:
        left = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.0f} min"
        log.info(
            "%s: %d samples took %.1f s, and the other %d will take about %s.", title, n_done, seconds, n_left, left
        )


def _plan(cfg: DictConfig, job: Job) -> Plan:
    store = RecordStore(job_folder(cfg))
    identity = job_identity(cfg)
    manifest = job_manifest(cfg)
    keep_manifest(store.folder, manifest)
    common = list(job.benchmark.files())
    samples = list(job.benchmark.samples()[: cfg.limit])
    if not samples:
        raise UserError(f"benchmark {cfg.benchmark.name} has no samples with these settings: choose at least one.")
    repeated = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if repeated:
        raise UserError(
            f"benchmark {cfg.benchmark.name} has several samples with the id {repeated[0]}: give each sample its"
            " own id."
        )
    records = store.read()
    finished: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records.values():
        if record.status == "done":
            finished[record.sample, record.variant].append(record)
    tasks: dict[str, Task] = {}
    changed: Counter[str] = Counter()
    codes: set[str] = set()
    for sample in samples:
        provenance = Provenance(digest(manifest), job.model.revision, files_digest([*common, *sample.files()]))
        key = sample_key(identity, provenance, sample.id)
        unknown = [variant for variant in job.methods if record_key(key, variant) not in records]
        candidates = [list(filter(store.has_arrays, finished[sample.id, variant])) for variant in unknown]
        older = [_closest(each, provenance) for each in candidates if each]
        if older:
            before = Provenance(**older[0].provenance)
            changed.update(provenance.differences(before))
            codes.add(before.code)
        kept = {record.variant: record.key for record in older} if cfg.reuse == "stale" else {}
        tasks[key] = Task(sample, key, provenance, kept)
    _tell_changes(cfg, changed, changed_modules(store.folder, codes, manifest))
    return Plan(cfg, job, store, tasks)


def _closest(records: Sequence[Record], provenance: Provenance) -> Record:
    """The latest of those since which the fewest things have changed."""
    return min(reversed(records), key=lambda record: len(provenance.differences(Provenance(**record.provenance))))


WHAT_CHANGED = {"code": "the code", "weights": "the model's files", "files": "the samples' files"}


def _tell_changes(cfg: DictConfig, changed: Counter[str], modules: list[str]) -> None:
    """Say in one line what made earlier records count no more, and what becomes of them."""
    if not changed:
        return
    named = f" ({', '.join(modules[:3])}{', ...' if len(modules) > 3 else ''})" if modules else ""
    causes = " and ".join(WHAT_CHANGED[name] + (named if name == "code" else "") for name in changed)
    what = "kept (reuse=stale), and the table says so" if cfg.reuse == "stale" else "computed again"
    plural = len(changed) > 1 or "weights" in changed or "files" in changed
    log.warning(
        "%s: %s %s changed: %d samples are %s.",
        job_name(cfg), causes, "have" if plural else "has", max(changed.values()), what,
    )  # fmt: skip


def _remove_refusals(cfg: DictConfig, folder: Path) -> None:
    with writing(folder):
        for path in folder.glob(refusal_name(cfg) if cfg.shards > 1 else REFUSALS):
            path.unlink(missing_ok=True)


def _outcome(plan: Plan, own: Mapping[str, Task]) -> Outcome:
    """What became of the samples: one is done with all its variants, and failed with any."""
    records = plan.store.read()
    n_done, errors, n_failed = 0, [], 0
    for task in own.values():
        found = [records.get(task.record_key(variant)) for variant in plan.job.methods]
        failed = [record.error for record in found if record is not None and record.status == "failed"]
        n_failed += bool(failed)
        n_done += all(record is not None and record.status == "done" for record in found)
        errors += [error for error in failed if error is not None]
    return Outcome(plan.store.folder, len(own), n_done, n_failed, tuple(dict.fromkeys(errors)))


def _shard_name(cfg: DictConfig) -> str:
    return f", shard={cfg.shard} of {cfg.shards}" if cfg.shards > 1 else ""


def _write_description(plan: Plan, environment: dict[str, Any] | None) -> None:
    """``config.yaml`` and, if given, the environment of the job; of the experiment what it asks of the job."""
    cfg, folder = merged(plan.cfg, {"shard": None}), plan.store.folder
    texts = {folder / "config.yaml": OmegaConf.to_yaml(cfg, resolve=True)}
    if environment is not None:
        part = computed_with(environment)
        texts[folder / "environment.json"] = json.dumps(environment, indent=1) + "\n"
        texts[environment_path(folder, digest(part))] = json.dumps(part, indent=1) + "\n"
    asked = {
        "version": VERSION,
        "job": os.path.relpath(folder, cfg.output_dir),
        "config": plain(cfg),
        "identity": job_identity(cfg),
        "samples": [
            {
                "id": task.sample.id,
                "records": {variant: task.record_key(variant) for variant in plan.job.methods},
                "stale": bool(task.kept),
            }
            for task in plan.tasks.values()
        ],
    }
    texts[asked_path(cfg)] = json.dumps(asked, ensure_ascii=False) + "\n"
    with writing(asked_path(cfg)):
        asked_path(cfg).parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        with replace_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


class Worker:
    """Prepares samples in batches, evaluates and records them one at a time; says each kind of failure once."""

    def __init__(
        self,
        plan: Plan,
        progress: JobProgress,
        update_tracker: Callable[[], None],
        environment: Mapping[str, Any],
    ) -> None:
        self.plan = plan
        self.progress = progress
        self.update_tracker = update_tracker
        self.commit = environment["git_commit"]
        self.environment = digest(computed_with(environment))
        self.memory_advice = memory_advice(plan.cfg, plan.job.methods.values())
        self._said: set[str] = set()
        self.n_evaluated = 0  # samples that no other process held or had finished

    def work(
        self, batch: dict[str, Task], pending: list[str], upcoming: dict[str, Task], *, wait: bool
    ) -> dict[str, Task]:
        """Evaluate and record the pending samples of a batch that nobody has finished, and have the next one read.

        Returns:
            Those that another process holds.
        """
        prepared: dict[str, Mapping[str, BoundInput] | Failure] = {}
        held = {}
        for key in pending:
            with self.plan.store.claim(key, wait=wait) as claimed:
                if not claimed:
                    held[key] = batch[key]
                    continue
                missing = self.plan.missing(batch[key], self.plan.store.read())
                if missing and not prepared:
                    samples = [task.sample for task in batch.values()]
                    prepared = dict(zip(batch, self.plan.job.prepare(samples), strict=True))
                    self.plan.job.read_ahead([task.sample for task in upcoming.values()])
                self.n_evaluated += bool(missing)
                inputs = prepared.pop(key, {})
                for variant in missing:
                    self._evaluate_and_append(batch[key], variant, inputs)
                if not self.plan.missing(batch[key], self.plan.store.read()):
                    self.plan.store.forget_claim(key)
                self.update_tracker()
                self.progress.advance()
        return held

    def _evaluate_and_append(self, task: Task, variant: str, inputs: Mapping[str, BoundInput] | Failure) -> None:
        failed = Record(
            record_key(task.key, variant), task.sample.id, "failed", variant,
            provenance=vars(task.provenance), commit=self.commit, environment=self.environment,
        )  # fmt: skip
        try:
            if isinstance(inputs, Failure):
                raise inputs.error
            kept = {question: self._kept(failed.key, question) for question in inputs}
            found = self.plan.job.evaluate(variant, task.sample, inputs, self.progress.within_sample, kept)
        except Exception as error:
            message = _message(error, self.memory_advice)
            self.plan.store.append(replace(failed, error=message), {})
            self._say(task, message)
            if self.plan.cfg.fail_fast:
                raise
            _release(error)
        else:
            labels, arrays = pack(found.explanations, found.pictures)
            arrays_kept = arrays if task.sample.keeps_arrays() else {}
            done = replace(failed, status="done", scores=found.scores, labels=labels, arrays=list(arrays_kept))
            self.plan.store.append(done, arrays_kept)
            for each in kept.values():
                each.remove()

    def _kept(self, key: str, question: str) -> KeptValues:
        """Where the values of a record's game are kept while it is in work."""
        name = f"{key}-{digest(question)}" if question else key
        return KeptValues(self.plan.store.folder / "unfinished" / f"{name}.txt")

    def _say(self, task: Task, message: str) -> None:
        if message not in self._said:
            log.warning("sample %s failed: %s", task.sample.id, message)
            self._said.add(message)
        log.debug("sample %s", task.sample.id, exc_info=True)


def _release(error: Exception) -> None:
    """Let go of what did not fit the device's memory, which the frames of an error hold."""
    causes = list(_with_causes(error))
    if any(map(is_out_of_memory, causes)):
        for each in causes:
            each.__traceback__ = None
        free_memory()


def own_batches(tasks: dict[str, Task], size: int, shards: int, shard: int | None) -> list[dict[str, Task]]:
    """Every ``shards``-th batch, from number ``shard`` on; all of them where there is one shard.

    Whole batches, so that a sample has the same company as without shards, and its numbers the same last digits;
    smaller ones where there would be too few for all shards.
    """
    return list(_batches(tasks, min(size, ceil(len(tasks) / shards))))[shard or 0 :: shards]


def _batches(tasks: dict[str, Task], size: int) -> Iterator[dict[str, Task]]:
    """Cut all samples into batches, done or not: so a sample has the same company in every run."""
    items = iter(tasks.items())
    while batch := dict(islice(items, size)):
        yield batch


def memory_advice(cfg: DictConfig, methods: Iterable[Method[BoundInput]]) -> str:
    """What to do where out of memory on the device, in settings that this job, with these methods, has."""
    sizes = ["estimator.batch_size"] if any(isinstance(method, Metagame) for method in methods) else []
    sizes += [
        key
        for key in ("attribution.method.batch_size", "model.batch_size", "model.tokens_per_batch")
        if OmegaConf.select(cfg, key) is not None
    ]
    if sizes:
        return f"lower {' or '.join(sizes)}"
    return (
        "set model.offload=true" if cfg.model.get("offload") is False else "choose a smaller model or a larger device"
    )


def _message(error: Exception, memory_advice: str) -> str:
    if any(map(is_out_of_memory, _with_causes(error))):
        return f"out of memory on the device: {memory_advice}."
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
