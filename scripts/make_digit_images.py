"""Make the pictures of the tiny illustrations from held-out digits: python -m scripts.make_digit_images."""

from __future__ import annotations

from pathlib import Path

from metagame.benchmarks.digits import Digits
from metagame.images import composite
from scripts.train_vision_language import CELL, WORDS

PICTURES = ((3, 7, 0, 5), (4, 9, 2, 6), (2, 6), (1, 1, 8, 3))
OUT = Path("data/tiny/images")


def main() -> None:
    digits = Digits()
    OUT.mkdir(parents=True, exist_ok=True)
    for labels in PICTURES:
        images = [digits.image(label, place) for place, label in enumerate(labels)]
        composite(images, CELL).save(OUT / f"{'_'.join(WORDS[label] for label in labels)}.png")


if __name__ == "__main__":
    main()
