"""Finished jobs, read back from their records: what tables and figures are made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from metagame.contracts import Explanation
from metagame.digests import digest
from metagame.errors import RecordError
from metagame.jobs.environment import environment_path
from metagame.jobs.labels import model_label
from metagame.jobs.manifest import current_code
from metagame.jobs.records import VERSION, Record, RecordStore, pictures_of, unpack
from metagame.jobs.spec import Variant, asked_path, merged, variants

MOST_FAILURES = 10
"""How many failed samples of a job a table's notes name one by one."""

OTHER_CODE = (
    "computed with other code, weights or files than the current ones (kept by reuse=stale, or not run again since)."
)
"""What notes say of stale samples."""

EXPERIMENT_VERSION = 1
EXPERIMENT = "experiment.json"
"""The file of an experiment's folder that lists the configs of its jobs, in the order of the table."""
RUNS = "runs.jsonl"
"""In an experiment's folder: a line for each command that wrote its table, with when it began and how long it took."""


@dataclass(frozen=True)
class JobResult:
    """The records of one variant of a job, for the samples that an experiment requested, in the benchmark's order.

    Attributes:
        config: configuration of the job, as in the experiment.
        variant: variant of the job's method.
        folder: folder of the job's records and arrays.
        identity: the settings that the job's results depend on.
        sample_ids: ids of the samples.
        records: records of the samples that have one.
        n_stale: number of samples whose records count although code, weights or files have changed since.
        label: name of the method in tables and figures; distinct from that of any other job of the same model.
    """

    config: DictConfig
    variant: Variant
    folder: Path
    identity: dict[str, Any]
    sample_ids: list[str]
    records: list[Record]
    n_stale: int
    label: str

    @cached_property
    def done(self) -> list[Record]:
        return [record for record in self.records if record.status == "done"]

    @cached_property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.status == "failed"]

    def environments(self) -> list[dict[str, Any]]:
        """What the finished samples were computed with, each environment once, as far as the records say."""
        digests = dict.fromkeys(record.environment for record in self.done if record.environment is not None)
        paths = [environment_path(self.folder, each) for each in digests]
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]

    @cached_property
    def model(self) -> str:
        """Name of the model in tables."""
        return model_label(self.config)

    @property
    def job_label(self) -> str:
        """Name of the job in notes: its method, or what its variants have in common."""
        return self.config.attribution.label if self.variant.name else self.label

    @property
    def method_identity(self) -> dict[str, Any]:
        """The part of the identity that describes the variant's method: ``name``, ``method``, ``meta`` and so on."""
        return self.identity["attribution"][self.variant.name]

    @property
    def circumstances(self) -> dict[str, Any]:
        """The part of the identity that does not describe the method: model, benchmark, seed and scale."""
        return {key: value for key, value in self.identity.items() if key not in ("attribution", "estimator")}

    @cached_property
    def setting(self) -> str:
        """A hash of the circumstances, equal for jobs that differ only in their method."""
        return digest(self.circumstances)

    def uses(self, base: str, *, meta: bool = False) -> bool:
        """Whether this is the first-order method of that name, or its metagame."""
        return self.variant.base == base and self.variant.meta == meta

    def explanations(self, record: Record) -> dict[str, Explanation]:
        """The variant's explanation of each question about a sample; empty if no arrays are kept.

        Raises:
            RecordError: the arrays are missing or broken.
        """
        return unpack(record, self.arrays(record))

    def arrays(self, record: Record) -> dict[str, np.ndarray]:
        """The arrays that are kept for a sample, by name.

        Raises:
            RecordError: the arrays are missing or broken.
        """
        return RecordStore(self.folder).load_arrays(record)

    def pictures(self, record: Record) -> dict[str, np.ndarray]:
        """The picture that the model generated for each question, uint8 ``(H, W, 3)``."""
        return pictures_of(record, self.arrays(record))


def read_job(cfg: DictConfig, name: str | None = None) -> list[JobResult]:
    """The variants of the job of this config; none where it has never run."""
    path = asked_path(cfg, name)
    return read_asked(path, cfg, current_code(cfg)) if path.exists() else []


