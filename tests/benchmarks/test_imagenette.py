"""Imagenette's folders of classes, and a row of Table 2 on them."""

from itertools import product

import numpy as np
import pytest
from hydra import compose
from PIL import Image

from metagame.benchmarks.imagenette import WNIDS, Imagenette
from metagame.errors import UserError
from metagame.jobs.run import run_job
from metagame.report.experiment import write_report
from tests.tiny.jobs import ROOT, shipped_configs

COUNT = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of exactly its layout: image k of class c has the red c, the green k."""
    folder = tmp_path_factory.mktemp("data") / "imagenette2-320"
    for split in ("train", "val"):
        for c, wnid in enumerate(WNIDS):
            (folder / split / wnid).mkdir(parents=True)
            for k in range(COUNT):
                number = f"{8 * k + 10:05d}" if split == "val" else str(k)
                picture = Image.new("RGB", (426, 320), (20 * c + 10, 60 * k + 20, 40 if split == "val" else 200))
                picture.save(folder / split / wnid / f"ILSVRC2012_val_{number}.JPEG", quality=95)
    (folder / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    return folder


def test_images_are_those_of_the_validation_folder_by_class_in_the_order_of_their_files(root):
    images = Imagenette(str(root))
    for c, k in product((0, 4, 9), range(COUNT)):
        colour = np.asarray(images.image(c, k)).mean((0, 1))
        assert np.abs(colour - (20 * c + 10, 60 * k + 20, 40)).max() < 3
        (path,) = images.files(c, k)
        assert (path.parent.name, path.parent.parent.name) == (WNIDS[c], "val")


def test_folders_that_are_missing_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match="make data EXPERIMENT=table2 SCALE=small"):
        Imagenette(str(tmp_path))
    (tmp_path / "val" / WNIDS[0]).mkdir(parents=True)
    with pytest.raises(UserError, match=f"has no folder {WNIDS[1]}"):
        Imagenette(str(tmp_path))


@pytest.mark.parametrize(
    ("label", "k", "reason"),
    [
        *((label, 0, f"class {label} is not in Imagenette: give labels 0 to 9") for label in (-1, 10)),
        *((0, k, f"has {COUNT} images, but image {k} is needed: lower benchmark.n_images") for k in (-1, COUNT)),
    ],
)
def test_an_image_that_there_is_not_is_refused(root, label, k, reason):
    for read in (Imagenette(str(root)).image, Imagenette(str(root)).files):
        with pytest.raises(UserError, match=reason):
            read(label, k)


def test_a_row_of_table_2_on_these_photographs(root, tmp_path):
    """With a small model in place of the real one."""
    checkpoint = tmp_path / "clip-vit-base-patch16"  # published values are of the model of this name
    checkpoint.symlink_to(ROOT / "data/tiny/clip")
    overrides = [
        "experiment=table2", "scale=small", f"model.checkpoint={checkpoint}", "limit=2", f"output_dir={tmp_path}",
        f"benchmark.scenes.images.root={root}", "attribution=meta_grad_eclip", "benchmark.n_images=2",
    ]  # fmt: skip
    with shipped_configs():
        cfg = compose("config", overrides)
        outcome = run_job(cfg)
        assert (outcome.n_done, outcome.errors) == (2, ())
        write_report([cfg])
    text = (tmp_path / "table.md").read_text()
    assert "Published values are of other photographs" in text
