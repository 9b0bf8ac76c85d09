"""Imagenette's folders of classes, and a row of Table 2 on them."""

import numpy as np
import pytest
from hydra import compose
from PIL import Image

from metagame.benchmarks.imagenette import WNIDS, Imagenette
from metagame.errors import UserError
from metagame.jobs.checks import check_scale
from metagame.jobs.grid import asked_configs
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
    for c in (0, 4, 9):
        for k in range(COUNT):
            red, green, blue = np.asarray(images.image(c, k)).mean((0, 1))
            assert abs(red - (20 * c + 10)) < 3
            assert abs(green - (60 * k + 20)) < 3
            assert abs(blue - 40) < 3
            (path,) = images.files(c, k)
            assert (path.parent.name, path.parent.parent.name) == (WNIDS[c], "val")


def test_what_is_missing_gets_a_sentence(root, tmp_path):
    with pytest.raises(UserError, match="make data EXPERIMENT=table2 SCALE=small"):
        Imagenette(str(tmp_path))
    (tmp_path / "val" / WNIDS[0]).mkdir(parents=True)
    with pytest.raises(UserError, match=f"has no folder {WNIDS[1]}"):
        Imagenette(str(tmp_path))
    with pytest.raises(UserError, match=r"has 3 images, but image 3 is needed: lower benchmark\.n_images"):
        Imagenette(str(root)).files(2, 3)


@pytest.mark.parametrize("label", [-1, 10, 207])
def test_a_class_that_it_does_not_have_is_refused(root, label):
    with pytest.raises(UserError, match=rf"class {label} is not in Imagenette: give labels 0 to 9"):
        Imagenette(str(root)).image(label, 0)


@pytest.mark.parametrize("k", [-1, COUNT])
def test_an_image_that_a_class_does_not_have_is_refused(root, k):
    with pytest.raises(UserError, match=f"has {COUNT} images, but image {k} is needed"):
        Imagenette(str(root)).image(0, k)


@pytest.mark.parametrize(
    ("experiment", "models"), [("table2", ["clip_vitb16", "clip_vitb32"]), ("table4", ["siglip2_vitb32"])]
)
def test_the_small_tables_have_the_models_that_a_cpu_can_run(experiment, models):
    with shipped_configs():
        chosen = [f"experiment={experiment}", "scale=small"]
        swept = compose("config", chosen, return_hydra_config=True).hydra.sweeper.params
        configs = asked_configs([f"{key}={value}" for key, value in swept.items() if key != "shard"], chosen)
        assert list(dict.fromkeys(cfg.model.name for cfg in configs)) == models
        for cfg in configs:
            check_scale(cfg)


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