def read_asked(path: Path, cfg: DictConfig | None = None, code: str | None = None) -> list[JobResult]:
    """The variants of a job from the file that says what an experiment asked of it.

    Args:
        path: in the folder ``samples`` of the experiment; it says where the job's folder lies, seen from there.
        cfg: the job's config, but for its ``limit``, which is the one in the file; None: the one in the file.
        code: digest of the current code: samples that were computed with other code are stale; None: it is not known.

    Raises:
        RecordError: the file is of another version.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["version"] != VERSION:
        raise RecordError(
            f"{path} has version {content['version']}, but this release reads version {VERSION}: run the job again."
        )
    asked = OmegaConf.create(content["config"])
    cfg = asked if cfg is None else merged(cfg, {"limit": asked.get("limit")})
    folder = path.parent.parent / content["job"]
    store, samples = RecordStore(folder), content["samples"]
    records = store.read()
    results = []
    for variant in variants(cfg):
        keys = [sample["records"].get(variant.name) for sample in samples]
        known = [records[key] for key in keys if key in records and store.has_arrays(records[key])]
        ids = [sample["id"] for sample in samples]
        stale = {sample["id"] for sample in samples if sample["stale"]}
        if code is not None:
            stale |= {record.sample for record in known if record.status == "done" and _other_code(record, code)}
        results.append(JobResult(cfg, variant, folder, content["identity"], ids, known, len(stale), variant.label))
    return results


def _other_code(record: Record, code: str) -> bool:
    return record.provenance.get("code", code) != code


def read_experiment(folder: Path) -> list[JobResult]:
    """All jobs of an experiment: first those of its table, in order, then others, such as those of an interrupted run.

    Raises:
        RecordError: the results are of an earlier version, which cannot be read.
    """
    paths = sorted((folder / "samples").glob("*.json"))
    if not paths and (folder / "jobs").is_dir() and not (folder / EXPERIMENT).exists():
        raise RecordError(
            f"{folder} contains results of an earlier version, which cannot be read: run the experiment again."
        )
    order = [f"{name}.json" for name in read_jobs(folder)]
    paths.sort(key=lambda path: order.index(path.name) if path.name in order else len(order))
    return tell_apart(list(chain.from_iterable(read_asked(path) for path in paths)))


def read_table_jobs(folder: Path) -> list[JobResult]:
    """The jobs of an experiment's table, in order, named as there; all jobs where no file says which it has.

    Raises:
        RecordError: the results are of an earlier version, which cannot be read.
    """
    paths = [folder / "samples" / f"{name}.json" for name in read_jobs(folder)]
    if not paths:
        return read_experiment(folder)
    return tell_apart(list(chain.from_iterable(read_asked(path) for path in paths if path.exists())))


def read_jobs(folder: Path) -> dict[str, DictConfig]:
    """The configs of the jobs that an experiment's table is made of, by the name of the job; none without a table.

    Raises:
        RecordError: the file is of another version.
    """
    path = folder / EXPERIMENT
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["version"] != EXPERIMENT_VERSION:
        raise RecordError(
            f"{path} has version {content['version']}, but this release reads version {EXPERIMENT_VERSION}: run"
            " the experiment again."
        )
    return {each["name"]: OmegaConf.create(each["config"]) for each in content["jobs"]}


def read_command(folder: Path) -> str | None:
    """The last command that wrote the table of an experiment's folder; None where none is known."""
    path = folder / RUNS
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    return json.loads(whole.splitlines()[-1])["command"] if whole else None


def tell_apart(results: list[JobResult]) -> list[JobResult]:
    """The results, labels that jobs of a model share completed by what differs, such as ``IG (method.steps=8)``."""
    shared = Counter(map(_model_and_label, results))
    told = []
    for result in results:
        same = [other for other in results if _model_and_label(other) == _model_and_label(result)]
        if shared[_model_and_label(result)] > 1:
            identities = [other.identity | {"attribution": other.method_identity} for other in same]
            difference = differences(identities)[next(place for place, other in enumerate(same) if other is result)]
            result = replace(result, label=f"{result.label} ({difference})")
        told.append(result)
    return told


