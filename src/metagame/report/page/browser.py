"""What the browser of samples shows: experiments, models, samples, and the views of each method."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from metagame.games import GameError
from metagame.records import Record, RecordError
from metagame.report.maps import DIVERGING
from metagame.report.page.pack import picture_uri
from metagame.report.page.subjects import Subject, Subjects
from metagame.report.page.trouble import tell
from metagame.report.page.views import PICTURE, views
from metagame.report.results import JobResult
from metagame.report.segmentation import METHODS

N_COLORS = 129


@dataclass
class Browser:
    """Samples of finished jobs, gathered for the page.

    Attributes:
        n_samples: of each job, the first ones that have arrays or failed.
        pictures: by a hash of their content, each once.
    """

    n_samples: int
    pictures: dict[str, str] = field(default_factory=dict)
    _groups: list[dict[str, Any]] = field(default_factory=list)
    _subjects: Subjects = field(default_factory=Subjects)

    def add(self, experiment: str, results: Sequence[JobResult]) -> bool:
        """Add an experiment's jobs; whether there is anything to show of them."""
        by_model: dict[tuple[str, str], list[JobResult]] = {}
        for result in sorted(results, key=_order_among(results)):
            names = (result.config.model.get("label", result.config.model.name), result.config.benchmark.name)
            by_model.setdefault(names, []).append(result)
        groups = [
            {"experiment": experiment, "model": model, "benchmark": benchmark, "samples": self._samples(jobs)}
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
        samples: dict[tuple, dict[str, Any]] = {}
        for result in results:
            shown = [record for record in result.records if record.arrays or record.status == "failed"]
            for record in shown[: self.n_samples]:
                subject = self._subjects.of(result, record)
                methods, picture, error = self._methods(result, record, subject)
                key = (record.sample, subject.text, picture)
                if key == (record.sample, None, None):
                    key += (result.setting,)  # nothing else tells whether it is the same sample
                sample = samples.setdefault(key, _sample(subject, picture))
                label = result.config.attribution.label
                taken = {method["label"] for method in sample["methods"]}
                for variant, of_variant in methods.items():
                    name = label if variant is None else METHODS.get(variant, variant)
                    name = f"{name} [{label}]" if name in taken else name
                    sample["methods"].append({"label": name, "views": of_variant, "error": error})
        return list(samples.values())

    def _methods(
        self, result: JobResult, record: Record, subject: Subject
    ) -> tuple[dict[str | None, list[dict]], str | None, str | None]:
        """The views by variant of the job's method; the picture's key; what is wrong with the sample."""
        if record.status == "failed":
            return {None: []}, self._keep(subject.picture), f"This sample failed: {record.error}"
        try:
            arrays = result.arrays(record)
            methods: dict[str | None, list[dict]] = {}
            for variant, view in views(arrays, subject):
                methods.setdefault(variant, []).append(view)
        except (RecordError, GameError) as error:
            return {None: []}, self._keep(subject.picture), tell(error, result.folder)
        except (TypeError, ValueError, LookupError) as error:
            reason = f"Its arrays are not of a form that can be shown: {tell(error, result.folder)}"
            return {None: []}, self._keep(subject.picture), reason
        painted = next((array for name, array in arrays.items() if name.rpartition(".")[2] == PICTURE), None)
        return methods, self._keep(subject.picture if painted is None else Image.fromarray(painted)), None

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


def _order_among(results: Iterable[JobResult]) -> Callable[[JobResult], tuple]:
    """A key to sort by: a first-order method before its metagame, such pairs before others."""
    played = {_base(result) for result in results if result.config.attribution.meta}
    return lambda result: (
        _base(result) not in played, _base(result), bool(result.config.attribution.meta), result.folder.name
    )  # fmt: skip


def _base(result: JobResult) -> str:
    """The name of a job's first-order method."""
    return result.config.attribution.name.removeprefix("meta_")
