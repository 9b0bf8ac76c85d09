"""Segmentation by concepts (Table 3, Figure 13): does a class's map lie on the class's pixels?"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from transformers import PreTrainedTokenizerBase

from metagame.benchmarks.masks import UNLABELLED
from metagame.benchmarks.segmentation_metrics import image_scores, multi_scores, resize_nearest, single_scores
from metagame.contracts import Annotation, Benchmark, Explanation, Score
from metagame.errors import UserError
from metagame.models.concepts import (
    ConceptLogits,
    ConceptQuestion,
    ConceptSample,
    concept_pieces,
    refuse_one_token_twice,
)

log = logging.getLogger(__name__)

TRACKS = ("single", "multi")
CHANNELS = ("present", "players")
FULL_CLASSES = ("skipped", "counted")
BASELINE = "baseline"
ABLATIONS = (BASELINE, "decoupled", "last_layers", "prompt")
"""The columns of Figure 13: concepts that do not attend to each other, fewer layers, present classes in the prompt."""
LEFT_OUT = "left out"
"""Name of the score that lists the cells whose number of players does not suit an image's number of classes."""


class LabelledImage(Protocol):
    """An image whose pixels have classes.

    ``id`` is unique in its dataset; ``original_id`` is what the dataset's own files have, of COCO an integer.
    """

    id: str

    @property
    def original_id(self) -> str:
        return self.id

    @property
    def classes(self) -> frozenset[str]:
        """Names of the classes in it."""
        raise NotImplementedError

    def files(self) -> Sequence[Path]:
        """The files that the image and its mask are read from."""
        return ()

    def image(self) -> Image.Image: ...

    def mask(self, vocabulary: Sequence[str]) -> Int[np.ndarray, "h w"]:
        """Of each pixel the index of its class in the vocabulary, or OTHER, or UNLABELLED."""
        ...


class Dataset(Protocol):
    """Where labelled images come from, such as :class:`metagame.benchmarks.voc.VOC`.

    ``names`` are its classes.
    """

    names: Sequence[str]

    def files(self) -> Sequence[Path]:
        """Files that decide what is asked about every image, such as one of class names."""
        return ()

    def images(self) -> Sequence[LabelledImage]: ...


@dataclass(frozen=True)
class Cell:
    """A cell of Figure 13.

    Attributes:
        players: ``n20``: an image's present classes and distractors, 20 in all; ``d10``: 10 distractors; ``n0``: none.
        ablation: one of :data:`ABLATIONS`.
    """

    players: str
    ablation: str

    @property
    def name(self) -> str:
        return self.players if self.ablation == BASELINE else f"{self.players} {self.ablation}"


@dataclass(frozen=True)
class SegmentedImage(ConceptSample):
    """A sample.

    Attributes:
        labelled: the image with its classes.
        benchmark: what is asked about it.
        with_maps: whether its maps are kept with the record.
    """

    labelled: LabelledImage
    benchmark: Segmentation
    with_maps: bool = False

    @property
    def id(self) -> str:
        return self.labelled.id

    def files(self) -> Sequence[Path]:
        return self.labelled.files()

    def keeps_arrays(self) -> bool:
        return self.with_maps

    def image(self) -> Image.Image:
        """The image.

        Raises:
            UserError: its mask has another size.
        """
        image, (height, width) = self.labelled.image(), self.truth().shape
        if image.size != (width, height):
            raise UserError(
                f"the mask of {self.id} has {width} x {height} pixels, but its image has {image.width} x"
                f" {image.height}: get both again."
            )
        return image

    def annotation(self) -> Annotation:
        """Its classes of the vocabulary and their pixels."""
        present = self.benchmark.present(self.labelled)
        return Annotation(present, self.labelled.mask(present))

    def truth(self) -> Int[np.ndarray, "h w"]:
        return self.labelled.mask(self.benchmark.vocabulary)

    def questions(self) -> dict[str, ConceptQuestion]:
        return self.benchmark.questions(self.labelled)


