"""Make the 2x2 grids of the pointing game once, from ImageNet-1k's validation images.

python -m scripts.prepare_pointing_game --imagenet FOLDER [--out data/pointing_game] [--images 50] [--encoding jpeg]

FOLDER holds a class folder each, or the flat ILSVRC2012 files with their ground truth, or parquet or arrow files. The
grids are files of 448 x 448 pixels, OUT/ENCODING/GAME/kk.png; those that exist are kept. With --encoding jpeg they hold
what is read from JPEGs, as for the published numbers, with --encoding lossless the images' own pixels
(metagame.benchmarks.pointing_game.ComposedScenes).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from omegaconf import OmegaConf
from rich.progress import track

from metagame.benchmarks.imagenet import ImageNet
from metagame.benchmarks.pointing_game import ENCODINGS, ComposedScenes, PointingGame
from metagame.errors import UserError
from metagame.jobs.records import replace_atomically

CONFIGS = Path(__file__).parents[1] / "configs/benchmark"
SIDE = 224


def prepare(imagenet: str, out: Path, n_images: int, encoding: str = "jpeg") -> list[str]:
    """Write the grids that do not exist; what went wrong, a line for each grid that could not be made."""
    classes = OmegaConf.load(CONFIGS / "classes/paper.yaml")
    games = OmegaConf.load(CONFIGS / "pointing_game.yaml").games
    game = PointingGame(ComposedScenes(ImageNet(imagenet), SIDE, encoding), classes, games, n_images)
    errors = []
    for scene in track(game.samples(), "grids"):
        path = out / encoding / scene.game / f"{scene.k:02d}.png"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            image = scene.image()
        except UserError as error:
            errors.append(f"{scene.id}: {error}")
        else:
            with replace_atomically(path) as temporary:
                image.save(temporary, format="PNG")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet", required=True)
    parser.add_argument("--out", type=Path, default=Path("data/pointing_game"))
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--encoding", choices=ENCODINGS, default="jpeg")
    arguments = parser.parse_args()
    try:
        errors = prepare(arguments.imagenet, arguments.out, arguments.images, arguments.encoding)
    except UserError as error:
        sys.exit(str(error))
    if errors:
        sys.exit("\n".join(errors))


if __name__ == "__main__":
    main()
