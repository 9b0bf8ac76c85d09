"""What the browser of samples shows: experiments, models, samples, and the views of each method."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from metagame.viewer.pack import picture_uri
from metagame.viewer.subjects import Subject, Subjects
from metagame.viewer.views import View, view

N_COLORS = 129


@dataclass
class Browser:
    """Samples of finished jobs, gathered for the page.

    Attributes:
        n_samples: of each job, the first ones that have arrays or failed.
        folder: of the page; paths of jobs lead on from it.
        pictures: by a hash of their content, each once.
    """

    n_samples: int
    folder: Path
    pictures: dict[str, str] = field(default_factory=dict)
    _groups: list[dict[str, Any]] = field(default_factory=list)
    _subjects: Subjects = field(default_factory=Subjects)

    def add(self, experiment: str, results: Sequence[JobResult], command: str | None) -> bool:
        """Add an experiment's jobs and the command that ran them; whether there is anything to show of them."""
        by_model: dict[tuple[str, str], list[JobResult]] = {}
        for result in sorted(results, key=_order_among(results)):
            bare = replace(result, label=result.variant.label)  # told apart among those that are shown together
            by_model.setdefault((result.model, result.config.benchmark.name), []).append(bare)
        groups = [
            {
                "experiment": experiment,
                "model": model,
                "benchmark": benchmark,
                "command": command,
                "samples": self._samples(tell_apart(jobs)),
            }
            for (model, benchmark), jobs in by_model.items()
        ]
        found = [group for group in groups if group["samples"]]
        self._groups += found
        return bool(found)

    def content(self) -> dict[str, Any]:
        """All that the page's script needs."""
        colors = [to_hex(colormaps[DIVERGING](place / (N_COLORS - 1))) for place in range(N_COLORS)]
        return {"palette": colors, "pictures": self.pictures, "groups": self._groups}

    def _samples(self, results: Iterable[JobResult]) -> list[dict[str, Any]]:
        """The samples of jobs that share model and benchmark; what two jobs mean by one id may differ."""
        samples: dict[tuple[str | None, ...], dict[str, Any]] = {}
        of_job: dict[tuple[Path, str], dict[str, Any]] = {}
        for result in results:
            shown = [record for record in result.records if record.arrays or record.status == "failed"]
            for record in shown[: self.n_samples]:
                subject = self._subjects.of(result, record)
                views, picture, error = self._views(result, record, subject)
                key: tuple[str | None, ...] = (record.sample, subject.text, picture)
                if key == (record.sample, None, None):
                    key += (result.setting,)  # nothing else tells whether it is the same sample
                sample = of_job.get((result.folder, record.sample)) or samples.setdefault(
                    key, _sample(subject, picture)
                )
                of_job[result.folder, record.sample] = sample  # the variants of a job mean the same by an id
                sample["picture"] = sample["picture"] or picture
                name = result.label
                if name in {method["label"] for method in sample["methods"]}:
                    name = f"{name} of {result.config.model.name}"
                path = Path(relpath(result.folder, self.folder)).as_posix()
                sample["methods"].append(
                    {"label": name, "job": path, "key": record.key, "scores": numbers(record.scores), "error": error}
                    | {"views": views}
                )
        return list(samples.values())

    def _views(self, result: JobResult, record: Record, subject: Subject) -> tuple[list[View], str | None, str | None]:
        """The views of each question; the picture's key; what is wrong with the sample."""
        if record.status == "failed":
            return [], self._keep(subject.picture), f"This sample failed: {record.error}"
        try:
            views = [
                {"question": question, **view(explanation)}
                for question, explanation in result.explanations(record).items()
                if explanation.attribution is not None or explanation.meta is not None
            ]
            painted = next(iter(result.pictures(record).values()), None)
        except UserError as error:
            return [], self._keep(subject.picture), error_text(error, result.folder)
        except (TypeError, ValueError, LookupError) as error:
            reason = f"Its arrays are not of a form that can be shown: {error_text(error, result.folder)}"
            return [], self._keep(subject.picture), reason
        return views, self._keep(subject.picture if painted is None else Image.fromarray(painted)), None

    def _keep(self, image: Image.Image | None) -> str | None:
        """The key of a picture, which is kept once."""
        if image is None:
            return None
        content = f"{image.size}".encode() + image.convert("RGB").tobytes()
        key = hashlib.sha256(content).hexdigest()[:16]
        if key not in self.pictures:
            self.pictures[key] = picture_uri(image)
        return key


def _sample(subject: Subject, picture: str | None) -> dict[str, Any]:
    """A sample before any method has been added."""
    answer = subject.record.scores.get("answer")
    return {
        "id": subject.record.sample, "text": subject.text, "answer": answer if isinstance(answer, str) else None,
        "picture": picture, "notes": subject.notes(), "methods": [],
    }  # fmt: skip


def numbers(scores: Mapping[str, Any], within: str = "") -> dict[str, float]:
    """The numbers among a record's scores, to six digits; those of a mapping have its name before their own."""
    found: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{within}{name}: ")
        elif isinstance(value, int | float):
            found[f"{within}{name}"] = float(f"{value:.6g}")
    return found


def _order_among(results: Iterable[JobResult]) -> Callable[[JobResult], tuple]:
    """A key to sort by: a first-order method before its metagame, such pairs before others."""
    played = {result.variant.base for result in results if result.variant.meta}
    return lambda result: (
        result.variant.base not in played, result.variant.base, result.variant.meta, result.folder.name
    )  # fmt: skip