class Segmentation(Benchmark[SegmentedImage, ConceptLogits]):
    """Scores by cell and track are counts that the table pools over images.

    Args:
        data: images with classes.
        tokenizer: the tokenizer of T5; classes whose name is not a single token are left out.
        background: concepts that are always present and do not stand for a class.
        players, ablations: the cells are all their combinations, see :class:`Cell`.
        n_layers: how many of the model's last double-stream blocks are used; ``fewer_layers`` in ``last_layers``.
        side: side of the square on which maps and masks are compared.
        tracks: ``single``: images with one class; ``multi``: all images.
        channels: the classes whose maps compete in ``multi``: those ``present`` in the image, as in the paper's code,
            or all ``players``, as in its text.
        full_classes: the AP in ``multi`` of a class that fills all labelled pixels of an image: ``skipped``, as in the
            paper's code (its text does not say), or ``counted`` as 1.
        expected: the number of ``images`` in total and of those with a ``single`` class; a difference is reported.
        n_maps: number of images, the first ones, whose maps are kept.
        all_players: sizes from which experiments choose ``players``; they have no effect here.

    Raises:
        UserError: an argument is invalid, or there are more players than classes.
    """

    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"expected", "all_players"})

    def __init__(
        self,
        data: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        background: Sequence[str],
        players: Sequence[str] = ("n20",),
        ablations: Sequence[str] = (BASELINE,),
        n_layers: int = 10,
        fewer_layers: int = 5,
        side: int = 224,
        tracks: Sequence[str] = TRACKS,
        channels: str = "present",
        full_classes: str = FULL_CLASSES[0],
        expected: Mapping[str, int] | None = None,
        n_maps: int = 0,
        all_players: Sequence[str] = (),
    ) -> None:
        _check_choices("ablations", ablations, ABLATIONS)
        _check_choices("tracks", tracks, TRACKS)
        _check_choices("channels", [channels], CHANNELS)
        _check_choices("full_classes", [full_classes], FULL_CLASSES)
        for name, value in {"n_layers": n_layers, "fewer_layers": fewer_layers, "side": side}.items():
            if value < 1:
                raise UserError(f"benchmark.{name}={value} must be a positive integer.")
        if n_maps < 0:
            raise UserError(f"benchmark.n_maps={n_maps} must not be negative.")
        self.data = data
        self.tokenizer_folder = tokenizer.name_or_path
        self.vocabulary = one_token_names(data.names, tokenizer)
        self.background = tuple(name.strip() for name in background)
        both = [name for name in self.background if name in self.vocabulary]
        if both:
            raise UserError(
                f"benchmark.background has {both[0]!r}, which is a class: remove it, because background is never a"
                " player."
            )
        refuse_one_token_twice(tokenizer, (*self.vocabulary, *self.background))
        if not players:
            raise UserError("benchmark.players is empty: give sizes such as n20, d10 or n0.")
        for size in players:
            _check_players(size, len(self.vocabulary))
        _refuse_repeated("players", players)
        _refuse_repeated("ablations", ablations)
        _refuse_repeated("tracks", tracks)
        self.cells = [Cell(size, ablation) for size in players for ablation in ablations]
        self.n_layers = n_layers
        self.fewer_layers = fewer_layers
        self.side = side
        self.tracks = tuple(tracks)
        self.channels = channels
        self.full_classes = full_classes
        self.expected = dict(expected or {})
        self.n_maps = n_maps

    def files(self) -> Sequence[Path]:
        """Files that decide which names are classes: those of the dataset, and of a tokenizer read from a folder."""
        name = self.tokenizer_folder
        folder = sorted(path for path in Path(name).iterdir() if path.is_file()) if name and Path(name).is_dir() else []
        return [*self.data.files(), *folder]

    def samples(self) -> list[SegmentedImage]:
        """The images with a class of the vocabulary; those whose mask cannot be read are kept and reported.

        Raises:
            UserError: two images have the same id.
        """
        images = self.data.images()
        n_present = [self._count_present(labelled) for labelled in images]
        found = [labelled for labelled, number in zip(images, n_present, strict=True) if number != 0]
        ids = [labelled.id for labelled in found]
        if len(set(ids)) < len(ids):
            twice = next(each for each in ids if ids.count(each) > 1)
            raise UserError(f"the benchmark has two images with the id {twice!r}: remove one of them.")
        self._compare("images", "images", len(found))
        self._compare("single", "images with one class", n_present.count(1))
        return [SegmentedImage(labelled, self, place < self.n_maps) for place, labelled in enumerate(found)]

    def _count_present(self, labelled: LabelledImage) -> int | None:
        """How many classes the image has; None where its mask cannot be read."""
        try:
            return len(self.present(labelled))
        except UserError:
            return None

    def _compare(self, name: str, kind: str, number: int) -> None:
        expected = self.expected.get(name, number)
        if number != expected:
            log.warning(
                "The data of the benchmark have %d %s, but %d were expected (benchmark.expected).",
                number,
                kind,
                expected,
            )

    def present(self, labelled: LabelledImage) -> tuple[str, ...]:
        """The image's classes, in the order of the vocabulary."""
        return tuple(name for name in self.vocabulary if name in labelled.classes)

    def questions(self, labelled: LabelledImage) -> dict[str, ConceptQuestion]:
        """A question for each cell whose number of players suits the image."""
        present = self.present(labelled)
        asked = {}
        for cell in self.cells:
            players = self._players(cell.players, present, labelled.original_id)
            if players is not None:
                question = ConceptQuestion(players, self.background, self.n_layers)
                asked[cell.name] = self._ablated(question, cell.ablation, present)
        return asked

    def _ablated(self, question: ConceptQuestion, ablation: str, present: tuple[str, ...]) -> ConceptQuestion:
        match ablation:
            case "decoupled":
                return replace(question, cross_attention=False)
            case "last_layers":
                return replace(question, n_layers=self.fewer_layers)
            case "prompt":
                return replace(question, prompt=",".join(f"a {name}" for name in present))
        return question

    def _players(self, size: str, present: tuple[str, ...], image_id: str) -> tuple[str, ...] | None:
        """Present classes, then distractors, which Python's generator draws by the image's id as in the paper's code.

        None where there are more present classes than players, or fewer absent ones than distractors.
        """
        absent = [name for name in self.vocabulary if name not in present]
        total = size[0] == "n" and size != "n0"
        n_distractors = int(size[1:]) - len(present) if total else int(size[1:])
        if not 0 <= n_distractors <= len(absent):
            return None
        distractors = Random(f"distractor-{image_id}").sample(absent, n_distractors)  # noqa: S311
        return (*present, *distractors)

    def score(
        self, sample: SegmentedImage, inputs: Mapping[str, ConceptLogits], explanations: Mapping[str, Explanation]
    ) -> dict[str, Score]:
        """Counts for the metrics by cell and track, see :mod:`metagame.benchmarks.segmentation_metrics`.

        Raises:
            UserError: an explanation does not have a map of each player and background concept.
        """
        truth = resize_nearest(sample.truth(), self.side)
        present = self.present(sample.labelled)
        scores: dict[str, Score] = {
            cell: self._track_scores(inputs[cell].players, self._enlarged(each), truth, present)
            for cell, each in explanations.items()
        }
        return scores | {LEFT_OUT: [cell.name for cell in self.cells if cell.name not in explanations]}

    def sample_scores(self, scores: Mapping[str, Score]) -> dict[str, float]:
        """The result of :func:`image_scores` for this image alone, by cell and track."""
        tracks = {cell.name: scores.get(cell.name) for cell in self.cells}
        return {
            f"{cell} {track}: {name}": value
            for cell, found in tracks.items()
            if isinstance(found, Mapping)
            for track, counts in found.items()
            if isinstance(counts, Mapping)
            for name, value in image_scores(counts).items()
        }

    def _track_scores(
        self,
        players: tuple[str, ...],
        maps: Float[np.ndarray, "c s s"],
        truth: Int[np.ndarray, "s s"],
        present: tuple[str, ...],
    ) -> dict[str, Score]:
        heat, background = maps[: len(players)], maps[len(players) :]
        scores: dict[str, Score] = {}
        labelled = truth != UNLABELLED
        if "single" in self.tracks and len(present) == 1 and labelled.any():
            own = truth == self.vocabulary.index(present[0])
            scores["single"] = single_scores(heat[players.index(present[0])], own, labelled)
        if "multi" in self.tracks:
            rivals = present if self.channels == "present" else players
            by_class = {self.vocabulary.index(name): heat[players.index(name)] for name in rivals}
            scores["multi"] = multi_scores(by_class, list(background), truth, self.full_classes == "counted")
        return scores

    def _enlarged(self, explanation: Explanation) -> Float[np.ndarray, "c s s"]:
        """The maps, players' first, in float32: AP ranks pixels, beyond these digits it would rank their errors."""
        if explanation.attribution is None or explanation.grid is None:
            raise UserError("segmentation needs a map of each concept: choose attribution=concept_attention.")
        maps = explanation.attribution.astype(np.float32).astype(np.float64)
        return resize_nearest(maps.reshape(len(explanation.targets), *explanation.grid), self.side)


