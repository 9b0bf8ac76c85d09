"""Experiments on diffusion, language and classifiers at paper scale, as they are typed, on small checkpoints and data.

The configs, the files and their formats are those of FLUX.1-schnell, Gemma 3 1B and 4B, Pascal VOC, COCO and
ImageNet-Segmentation; answers are short and coalitions few.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial

import pytest
import torch
from safetensors import safe_open

from metagame.experiments import finish
from metagame.jobs.run import run_job
from metagame.models.flux import Denoising, Flux
from tests.experiments.running import job_configs
from tests.tiny.checkpoints import cached, without_network
from tests.tiny.jobs import shipped_configs
from tests.tiny.real_checkpoints import save_bert, save_flux, save_gemma, write_data

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FLUX = "black-forest-labs/FLUX.1-schnell"
BERT = "textattack/bert-base-uncased-SST-2"
CHECKPOINTS = {
    FLUX: save_flux,
    BERT: save_bert,
    **{
        f"google/gemma-3-{size}-{kind}": partial(save_gemma, size=size, chat=kind == "it")
        for size in ("1b", "4b")
        for kind in ("it", "pt")
    },
}
OTHER_SIZES = [f"gemma3_{size}b_{kind}" for size in (12, 27) for kind in ("it", "pt")]
SHORT = ("model.max_new_tokens=4", "estimator.budget=60")
EXPERIMENTS = {
    "table3": (),
    "figure4": (),
    "figure13": (),
    "figure3": SHORT,
    "figure10": SHORT,
    "figure11": SHORT,
    "figure12": SHORT,
    "pair_deletion": SHORT,
    "faithfulness": ("estimator.budget=60",),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A cache of the hub with the checkpoints, which asks nobody, and a folder with the data in ``data``."""
    folder = tmp_path_factory.mktemp("paper")
    for name, make in CHECKPOINTS.items():
        cached(folder / "hub", make, COMMIT, name)
    write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch, shipped_configs():
        without_network(patch)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(folder / "hub"))
        patch.chdir(folder)
        yield folder


def test_of_shards_in_bfloat16_t5_has_its_embedding_once_and_the_autoencoder_is_in_float32(workplace):
    for name in CHECKPOINTS.keys() - {BERT}:
        folder = workplace / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
        files = list(folder.rglob("*.safetensors"))
        assert len(files) > 1
        for path in files:
            with safe_open(path, "pt") as file:
                keys = list(file.keys())
                assert {file.get_slice(key).get_dtype() for key in keys} == {"BF16"}
                assert "encoder.embed_tokens.weight" not in keys
    flux = Flux.load(FLUX, "main", Denoising(1024), text_length=256, device="cpu", dtype="bfloat16")
    t5 = flux.pipeline.text_encoder_2
    assert torch.equal(t5.encoder.embed_tokens.weight, t5.shared.weight)
    assert (t5.dtype, flux.pipeline.vae.dtype, flux.revision) == (
        torch.bfloat16,
        torch.float32,
        f"{COMMIT} with noise of cpu",
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_runs_at_paper_scale_up_to_its_table_and_figure(experiment, workplace):
    more = ("scale=paper", "model.device=cpu", "limit=1", f"jobs_dir={workplace}/jobs")
    configs = job_configs(experiment, *more, *EXPERIMENTS[experiment])
    configs = [cfg for cfg in configs if cfg.model.name not in OTHER_SIZES]
    outcomes = [run_job(cfg) for cfg in configs]
    assert Counter(outcome.errors for outcome in outcomes) == {(): len(configs)}
    assert all(outcome.n_done == outcome.n_samples == 1 for outcome in outcomes)
    assert finish(configs)
    folder = workplace / "outputs" / "paper" / experiment
    assert json.loads((folder / "table.json").read_text(encoding="utf-8"))["rows"]
    assert any(folder.glob("figure*.pdf")) == (configs[0].report.figure is not None)
