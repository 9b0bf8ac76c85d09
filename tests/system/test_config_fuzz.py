"""A config that is wrong fails before work starts, whatever key of it is misspelt; one that is shipped can be built."""

from __future__ import annotations

import gc
import re
import subprocess
import sys

import pytest
import yaml
from hydra import compose
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from metagame.errors import UserError
from metagame.jobs.build import build_estimator, build_part
from metagame.jobs.run import run_job
from metagame.jobs.spec import OF_ESTIMATOR, OF_NODE
from tests.tiny.jobs import ROOT, Share, job_config, shipped_configs, terminal_free_environment

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
LAUNCHERS = [path.stem for path in FILES if path.parent.name == "launcher"]
TRACKERS = [path.stem for path in FILES if path.parent.name == "tracker"]
REPORTS = [path.stem for path in FILES if path.parent.name == "report"]


@pytest.fixture(scope="module", autouse=True)
def configs():
    gc.collect()
    gc.freeze()  # each job looks for garbage: let it search its own only
    with shipped_configs():
        yield
    gc.unfreeze()


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def name(path):
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def called_later(node):
    """The config of a function that the report calls, as one that gives the function."""
    return OmegaConf.create(OmegaConf.to_container(node, resolve=True) | {"_partial_": True})


# What is shipped works


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_can_be_set_up(launcher):
    overrides = [f"hydra/launcher={launcher}", "hydra.mode=MULTIRUN"]
    cfg = compose("config", overrides=overrides, return_hydra_config=True)
    context = HydraContext(config_loader=None, callbacks=None)
    plugin = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=print, config=cfg)
    assert isinstance(plugin, Launcher)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_can_be_built(tracker):
    node = compose("config", overrides=[f"tracker={tracker}"]).tracker
    assert "_target_" not in node or build_part(node) is not None


@pytest.mark.parametrize("report", REPORTS)
def test_a_report_names_functions_that_take_its_arguments(report):
    node = compose("config", overrides=[f"report={report}"]).report
    for part in filter(None, (node.table, node.figure)):
        assert callable(build_part(called_later(part)))


@pytest.mark.parametrize("hydra_logging", ["hydra_logging", "job_logging"])
def test_logging_can_be_set_up(hydra_logging):
    node = compose("config", return_hydra_config=True).hydra[hydra_logging]
    handlers = OmegaConf.to_container(node, resolve=True)["handlers"]
    for handler in handlers.values():
        assert instantiate({"_target_": handler["class"]})


def test_the_callback_of_a_sweep_can_be_built():
    for callback in compose("config", return_hydra_config=True).hydra.callbacks.values():
        assert instantiate(callback)


# A typo fails before work starts


def keys_below(node, prefix=""):
    """Every key below a node, with the dots before it."""
    for key in node:
        yield f"{prefix}{key}"
        given = not (OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key))
        if given and isinstance(node[key], DictConfig):
            yield from keys_below(node[key], f"{prefix}{key}.")


COMPOSED = {
    "the default": [],
    "pictures": ["experiment=table2", "attribution=fixlip"],
    "pairs": ["experiment=figure2", "attribution=meta_grad_eclip_pairs"],
    "prompts": ["experiment=figure3", "attribution=meta_attnlrp"],
    "concepts": ["experiment=figure13"],
    "painting": ["experiment=figure4"],
    "sums": ["experiment=figure1", "attribution=meta_ig", "tracker=wandb", "estimator=permutation"],
}


def misspelt(key):
    return key[:-1] + ("x" if key[-1] != "x" else "y")