def _model_and_label(result: JobResult) -> tuple[str, str]:
    return result.model, result.label


def differences(identities: Sequence[dict[str, Any]]) -> list[str]:
    """What of each identity differs among them; the name of a part stands for all that differs in it."""
    settings = [dict(_flat(identity)) for identity in identities]
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


def setting_notes(results: Sequence[JobResult], key: str, texts: Mapping[Any, str]) -> list[str]:
    """What a table says of the value that its jobs have of a setting; where they differ, of which jobs each text holds.

    Args:
        results: of the jobs.
        key: of the setting in a job's config, such as ``model.end_token``.
        texts: by value, in lower case; of other values, and of jobs without the setting, nothing is said.
    """
    jobs: dict[Any, list[JobResult]] = {}
    for result in results:
        value = OmegaConf.select(result.config, key)
        jobs.setdefault(value.lower() if isinstance(value, str) else value, []).append(result)
    known = {value: own for value, own in jobs.items() if value is not None and value in texts}
    if len(jobs) == 1:
        return [texts[value] for value in known]
    names = _telling_names(list(jobs.values()), results)
    return [f"{', '.join(each)}: {texts[value]}" for value, each in zip(jobs, names, strict=True) if value in known]


def _telling_names(groups: Sequence[Sequence[JobResult]], results: Sequence[JobResult]) -> list[list[str]]:
    """What to call the jobs of each group: by model or benchmark where that is enough to tell the groups apart."""
    callings: tuple[Callable[[JobResult], str], ...] = (
        lambda result: result.model,
        lambda result: result.config.benchmark.name,
        lambda result: name_in_notes(result, results),
    )
    for called in callings:
        names = [list(dict.fromkeys(map(called, group))) for group in groups]
        if len(set(chain(*names))) == sum(map(len, names)):
            break
    return names


def failure_notes(results: Sequence[JobResult]) -> list[str]:
    """A footnote for each job with failed or missing samples, and one for those with stale samples."""
    notes = []
    for result in results:
        name = name_in_notes(result, results)
        notes += [f"{name}: sample {record.sample} failed: {record.error}" for record in result.failed[:MOST_FAILURES]]
        if len(result.failed) > MOST_FAILURES:
            more = len(result.failed) - MOST_FAILURES
            notes.append(f"{name}: {more} more samples failed, {len(result.failed)} in all; see its records.jsonl.")
        missing = len(result.sample_ids) - len(result.records)
        if missing:
            notes.append(f"{name}: {missing} of {len(result.sample_ids)} samples not computed yet.")
    return list(dict.fromkeys([*notes, *_stale_notes(results)]))


def _stale_notes(results: Sequence[JobResult]) -> Iterator[str]:
    """One for all jobs with the same share of stale samples, so that a table of old results has few."""
    shares: dict[str, list[str]] = {}
    for result in (each for each in results if each.n_stale):
        names = shares.setdefault(f"{result.n_stale} of {len(result.sample_ids)}", [])
        names.append(name_in_notes(result, results))
    for share, names in shares.items():
        named = list(dict.fromkeys(names))
        yield f"{', '.join(named)}: {share} samples{' each' if len(named) > 1 else ''} were {OTHER_CODE}"


def name_in_notes(result: JobResult, results: Sequence[JobResult]) -> str:
    """What notes call a job: with its model where there are several, and with what sets it apart from its namesakes."""
    several = len({(other.config.model.name, other.model) for other in results}) > 1
    name = f"{result.job_label} of {result.model}" if several else result.job_label
    if not result.variant.name:  # its label is told apart
        return name
    called = result.job_label, result.model
    same = {other.folder: other.identity for other in results if (other.job_label, other.model) == called}
    return f"{name} ({differences(list(same.values()))[list(same).index(result.folder)]})" if len(same) > 1 else name