def one_token_names(names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The names of one T5 token that the tokenizer knows; which are left out is logged.

    Raises:
        UserError: no name is a single token.
    """
    pieces = {name: concept_pieces(tokenizer, name) for name in names}
    kept = tuple(name for name, tokens in pieces.items() if len(tokens) == 1 and tokenizer.unk_token not in tokens)
    if not kept:
        raise UserError("no class name is a single T5 token: set benchmark.tokenizer to that of the model.")
    left_out = [f"{name} ({', '.join(tokens)})" for name, tokens in pieces.items() if name not in kept]
    if left_out:
        message = "segmentation: %d of %d classes are left out, because their names are not a single T5 token: %s."
        log.info(message, len(left_out), len(names), "; ".join(left_out))
    return kept


def _check_choices(name: str, values: Sequence[str], choices: tuple[str, ...]) -> None:
    if not values or any(value not in choices for value in values):
        raise UserError(f"benchmark.{name}={list(values)} must be some of {', '.join(choices)}.")


def _refuse_repeated(name: str, values: Sequence[str]) -> None:
    repeated = [value for value in values if list(values).count(value) > 1]
    if repeated:
        raise UserError(f"benchmark.{name} contains {repeated[0]!r} several times: give each once.")


def _check_players(size: str, n_classes: int) -> None:
    if not re.fullmatch(r"[nd](0|[1-9]\d*)", str(size)):
        raise UserError(f"benchmark.players={size!r} is not a size: give sizes such as n20, d10 or n0.")
    if int(size[1:]) + (size[0] == "d") > n_classes:
        raise UserError(
            f"benchmark.players={size!r} is too large, because only {n_classes} classes are one T5 token: give a"
            " smaller size."
        )
