"""What the rows of a table do not share, although they stand below each other: samples, and versions of files."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from metagame.digests import digest
from metagame.report.results import JobResult, name_in_notes

Named = tuple[str, JobResult]
"""A job with its name in notes."""
Value = TypeVar("Value", bound=Hashable)


def mixture_notes(results: Sequence[JobResult]) -> list[str]:
    """Footnotes that name the jobs with other samples, or with other versions of files, than the other jobs."""
    named = [(name_in_notes(result, results), result) for result in results]
    by_benchmark, by_model = _with_the_same(named, "benchmark"), _with_the_same(named, "model")
    notes = [*_limit_notes(by_benchmark), *_sample_notes(by_benchmark), *_file_notes(by_benchmark, by_model)]
    return [*notes, *_environment_notes(named)]


def _limit_notes(by_benchmark: Sequence[Sequence[Named]]) -> Iterator[str]:
    """Of each limit the jobs that were last run with it, which are not named where all were."""
    limits = _grouped((_limit(result, same), name) for same in by_benchmark for name, result in same)
    for limit, names in limits.items():
        if limit is not None:
            of_jobs = f" of {', '.join(names)}" if len(limits) > 1 else ""
            samples = "sample" if limit == 1 else f"{limit} samples"
            yield f"Only the first {samples}{of_jobs} (limit={limit})."


def _limit(result: JobResult, same: Sequence[Named]) -> int | None:
    """The job's limit, unless it left out none of the samples: there are fewer, or as many as without a limit."""
    limit = result.config.get("limit")
    if limit is not None and len(result.sample_ids) < limit:
        return None
    unlimited = [other.sample_ids for _, other in same if other.config.get("limit") is None]
    return None if result.sample_ids in unlimited else limit


def _sample_notes(by_benchmark: Sequence[Sequence[Named]]) -> Iterator[str]:
    """Where the samples of a benchmark have changed between its jobs, all of which were run with one limit."""
    for same in by_benchmark:
        groups = _grouped((tuple(result.sample_ids), name) for name, result in same)
        if len(groups) > 1 and len({_limit(result, same) for _, result in same}) == 1:
            counts = "; ".join(f"{len(ids)} of {', '.join(names)}" for ids, names in groups.items())
            yield f"The rows are not over the same samples: {counts}. Run the whole experiment again."


def _file_notes(by_benchmark: Sequence[Sequence[Named]], by_model: Sequence[Sequence[Named]]) -> Iterator[str]:
    for same in by_model:
        weights = [(frozenset(_versions(result, "weights").values()), name) for name, result in same]
        groups = _grouped((versions, name) for versions, name in weights if versions)
        yield from _differ("the model's files", groups.values())
    for same in by_benchmark:
        found: dict[str, list[tuple[str, str]]] = {}
        for name, result in same:
            for sample, version in _versions(result, "files").items():
                found.setdefault(sample, []).append((version, name))
        groupings = {tuple(map(tuple, _grouped(versions).values())) for versions in found.values()}
        yield from (note for groups in sorted(groupings) for note in _differ("the samples' files", groups))


def _environment_notes(named: Sequence[Named]) -> Iterator[str]:
    """The libraries and devices that not all numbers were computed with, since no key of a record depends on them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, result in named:
        for environment in result.environments():
            for what, value in _parts(environment).items():
                found.setdefault(what, []).append((value, name))
    texts = []
    for what, values in ((what, _grouped(pairs)) for what, pairs in found.items()):
        if len(values) > 1:
            texts.append(f"{what}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items()))
    if texts:
        yield (
            f"The numbers were computed with different versions or devices: {'; '.join(texts)}. To compute all of them"
            " in one environment, remove the folders of these jobs and run the experiment again."
        )


def _parts(environment: Mapping[str, Any]) -> dict[str, str]:
    """The versions and devices of an environment, by their names in a note."""
    device = environment["accelerator"] if environment["device"] != "cpu" else None
    versions = {name: version or "none" for name, version in environment["libraries"].items()}
    return {"device": device or environment["device"], "Python": environment["python"]} | versions


def _differ(what: str, groups: Iterable[Sequence[str]]) -> Iterator[str]:
    texts = [", ".join(names) for names in groups]
    if len(texts) > 1:
        yield f"The rows were computed with different versions of {what}: {'; '.join(texts)}. Run the experiment again."


def _versions(result: JobResult, what: str) -> dict[str, str]:
    """Of each finished sample the version of its ``weights`` or ``files``, where its record has one."""
    return {record.sample: record.provenance[what] for record in result.done if what in record.provenance}


def _with_the_same(named: Sequence[Named], part: str) -> list[list[Named]]:
    """The jobs by their model or benchmark, its arguments included."""
    groups: dict[str, list[Named]] = {}
    for name, result in named:
        groups.setdefault(digest(result.identity[part]), []).append((name, result))
    return list(groups.values())


def _grouped(pairs: Iterable[tuple[Value, str]]) -> dict[Value, list[str]]:
    """The names with each value, every name once."""
    groups: dict[Value, list[str]] = {}
    for value, name in pairs:
        names = groups.setdefault(value, [])
        names += [] if name in names else [name]
    return groups
