"""The page of two runs: which cells and samples changed from the first to the second, and both side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metagame.errors import RecordError, UserError
from metagame.jobs.records import Record
from metagame.report.diff import sample_changes, table_changes
from metagame.report.results import JobResult
from metagame.viewer.browser import Browser, Run
from metagame.viewer.errors import UNREADABLE
from metagame.viewer.subjects import Subjects
from metagame.viewer.write import N_SAMPLES, experiments_in, is_experiment, read_run, render_template, save_page

RUN_NAMES = ("first run", "second run")
MOST_SHOWN = 20
"""Changes of a score that are listed."""
VALUES = "largest difference between values of the arrays"
"""In place of a score's name."""


@dataclass(frozen=True)
class Change:
    """A score of a sample in both runs."""

    sample: str
    score: str
    before: float
    after: float

    @property
    def size(self) -> float:
        return abs(self.after - self.before)


@dataclass(frozen=True)
class Changes:
    """How a score of a method changed over the samples that both runs have.

    Attributes:
        model, method, score: their names.
        n_samples: that have the score in both runs.
        changed: those whose score changed, the largest change first.
        mean: of the changes over all samples, second run minus first.
        error: the mean's standard error; None of a single sample.
    """

    model: str
    method: str
    score: str
    n_samples: int
    changed: Sequence[Change]
    mean: float | None = None
    error: float | None = None

    @property
    def shown(self) -> Sequence[Change]:
        return self.changed[:MOST_SHOWN]

    @property
    def verdict(self) -> str:
        """The mean change with two standard errors, and whether it is told from none."""
        if self.mean is None:
            return ""
        if self.error is None:
            return f"Mean change {self.mean:+.3g}, of one sample: not decided."
        decided = abs(self.mean) > 2 * self.error
        return f"Mean change {self.mean:+.3g} ± {2 * self.error:.2g} (two standard errors): " + (
            f"{'higher' if self.mean > 0 else 'lower'} in the second run." if decided else "not decided."
        )


@dataclass(frozen=True)
class Compared:
    """An experiment in both runs.

    Attributes:
        name: of it.
        cells: a line for each cell, claim and note of the table that differs; None where tables could not be compared.
        scores: lines for each method whose samples differ, in any score; None where these could not be compared.
        changes: by model, method and score, those with a changed sample.
        n_scores: samples of methods that are done in both runs.
        n_arrays: those of them whose arrays were compared.
        notes: what only one run has, and what could not be read, in sentences.
    """

    name: str
    cells: list[str] | None
    scores: list[str] | None
    changes: list[Changes]
    n_scores: int
    n_arrays: int
    notes: list[str] = field(default_factory=list)

    @property
    def unchanged(self) -> str:
        """What is said where no score that has a number, and no array, changed."""
        if not self.n_scores:
            return "Not compared: no sample is done in both runs."
        scores = "None of the listed scores" if self.scores or self.scores is None else "No score"
        if not self.n_arrays:
            return f"{scores} of a sample differs. Arrays were not compared: no sample has some in both runs."
        return f"{scores} and no array of a sample differs."


