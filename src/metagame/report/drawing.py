"""What a report draws: one or several figures, and the caption that explains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

CAPTION = "caption.txt"
"""The file beside a figure that holds its caption."""


@dataclass(frozen=True)
class Drawing:
    """Figures and their caption.

    Attributes:
        figures: by name: the figure ``acc`` is written to ``figure_acc.png``, the one without a name to ``figure.png``.
        caption: what the figures show, how to read them, in which units, and what to expect; plain sentences.
    """

    figures: Mapping[str, Figure]
    caption: str

    @classmethod
    def single(cls, figure: Figure, *sentences: str) -> Drawing:
        """One figure, with the sentences of its caption; empty ones are left out."""
        return cls({"": figure}, caption_of(*sentences))


def caption_of(*sentences: str) -> str:
    """The sentences in one paragraph; empty ones are left out."""
    return " ".join(filter(None, sentences))


def pictures_in(folder: Path) -> list[Path]:
    """The PNG files of the drawing in an experiment's folder."""
    return [*folder.glob("figure.png"), *sorted(folder.glob("figure_*.png"))]
