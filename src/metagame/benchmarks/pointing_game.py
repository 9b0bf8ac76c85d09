"""The pointing game of Tables 2 and 4: does a word's map lie on the quadrant that shows the word's object?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from metagame.contracts import Annotation, Benchmark, Explanation, Score
from metagame.errors import UserError
from metagame.images import bilinear_square, composite, grid_side, read_image, through_jpeg
from metagame.models.vision_language import ImageText, Sample, Tokenizer, WordPlayers

SCENARIOS = (1, 2, 3, 4)
ENCODINGS = ("jpeg", "lossless")


class Images(Protocol):
    """Images of classes, such as :class:`metagame.benchmarks.imagenet.ImageNet`."""

    def image(self, label: int, k: int) -> Image.Image:
        """Image ``k``, from 0, of class ``label``."""
        ...

    def files(self, label: int, k: int) -> Sequence[Path]:
        """The files that it is read from."""
        return ()


class Scenes(Protocol):
    """Where the grids of images come from."""

    def image(self, game: str, labels: Sequence[int], k: int) -> Image.Image:
        """Image ``k`` of each of a game's classes, in a 2x2 grid in reading order."""
        ...

    def files(self, game: str, labels: Sequence[int], k: int) -> Sequence[Path]:
        """The files that it is read from."""
        return ()


@dataclass(frozen=True)
class ComposedScenes(Scenes):
    """Grids made when they are needed.

    Differs from the paper's text: it does not say how images become grids. The published numbers are of ``jpeg``.

    Attributes:
        images: images by class.
        side: of a quadrant in pixels; images are resized by their short side and cropped to it.
        encoding: ``jpeg``: resized bilinearly, then the image of each class, and the grid again, saved as JPEG of
            quality 75 and read again; ``lossless``: resized bicubically.

    Raises:
        UserError: the encoding is neither.
    """

    images: Images
    side: int
    encoding: str = "lossless"

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UserError(f"benchmark.scenes.encoding={self.encoding!r} must be 'jpeg' or 'lossless'.")

    def image(self, game: str, labels: Sequence[int], k: int) -> Image.Image:
        images = [self.images.image(label, k) for label in labels]
        if self.encoding == "lossless":
            return composite(images, self.side)
        return through_jpeg(composite([through_jpeg(bilinear_square(each, self.side)) for each in images], self.side))

    def files(self, game: str, labels: Sequence[int], k: int) -> Sequence[Path]:
        return [path for label in labels for path in self.images.files(label, k)]


class PreparedScenes(Scenes):
    """Grids made once, as files ``root/ENCODING/GAME/kk.png``.

    Args:
        root: the folder of the grids.
        encoding: as of :class:`ComposedScenes`; ``jpeg`` for the published numbers.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: str, encoding: str) -> None:
        self.folder = Path(root) / encoding
        if not self.folder.is_dir():
            raise UserError(
                f"folder {self.folder} of benchmark.scenes does not exist: make the grids with 'python -m"
                f" scripts.prepare_pointing_game --imagenet FOLDER --out {root} --encoding {encoding}'."
            )

    def image(self, game: str, labels: Sequence[int], k: int) -> Image.Image:
        (path,) = self.files(game, labels, k)
        if not path.is_file():
            raise UserError(f"grid {path} is missing: make it with 'python -m scripts.prepare_pointing_game'.")
        return read_image(path, str(path))

    def files(self, game: str, labels: Sequence[int], k: int) -> Sequence[Path]:
        return (self.folder / game / f"{k:02d}.png",)


@dataclass(frozen=True)
class Scene(Sample):
    """Image ``k`` of four classes in a grid; scenario m asks about the first m words.

    Attributes:
        id: ``game/k``.
        game: its words, joined by ``-``, in reading order.
        labels: classes of the words.
        k: which image of each class.
        scenes: where the grid comes from.
    """

    id: str
    game: str
    labels: tuple[int, ...]
    k: int
    scenes: Scenes

    @property
    def words(self) -> list[str]:
        return self.game.split("-")

    def files(self) -> Sequence[Path]:
        return self.scenes.files(self.game, self.labels, self.k)

    def image(self) -> Image.Image:
        return self.scenes.image(self.game, self.labels, self.k)

    def description(self) -> str:
        """The words of its quadrants in reading order."""
        return ", ".join(self.words)

    def annotation(self) -> Annotation:
        """The quadrant of each word."""
        return Annotation(tuple(self.words), np.arange(4).reshape(2, 2))

    def texts(self, tokenizer: Tokenizer) -> dict[str, WordPlayers]:
        # the longest text first: its coalitions are those of the others too, whose maps are then known
        return {str(m): WordPlayers(tokenizer, self.words[:m]) for m in reversed(SCENARIOS)}


def game_and_image(name: str) -> tuple[str, str]:
    """The game and the number of the image, from a scene's id."""
    game, _, k = name.rpartition("/")
    return game, k


