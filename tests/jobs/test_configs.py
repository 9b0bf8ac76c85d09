from __future__ import annotations

import inspect
import pkgutil
import re
from functools import cache
from importlib import import_module

import numpy as np
import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

import metagame.attributions
from metagame.errors import UserError
from metagame.games import AttributionGame
from metagame.jobs.build import Job, build_estimator, build_method, build_part
from metagame.jobs.grid import sweep_configs
from metagame.jobs.spec import job_folder, variants
from metagame.meta import MetaAttributions, meta_attributions
from tests.tiny.jobs import ROOT, shipped_configs

CONFIGS = ROOT / "configs"
# Everything below configs/ is a choice of a group, except the config itself.
CHOICES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*/*.yaml"))
# ... but for bases, values of a scale and nodes of a benchmark, see test_scales.
CHOICES = [choice for choice in CHOICES if not re.search(r"/_|/by_scale/|^benchmark/.*/", choice)]
LOGGING = ("hydra/job_logging", "hydra/hydra_logging")
NESTED_GROUPS = (*LOGGING, "hydra/launcher")


@pytest.fixture(autouse=True)
def configs():
    with shipped_configs():
        yield


def override(choice):
    """``attribution/symbolic/sop`` -> ``attribution=symbolic/sop``."""
    group = next((group for group in NESTED_GROUPS if choice.startswith(group)), choice.split("/")[0])
    return f"{group}={choice.removeprefix(group + '/')}"


def choices(group):
    return [override(choice).split("=")[1] for choice in CHOICES if choice.startswith(f"{group}/")]


def grid(experiment):
    """What the experiment's file sweeps, as Hydra's overrides."""
    content = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text())
    return [f"{key}={value}" for key, value in content.get("hydra", {}).get("sweeper", {}).get("params", {}).items()]


def compose_experiment(experiment):
    return compose("config", overrides=[f"experiment={experiment}"])


@cache
def experiments_jobs(experiment, scale):
    return sweep_configs(grid(experiment), [f"experiment={experiment}", f"scale={scale}"])


def test_the_default_config_is_a_job_that_can_be_built():
    job = Job.build(compose("config"))
    assert isinstance(job.benchmark.samples()[0], job.model.sample_type)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_config_composes_under_its_own_name(choice):
    cfg = compose("config", overrides=[override(choice)], return_hydra_config=True)
    group, _, stem = choice.rpartition("/")
    named = cfg if group == "experiment" else cfg[group.split("/")[0]]
    assert named.get("name") == stem or group.startswith(("report", "hydra"))


@pytest.mark.parametrize("group", LOGGING)
def test_other_libraries_log_warnings_only(group):
    content = compose("config", return_hydra_config=True).hydra[group.removeprefix("hydra/")]
    assert content["root"]["level"] == "WARNING"
    assert content["loggers"]["metagame"]["level"] == "INFO"


@pytest.mark.parametrize("model", choices("model"))
def test_a_model_says_what_it_explains_and_with_which_weights_and_where(model):
    built = build_part(compose("config", overrides=[f"model={model}"]).model)
    assert isinstance(built.sample_type, type)
    assert isinstance(built.revision, str)
    assert isinstance(built.device, str)
    assert isinstance(built.batch_size, int)
    assert callable(built.prepare)


@pytest.mark.parametrize("attribution", choices("attribution"))
def test_an_attribution_builds_into_a_method_with_a_label_and_a_family(attribution):
    cfg = compose("config", overrides=[f"attribution={attribution}"])
    for variant in variants(cfg):
        method = build_method(variant, cfg)
        assert isinstance(method.input_type, type)
        assert callable(method.explain)
        assert variant.label
        assert variant.family != "own"
        assert variant.base


@pytest.mark.parametrize("benchmark", choices("benchmark"))
def test_a_benchmark_has_samples_with_ids_of_their_own(benchmark):
    samples = build_part(compose("config", overrides=[f"benchmark={benchmark}"]).benchmark).samples()
    assert samples
    assert len({sample.id for sample in samples}) == len(samples)