def write_comparison(first: Path, second: Path, folder: Path, n_samples: int = N_SAMPLES) -> Path:
    """Write ``index.html`` in the folder from two runs; return its path.

    Args:
        first: the folder of an experiment, or of a scale.
        second: another one, with the same experiment or with experiments of the same names.
        folder: of the page.
        n_samples: how many samples of each job the browser has, and of how many the arrays are compared.

    Raises:
        UserError: the runs have no experiment in common, or the folder has another page.
        RecordError: the page cannot be written.
    """
    browser, subjects = Browser(n_samples, folder, compares=True), Subjects()
    compared = []
    for one, other in _pairs(first, second):
        experiments = read_run(one, of_table=True), read_run(other, of_table=True)
        notes = [f"{name}: {text}" for name, each in zip(RUN_NAMES, experiments, strict=True) for text in each.errors]
        runs = [
            Run(each.run.results, each.run.command, name)
            for name, each in zip(RUN_NAMES, experiments, strict=True)
        ]  # fmt: skip
        browser.add(one.name, *runs)
        cells, scores = (_tried(change, one, other, notes) for change in (table_changes, sample_changes))
        changes = list(_changes(*runs, subjects, n_samples))
        n_arrays = sum(each.n_samples for each in changes if each.score == VALUES)
        changed, notes = [each for each in changes if each.changed], [*notes, *_only_in_one(*runs)]
        compared.append(Compared(one.name, cells, scores, changed, _n_shared(*runs), n_arrays, notes))
    page, parts = render_template(
        "diff.html", browser, first=str(first), second=str(second), compared=compared,
        alone=list(_alone(first, second, compared)),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_page(folder / "index.html", page, parts)
    return folder / "index.html"


def _tried(compare: Callable[[Path, Path], list[str]], one: Path, other: Path, notes: list[str]) -> list[str] | None:
    """What differs between two folders; None, and one more note, where that cannot be found out."""
    try:
        return compare(one, other)
    except UNREADABLE as error:
        damaged = f"Not all of {one} and {other} was compared, since a file of them is damaged: {error}"
        notes.append(str(error) if isinstance(error, UserError) else damaged)
        return None


def _pairs(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """The folders of each experiment in the two runs."""
    if is_experiment(first) and is_experiment(second):
        return [(first, second)]
    names = [{path.name for path in experiments_in(run)} for run in (first, second)]
    if not names[0] & names[1]:
        raise UserError(
            f"{first} and {second} have no experiment in common: give two folders of an experiment, such as"
            " outputs/tiny/table2, or of a scale."
        )
    return [(first / name, second / name) for name in sorted(names[0] & names[1])]


def _alone(first: Path, second: Path, compared: Sequence[Compared]) -> Iterator[str]:
    """Which experiments only one of two scales has, in a sentence for each scale."""
    known = {each.name for each in compared}
    for name, run in zip(RUN_NAMES, (first, second), strict=True):
        alone = [path.name for path in experiments_in(run) if path.name not in known]
        if alone:
            yield f"Only the {name} has {', '.join(alone)}."


def _by_method(run: Run) -> dict[tuple[str, str], JobResult]:
    return {(result.model, result.label): result for result in run.results}


def _n_shared(first: Run, second: Run) -> int:
    """Of how many samples of methods both runs have scores."""
    ours, theirs = (
        {key: {record.sample for record in result.done} for key, result in _by_method(run).items()}
        for run in (first, second)
    )
    return sum(len(ours[key] & theirs[key]) for key in ours if key in theirs)


def _only_in_one(first: Run, second: Run) -> Iterator[str]:
    """What is compared with nothing: methods, and samples of methods."""
    found = _by_method(first), _by_method(second)
    for name, ours, theirs in zip(RUN_NAMES, found, reversed(found), strict=True):
        lacking = [" ".join(key) for key in ours if key not in theirs]
        if lacking:
            yield f"Only the {name} has {', '.join(lacking)}."
        for key in (key for key in ours if key in theirs):
            known = {record.sample for record in theirs[key].done}
            alone = [record.sample for record in ours[key].done if record.sample not in known]
            if alone:
                yield f"{' '.join(key)}: {len(alone)} samples are done in the {name} only ({', '.join(alone[:5])})."


def _changes(first: Run, second: Run, subjects: Subjects, n_samples: int) -> Iterator[Changes]:
    """Of each method in both runs, the changes of its arrays and of each score."""
    ours, theirs = _by_method(first), _by_method(second)
    for key in (key for key in ours if key in theirs):
        results = ours[key], theirs[key]
        records = [{record.sample: record for record in result.done} for result in results]
        shared = [sample for sample in records[0] if sample in records[1]]
        scores = [
            {sample: subjects.of(result, found[sample]).scores() for sample in shared}
            for result, found in zip(results, records, strict=True)
        ]
        for score in dict.fromkeys(name for each in scores[0].values() for name in each):
            yield _of_score(key, score, *({sample: each.get(score) for sample, each in one.items()} for one in scores))
        pairs = [(records[0][sample], records[1][sample]) for sample in shared[:n_samples]]
        yield _of_values(key, *results, [pair for pair in pairs if pair[0].arrays and pair[1].arrays])


def _of_score(
    key: tuple[str, str], score: str, before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> Changes:
    both = [
        Change(sample, score, one, other)
        for sample, one in before.items()
        if one is not None and (other := after[sample]) is not None
    ]
    difference = np.array([each.after - each.before for each in both])
    n = len(both)
    error = float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    changed = sorted((each for each in both if each.size), key=lambda each: -each.size)
    return Changes(*key, score, n, changed, float(difference.mean()) if n else None, error)


def _of_values(
    key: tuple[str, str], first: JobResult, second: JobResult, pairs: Sequence[tuple[Record, Record]]
) -> Changes:
    """How far the arrays of a sample are apart; those of other shapes infinitely."""
    found = [Change(one.sample, VALUES, 0.0, _distance(first, second, one, other)) for one, other in pairs]
    return Changes(*key, VALUES, len(found), sorted((each for each in found if each.size), key=lambda each: -each.size))


def _distance(first: JobResult, second: JobResult, one: Record, other: Record) -> float:
    try:
        ours, theirs = first.arrays(one), second.arrays(other)
    except RecordError:  # the browser says so beside the sample
        return float("inf")
    if {name: each.shape for name, each in ours.items()} != {name: each.shape for name, each in theirs.items()}:
        return float("inf")
    apart = [np.abs(ours[name].astype(float) - theirs[name]).max(initial=0.0) for name in ours]
    return float(max(apart, default=0.0))
