"""Finished jobs, read back from their folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from metagame.jobs import display_label, job_folder, job_identity, job_label
from metagame.records import Record, RecordStore, digest

MOST_FAILURES = 10
"""How many failed samples of a job a table's notes name one by one."""


@dataclass(frozen=True)
class JobResult:
    """The records of one job for the samples of its latest run, in the benchmark's order.

    Attributes:
        config: of the job.
        folder: with its records and arrays.
        sample_ids: ids of the samples.
        records: of those that have one.
    """

    config: DictConfig
    folder: Path
    sample_ids: list[str]
    records: list[Record]

    @cached_property
    def done(self) -> list[Record]:
        return [record for record in self.records if record.status == "done"]

    @cached_property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.status == "failed"]

    @cached_property
    def setting(self) -> str:
        """The same for jobs that differ in their method only: a hash of model, benchmark, seed and scale."""
        identity = job_identity(self.config)
        return digest({key: value for key, value in identity.items() if key not in ("attribution", "estimator")})

    def uses(self, method: str, *, meta: bool = False) -> bool:
        """Whether the job's method is of this class, and its metagame played or not."""
        attribution = self.config.attribution
        return attribution.method["_target_"].rpartition(".")[2] == method and bool(attribution.meta) == meta

    def arrays(self, record: Record) -> dict[str, np.ndarray]:
        return RecordStore(self.folder).load_arrays(record)


def read_job(cfg: DictConfig) -> JobResult | None:
    """The job of this config, or None where it has never run."""
    folder = job_folder(cfg)
    return read_folder(folder) if (folder / "samples.json").exists() else None


def read_folder(folder: Path) -> JobResult:
    """The job in a folder, whichever config names it today and wherever the folder was moved to."""
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    records = RecordStore(folder).read()
    known = [records[sample["key"]] for sample in samples if sample["key"] in records]
    config = OmegaConf.load(folder / "config.yaml")
    config.attribution.label = display_label(config)
    return JobResult(config, folder, [sample["id"] for sample in samples], known)


def tell_apart(results: list[JobResult]) -> list[JobResult]:
    """Add to the label of a model's jobs that share one what sets them apart, such as ``IG (method.steps=8)``."""
    for (model, label), count in Counter(map(_model_and_label, results)).items():
        same = [result for result in results if _model_and_label(result) == (model, label)]
        if count > 1:
            for result, difference in zip(same, _differences(same), strict=True):
                result.config.attribution.label = f"{label} ({difference})"
    return results


def _model_and_label(result: JobResult) -> tuple[str, str]:
    return result.config.model.name, result.config.attribution.label


def _differences(results: list[JobResult]) -> list[str]:
    """What of each job's identity differs among them; the name of a part stands for all that differs in it."""
    settings = [dict(_flat(job_identity(result.config))) for result in results]
    differing = [key for key in dict.fromkeys(chain(*settings)) if len({str(each.get(key)) for each in settings}) > 1]
    named = [key.removesuffix(".name") for key in differing if key.endswith(".name")]
    kept = [*named, *(key for key in differing if key.split(".")[0] not in named)]
    return [
        ", ".join(f"{key.removeprefix('attribution.')}={each.get(f'{key}.name', each.get(key))}" for key in kept)
        for each in settings
    ]


def _flat(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def failure_notes(results: list[JobResult]) -> list[str]:
    """A footnote for each job with failed or missing samples."""
    notes = []
    configs = [result.config for result in results]
    for result in results:
        name = job_label(result.config, configs)
        notes += [f"{name}: sample {record.sample} failed: {record.error}" for record in result.failed[:MOST_FAILURES]]
        if len(result.failed) > MOST_FAILURES:
            more = len(result.failed) - MOST_FAILURES
            notes.append(f"{name}: {more} more samples failed, {len(result.failed)} in all; see its records.jsonl.")
        missing = len(result.sample_ids) - len(result.records)
        if missing:
            notes.append(f"{name}: {missing} of {len(result.sample_ids)} samples not computed yet.")
    return notes
