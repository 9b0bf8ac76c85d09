"""The story as types: a job is model x attribution x benchmark.

It turns each sample into a metagame, plays it, scores it, and appends one record. A plug-in subclasses the protocol
that it fills: what has a body here is optional. A part that cannot do its work raises
:class:`metagame.errors.UserError`, whose message is shown as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from metagame.errors import UserError
from metagame.estimators.configured import EXACT, ConfiguredEstimator
from metagame.games import Progress
from metagame.meta import MetaAttributions

Score = float | int | str | None | Sequence["Score"] | Mapping[str, "Score"]
"""What a record can hold: numbers, texts, and lists and mappings of them."""

WHOLE = ""
"""The name of the question about a sample that asks only one."""


@dataclass(frozen=True)
class Annotation:
    """What is known to be right of a sample; the page shows it beside the explanations.

    Attributes:
        present: names, as players have them, of what the picture shows.
        mask: over the whole picture, in any resolution, the place in ``present`` of what a pixel shows; -1 where that
            is none of them, -2 where it is not labelled.
        pairs: of strings in the text that interact.
    """

    present: tuple[str, ...] = ()
    mask: Int[np.ndarray, "h w"] | None = None
    pairs: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class Sample(Protocol):
    """One item of a benchmark; ``id`` is unique in it and the same in every run."""

    id: str
    if TYPE_CHECKING:  # read-only, as in a frozen dataclass, which would take a property for the default of its field

        @property
        def id(self) -> str:
            return ""

    def files(self) -> Sequence[Path]:
        """The files that it is read from; where their content changes, the sample is computed again."""
        return ()

    def description(self) -> str | None:
        """What the sample asks in words, or what its picture is called."""
        return None

    def image(self) -> Image.Image | None:
        """The picture that is explained, if there is one; raises UserError where it cannot be read."""
        return None

    def annotation(self) -> Annotation | None:
        """What is known to be right, if anything is; raises UserError where it cannot be read."""
        return None

    def keeps_arrays(self) -> bool:
        """Whether arrays are kept with the record, or its scores alone."""
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
        """Names of what is attributed; with a ``grid`` each stands for all of its patches, in reading order."""
        raise NotImplementedError

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches of an image; None where targets are no patches."""
        return None

    @property
    def picture(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """The image, where the model made it, or cut or stretched that of the sample."""
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
    """What is explained.

    Attributes:
        sample_type: the samples that it takes.
        revision: a hash or commit that changes with any file that loading it reads.
        device, batch_size: where it computes, and the most samples to prepare together.
    """

    sample_type: type
    revision: str
    device: str
    batch_size: int = 1

    def keep_in(self, folder: Path) -> None:
        """May keep there, from now on, what another job would compute again; all jobs of a scale share it."""

    def prepare(self, samples: Sequence[S_contra]) -> list[Mapping[str, InputT] | Failure]:
        """For each sample its questions by name (:data:`WHOLE` for a single one), or why it cannot be prepared."""


@dataclass(frozen=True)
class Explanation:
    """What a method says of one question, in the units of its attribution (t targets, n players).

    Attributes:
        players, targets, grid: as of :class:`BoundInput`.
        attribution: of each target; None where the method has second-order values only.
        meta: second-order values; None of a first-order method.
        variant: name of the variant of the job's method; set by the job.

    Raises:
        UserError: a number is NaN or inf, or the attribution is not one of these targets.
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
    """An attribution method; ``input_type`` is what it explains."""

    input_type: type

    def explain(self, bound: I_contra, progress: Progress | None = None) -> Explanation:
        """The attribution of every target, or the method's second-order values."""

    def metagame(
        self, estimator: ConfiguredEstimator = EXACT, order: int = 1, index: str | None = None
    ) -> Method[I_contra]:
        """The method whose explanations are this one's metagame.

        Raises:
            UserError: this is no first-order method, or its metagame has no such order or index.
        """
        raise UserError(f"{type(self).__name__} has no metagame: it is not a first-order attribution method.")


@runtime_checkable
class Benchmark(Protocol[SampleT, I_contra]):
    """Where samples come from, and how explanations of them are scored."""

    def samples(self) -> Sequence[SampleT]:
        """All samples, in order."""

    def score(
        self, sample: SampleT, inputs: Mapping[str, I_contra], explanations: Mapping[str, Explanation]
    ) -> Mapping[str, Score]:
        """Scores by name, of the explanation of each question by its name."""

    def files(self) -> Sequence[Path]:
        """Files that decide the scores of all samples, such as a tokenizer's."""
        return ()

    def sample_scores(self, scores: Mapping[str, Score]) -> Mapping[str, float]:
        """Of what :meth:`score` gave, the numbers by which to list and sort samples, the most telling first."""
        return numbers_among(scores)


def numbers_among(scores: Mapping[str, Score]) -> dict[str, float]:
    """The scores that are single numbers."""
    return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}


def prepare_each(
    bind: Callable[[SampleT], Mapping[str, InputT]], samples: Sequence[SampleT]
) -> list[Mapping[str, InputT] | Failure]:
    """``bind`` of each sample; what it raises becomes the sample's :class:`Failure`."""

    def prepared(sample: SampleT) -> Mapping[str, InputT] | Failure:
        try:
            return bind(sample)
        except Exception as error:  # whatever a user's model meets costs its own sample only
            return Failure(error)

    return [prepared(sample) for sample in samples]
