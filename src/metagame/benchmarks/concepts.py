"""Concepts in one picture, with more and more rivals (Figure 4): one that the model paints, or one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image, ImageOps

from metagame.contracts import Benchmark, Explanation, Score
from metagame.digests import file_digest
from metagame.errors import UserError
from metagame.images import read_image
from metagame.models.concepts import ConceptLogits, ConceptQuestion, ConceptSample, PaintedImage

ALL = "all players"
"""Name of the question in which all players compete."""


@dataclass(frozen=True)
class OwnImage(ConceptSample):
    """An image file and questions about it by name."""

    id: str
    path: Path
    asked: Mapping[str, ConceptQuestion]

    def files(self) -> Sequence[Path]:
        return (self.path,)

    def image(self) -> Image.Image:
        """The picture, turned as its camera says."""
        return ImageOps.exif_transpose(read_image(self.path, str(self.path)))

    def questions(self) -> Mapping[str, ConceptQuestion]:
        return self.asked


class Concepts(Benchmark[PaintedImage | OwnImage, ConceptLogits]):
    """One sample, which has no scores: its maps are shown.

    Args:
        prompt: the prompt that the model paints. With ``image``, the prompt that accompanies it, which may be empty.
        sets: sets of concepts that compete; each is a question of its own, and the last one's concepts are shown.
        players: all concepts, as in the last question.
        background: concepts that are always present.
        n_layers: how many of the model's last double-stream blocks are used.
        seed: random seed for the noise from which the painting starts.
        image: path of an image that replaces the painting.

    Raises:
        UserError: a set has a concept that is not a player.
    """

    text_arguments: ClassVar[frozenset[str]] = frozenset({"prompt", "image"})

    def __init__(
        self,
        prompt: str,
        sets: Sequence[Sequence[str]],
        players: Sequence[str],
        background: Sequence[str],
        n_layers: int,
        seed: int = 31,
        image: str | None = None,
    ) -> None:
        sets, players, background = [*map(_stripped, sets)], _stripped(players), _stripped(background)
        strange = [name for each in sets for name in each if name not in players]
        if strange:
            raise UserError(f"benchmark.sets has {strange[0]!r}, which is not in benchmark.players: add it there.")
        if not sets or not all(sets):
            raise UserError(
                "benchmark.sets is empty, or contains an empty set: give the concepts to show, such as [[car, bike]]."
            )
        if len({*map(tuple, sets)}) < len(sets):
            raise UserError(f"benchmark.sets={[list(each) for each in sets]} repeats a set: give each once.")
        named = {", ".join(each): each for each in sets} | {ALL: players}
        prompt_seen = prompt if image is not None else ""
        asked = {name: ConceptQuestion(concepts, background, n_layers, prompt_seen) for name, concepts in named.items()}
        self._sample: PaintedImage | OwnImage
        if image is None:
            self._sample = PaintedImage(f"{prompt} (seed {seed})", prompt, seed, asked)
        else:
            path = Path(str(image))
            content = file_digest(path)[:8] if path.is_file() else "missing"
            self._sample = OwnImage(f"{path.name} ({content})", path, asked)

    def samples(self) -> list[PaintedImage | OwnImage]:
        return [self._sample]

    def score(
        self,
        sample: PaintedImage | OwnImage,
        inputs: Mapping[str, ConceptLogits],
        explanations: Mapping[str, Explanation],
    ) -> dict[str, Score]:
        return {}


def _stripped(names: Sequence[str]) -> tuple[str, ...]:
    """The names without white space around them, which the model does not see."""
    return tuple(name.strip() for name in names)