@pytest.mark.parametrize("case", COMPOSED)
def test_any_key_misspelt_on_the_command_line_is_named(case):
    """Composing takes its time: all typos of a config are tried on it as Hydra would, a few through Hydra itself."""
    cfg = compose("config", overrides=COMPOSED[case])
    keys = list(keys_below(cfg))
    for key in keys:
        typo = misspelt(key)
        with pytest.raises((ConfigAttributeError, ConfigKeyError), match=rf"'{typo.split('.')[-1]}' (is )?not in "):
            OmegaConf.update(cfg, typo, 1)
    for key in keys[:: len(keys) // 3]:
        with pytest.raises(ConfigCompositionException, match=f"'{misspelt(key)}'"):
            compose("config", overrides=[*COMPOSED[case], f"{misspelt(key)}=1"])


GROUPS = ("model", "attribution", "benchmark", "estimator", "report", "scale", "experiment", "tracker")


@pytest.mark.parametrize("group", GROUPS)
def test_a_misspelt_group_or_choice_is_named(group):
    choice = next(path.stem for path in FILES if path.parent.name == group)
    with pytest.raises(ConfigCompositionException, match=f"'{group}x'"):
        compose("config", overrides=[f"{group}x={choice}"])
    with pytest.raises(MissingConfigException, match=f"Could not find '{group}/{choice}x'"):
        compose("config", overrides=[f"{group}={choice}x"])


CHOSEN = {
    group: [
        name(path).removeprefix(f"{group}/")
        for path in FILES
        if name(path).startswith(f"{group}/") and not re.search(r"/_|/by_scale/|^benchmark/.*/", name(path))
    ]
    for group in ("model", "benchmark", "attribution", "estimator", "report")
}


def with_typos(node, no_arguments=()):
    """A node with each argument of a target in it misspelt in turn."""
    for key, value in node.items():
        if key not in (*no_arguments, "_target_", "_partial_"):
            yield key, {misspelt(other) if other == key else other: node[other] for other in node}
        if isinstance(value, dict) and "_target_" in value:
            for inner, typo in with_typos(value):
                yield inner, node | {key: typo}


# What of a group is built for a job, and which of its keys are no arguments
BUILT = {
    ("model", ""): OF_NODE,
    ("benchmark", ""): OF_NODE,
    ("attribution", "method"): (),
    ("estimator", ""): (*OF_ESTIMATOR, "budget"),
    ("report", "table"): (),
    ("report", "figure"): (),
}


def built(group, node, cfg):
    if group == "estimator":
        changed = cfg.copy()
        OmegaConf.update(changed, "estimator", node, merge=False)
        return build_estimator(changed)
    return build_part(OmegaConf.create(node))


@pytest.mark.parametrize(
    ("group", "inside", "choice"), [(*part, choice) for part in BUILT for choice in CHOSEN[part[0]]]
)
def test_any_argument_misspelt_in_a_file_fails_when_the_job_is_built(group, inside, choice):
    cfg = compose("config", overrides=[f"{group}={choice}"])
    node = cfg[group][inside] if inside else cfg[group]
    if node is None:
        return
    content = OmegaConf.to_container(called_later(node) if group == "report" else node, resolve=True)
    for key, typo in with_typos(content, BUILT[group, inside]):
        with pytest.raises((UserError, InstantiationException), match=rf"{misspelt(key)}'|missing .* '{key}'"):
            built(group, typo, cfg)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"limt": 1}, r"^limt: a job has no such setting"),
        ({"attribution__idnex": "ksv"}, r"^attribution\.idnex: a job has no such setting"),
        ({"report__table__limt": 1}, r"got an unexpected keyword argument 'limt'"),
        ({"attribution__meta": True, "estimator__max_playrs": 3}, r"got an unexpected keyword argument 'max_playrs'"),
    ],
)
def test_a_typo_that_composes_is_refused_before_any_sample(tmp_path, monkeypatch, change, reason):
    """Hydra takes any key from a file of an experiment, or with a plus on the command line."""
    monkeypatch.setattr(Share, "game", lambda *_: pytest.fail("a sample was explained"))
    with pytest.raises(UserError, match=reason):
        run_job(job_config(tmp_path, **change))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_typo_in_a_swept_group_fails_before_the_first_job(tmp_path):
    command = [sys.executable, "run.py", "-m", "attribution=symbolic/sop,symbolic/sopp", f"output_dir={tmp_path}"]
    process = subprocess.run(
        command, cwd=ROOT, env=terminal_free_environment(), capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "Could not find 'attribution/symbolic/sopp'" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "jobs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("shards=2,4", "shards=2,4: shards cannot be swept, give one positive whole number."),
        ("limit=0", "limit=0: give a positive whole number of samples, or null for all."),
        ("+foo=1", "foo: a job has no such setting; correct its name or remove it."),
    ],
)
def test_a_wrong_value_stops_a_sweep_before_its_first_job_and_leaves_the_table(tmp_path, wrong, reason):
    (tmp_path / "table.md").write_text("as it was")
    command = [sys.executable, "run.py", "-m", wrong, f"output_dir={tmp_path}"]
    process = subprocess.run(
        command, cwd=ROOT, env=terminal_free_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 1
    assert process.stderr.strip() == reason
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "as it was"