class PointingGame(Benchmark[Scene, ImageText]):
    """Scores ``objects_1`` to ``objects_4``: the recognition in each scenario; None if all maps are zero.

    Args:
        scenes: source of the grids.
        classes: class label of each word.
        games: four words each, joined by ``-``, in reading order of the grid.
        n_images: number of images of each game.
        n_games: number of games to play, the first ones; if None, all.
        played: the only games to play; if None, all.
    """

    def __init__(
        self,
        scenes: Scenes,
        classes: Mapping[str, int],
        games: Sequence[str],
        n_images: int,
        n_games: int | None = None,
        played: Sequence[str] | None = None,
    ) -> None:
        if n_images < 1 or (n_games is not None and n_games < 1):
            raise UserError(f"benchmark.n_images={n_images} and benchmark.n_games={n_games} must be positive integers.")
        self.scenes = scenes
        self.n_images = n_images
        unknown = sorted(set(played or ()) - set(games))
        if unknown:
            raise UserError(f"benchmark.played has {unknown[0]!r}, which is not in benchmark.games: correct the name.")
        chosen = [game for game in games if played is None or game in played]
        self.games = {game: _labels(game, classes) for game in chosen[:n_games]}

    def samples(self) -> list[Scene]:
        return [
            Scene(f"{game}/{k}", game, labels, k, self.scenes)
            for game, labels in self.games.items()
            for k in range(self.n_images)
        ]

    def score(
        self, sample: Scene, inputs: Mapping[str, ImageText], explanations: Mapping[str, Explanation]
    ) -> dict[str, float | None]:
        return {f"objects_{m}": recognition(word_maps(explanations[m], int(m))) for m in sorted(inputs)}

    def sample_scores(self, scores: Mapping[str, Score]) -> dict[str, float]:
        """The recognition of each scenario, as its column is called."""
        called = {f"objects_{m}": f"recognition, {m} object{'s' * (m > 1)}" for m in SCENARIOS}
        return {called.get(name, name): value for name, value in super().sample_scores(scores).items()}


def _labels(game: str, classes: Mapping[str, int]) -> tuple[int, ...]:
    words = game.split("-")
    unknown = [word for word in words if word not in classes]
    if len(words) != len(SCENARIOS) or len(set(words)) != len(words) or unknown:
        raise UserError(f"game {game!r} must be four different words of benchmark.classes, joined by '-'.")
    return tuple(classes[word] for word in words)


def word_maps(explanation: Explanation, n_words: int) -> Float[np.ndarray, "P m"]:
    """The map of each word: its second-order values; of a first-order method its one map, for every word.

    Words are players, or the targets of a method whose players are the patches.

    Raises:
        UserError: the method has neither, or values of another order.
    """
    if explanation.meta is not None:
        values = explanation.meta.matrix()
        return values if explanation.grid is not None else values.T
    if explanation.attribution is None or explanation.grid is None:
        raise UserError("the pointing game needs a map of each word: choose a method that attributes patches.")
    return np.repeat(explanation.attribution[:, None], n_words, axis=1)


def recognition(maps: Float[np.ndarray, "P m"]) -> float | None:
    """Share correct / (correct + wrong), from 0 to 1; None where all maps are zero.

    Correct is what is positive in a word's own quadrant and negative outside; wrong is the rest (paper App. D.2).
    Patches that lie in several quadrants, those in the middle of an odd grid, are left out.

    Raises:
        UserError: the patches cannot be divided into four quadrants.
    """
    of_quadrant = quadrants(len(maps))
    inside = of_quadrant.any(1)
    own, maps = of_quadrant[inside, : maps.shape[1]], maps[inside]
    size = np.abs(maps)
    total = size.sum()
    correct = size[own == (maps > 0)].sum()
    return float(correct / total) if total > 0 else None


def quadrants(n_patches: int) -> Bool[np.ndarray, "P 4"]:
    """Whether a patch lies in each quadrant as a whole, in reading order; in none in the middle of an odd grid.

    Raises:
        UserError: the patches are no square grid, or a single one.
    """
    side = grid_side(n_patches)
    if side < 2:
        raise UserError("a single patch has no quadrants: choose a model with smaller patches.")
    row, column = np.divmod(np.arange(n_patches), side)
    half = side // 2
    upper, lower, left, right = row < half, row >= side - half, column < half, column >= side - half
    return np.stack([upper & left, upper & right, lower & left, lower & right], axis=1)
