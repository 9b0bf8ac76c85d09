"""Interfaces of models, methods, benchmarks and samples. A job is model x attribution x benchmark.

A job turns each sample into a metagame, plays it, scores it, and appends one record. A plug-in subclasses the protocol
that it implements; methods that have a body here are optional. A part that cannot do its work raises
:class:`metagame.errors.UserError`, whose message is shown unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from metagame.errors import UserError
from metagame.estimators.configured import EXACT, ConfiguredEstimator
from metagame.games import Progress
from metagame.meta import MetaAttributions

Score = float | int | str | None | Sequence["Score"] | Mapping[str, "Score"]
"""What a record can hold: numbers, strings, and lists and mappings of them."""

WHOLE = ""
"""The name of the only question about a sample that asks just one."""


@dataclass(frozen=True)
class Annotation:
    """Ground truth of a sample, which the page shows beside the explanations.

    Attributes:
        present: names of what the picture shows, as they occur among the players.
        mask: covers the whole picture, in any resolution. Each entry is the position in ``present`` of what the pixel
            shows, -1 if the pixel shows something else, and -2 if it is not labelled.
        pairs: pairs of strings in the text that interact.
    """

    present: tuple[str, ...] = ()
    mask: Int[np.ndarray, "h w"] | None = None
    pairs: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class Sample(Protocol):
    """One item of a benchmark; ``id`` is unique in the benchmark and the same in every run."""

    id: str
    if TYPE_CHECKING:  # read-only, as in a frozen dataclass, which would take a property for the default of its field

        @property
        def id(self) -> str:
            return ""

    def files(self) -> Sequence[Path]:
        """The files that the sample is read from; if their content changes, the sample is computed again."""
        return ()

    def description(self) -> str | None:
        """The question that the sample asks, in words, or the name of its picture."""
        return None

    def image(self) -> Image.Image | None:
        """The picture that is explained, if any; raises UserError if it cannot be read."""
        return None

    def annotation(self) -> Annotation | None:
        """The ground truth, if any is known; raises UserError if it cannot be read."""
        return None

    def keeps_arrays(self) -> bool:
        """Whether arrays are kept with the record; otherwise only its scores are."""
        return True


@runtime_checkable
class BoundInput(Protocol):
    """A question about a sample, bound to a model: what an attribution method explains."""

    @property
    def players(self) -> tuple[str, ...]:
        """Names of the n players."""
        raise NotImplementedError

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what is attributed; with a ``grid``, each stands for all patches of the grid, in reading order."""
        raise NotImplementedError

    @property
    def grid(self) -> tuple[int, int] | None:
        """Number of rows and columns of patches of an image; None if the targets are not patches."""
        return None

    @property
    def picture(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """The image, if the model generated it, or cropped or stretched that of the sample."""
        return None


@dataclass(frozen=True)
class Failure:
    """Why a sample could not be prepared."""

    error: Exception


SampleT = TypeVar("SampleT", bound=Sample)
InputT = TypeVar("InputT", bound=BoundInput)
S_contra = TypeVar("S_contra", bound=Sample, contravariant=True)
I_contra = TypeVar("I_contra", bound=BoundInput, contravariant=True)


@runtime_checkable
class Model(Protocol[S_contra, InputT]):
    """Interface of the models that are explained.

    Attributes:
        sample_type: the type of samples that it accepts.
        revision: a hash or commit that changes with any file that is read to load the model.
        device, batch_size: the device it computes on, and the maximum number of samples to prepare together.
    """

    sample_type: type
    revision: str
    device: str
    batch_size: int = 1

    def keep_in(self, folder: Path) -> None:
        """Allow the model to cache results in this folder for other jobs; all jobs of a scale share it."""

    def prepare(self, samples: Sequence[S_contra]) -> list[Mapping[str, InputT] | Failure]:
        """For each sample, its questions by name (:data:`WHOLE` for a single one), or why it cannot be prepared."""


@runtime_checkable
class ReadsAhead(Protocol):
    """What a model may also do: read samples in the background while others are explained."""

    def read_ahead(self, samples: Sequence[Any]) -> None:
        """Begin to read the samples that the model will be asked to prepare next."""
        ...


@dataclass(frozen=True)
class Explanation:
    """A method's result for one question, in the units of its attribution (t targets, n players).

    Attributes:
        players, targets, grid: see :class:`BoundInput`.
        attribution: one value per target; None if the method has only second-order values.
        meta: second-order values; None for a first-order method.
        variant: name of the variant of the job's method, which the job sets.

    Raises:
        UserError: a number is NaN or inf, or the attribution does not have one value for each of these targets.
    """

    players: tuple[str, ...]
    targets: tuple[str, ...]
    grid: tuple[int, int] | None = None
    attribution: Shaped[np.ndarray, " t"] | None = None
    meta: MetaAttributions | None = None
    variant: str = ""

    def __post_init__(self) -> None:
        n_targets = len(self.targets) * (1 if self.grid is None else self.grid[0] * self.grid[1])
        if self.attribution is not None and len(self.attribution) != n_targets:
            raise UserError(
                f"the method attributes {len(self.attribution)} targets, but its input has {n_targets}: check the"
                " attribution method."
            )
        meta = {} if self.meta is None else vars(self.meta)
        arrays = {name: meta.get(name) for name in ("values", "standard_error", "empty")}
        for name, each in {"the attribution": self.attribution, **arrays}.items():
            if each is not None and each.dtype != object and not np.isfinite(each).all():
                raise UserError(f"{name} contains NaN or inf: check the attribution method on this input.")


@runtime_checkable
class Method(Protocol[I_contra]):
    """An attribution method; ``input_type`` is the type of inputs that it explains."""

    input_type: type

    def explain(self, bound: I_contra, progress: Progress | None = None) -> Explanation:
        """The attribution of every target, or the method's second-order values."""

    def metagame(
        self, estimator: ConfiguredEstimator = EXACT, order: int = 1, index: str | None = None
    ) -> Method[I_contra]:
        """The metagame of this method, as a method.

        Raises:
            UserError: this is not a first-order method, or its metagame does not have this order or index.
        """
        raise UserError(f"{type(self).__name__} has no metagame: it is not a first-order attribution method.")


@runtime_checkable
class Benchmark(Protocol[SampleT, I_contra]):
    """Provides samples, and scores their explanations."""

    def samples(self) -> Sequence[SampleT]:
        """All samples, in order."""

    def score(
        self, sample: SampleT, inputs: Mapping[str, I_contra], explanations: Mapping[str, Explanation]
    ) -> Mapping[str, Score]:
        """Scores by name; ``inputs`` and ``explanations`` are given by the name of the question."""

    def files(self) -> Sequence[Path]:
        """Files that affect the scores of all samples, such as those of a tokenizer."""
        return ()

    def sample_scores(self, scores: Mapping[str, Score]) -> Mapping[str, float]:
        """The numbers in the result of :meth:`score` by which to list and sort samples, the most informative first."""
        return numbers_among(scores)


def numbers_among(scores: Mapping[str, Score]) -> dict[str, float]:
    """The scores that are single numbers."""
    return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}


def prepare_each(
    bind: Callable[[SampleT], Mapping[str, InputT]], samples: Sequence[SampleT]
) -> list[Mapping[str, InputT] | Failure]:
    """``bind`` applied to each sample; an exception that it raises becomes the sample's :class:`Failure`."""

    def prepared(sample: SampleT) -> Mapping[str, InputT] | Failure:
        try:
            return bind(sample)
        except Exception as error:  # whatever a user's model meets costs its own sample only
            return Failure(error)

    return [prepared(sample) for sample in samples]
