"""What the browser of samples shows: experiments, models, samples, and the views of each method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from os.path import relpath
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from metagame.errors import UserError
from metagame.jobs.records import Record
from metagame.report.maps import DIVERGING
from metagame.report.results import JobResult, tell_apart
from metagame.viewer.errors import error_text
from metagame.viewer.pack import mask_uri, picture_uri
from metagame.viewer.subjects import Subject, Subjects
from metagame.viewer.views import View, view

N_COLORS = 129
PER_PART = 8
"""Samples of a group that the page has at once, and that each file beside it has."""


def palette() -> list[str]:
    """The colours of a value from the lowest to the highest, as in the figures."""
    return [to_hex(colormaps[DIVERGING](place / (N_COLORS - 1))) for place in range(N_COLORS)]


@dataclass(frozen=True)
class Run:
    """What one run of an experiment left.

    Attributes:
        results: of its jobs.
        command: the last one that wrote its table; None where none is known.
        name: of the run; empty where there is only one.
    """

    results: Sequence[JobResult]
    command: str | None = None
    name: str = ""


@dataclass
class Browser:
    """Samples of finished jobs, gathered for the page.

    Attributes:
        n_samples: of each job, the first ones that have arrays or failed.
        folder: of the page; paths of jobs lead on from it.
        compares: whether there are two runs, and a method is shown beside itself.
    """

    n_samples: int
    folder: Path
    compares: bool = False
    _pictures: dict[str, str] = field(default_factory=dict)  # by a hash of their content, each once
    _groups: list[dict[str, Any]] = field(default_factory=list)
    _subjects: Subjects = field(default_factory=Subjects)

    def add(self, experiment: str, *runs: Run) -> bool:
        """Add the runs of an experiment, one or two; whether there is anything to show of them."""
        by_model: dict[tuple[str, str], list[list[JobResult]]] = {}
        for place, run in enumerate(runs):
            for result in sorted(run.results, key=_order_among(run.results)):
                bare = replace(result, label=result.variant.label)  # told apart among those that are shown together
                key = result.model, result.config.benchmark.name
                by_model.setdefault(key, [[] for _ in runs])[place].append(bare)
        groups = [
            {
                "experiment": experiment, "model": model, "benchmark": benchmark,
                "samples": self._samples(runs, [tell_apart(each) for each in jobs]),
            }
            for (model, benchmark), jobs in by_model.items()
        ]  # fmt: skip
        found = [group for group in groups if group["samples"]]
        self._groups += found
        return bool(found)

    def content(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What the page's script needs at once, and by name the scripts with what more samples of a group show."""
        at_once = {key for group in self._groups for each in group["samples"][:PER_PART] for key in _pictures_of(each)}
        pictures = {key: uri for key, uri in self._pictures.items() if key in at_once}
        parts: dict[str, str] = {}
        groups = []
        for group in self._groups:
            first, more = group["samples"][:PER_PART], group["samples"][PER_PART:]
            for start in range(0, len(more), PER_PART):
                some = more[start : start + PER_PART]
                name, script = self._part(some, pictures)
                parts[name] = script
                first = [*first, *(_without_views(each, name) for each in some)]
            groups.append({**group, "samples": first})
        return {"palette": palette(), "compares": self.compares, "pictures": pictures, "groups": groups}, parts

    def _part(self, samples: Sequence[dict[str, Any]], known: Container[str]) -> tuple[str, str]:
        """A script, and its name, that gives the page the views of samples, and those pictures that it lacks."""
        keys = dict.fromkeys(key for each in samples for key in _pictures_of(each))
        content = {
            "views": [[method["views"] for method in sample["methods"]] for sample in samples],
            "pictures": {key: self._pictures[key] for key in keys if key not in known},
        }
        text = json.dumps(content, separators=(",", ":"))
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return name, f'(globalThis.parts ??= {{}})["{name}"] = {text};\n'

    def _samples(self, runs: Sequence[Run], results: Sequence[list[JobResult]]) -> list[dict[str, Any]]:
        """The samples of jobs that share model and benchmark, by run; what two jobs mean by one id may differ."""
        samples: dict[tuple[str | None, ...], dict[str, Any]] = {}
        of_job: dict[tuple[Path, str], dict[str, Any]] = {}
        for run, result in ((run, result) for run, jobs in zip(runs, results, strict=True) for result in jobs):
            shown = [record for record in result.records if record.arrays or record.status == "failed"]
            for record in shown[: self.n_samples]:
                subject = self._subjects.of(result, record)
                views, picture, error = self._views(result, record, subject)
                key: tuple[str | None, ...] = (record.sample, subject.text, picture)
                if key == (record.sample, None, None) and len(runs) == 1:
                    key += (result.setting,)  # nothing else tells whether it is the same sample
                sample = of_job.get((result.folder, record.sample)) or samples.get(key)
                if sample is None:
                    sample = samples[key] = self._sample(subject, picture)
                of_job[result.folder, record.sample] = sample  # the variants of a job mean the same by an id
                sample["picture"] = sample["picture"] or picture
                name = f"{result.label}, {run.name}" if run.name else result.label
                if name in {method["label"] for method in sample["methods"]}:
                    name = f"{name} of {result.config.model.name}"
                path = Path(relpath(result.folder, self.folder)).as_posix()
                sample["methods"].append(
                    {
                        "label": name, "base": result.label, "run": run.name, "command": run.command, "job": path,
                        "key": record.key, "scores": subject.scores(), "error": error, "views": views,
                    }
                )  # fmt: skip
        return list(samples.values())

    def _views(self, result: JobResult, record: Record, subject: Subject) -> tuple[list[View], str | None, str | None]:
        """The views of each question; the picture's key; what is wrong with the sample."""
        if record.status == "failed":
            return [], self._keep(subject.picture), f"This sample failed: {record.error}"
        try:
            views = [
                {"question": question, **view(explanation, subject.annotation)}
                for question, explanation in result.explanations(record).items()
                if explanation.attribution is not None or explanation.meta is not None
            ]
            painted = next(iter(result.pictures(record).values()), None)
        except UserError as error:
            return [], self._keep(subject.picture), error_text(error, result.folder)
        except (TypeError, ValueError, LookupError) as error:
            reason = f"Its arrays cannot be shown: {error_text(error, result.folder)}"
            return [], self._keep(subject.picture), reason
        return views, self._keep(subject.picture if painted is None else Image.fromarray(painted)), None

    def _keep(self, image: Image.Image | None) -> str | None:
        """The key of a picture, which is kept once."""
        if image is None:
            return None
        return self._kept(f"{image.size}".encode() + image.convert("RGB").tobytes(), lambda: picture_uri(image))

    def _kept(self, content: bytes, uri: Callable[[], str]) -> str:
        key = hashlib.sha256(content).hexdigest()[:16]
        if key not in self._pictures:
            self._pictures[key] = uri()
        return key

    def _sample(self, subject: Subject, picture: str | None) -> dict[str, Any]:
        """A sample before any method has been added."""
        answer, annotation = subject.record.scores.get("answer"), subject.annotation
        mask = None
        if annotation.mask is not None:
            uri = mask_uri(annotation.mask)
            mask = self._kept(uri.encode(), lambda: uri)
        return {
            "id": subject.record.sample, "text": subject.text, "answer": answer if isinstance(answer, str) else None,
            "picture": picture, "mask": mask, "present": annotation.present, "annotated_pairs": annotation.pairs,
            "notes": subject.notes(), "part": None, "methods": [],
        }  # fmt: skip


def _pictures_of(sample: dict[str, Any]) -> list[str]:
    return [key for key in (sample["picture"], sample["mask"]) if key is not None]


def _without_views(sample: dict[str, Any], part: str) -> dict[str, Any]:
    """The sample as the page lists it before the part with its views is there."""
    return {**sample, "part": part, "methods": [{**method, "views": []} for method in sample["methods"]]}


def _order_among(results: Iterable[JobResult]) -> Callable[[JobResult], tuple]:
    """A key to sort by: a first-order method before its metagame, such pairs before others."""
    played = {result.variant.base for result in results if result.variant.meta}
    return lambda result: (
        result.variant.base not in played, result.variant.base, result.variant.meta, result.folder.name
    )  # fmt: skip
