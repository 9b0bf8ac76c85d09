"""Every shipped config at every scale: what is composed a few hundred times."""

from __future__ import annotations

from math import prod

import pytest
from hydra import compose
from omegaconf import OmegaConf

from metagame.jobs.grid import sweep_configs
from metagame.jobs.labels import has_shipped_weights, model_label
from metagame.jobs.spec import job_folder
from tests.jobs.test_configs import choices
from tests.jobs.test_scales import WALKED as CHOICES_TOGETHER
from tests.jobs.test_scales import check_values_or_refusal
from tests.tiny.jobs import shipped_configs


@pytest.fixture(scope="module", autouse=True)
def configs():
    with shipped_configs():
        yield


@pytest.mark.parametrize("chosen", CHOICES_TOGETHER, ids=" ".join)
def test_a_choice_has_values_for_the_scale_or_is_refused(chosen):
    check_values_or_refusal(chosen)


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_what_labels_read_of_the_shipped_configs_is_what_hydra_composes(scale):
    names = choices("model")
    for name in names:
        cfg = compose("config", overrides=[f"model={name}", f"scale={scale}"])
        assert has_shipped_weights(cfg), name
        assert model_label(cfg) == (cfg.model.get("label") or model_label(cfg)), name


def swept_by(experiment, scale):
    """What the experiment sweeps at a scale: the values by key."""
    overrides = [f"experiment={experiment}", f"scale={scale}"]
    params = compose("config", overrides, return_hydra_config=True).hydra.sweeper.params
    return {key: str(values).split(",") for key, values in params.items() if key != "shard"}


# Of the experiments with a grid of their own at another scale also those there, but not tables of 20 jobs and more.
WALKED = [
    *((name, "paper") for name in choices("experiment")),
    ("figure10", "tiny"),
    *((name, "small") for name in ("figure10", "lrp_loo", "pair_deletion")),
]


@pytest.mark.parametrize(("experiment", "scale"), WALKED)
def test_every_job_of_an_experiment_composes_into_a_folder_of_its_own(experiment, scale):
    swept = swept_by(experiment, scale)
    grid = [f"{key}={','.join(values)}" for key, values in swept.items()]
    configs = sweep_configs(grid, [f"experiment={experiment}", f"scale={scale}"])
    n_left_out = 0
    for entry in configs[0].leave_out:
        named = {key: len(value) if OmegaConf.is_list(value) else 1 for key, value in entry.items()}
        if entry.get("scale", scale) == scale:
            n_left_out += prod(named.get(key, len(values)) for key, values in swept.items())
    assert len({job_folder(cfg) for cfg in configs}) == prod(map(len, swept.values())) - n_left_out
    assert {(cfg.name, cfg.output_dir) for cfg in configs} == {(experiment, f"outputs/{scale}/{experiment}")}
