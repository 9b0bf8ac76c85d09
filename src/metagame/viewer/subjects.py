"""What is known of a sample beside its explanations: its text and its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from metagame.contracts import Annotation, Benchmark, BoundInput, Sample, numbers_among
from metagame.digests import digest
from metagame.jobs.build import build_part
from metagame.jobs.records import Record
from metagame.report.results import JobResult
from metagame.viewer.pack import square_picture

AnyBenchmark = Benchmark[Sample, BoundInput]


@dataclass(frozen=True)
class Known:
    """What a benchmark knows of a sample; files are read once.

    Attributes:
        benchmark: None where it cannot be made here.
        sample: of the benchmark; None where it has none of that id.
        error: why that is so.
    """

    benchmark: AnyBenchmark | None
    sample: Sample | None
    error: str | None = None

    @cached_property
    def picture(self) -> tuple[Image.Image | None, str | None]:
        """The image that was explained, or why it cannot be shown."""
        if self.sample is None:
            return None, None
        try:
            image = self.sample.image()
            return None if image is None else square_picture(image), None
        except Exception as error:  # whatever a dataset meets that is not here, or no longer
            return None, f"The picture cannot be shown: {error}"

    @cached_property
    def annotation(self) -> tuple[Annotation | None, str | None]:
        """What is known to be right, or why that cannot be shown."""
        if self.sample is None:
            return None, None
        try:
            return self.sample.annotation(), None
        except Exception as error:  # as above
            return None, f"The annotation cannot be shown: {error}"


@dataclass(frozen=True)
class Subject:
    """One sample of a job, as far as its record and its benchmark tell."""

    record: Record
    known: Known

    @property
    def text(self) -> str | None:
        """What a language model was asked, or what an image is called."""
        recorded = self.record.scores.get("text")
        if isinstance(recorded, str):
            return recorded
        if self.known.sample is not None:
            return self.known.sample.description()
        tokens = next((each["players"] for each in self.record.labels.values() if each["grid"] is None), None)
        return None if tokens is None else " ".join(tokens)

    @property
    def picture(self) -> Image.Image | None:
        """The image that was explained."""
        return self.known.picture[0]

    @property
    def _is_other(self) -> bool:
        """Whether the benchmark has another text under this id by now."""
        recorded, sample = self.record.scores.get("text"), self.known.sample
        return isinstance(recorded, str) and sample is not None and sample.description() != recorded

    @property
    def annotation(self) -> Annotation:
        """What is known to be right; empty where nothing is."""
        return Annotation() if self._is_other else self.known.annotation[0] or Annotation()

    def scores(self) -> dict[str, float]:
        """The numbers among the scores, as the benchmark lists them, to six digits; none of a sample that failed."""
        if self.record.status == "failed":
            return {}
        among = numbers_among if self.known.benchmark is None else self.known.benchmark.sample_scores
        return {name: float(f"{value:.6g}") for name, value in among(self.record.scores).items()}

    def notes(self) -> list[str]:
        """What could not be found out, in sentences."""
        other = "The benchmark now has another text under this id, so its annotation is not shown."
        told = self.known.error, self.known.picture[1], self.known.annotation[1], other if self._is_other else None
        return [note for note in told if note]


@dataclass
class Subjects:
    """The subjects of several jobs; each benchmark is made once."""

    _benchmarks: dict[str, tuple[AnyBenchmark | None, Mapping[str, Sample], str | None]] = field(default_factory=dict)
    _known: dict[tuple[str, str], Known] = field(default_factory=dict)

    def of(self, result: JobResult, record: Record) -> Subject:
        """The subject of a record."""
        benchmark = result.config.benchmark
        key = digest(OmegaConf.to_container(benchmark, resolve=True))
        if key not in self._benchmarks:
            self._benchmarks[key] = _samples(benchmark)
        if (key, record.sample) not in self._known:
            made, samples, error = self._benchmarks[key]
            if error is None and record.sample not in samples:
                error = (
                    f"The benchmark no longer has the sample {record.sample!r}, so its text and picture are missing."
                )
            self._known[key, record.sample] = Known(made, samples.get(record.sample), error)
        return Subject(record, self._known[key, record.sample])


def _samples(node: DictConfig) -> tuple[AnyBenchmark | None, Mapping[str, Sample], str | None]:
    """A benchmark with its samples by id, or why there are none."""
    try:
        benchmark: AnyBenchmark = build_part(node)
        return benchmark, {sample.id: sample for sample in benchmark.samples()}, None
    except Exception as error:  # its data may be on another machine; the maps are shown all the same
        return None, {}, f"Its samples cannot be made here, so their texts and pictures are missing: {error}"
