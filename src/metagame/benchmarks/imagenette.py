"""Imagenette: ten classes of ImageNet in folders, free to fetch without a registration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from metagame.benchmarks.pointing_game import Images
from metagame.errors import UserError
from metagame.images import read_image

WNIDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413", "n03445777",
    "n03888257",
)  # fmt: skip
"""WordNet ids of its classes, in their order: tench, English springer, cassette player, chain saw, church, French horn,
garbage truck, gas pump, golf ball, parachute."""


class Imagenette(Images):
    """The validation images by class, 0 to 9, in the order of their files.

    Args:
        root: the unpacked folder, such as ``imagenette2-320``, with a folder of each class below ``val``.

    Raises:
        UserError: there is no such folder, or a class of it is missing.
    """

    def __init__(self, root: str) -> None:
        self.folder = Path(root) / "val"
        if not self.folder.is_dir():
            raise UserError(
                f"{self.folder} does not exist: set benchmark.scenes.images.root to the unpacked folder of"
                " Imagenette, or run 'make data EXPERIMENT=table2 SCALE=small'."
            )
        missing = [wnid for wnid in WNIDS if not (self.folder / wnid).is_dir()]
        if missing:
            raise UserError(f"{self.folder} has no folder {missing[0]}: unpack the archive of Imagenette again.")
        self._paths = [
            sorted(path for path in (self.folder / wnid).iterdir() if path.suffix.lower() == ".jpeg") for wnid in WNIDS
        ]

    def image(self, label: int, k: int) -> Image.Image:
        """Image ``k``, from 0, of class ``label``.

        Raises:
            UserError: there is no such class or image.
        """
        (path,) = self.files(label, k)
        return read_image(path, str(path))

    def files(self, label: int, k: int) -> Sequence[Path]:
        if label not in range(len(WNIDS)):
            raise UserError(f"class {label} is not in Imagenette: give labels 0 to 9 in benchmark.classes.")
        if k not in range(len(self._paths[label])):
            raise UserError(
                f"{self.folder / WNIDS[label]} has {len(self._paths[label])} images, but image {k} is needed:"
                " lower benchmark.n_images, or unpack the archive of Imagenette again."
            )
        return (self._paths[label][k],)