@pytest.mark.parametrize("estimator", choices("estimator"))
def test_an_estimator_plays_a_game(estimator):
    settings = build_estimator(compose("config", overrides=[f"estimator={estimator}"]))
    game = AttributionGame(lambda coalitions: coalitions * [1.0, 2.0, 3.0], 3)
    phi = meta_attributions(game, settings.estimator, endogenous=True, budget=settings.budget)
    assert isinstance(phi, MetaAttributions)
    assert np.allclose(np.diag(phi.values), [1, 2, 3])


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_an_experiment_opens_with_its_command_and_what_to_expect(experiment):
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    opening = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert opening[0] == "# @package _global_"
    assert f"#   python run.py experiment={experiment}" in opening
    assert any(line.startswith("# Expected: ") for line in opening)


@pytest.mark.parametrize("experiment", choices("experiment"))
@pytest.mark.parametrize("scale", choices("scale"))
def test_every_job_of_an_experiment_composes_into_a_folder_of_its_own(experiment, scale):
    configs = experiments_jobs(experiment, scale)
    cells = np.prod([line.count(",") + 1 for line in grid(experiment)])
    swept = {group: values.split(",") for group, values in (line.split("=") for line in grid(experiment))}
    left_out = [entry for entry in compose_experiment(experiment).leave_out if entry.get("scale", scale) == scale]
    fewer = sum(
        int(
            np.prod(
                [
                    len(entry[group]) if OmegaConf.is_list(entry.get(group)) else 1 if group in entry else len(values)
                    for group, values in swept.items()
                ]
            )
        )
        for entry in left_out
    )
    assert len({job_folder(cfg) for cfg in configs}) == cells - fewer
    assert {cfg.output_dir for cfg in configs} == {f"outputs/{scale}/{experiment}"}


def methods():
    """Every concrete class with ``explain`` in metagame.attributions, by its full name."""
    modules = pkgutil.walk_packages(metagame.attributions.__path__, "metagame.attributions.")
    for module in (import_module(info.name) for info in modules):
        for name, member in inspect.getmembers(module, inspect.isclass):
            if member.__module__ == module.__name__ and hasattr(member, "explain") and not inspect.isabstract(member):
                yield f"{module.__name__}.{name}"


def targets(node):
    """Every ``_target_`` in a YAML tree."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
        yield from (target for value in node.values() for target in targets(value))


# What attribution.meta=true makes of a method, by its method ``metagame``.
METAGAMES = {
    "metagame.attributions.method.Metagame",
    "metagame.attributions.concept_attention.MetaConceptAttention",
    "metagame.attributions.symbolic.SymbolicMetagame",
}


@pytest.mark.parametrize("method", sorted(set(methods()) - METAGAMES))
def test_a_method_can_be_chosen_on_the_command_line(method):
    named = {
        target
        for path in (CONFIGS / "attribution").rglob("*.yaml")
        for target in targets(yaml.safe_load(path.read_text()))
    }
    assert method in named, f"{method} has no YAML under configs/attribution"


def test_every_kind_of_metagame_is_that_of_a_shipped_method():
    built = set()
    for attribution in ("meta_ig", "meta_concept_attention", "symbolic/meta_sv"):
        cfg = compose("config", overrides=[f"attribution={attribution}"])
        kind = type(build_method(variants(cfg)[0], cfg))
        built.add(f"{kind.__module__}.{kind.__name__}")
    assert built == METAGAMES


def test_batch_sizes_are_no_part_of_what_a_job_is():
    parts = ["model=clip_vitb16", "attribution=fixlip", "benchmark=pointing_game"]
    folders = {
        job_folder(compose("config", overrides=[*parts, *more]))
        for more in ([], ["model.batch_size=3"], ["attribution.method.batch_size=3"], ["model.device=cpu"])
    }
    assert len(folders) == 1
    assert job_folder(compose("config", overrides=[*parts, "attribution.method.design.budget=9"])) not in folders


def test_a_scale_that_needs_a_gpu_says_so_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = compose("config", overrides=["experiment=table2", "scale=paper"])
    with pytest.raises(UserError, match=r"run on a GPU node, or add model\.device=cpu"):
        Job.build(cfg)
    cfg = compose("config", overrides=["experiment=table2", "scale=paper", "model.device=cpu"])
    with pytest.raises(UserError, match=r"scripts\.prepare_pointing_game"):
        Job.build(cfg)
    assert Job.build(compose("config", overrides=["experiment=table1", "scale=paper"]))
