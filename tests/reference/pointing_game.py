"""Slow twin of the pointing game's recognition: one word and one patch at a time, from its definition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torchvision import transforms


def grid_of_jpegs(images: Sequence[Image.Image], side: int, folder: Path) -> Image.Image:
    """Each image resized and cropped by torchvision and saved as JPEG, a grid of these files saved as JPEG, too."""
    prepare = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])
    grid = Image.new("RGB", (2 * side, 2 * side))
    for place, image in enumerate(images):
        prepare(image).save(folder / f"{place}.jpg", quality=75)
        with Image.open(folder / f"{place}.jpg") as read:
            grid.paste(read, (place % 2 * side, place // 2 * side))
    grid.save(folder / "grid.jpg", quality=75)
    with Image.open(folder / "grid.jpg") as read:
        return read.convert("RGB")


def recognition(maps, side: int) -> float | None:
    """``maps[p][t]`` is the map of word t at patch p of a grid of ``side`` rows in reading order."""
    correct = wrong = 0.0
    for t in range(len(maps[0])):
        for p in range(side * side):
            if side % 2 and side // 2 in (p // side, p % side):  # in two quadrants, or in all
                continue
            value = float(maps[p][t])
            if in_quadrant(p, t, side):
                correct += max(value, 0.0)
                wrong += max(-value, 0.0)
            else:
                correct += max(-value, 0.0)
                wrong += max(value, 0.0)
    if correct + wrong == 0:
        return None
    return correct / (correct + wrong)


def in_quadrant(p: int, t: int, side: int) -> bool:
    """Whether patch p lies in the quadrant of word t: upper left, upper right, lower left, lower right."""
    upper, left = p // side < side // 2, p % side < side // 2
    if t == 0:
        return upper and left
    if t == 1:
        return upper and not left
    if t == 2:
        return not upper and left
    return not upper and not left
