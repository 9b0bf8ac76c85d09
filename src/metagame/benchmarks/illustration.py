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
from metagame.models.vision_language import ImageText, Sample, Tokenizer, TokenPlayers

CAPTION, PART = "caption", "part: "
"""Names of the questions about an image: its caption, and before the text of a part."""


@dataclass(frozen=True)
class CaptionedImage(Sample):
    """An image, its caption, and parts of the caption that are asked about for themselves.

    Attributes:
        id: name and content of the image file, and caption.
        caption: of the image.
        path: of the image.
        parts: texts made of some of the caption's tokens.
        side: of the square that the image is cut to, in pixels.
    """

    id: str
    caption: str
    path: str
    parts: tuple[str, ...]
    side: int

    def files(self) -> Sequence[Path]:
        return (Path(self.path),)

    def description(self) -> str:
        """The caption."""
        return self.caption

    def image(self) -> Image.Image:
        """The picture, turned as its camera says; ImageNet's, by contrast, stay as they are stored."""
        return square(ImageOps.exif_transpose(read_image(Path(self.path), self.path)), self.side)

    def texts(self, tokenizer: Tokenizer) -> dict[str, TokenPlayers]:
        return {CAPTION: TokenPlayers(tokenizer, self.caption)} | {
            f"{PART}{part}": TokenPlayers(tokenizer, part) for part in self.parts
        }


class Illustration(Benchmark[CaptionedImage, ImageText]):
    """Samples are captioned images without scores: their maps are shown.

    Args:
        examples: each with ``image``, the path of a file; ``caption``, whose tokens are players; and ``parts``, texts
            of some of the caption's words to show the first-order map of.
        image, caption, parts: one's own, in place of all examples; what is None is as in the first of them.
        side: of the square that images are cut to.
    """

    text_arguments: ClassVar[frozenset[str]] = frozenset({"caption", "image"})

    def __init__(
        self,
        examples: Sequence[Mapping[str, Any]],
        image: str | None = None,
        caption: str | None = None,
        parts: Sequence[str] | None = None,
        side: int = 448,
    ) -> None:
        own: dict[str, Any] = {"image": image, "caption": caption, "parts": parts}
        if any(value is not None for value in own.values()):
            examples = [{**examples[0], **{key: value for key, value in own.items() if value is not None}}]
        self._samples = [captioned_image(side=side, **example) for example in examples]
        if len({sample.id for sample in self._samples}) < len(self._samples):
            raise UserError("benchmark.examples: two have the same image and caption: change one.")

    def samples(self) -> list[CaptionedImage]:
        return self._samples

    def score(
        self, sample: CaptionedImage, inputs: Mapping[str, ImageText], explanations: Mapping[str, Explanation]
    ) -> dict[str, Score]:
        return {}


def captioned_image(image: str, caption: str, side: int, parts: Sequence[str] = ()) -> CaptionedImage:
    """A sample; parts that have other words than the caption are left out.

    Raises:
        UserError: the caption is no text, or the parts are no list of texts.
    """
    if not isinstance(caption, str) or not caption.strip():
        raise UserError(f"benchmark.caption={caption!r}: give a text.")
    if isinstance(parts, str) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"benchmark.parts={parts!r}: give a list of texts, such as ['black dog', 'hydrant'].")
    words = set(caption.lower().split())
    fitting = [part for part in dict.fromkeys(parts) if part.strip() and set(part.lower().split()) <= words]
    path = Path(str(image))
    content = file_digest(path)[:8] if path.is_file() else "missing"
    return CaptionedImage(f"{path.name} ({content}): {caption}", caption, str(path), tuple(fitting), side)
