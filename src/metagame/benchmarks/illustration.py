"""One image and its caption, token by token (Figures 2, 8 and 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageOps

from metagame.contracts import Benchmark, Explanation, Score
from metagame.digests import file_digest
from metagame.errors import UserError
from metagame.images import read_image, square
from metagame.models.vision_language import ImageText, RetokenizedPlayers, Sample, Tokenizer, TokenPlayers

CAPTION, PART = "caption", "part: "
"""Names of the questions about an image: its caption, and before the text of a part."""
ABSENT = {"retokenized": RetokenizedPlayers, "dropped": TokenPlayers}
"""What becomes of a caption without some tokens: the text of the others is tokenized anew, or they stay as they are."""


@dataclass(frozen=True)
class CaptionedImage(Sample):
    """An image, its caption, and parts of the caption that are asked about for themselves.

    Attributes:
        id: name and content of the image file, and caption.
        caption: of the image.
        path: of the image.
        parts: texts made of some of the caption's tokens.
        side: of the square that the image is cut to, in pixels; None: the model's processor gets the whole image.
        absent: of the ways of :data:`ABSENT`.
        whole_characters: whether tokens that spell a character only together are one player.
    """

    id: str
    caption: str
    path: str
    parts: tuple[str, ...]
    side: int | None
    absent: str
    whole_characters: bool = True

    def files(self) -> Sequence[Path]:
        return (Path(self.path),)

    def description(self) -> str:
        """The caption."""
        return self.caption

    def image(self) -> Image.Image:
        """The picture, turned as its camera says; ImageNet's, by contrast, stay as they are stored."""
        image = ImageOps.exif_transpose(read_image(Path(self.path), self.path))
        return image if self.side is None else square(image, self.side)

    def texts(self, tokenizer: Tokenizer) -> dict[str, TokenPlayers]:
        texts = {CAPTION: self.caption} | {f"{PART}{part}": part for part in self.parts}
        players = ABSENT[self.absent]
        return {name: players(tokenizer, text, whole_characters=self.whole_characters) for name, text in texts.items()}


class Illustration(Benchmark[CaptionedImage, ImageText]):
    """Samples are captioned images, which have no scores: their maps are shown.

    Differs from the paper's text: it names another model for Figures 2, 8 and 9 (huge-378) than the code behind them,
    and says neither how a caption without some of its tokens is treated nor how an image is cropped. The published
    figures have ``absent="retokenized"`` and ``side=None``.

    Args:
        examples: each has ``image``, the path of a file; ``caption``, whose tokens are players; and ``parts``, texts of
            some of the caption's words whose first-order map is shown.
        image, caption, parts: your own, which replace all examples; those that are None are taken from the first one.
        side: side of the square that images are cropped to, in pixels; if None, the model's processor gets the whole
            image.
        absent: ``retokenized``: the text of the tokens that are present is tokenized anew; ``dropped``: the tokens
            that are present are kept as they are.
        whole_characters: whether tokens that form a character only together are one player.

    Raises:
        UserError: an example, ``side`` or ``absent`` is invalid.
    """

    text_arguments: ClassVar[frozenset[str]] = frozenset({"caption", "image"})

    def __init__(
        self,
        examples: Sequence[Mapping[str, Any]],
        image: str | None = None,
        caption: str | None = None,
        parts: Sequence[str] | None = None,
        side: int | None = None,
        absent: str = "retokenized",
        whole_characters: bool = True,
    ) -> None:
        if side is not None and side < 2:
            raise UserError(f"benchmark.side={side} must be at least two pixels, or null.")
        if absent not in ABSENT:
            raise UserError(f"benchmark.absent={absent!r} must be 'retokenized' or 'dropped'.")
        own: dict[str, Any] = {"image": image, "caption": caption, "parts": parts}
        if any(value is not None for value in own.values()):
            examples = [{**examples[0], **{key: value for key, value in own.items() if value is not None}}]
        settings: dict[str, Any] = {"side": side, "absent": absent, "whole_characters": whole_characters}
        self._samples = [captioned_image(**settings, **example) for example in examples]
        if len({sample.id for sample in self._samples}) < len(self._samples):
            raise UserError("two of benchmark.examples have the same image and caption: change one of them.")

    def samples(self) -> list[CaptionedImage]:
        return self._samples

    def score(
        self, sample: CaptionedImage, inputs: Mapping[str, ImageText], explanations: Mapping[str, Explanation]
    ) -> dict[str, Score]:
        return {}


def captioned_image(
    image: str, caption: str, side: int | None, absent: str, parts: Sequence[str] = (), *, whole_characters: bool = True
) -> CaptionedImage:
    """A sample; parts that have other words than the caption are left out.

    Raises:
        UserError: the caption is no text, or the parts are no list of texts.
    """
    if not isinstance(caption, str) or not caption.strip():
        raise UserError(f"benchmark.caption={caption!r} must be a text.")
    if isinstance(parts, str) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"benchmark.parts={parts!r} must be a list of texts, for example ['black dog', 'hydrant'].")
    words = set(caption.lower().split())
    fitting = [part for part in dict.fromkeys(parts) if part.strip() and set(part.lower().split()) <= words]
    path = Path(str(image))
    content = file_digest(path)[:8] if path.is_file() else "missing"
    name = f"{path.name} ({content}): {caption}"
    return CaptionedImage(name, caption, str(path), tuple(fitting), side, absent, whole_characters)
