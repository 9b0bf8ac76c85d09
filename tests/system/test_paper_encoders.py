"""The vision-language experiments at paper scale, on the CPU: real configs of little width, ten images of ImageNet."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose
from PIL import Image

from metagame.experiments import finish
from metagame.jobs.grid import sweep_configs
from metagame.jobs.records import RecordStore
from metagame.jobs.run import run_job
from metagame.jobs.spec import is_left_out, job_folder
from scripts.prepare_pointing_game import prepare
from tests.tiny.jobs import ROOT, shipped_configs
from tests.tiny.real_encoders import LAYOUTS

LABELS = (0, 105, 404, 417, 497, 609, 620, 951, 963, 988)
WITHOUT_FIXLIP = {
    "table2": "generic_attention,meta_generic_attention,mask_clip,meta_mask_clip,grad_eclip,meta_grad_eclip",
    "table4": "generic_attention,meta_generic_attention,mask_siglip,meta_mask_siglip,grad_esiglip,meta_grad_esiglip",
}
"""Its budget is days."""


def photograph(seed, width=500, height=375):
    """Smooth noise, so that JPEG and resizing leave something of it."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint of each model, ImageNet's class folders, and the grids made of them."""
    folder = tmp_path_factory.mktemp("paper")
    for label in range(1000):
        (folder / "imagenet" / f"n{label:08d}").mkdir(parents=True)
    for label in LABELS:
        photograph(label).save(folder / "imagenet" / f"n{label:08d}" / f"ILSVRC2012_val_{label:08d}.JPEG")
    assert prepare(str(folder / "imagenet"), folder / "grids", 1) == []
    with shipped_configs():
        yield folder


@cache
def checkpoint(folder, model):
    """Where a model is: a folder that is called as its checkpoint on the hub, which published values are of."""
    place = folder / Path(compose("config", overrides=[f"model={model}", "scale=paper"]).model.checkpoint).name
    place.mkdir()
    LAYOUTS[model]().save(place)
    return place


def run(folder, experiment, model, *overrides, attribution=None):
    """Run an experiment on one model as it is shipped, with its first sample; its configs and its table."""
    content = yaml.safe_load((ROOT / f"configs/experiment/{experiment}.yaml").read_text(encoding="utf-8"))
    attribution = attribution or content["hydra"]["sweeper"]["params"]["attribution"]
    own = ["scale=paper", "model.device=cpu", "limit=1", f"model.checkpoint={checkpoint(folder, model)}"]
    places = [f"output_dir={folder / 'outputs' / experiment / model}", f"jobs_dir={folder / 'jobs'}"]
    overrides = [f"experiment={experiment}", f"model={model}", *own, *places, *overrides]
    configs = [cfg for cfg in sweep_configs([f"attribution={attribution}"], overrides) if not is_left_out(cfg)]
    for cfg in configs:
        outcome = run_job(cfg)
        assert (outcome.n_done, outcome.errors) == (1, ())
    assert finish(configs)
    return configs, json.loads((folder / "outputs" / experiment / model / "table.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("experiment", "model", "n_rows"),
    [("table2", "clip_vitb16", 6), ("table2", "metaclip2_vith14", 4)]
    + [("table4", model, 6) for model in ("siglip2_vitl16", "siglip2_vitb32")],
)
def test_a_table_of_the_pointing_game_is_made_with_published_values_beside_it(folder, experiment, model, n_rows):
    scenes = f"benchmark.scenes.root={folder / 'grids'}"
    _, table = run(folder, experiment, model, scenes, attribution=WITHOUT_FIXLIP[experiment])
    assert [row["n"] for row in table["rows"]] == [1] * n_rows
    assert all(0 < row[f"objects_{m}"]["mean"] < 1 for row in table["rows"] for m in range(1, 5))
    assert all(table["published"])
    assert any(note.endswith("This run has the same.") for note in table["notes"])


def test_fixlip_runs_on_the_games_that_are_its_own(folder):
    scenes = f"benchmark.scenes.root={folder / 'grids'}"
    fewer = ["attribution.method.design.budget=600", "attribution.method.interactions=cross"]
    (cfg,), table = run(folder, "table4", "siglip2_vitb32", scenes, *fewer, attribution="fixlip")
    assert (cfg.benchmark.n_games, cfg.benchmark.played, cfg.benchmark.n_images) == (None, None, 50)
    assert 0 < table["rows"][0]["objects_4"]["mean"] < 1


def test_figure_7_is_drawn(folder):
    scenes = f"benchmark.scenes.root={folder / 'grids'}"
    shown = ["benchmark.n_images=1", "report.figure.images=[0]"]
    (cfg,), _ = run(folder, "figure7", "metaclip2_vith14", scenes, *shown, attribution="meta_grad_eclip")
    assert (folder / "outputs/figure7/metaclip2_vith14/figure.png").exists()
    assert cfg.benchmark.scenes.encoding == "jpeg"


@pytest.mark.parametrize(
    ("experiment", "model", "tokens"),
    [
        ("figure2", "metaclip2_vith14", 8),
        ("figure2", "metaclip2_vith14_378", 8),
        ("figure8", "metaclip2_vith14", 8),
        ("figure9", "metaclip2_vith14", 6),
    ],
)
def test_a_figure_of_a_wide_photograph_is_drawn_as_the_model_is_given_it(
    folder, experiment, model, tokens, monkeypatch
):
    monkeypatch.chdir(folder)  # where the photographs are looked for
    Path("data/images").mkdir(parents=True, exist_ok=True)
    for name in ("black_dog_yellow_hydrant", "yorkshire_red_hydrant", "person_eating_hot_dog"):
        photograph(len(name)).save(f"data/images/{name}.jpg")
    configs, table = run(folder, experiment, model)
    assert {(cfg.benchmark.side, cfg.benchmark.absent) for cfg in configs} == {(None, "retokenized")}
    assert (folder / "outputs" / experiment / model / "figure.png").exists()
    assert len(table["rows"]) == tokens + 6
    store = RecordStore(job_folder(configs[0]))
    (record,) = store.read().values()
    assert store.load_arrays(record)["caption.picture"].shape == (LAYOUTS[model]().vision["image_size"],) * 2 + (3,)
