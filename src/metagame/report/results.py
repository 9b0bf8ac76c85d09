"""Finished jobs, read back from their folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from metagame.jobs import job_folder
from metagame.records import Record, RecordStore


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

    def arrays(self, record: Record) -> dict[str, np.ndarray]:
        return RecordStore(self.folder).load_arrays(record)


def read_job(cfg: DictConfig) -> JobResult | None:
    """The job of this config, or None where it has never run."""
    folder = job_folder(cfg)
    if not (folder / "samples.json").exists():
        return None
    samples = json.loads((folder / "samples.json").read_text())
    records = RecordStore(folder).read()
    known = [records[sample["key"]] for sample in samples if sample["key"] in records]
    return JobResult(OmegaConf.load(folder / "config.yaml"), folder, [sample["id"] for sample in samples], known)


def failure_notes(results: list[JobResult]) -> list[str]:
    """A footnote for each job with failed or missing samples."""
    notes = []
    for result in results:
        name = result.config.attribution.label
        notes += [f"{name}: sample {record.sample} failed: {record.error}" for record in result.failed]
        missing = len(result.sample_ids) - len(result.records)
        if missing:
            notes.append(f"{name}: {missing} of {len(result.sample_ids)} samples not computed yet.")
    return notes
