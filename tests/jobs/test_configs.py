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
from metagame.contracts import Model
from metagame.errors import UserError
from metagame.games import AttributionGame
from metagame.jobs.build import Job, build_estimator, build_method, build_part
from metagame.jobs.spec import declared, plain, targets, variants
from metagame.meta import meta_attributions
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
    """The config with this choice, whose node has the choice's name."""
    cfg = compose("config", overrides=[f"{group}={choice}"])
    assert cfg[group].name == choice.rpartition("/")[2]
    return cfg


@pytest.mark.parametrize("model", [name for name in choices("model") if has_tiny_values("model", name)])
def test_a_model_can_be_built_and_says_with_which_weights_and_its_device_is_of_the_run(model):
    node = chosen("model", model).model
    built = build_part(node)
    assert isinstance(built, Model)
    assert isinstance(built.revision, str)
    assert isinstance(built.device, str)
    assert ("device" in node) == ("device" in declared(node._target_, "runtime_arguments"))


def methods():
    """Every concrete class with ``explain`` in metagame.attributions, by its full name."""
    modules = pkgutil.walk_packages(metagame.attributions.__path__, "metagame.attributions.")
    for module in (import_module(info.name) for info in modules):
        for name, member in inspect.getmembers(module, inspect.isclass):
            if member.__module__ == module.__name__ and hasattr(member, "explain") and not inspect.isabstract(member):
                yield f"{module.__name__}.{name}"


def test_an_attribution_builds_into_a_method_with_a_label_and_a_family_and_every_method_can_be_chosen():
    reached = set()
    for attribution in choices("attribution"):
        cfg = chosen("attribution", attribution)
        for variant in variants(cfg):
            kind = type(build_method(variant, cfg))
            assert variant.label, attribution
            assert variant.family != "own", attribution
            reached |= {f"{kind.__module__}.{kind.__name__}", *targets(plain(variant.node.method))}
    assert set(methods()) <= reached


@pytest.mark.parametrize("estimator", choices("estimator"))
def test_an_estimator_plays_a_game(estimator):
    settings = build_estimator(chosen("estimator", estimator))
    game = AttributionGame(lambda coalitions: coalitions * [1.0, 2.0, 3.0], 3)
    phi = meta_attributions(game, settings.estimator, endogenous=True, budget=settings.budget)
    assert np.allclose(np.diag(phi.values), [1, 2, 3])


def test_trackers_can_be_built_and_reports_take_their_arguments():
    for tracker in choices("tracker"):
        node = chosen("tracker", tracker).tracker
        assert "_target_" not in node or build_part(node) is not None
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


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_an_experiment_opens_with_its_command_and_what_to_expect(experiment):
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    opening = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert opening[0] == "# @package _global_"
    assert any(line.startswith(f"#   python run.py experiment={experiment}") for line in opening)
    assert any(line.startswith("# Expected: ") for line in opening)


def test_a_scale_that_needs_a_gpu_says_so_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    table2 = ["experiment=table2", "scale=paper"]
    with pytest.raises(UserError, match=r"run on a GPU node, or add model\.device=cpu"):
        Job.build(compose("config", overrides=table2))
    with pytest.raises(UserError, match=r"scripts\.prepare_pointing_game"):
        Job.build(compose("config", overrides=[*table2, "model.device=cpu"]))
    assert Job.build(compose("config", overrides=["experiment=table1", "scale=paper"]))
