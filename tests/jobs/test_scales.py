"""Choices have the paper's values in their file, those of another scale below by_scale, and never the wrong ones."""

from __future__ import annotations

from functools import cache
from itertools import zip_longest

import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from metagame.errors import UserError
from metagame.jobs.checks import check_scale, experiments_at
from metagame.jobs.grid import list_choices
from metagame.jobs.spec import FAMILIES
from tests.tiny.jobs import ROOT, shipped_configs

CONFIGS = ROOT / "configs"
GROUPS = ("model", "benchmark", "attribution", "experiment")
SCALES = sorted(path.stem for path in (CONFIGS / "scale").glob("*.yaml"))
OTHERS = [scale for scale in SCALES if scale != "paper"]


@cache
def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def shipped(group):
    """The files of a group's choices, by name."""
    files = sorted((CONFIGS / group).rglob("[!_]*.yaml"))
    return {path.stem: path for path in files if path.parent == CONFIGS / group or path.parent.name == "symbolic"}


@cache
def scaled(group):
    """The choices of a group whose values depend on the scale."""
    return [name for name, path in shipped(group).items() if "for_scale" in load(path)]


@pytest.fixture(scope="module", autouse=True)
def configs():
    with shipped_configs():
        yield


def keys_below(node, prefix=""):
    """Every key below a node, with the dots before it, but for those within nodes that a scale has as a whole."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict) and not (CONFIGS / "benchmark" / key).is_dir():
            yield from keys_below(value, f"{prefix}{key}.")


def first_cell(overrides):
    """With what an experiment sweeps, the first value of each: an experiment at a scale may name its models so."""
    if not any(each.startswith("experiment=") for each in overrides):
        return overrides
    swept = compose("config", overrides=overrides, return_hydra_config=True).hydra.sweeper.params
    return [*overrides, *(f"{key}={str(values).split(',')[0]}" for key, values in swept.items() if key != "shard")]


# Choice x scale

WALKED = [
    [f"{group}={name}" for group, name in zip(GROUPS, names, strict=True) if name is not None]
    for names in zip_longest(*map(scaled, GROUPS[:3]), [])
] + [[f"experiment={name}"] for name in scaled("experiment")]  # fmt: skip
"""All are walked in tests/system, the first and the last one here."""


@pytest.mark.parametrize("chosen", [WALKED[0], WALKED[-1]], ids=" ".join)
def test_a_choice_has_values_for_the_scale_or_is_refused(chosen):
    check_values_or_refusal(chosen)


def check_values_or_refusal(chosen):
    at_paper_scale = compose("config", overrides=[*chosen, "scale=paper"])
    check_scale(at_paper_scale)
    choices = [choice.split("=") for choice in chosen]
    for scale in OTHERS:
        cfg = compose("config", overrides=first_cell([*chosen, f"scale={scale}"]))
        has_values = [(CONFIGS / group / "by_scale" / scale / f"{name}.yaml").exists() for group, name in choices]
        for (group, _), has in zip(choices, has_values, strict=True):
            nodes = [each if group == "experiment" else each[group] for each in (cfg, at_paper_scale)]
            here, there = map(OmegaConf.to_container, nodes)
            assert there["for_scale"] == "paper"
            assert not has or here["for_scale"] == scale
            assert not has or set(keys_below(here)) == set(keys_below(there)), "a key of one scale only is misspelt"
        if all(has_values):
            check_scale(cfg)
        else:
            with pytest.raises(UserError, match=f"no values for scale={scale}"):
                check_scale(cfg)


@pytest.mark.parametrize("group", GROUPS)
def test_a_choice_that_looks_up_values_of_a_scale_says_which_it_has(group):
    package = "_global_" if group == "experiment" else "_here_"
    for name, path in shipped(group).items():
        lines = [entry for entry in load(path).get("defaults", []) if "${scale}" in str(entry)]
        assert load(path).get("for_scale") == ("paper" if lines else None), name
        assert not lines or {f"optional by_scale@{package}": f"${{scale}}/{name}"} in lines
    for scale in OTHERS:
        for path in (CONFIGS / group / "by_scale" / scale).glob("[!_]*.yaml"):
            assert path.stem in scaled(group)
            assert load(path)["for_scale"] == scale


LACKING = {
    "paper": "",
    "tiny": "evidence evidence_pairs",
    "small": "both_ways faithfulness figure13 figure2 figure4 figure7 figure8 figure9 table3 ttcav",
}


@pytest.mark.parametrize("scale", LACKING)
def test_experiments_with_values_for_a_scale_are_told_from_their_files(scale):
    assert set(shipped("experiment")) - set(experiments_at(scale)) == set(LACKING[scale].split())
    assert experiments_at("mine") == []


# A third scale


@pytest.fixture
def third_scale(tmp_path):
    """Compose with a scale ``trial``, of which these files have the values, by their place below the configs."""

    def composed(overrides, files):
        for name, text in ({"scale/trial": "name: trial\nneeds_gpu: false\nthreads: 1\n"} | files).items():
            path = tmp_path / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        where = f"hydra.searchpath=[file://{tmp_path}]"
        return compose("config", overrides=[*overrides.split(), "scale=trial", where])

    return composed


@pytest.mark.parametrize("group", GROUPS)
def test_values_of_another_scale_are_never_taken(group, third_scale):
    name = scaled(group)[0]
    chosen = {"model": "adder", "benchmark": "separation"} | {group: name}
    cfg = third_scale(" ".join(f"{key}={value}" for key, value in chosen.items()), {})
    with pytest.raises(UserError, match=f"configs/{group}/by_scale/trial.* for_scale: trial") as error:
        check_scale(cfg)
    assert f"{name}.yaml" in str(error.value) or group == "experiment"


def test_a_third_scale_is_new_files_alone_and_no_files_for_what_is_the_same_at_every_scale(third_scale):
    sums = third_scale("experiment=figure1 attribution=meta_sv", {})
    check_scale(sums)
    assert sums.model.checkpoint == "data/tiny/adder"
    files = {
        "model/by_scale/trial/clip_vitb16": "for_scale: trial\ncheckpoint: small/clip\n",
        "benchmark/by_scale/trial/pointing_game": "for_scale: trial\ngames: [a-b-c-d]\n",
        "benchmark/scenes/trial": "_target_: mine.Scenes\nfolder: mine\n",
        "benchmark/classes/trial": "a: 0\nb: 1\nc: 2\nd: 3\n",
    }
    chosen = "model=clip_vitb16 benchmark=pointing_game attribution=mask_clip"
    cfg = third_scale(chosen, files)
    check_scale(cfg)
    assert (cfg.model.checkpoint, cfg.model.label) == ("small/clip", "CLIP (ViT-B/16)")
    assert cfg.benchmark.scenes == {"_target_": "mine.Scenes", "folder": "mine"}
    assert list(cfg.benchmark.classes) == ["a", "b", "c", "d"]
    assert third_scale(f"{chosen} model.checkpoint=mine", files).model.checkpoint == "mine"


def test_a_node_that_a_scale_has_no_file_for_is_named(third_scale):
    cfg = third_scale("benchmark=prompts", {"benchmark/by_scale/trial/prompts": "for_scale: trial\n"})
    with pytest.raises(UserError, match=r"^benchmark=prompts at scale=trial lacks benchmark\.prompts: choose another"):
        check_scale(cfg)


# Overrides


@pytest.mark.parametrize(
    "overrides",
    [
        "benchmark=pointing_game scale=paper benchmark.scenes.root=elsewhere",
        "benchmark=pointing_game benchmark/scenes=paper benchmark.scenes.encoding=jpeg",
        "benchmark=coco benchmark.data._target_=metagame.benchmarks.coco.COCOInstances",
        "benchmark=prompts benchmark.prompts.count=3",
        "benchmark=illustration benchmark.image=mine.png",
        "experiment=figure3 report.figure.prompts=[review_1]",
        "experiment=figure13 benchmark.players=[n0]",
        "model=flux_schnell scale=paper model.denoising.n_steps=8",
    ],
)
def test_values_of_a_scale_can_be_overridden(overrides):
    key, value = overrides.split()[-1].split("=")
    assert OmegaConf.select(compose("config", overrides=overrides.split()), key) == yaml.safe_load(value)


# Names


@pytest.mark.parametrize(
    "base", [f"{group}={path.stem}" for group in GROUPS for path in (CONFIGS / group).glob("_*.yaml")]
)
def test_a_base_is_no_choice(base):
    with pytest.raises(UserError, match=rf"^{base} at scale=tiny lacks .*: choose another {base.split('=')[0]}, or"):
        check_scale(compose("config", overrides=[base]))


def test_help_lists_choices_alone():
    lines = dict(line.split(": ") for line in list_choices().splitlines())
    assert set(lines) >= {"model", "attribution", "attribution/symbolic", "benchmark", "scale", "experiment"}
    assert lines["scale"].split(", ") == SCALES
    assert lines["model"].split(", ") == sorted(shipped("model"))
    assert not any("by_scale" in group or group.startswith("hydra") for group in lines)


def test_families_are_words_of_the_vocabulary_each_in_use():
    families = {load(path)["family"] for path in shipped("attribution").values() if "family" in load(path)}
    assert families == set(FAMILIES)
