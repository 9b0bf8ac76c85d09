"""The work on a job's samples: in batches, each sample recorded as soon as it is done, or has failed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from metagame.games import GameError
from metagame.progress import JobProgress
from metagame.records import Record, RecordStore

if TYPE_CHECKING:
    from metagame.jobs import Job

log = logging.getLogger(__name__)


class Worker:
    """Prepares samples in batches, evaluates and records them one at a time; says each kind of failure once."""

    def __init__(
        self,
        job: Job,
        store: RecordStore,
        progress: JobProgress,
        update_tracker: Callable[[], None],
        *,
        commit: str | None,
        memory_advice: str,
        fail_fast: bool,
    ) -> None:
        self.job = job
        self.store = store
        self.progress = progress
        self.update_tracker = update_tracker
        self.commit = commit
        self.memory_advice = memory_advice
        self.fail_fast = fail_fast
        self._said: set[str] = set()

    def work(self, batch: dict[str, Any], pending: list[str], *, wait: bool) -> dict[str, Any]:
        """Evaluate and record the pending samples of a batch that nobody has finished.

        Returns:
            Those that another process holds.
        """
        explicands: dict[str, Any] = {}
        held = {}
        for key in pending:
            with self.store.claim(key, wait=wait) as claimed:
                if not claimed:
                    held[key] = batch[key]
                    continue
                record = self.store.read().get(key)
                if record is None or record.status == "failed":
                    if not explicands:
                        explicands = dict(zip(batch, self.job.prepare(list(batch.values())), strict=True))
                    self._evaluate_and_append(key, batch[key], explicands.pop(key))
                self.update_tracker()
                self.progress.advance()
        return held

    def _evaluate_and_append(self, key: str, sample: Any, explicand: Any) -> None:
        try:
            if isinstance(explicand, Exception):
                raise explicand
            scores, arrays = self.job.evaluate(sample, explicand, self.progress.within_sample)
        except Exception as error:
            message = _message(error, self.memory_advice)
            self.store.append(Record(key, sample.id, "failed", error=message, commit=self.commit), {})
            if message not in self._said:
                log.warning("sample %s failed: %s", sample.id, message)
                self._said.add(message)
            log.debug("sample %s", sample.id, exc_info=True)
            if self.fail_fast:
                raise
            causes = list(_with_causes(error))
            if any(isinstance(each, torch.OutOfMemoryError) for each in causes):
                for each in causes:
                    each.__traceback__ = None  # its frames hold the tensors that did not fit
                free_memory()
        else:
            self.store.append(Record(key, sample.id, "done", scores, arrays=list(arrays), commit=self.commit), arrays)


def own_batches(samples: dict[str, Any], size: int, shards: int, shard: int | None) -> list[dict[str, Any]]:
    """Every ``shards``-th batch, from number ``shard`` on; all of them where there is one shard.

    Whole batches, so that a sample has the same company as without shards, and its numbers the same last digits;
    smaller ones where there would be too few for all shards.
    """
    return list(_batches(samples, min(size, ceil(len(samples) / shards))))[shard or 0 :: shards]


def _batches(samples: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Cut all samples into batches, done or not: so a sample has the same company in every run."""
    items = iter(samples.items())
    while batch := dict(islice(items, size)):
        yield batch


def memory_advice(cfg: DictConfig) -> str:
    """What to do where the device's memory does not suffice, in settings that this job has."""
    sizes = ["estimator.batch_size"] if cfg.attribution.meta else []
    sizes += [
        key
        for key in ("attribution.method.batch_size", "model.batch_size", "model.tokens_per_batch")
        if OmegaConf.select(cfg, key) is not None
    ]
    if sizes:
        return f"lower {' or '.join(sizes)}"
    return "set model.offload=true" if cfg.model.get("offload") is False else "choose a smaller model or larger device"


def _message(error: Exception, memory_advice: str) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device's memory does not suffice: {memory_advice}."
    return str(error) if isinstance(error, GameError) else f"{type(error).__name__}: {error}"


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def free_memory() -> None:
    """Give back what an earlier job of this process left on the device, before another model is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
