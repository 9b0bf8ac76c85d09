"""What lies under configs/ can be chosen, composes under its own name and builds what it says."""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib import import_module

import numpy as np
import pytest
import yaml
from hydra import compose
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import OmegaConf

import metagame.attributions
from metagame.errors import UserError
from metagame.games import AttributionGame
from metagame.jobs.build import Job, build_estimator, build_method, build_part
from metagame.jobs.spec import plain, targets, variants
from metagame.meta import MetaAttributions, meta_attributions
from tests.tiny.jobs import ROOT, shipped_configs

CONFIGS = ROOT / "configs"
# Everything below configs/ is a choice of a group, except the config itself,
CHOICES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*/*.yaml"))
# ... bases, values of a scale and nodes of a benchmark, see test_scales.
CHOICES = [choice for choice in CHOICES if not re.search(r"/_|/by_scale/|^benchmark/.*/", choice)]


@pytest.fixture(scope="module", autouse=True)
def configs():
    with shipped_configs():
        yield


def choices(group):
    return [choice.removeprefix(f"{group}/") for choice in CHOICES if choice.startswith(f"{group}/")]


def has_tiny_values(group, choice):
    """Whether a choice is the same at every scale, or has a file for the tiny one."""
    content = yaml.safe_load((CONFIGS / group / f"{choice}.yaml").read_text())
    return "for_scale" not in content or (CONFIGS / group / "by_scale/tiny" / f"{choice}.yaml").exists()


def chosen(group, choice):
    """The node of a group with this choice, and the whole config; the node has the choice's name."""
    cfg = compose("config", overrides=[f"{group}={choice}"])
    assert cfg[group].name == choice.rpartition("/")[2]
    return cfg[group], cfg


def test_the_default_config_is_a_job_that_can_be_built():
    job = Job.build(compose("config"))
    assert isinstance(job.benchmark.samples()[0], job.model.sample_type)


@pytest.mark.parametrize("tracker", choices("tracker"))
def test_a_tracker_can_be_built(tracker):
    node, _ = chosen("tracker", tracker)
    assert "_target_" not in node or build_part(node) is not None


def test_every_report_names_functions_that_take_its_arguments():
    for report in choices("report"):
        node = compose("config", overrides=[f"report={report}"]).report
        for part in filter(None, (node.table, node.figure)):
            assert callable(build_part(OmegaConf.create(plain(part) | {"_partial_": True})))


@pytest.mark.parametrize("launcher", choices("hydra/launcher"))
def test_a_launcher_can_be_set_up(launcher):
    overrides = [f"hydra/launcher={launcher}", "hydra.mode=MULTIRUN"]
    cfg = compose("config", overrides=overrides, return_hydra_config=True)
    context = HydraContext(config_loader=None, callbacks=None)
    plugin = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=print, config=cfg)
    assert isinstance(plugin, Launcher)


def test_logging_and_the_callback_of_a_sweep_can_be_set_up_and_other_libraries_log_warnings_only():
    hydra = OmegaConf.to_container(compose("config", return_hydra_config=True).hydra, resolve=False)
    for node in (hydra["hydra_logging"], hydra["job_logging"]):
        assert (node["root"]["level"], node["loggers"]["metagame"]["level"]) == ("WARNING", "INFO")
        assert all(instantiate({"_target_": handler["class"]}) for handler in node["handlers"].values())
    assert all(instantiate(callback) for callback in hydra["callbacks"].values())


@pytest.mark.parametrize("model", [name for name in choices("model") if has_tiny_values("model", name)])
def test_a_model_says_what_it_explains_and_with_which_weights_and_where(model):
    built = build_part(chosen("model", model)[0])
    assert isinstance(built.sample_type, type)
    assert isinstance(built.revision, str)
    assert isinstance(built.device, str)
    assert isinstance(built.batch_size, int)
    assert callable(built.prepare)


@pytest.mark.parametrize("attribution", choices("attribution"))
def test_an_attribution_builds_into_a_method_with_a_label_and_a_family(attribution):
    _, cfg = chosen("attribution", attribution)
    for variant in variants(cfg):
        method = build_method(variant, cfg)
        assert isinstance(method.input_type, type)
        assert callable(method.explain)
        assert variant.label
        assert variant.family != "own"
        assert variant.base


@pytest.mark.parametrize("benchmark", choices("benchmark"))
def test_a_benchmark_has_samples(benchmark):
    assert build_part(chosen("benchmark", benchmark)[0]).samples()


@pytest.mark.parametrize("estimator", choices("estimator"))
def test_an_estimator_plays_a_game(estimator):
    settings = build_estimator(chosen("estimator", estimator)[1])
    game = AttributionGame(lambda coalitions: coalitions * [1.0, 2.0, 3.0], 3)
    phi = meta_attributions(game, settings.estimator, endogenous=True, budget=settings.budget)
    assert isinstance(phi, MetaAttributions)
    assert np.allclose(np.diag(phi.values), [1, 2, 3])


# Experiments


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_an_experiment_opens_with_its_command_and_what_to_expect(experiment):
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    opening = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert opening[0] == "# @package _global_"
    assert any(line.startswith(f"#   python run.py experiment={experiment}") for line in opening)
    assert any(line.startswith("# Expected: ") for line in opening)


# Methods


def methods():
    """Every concrete class with ``explain`` in metagame.attributions, by its full name."""
    modules = pkgutil.walk_packages(metagame.attributions.__path__, "metagame.attributions.")
    for module in (import_module(info.name) for info in modules):
        for name, member in inspect.getmembers(module, inspect.isclass):
            if member.__module__ == module.__name__ and hasattr(member, "explain") and not inspect.isabstract(member):
                yield f"{module.__name__}.{name}"


# What attribution.meta=true makes of a method, by its method ``metagame``.
METAGAMES = {
    "metagame.attributions.attention_games.ProxyAttentionMetagame": "meta_attention_game_mutual_proxy",
    "metagame.attributions.method.Metagame": "meta_ig",
    "metagame.attributions.concept_attention.MetaConceptAttention": "meta_concept_attention",
    "metagame.attributions.patch_ig.MetaPatchIG": "meta_patch_ig",
    "metagame.attributions.symbolic.SymbolicMetagame": "symbolic/meta_sv",
}


def test_every_method_can_be_chosen_on_the_command_line():
    files = (CONFIGS / "attribution").rglob("*.yaml")
    named = {target for path in files for target in targets(yaml.safe_load(path.read_text()))}
    assert set(methods()) - METAGAMES.keys() <= named


@pytest.mark.parametrize("metagame", METAGAMES)
def test_every_kind_of_metagame_is_that_of_a_shipped_method(metagame):
    _, cfg = chosen("attribution", METAGAMES[metagame])
    kind = type(build_method(variants(cfg)[0], cfg))
    assert f"{kind.__module__}.{kind.__name__}" == metagame


def test_a_scale_that_needs_a_gpu_says_so_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = compose("config", overrides=["experiment=table2", "scale=paper"])
    with pytest.raises(UserError, match=r"run on a GPU node, or add model\.device=cpu"):
        Job.build(cfg)
    cfg = compose("config", overrides=["experiment=table2", "scale=paper", "model.device=cpu"])
    with pytest.raises(UserError, match=r"scripts\.prepare_pointing_game"):
        Job.build(cfg)
    assert Job.build(compose("config", overrides=["experiment=table1", "scale=paper"]))
