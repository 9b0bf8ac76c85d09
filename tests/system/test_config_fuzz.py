"""A config that is wrong fails before work starts, whatever key of it is misspelt."""

from __future__ import annotations

import re

import pytest
from hydra import compose
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from metagame.errors import UserError
from metagame.jobs.build import build_estimator, build_part
from metagame.jobs.spec import OF_ESTIMATOR, OF_NODE
from tests.tiny.jobs import ROOT, shipped_configs

CONFIGS = ROOT / "configs"
FILES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def choices(group):
    found = [name.removeprefix(f"{group}/") for name in FILES if name.startswith(f"{group}/")]
    return [name for name in found if not re.match(r"_|by_scale/", name) and (group != "benchmark" or "/" not in name)]


@pytest.fixture(scope="module", autouse=True)
def configs():
    with shipped_configs():
        yield


def keys_below(node, prefix=""):
    """Every key below a node, with the dots before it."""
    for key in node:
        yield f"{prefix}{key}"
        given = not (OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key))
        if given and isinstance(node[key], DictConfig):
            yield from keys_below(node[key], f"{prefix}{key}.")


COMPOSED = {
    "pictures": ["experiment=table2", "attribution=fixlip"],
    "pairs": ["experiment=figure2", "attribution=meta_grad_eclip_pairs"],
    "prompts": ["experiment=figure3", "attribution=meta_attnlrp"],
    "concepts": ["experiment=figure13"],
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
    for key in keys[:: len(keys) // 2]:
        with pytest.raises(ConfigCompositionException, match=f"'{misspelt(key)}'"):
            compose("config", overrides=[*COMPOSED[case], f"{misspelt(key)}=1"])


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
    "model": {"": OF_NODE},
    "benchmark": {"": OF_NODE},
    "attribution": {"method": ()},
    "estimator": {"": (*OF_ESTIMATOR, "budget")},
    "report": {"table": (), "figure": ()},
}


def build(group, node, cfg):
    if group == "estimator":
        changed = cfg.copy()
        OmegaConf.update(changed, "estimator", node, merge=False)
        return build_estimator(changed)
    return build_part(OmegaConf.create(node))


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in BUILT for choice in choices(group)])
def test_any_argument_misspelt_in_a_file_fails_when_the_job_is_built(group, choice):
    cfg = compose("config", overrides=[f"{group}={choice}"])
    for inside, no_arguments in BUILT[group].items():
        node = cfg[group][inside] if inside else cfg[group]
        if node is None:
            continue
        content = OmegaConf.to_container(node, resolve=True)
        if group == "report":  # whose functions are called later
            content["_partial_"] = True
        for key, typo in with_typos(content, no_arguments):
            with pytest.raises((UserError, InstantiationException), match=rf"{misspelt(key)}'|missing .* '{key}'"):
                build(group, typo, cfg)
