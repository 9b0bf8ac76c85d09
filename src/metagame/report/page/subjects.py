"""What is known of a sample beside its arrays: its text, its picture, and what its players are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from metagame.jobs import build
from metagame.records import Record, digest
from metagame.report.page.pack import square_picture
from metagame.report.results import JobResult


@dataclass(frozen=True)
class Subject:
    """One sample of a job, as far as its record and its benchmark tell.

    Attributes:
        record: of the sample.
        sample: of the benchmark; None where it cannot be made here.
        trouble: why it cannot.
    """

    record: Record
    sample: Any
    trouble: str | None = None

    @cached_property
    def text(self) -> str | None:
        """What a language model was asked, or what an image is called."""
        named = (self.record.scores.get("text"), *(getattr(self.sample, key, None) for key in ("text", "caption")))
        return next((each for each in named if isinstance(each, str)), None)

    @cached_property
    def _picture(self) -> tuple[Image.Image | None, str | None]:
        if not hasattr(self.sample, "image"):
            return None, None
        try:
            return square_picture(self.sample.image()), None
        except Exception as error:  # whatever a dataset meets that is not here, or no longer
            return None, f"The picture cannot be shown: {error}"

    @property
    def picture(self) -> Image.Image | None:
        """The image that was explained."""
        return self._picture[0]

    def notes(self) -> list[str]:
        """What could not be found out, in sentences."""
        return [note for note in (self.trouble, self._picture[1]) if note]

    def players(self, question: str, count: int) -> list[str]:
        """Names of the players of a question; numbers where no names are known."""
        recorded = list(self._recorded(question))
        for names in (*recorded, *self._of_sample(question, count)):
            if len(names) == count:
                return names
        shorter = max((names for names in recorded if len(names) < count), key=len, default=[])
        return [*shorter, *(f"#{place}" for place in range(len(shorter) + 1, count + 1))]

    def knows(self, question: str, count: int) -> bool:
        """Whether names of so many players are known."""
        return any(len(names) == count for names in (*self._recorded(question), *self._of_sample(question, count)))

    def background(self, question: str, count: int) -> list[str]:
        """Names of the concepts that are always present."""
        names = list(getattr(self._asked(question), "background", ()))
        return names if len(names) == count else [f"background {place}" for place in range(1, count + 1)]

    def _recorded(self, question: str) -> Iterator[list[str]]:
        """Lists of names in the record's scores, that of the question first."""
        for key in (f"tokens of {question}", question, "tokens", "players"):
            names = self.record.scores.get(key)
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                yield names

    def _of_sample(self, question: str, count: int) -> Iterator[list[str]]:
        """Lists of names that the benchmark's sample has."""
        yield list(getattr(self._asked(question), "players", ()))
        yield list(getattr(self.sample, "words", ()))[:count]  # a text of the first words
        yield (self.text or "").split()

    def _asked(self, question: str) -> Any:
        return self.sample.questions().get(question) if hasattr(self.sample, "questions") else None


@dataclass
class Subjects:
    """The subjects of several jobs; each benchmark is made once."""

    _known: dict[str, tuple[dict[str, Any], str | None]] = field(default_factory=dict)

    def of(self, result: JobResult, record: Record) -> Subject:
        """The subject of a record."""
        benchmark = result.config.benchmark
        key = digest(OmegaConf.to_container(benchmark, resolve=True))
        if key not in self._known:
            self._known[key] = _samples(benchmark)
        samples, trouble = self._known[key]
        if trouble is None and record.sample not in samples:
            trouble = f"The benchmark has no sample {record.sample!r} any more: its picture and some names are missing."
        return Subject(record, samples.get(record.sample), trouble)


def _samples(benchmark: DictConfig) -> tuple[dict[str, Any], str | None]:
    """The samples of a benchmark by id, or why there are none."""
    try:
        return {sample.id: sample for sample in build(benchmark).samples()}, None
    except Exception as error:  # its data may be on another machine; the maps are shown all the same
        return {}, f"Its samples cannot be made here, pictures and some names are missing: {error}"
