"""Whether classes depend on concepts: scores by class, layer and repeat, for T-TCAV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float
from PIL import Image

from metagame.attributions.ttcav import ConceptScores
from metagame.benchmarks.digits import Digits
from metagame.benchmarks.imagenet import IMAGE_SUFFIXES
from metagame.benchmarks.textures import DEPENDENT, TEXTURES, drawn, enlarged, ground, strengths
from metagame.contracts import WHOLE, Benchmark, Explanation, Sample, Score
from metagame.errors import UserError
from metagame.images import read_image
from metagame.models.token_states import LEAST, ConceptInput, VisualConcept

RANDOM = "random"
"""The concept whose images are drawn from all concepts, and so are those that it is set against."""


class ConceptBenchmark(Benchmark[VisualConcept, ConceptInput]):
    """A method's results for concepts: ``scores`` and ``effects``, by class, layer and repeat.

    ``depending`` are the classes that are known to depend on the concept; None if nothing is known.

    Args:
        concept_images: the samples, which are concepts with their images.
    """

    def __init__(self, concept_images: Sequence[VisualConcept]) -> None:
        self.concept_images = concept_images

    def samples(self) -> Sequence[VisualConcept]:
        return self.concept_images

    def score(
        self, sample: VisualConcept, inputs: Mapping[str, ConceptInput], explanations: Mapping[str, Explanation]
    ) -> dict[str, Score]:
        explanation = explanations[WHOLE]
        if not isinstance(explanation, ConceptScores):
            raise UserError(
                "benchmark=concept_scores asks whether classes depend on concepts: choose attribution=ttcav."
            )
        images = {name: len(each) for name, each in sample.classes.items()}
        return {
            "classes": list(explanation.classes), "layers": list(explanation.layers), "examples": len(sample.examples),
            "images": images, "depending": None if sample.depending is None else list(sample.depending),
            "scores": explanation.scores.tolist(), "effects": explanation.effects.tolist(),
        }  # fmt: skip

    def sample_scores(self, scores: Mapping[str, Score]) -> Mapping[str, float]:
        """The mean score of each class, over layers and repeats."""
        means, names = np.asarray(scores["scores"]).mean((1, 2)), cast("Sequence[str]", scores["classes"])
        return {f"score of class {name}": float(mean) for name, mean in zip(names, means, strict=True)}


@dataclass(frozen=True)
class DrawnImage(Sample):
    """An image that is made here."""

    id: str
    brightness: Float[np.ndarray, "16 16"]

    def image(self) -> Image.Image:
        return drawn(self.brightness)


@dataclass(frozen=True)
class ImageFile(Sample):
    """An image file."""

    id: str
    path: Path

    def files(self) -> Sequence[Path]:
        return (self.path,)

    def image(self) -> Image.Image:
        return read_image(self.path, str(self.path))


def relative_concepts(
    images: Mapping[str, Sequence[Sample]],
    classes: Mapping[str, Sequence[Sample]],
    depending: Mapping[str, tuple[str, ...]] | None = None,
) -> list[VisualConcept]:
    """Each concept, set against the others, and the random one.

    Concepts of too few images are refused when their turn comes, and are not among the others.

    Args:
        images: of each concept.
        classes: images of each class.
        depending: on each concept, the classes that are known to.

    Raises:
        UserError: fewer than two concepts have enough images, one is called random, or a class has no images.
    """
    usable = {name: tuple(each) for name, each in images.items() if len(each) >= LEAST}
    if len(usable) < 2:
        raise UserError(
            f"{len(usable)} of {len(images)} concepts have {LEAST} images or more, but at least two are needed,"
            " because each is compared with the others: add images."
        )
    empty = [name for name, own in classes.items() if not own]
    if empty:
        raise UserError(f"class {empty[0]} has no images: add some, or leave it out.")
    if RANDOM in images:
        raise UserError(f"a concept cannot be called {RANDOM}, which is the name of the baseline: rename it.")
    concepts = [
        VisualConcept(
            name, tuple(own), tuple(each for other, some in usable.items() if other != name for each in some), classes,
            None if depending is None else depending.get(name, ()),
        )
        for name, own in images.items()
    ]  # fmt: skip
    everything = tuple(each for some in usable.values() for each in some)
    return [*concepts, VisualConcept(RANDOM, everything, (), classes, None if depending is None else ())]


def textured_digits(classes: Sequence[int], per_concept: int, per_class: int, seed: int = 0) -> list[VisualConcept]:
    """Striped, dotted and plain grounds as concepts, and held-out digits on grounds as classes.

    One class is known to depend on one texture, see :mod:`metagame.benchmarks.textures`. Its images are on that
    ground, those of other classes on all three in turn.
    """
    rng = np.random.default_rng(seed)
    concepts = {
        name: [
            DrawnImage(f"{name}_{k}", ground(name, strength, rng))
            for k, strength in enumerate(strengths(rng, per_concept))
        ]
        for name in TEXTURES
    }
    digits, images = Digits(), {}
    for label in classes:
        own = [DEPENDENT[label]] if label in DEPENDENT else list(TEXTURES)
        images[str(label)] = [
            DrawnImage(
                f"digit_{label}_{k}",
                np.maximum(enlarged(digits.image(label, k)), ground(own[k % len(own)], strength, rng)),
            )
            for k, strength in enumerate(strengths(rng, per_class))
        ]
    return relative_concepts(concepts, images, {texture: (str(digit),) for digit, texture in DEPENDENT.items()})


def image_folders(
    root: str, classes: str, names: Sequence[str] | None = None, most_examples: int = 120, most_images: int = 200
) -> list[VisualConcept]:
    """Samples from folders with one sub-folder of images for each concept, and for each class.

    Args:
        root: the folder of the concepts, such as ``images`` of the Describable Textures Dataset.
        classes: the folder of the classes, whose sub-folders are named by labels of the model.
        names: names of the concepts to use; if None, all.
        most_examples: the maximum number of images of a concept, the first by name.
        most_images: the maximum number of images of a class, the first by name.

    Raises:
        UserError: a folder does not exist, or has no sub-folder with images.
    """
    images = _images(root, "root", most_examples, names)
    return relative_concepts(images, _images(classes, "classes", most_images))


def _images(root: str, what: str, most: int, names: Sequence[str] | None = None) -> dict[str, list[Sample]]:
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(
            f"{root} does not exist: set benchmark.concept_images.{what} to a folder with one sub-folder of images for"
            " each, or run 'make data EXPERIMENT=ttcav'."
        )
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if names is None else list(names)
    missing = [name for name in found if not (folder / name).is_dir()]
    if missing or not found:
        raise UserError(
            f"{root} has no sub-folder{f' {missing[0]}' if missing else ''}: put images into sub-folders, each called"
            " by the name of its concept or class."
        )
    return {name: _files(folder / name, most) for name in found}


def _files(folder: Path, most: int) -> list[Sample]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return [ImageFile(f"{folder.parent.name}/{folder.name}/{path.name}", path) for path in paths[:most]]
