"""What a job is: which keys and arguments its folder depends on, and which of them reach its parts."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from metagame.estimators import exact
from metagame.jobs.build import Job
from metagame.jobs.spec import IDENTITY, AttributionKeys, JobKeys, job_folder, job_name
from tests.tiny.jobs import ROOT, Numbers, Plain, Share, job_config, shipped_configs

CONFIGS = ROOT / "configs"


class Told:
    """Keeps what it is told, in arguments that one might take for settings which do not change results."""

    def __init__(
        self, label=1, device=1, n_threads=1, batch_size=1, ids=1, expected=1, scales=1, inner=None, values=()
    ):
        self.told = {"label": label, "device": device, "n_threads": n_threads, "batch_size": batch_size}
        self.told |= {"ids": ids, "expected": expected, "scales": scales}
        self.inner = inner


class ToldModel(Told, Plain):
    pass


class ToldBenchmark(Told, Numbers):
    pass


class ToldMethod(Told, Share):
    pass


def told_estimator(game, *, label=1, device=1, n_threads=1, batch_size=1, ids=1, expected=1, scales=1, **call):
    """As those of metagame.estimators are called."""
    return exact(game, **call)


# Of a part that takes arguments: its place in the config, its target, and what it was told once the job is built
TOLD = {
    "model": ("model", "ToldModel", lambda job: job.model.told),
    "benchmark": ("benchmark", "ToldBenchmark", lambda job: job.benchmark.told),
    "method": ("attribution__method", "ToldMethod", lambda job: job.methods[""].method.told),
    "a method within": ("attribution__method__inner", "ToldMethod", lambda job: job.methods[""].method.inner.told),
    "estimator": ("estimator", "told_estimator", lambda job: job.methods[""].estimator.estimator.keywords),
}


@pytest.mark.parametrize("part", TOLD)
@pytest.mark.parametrize("name", Told().told)
def test_an_argument_of_ones_own_reaches_its_class_and_makes_another_job_whatever_it_is_called(tmp_path, part, name):
    place, target, told = TOLD[part]
    meta = {"attribution__meta": True, "attribution__method": {"_target_": f"{__name__}.ToldMethod"}}
    first, second = (
        job_config(tmp_path, **meta, **{f"{place}___target_": f"{__name__}.{target}", f"{place}__{name}": value})
        for value in (1, 2)
    )
    assert job_folder(first) != job_folder(second)
    assert [told(Job.build(cfg))[name] for cfg in (first, second)] == [1, 2]


class OnADevice(ToldModel):
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"device"})


class OnADeviceToo(OnADevice):
    """Inherits what does not change results."""


class OnOneDeviceOnly(OnADevice):
    runtime_arguments: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def load(cls, device):
        return cls(device=device)


@pytest.mark.parametrize(
    ("name", "n_folders"),
    [("ToldModel", 2), ("OnADevice", 1), ("OnADeviceToo", 1), ("OnOneDeviceOnly", 2), ("OnOneDeviceOnly.load", 2)],
)
def test_what_a_class_declares_not_to_change_results_keeps_the_folder(tmp_path, name, n_folders):
    target = f"{__name__}.{name}"
    configs = [job_config(tmp_path, model___target_=target, model__device=device) for device in ("cpu", "cuda")]
    assert len(set(map(job_folder, configs))) == n_folders
    assert [Job.build(cfg).model.told["device"] for cfg in configs] == ["cpu", "cuda"]


def test_keys_of_a_node_that_its_class_does_not_take_are_not_given_to_it(tmp_path):
    described = job_config(tmp_path, model__label="A plain model", model__for_scale="tiny", benchmark__label="Few")
    assert job_folder(described) == job_folder(job_config(tmp_path))
    assert Job.build(described)


# The schema, the file and the identity name the same keys


def composed(*overrides):
    with shipped_configs():
        return compose("config", overrides=list(overrides))


def test_the_schema_and_the_config_have_the_same_keys_and_defaults():
    content = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    groups = {key for entry in content.pop("defaults") if isinstance(entry, dict) for key in entry}
    groups = {key for key in groups if key != "experiment" and not key.startswith("override ")}
    del content["hydra"]
    assert set(content) | groups == set(composed()) == {each.name for each in fields(JobKeys)}
    defaults = OmegaConf.to_container(OmegaConf.structured(JobKeys), resolve=False)
    assert {key: defaults[key] for key in content} == content


OTHER = {
    "model": ("model__seconds", 1.0), "attribution": ("attribution__method__factor", 2.0),
    "benchmark": ("benchmark__values", [1]), "estimator": ("estimator__budget", 4), "scale": ("scale__name", "paper"),
    "report": ("report__table__limit", 1), "tracker": ("tracker__name", "another"), "name": ("name", "another"),
    "for_scale": ("for_scale", "tiny"), "seed": ("seed", 1), "limit": ("limit", 1), "shards": ("shards", 2),
    "shard": ("shard", 0), "fail_fast": ("fail_fast", True), "reuse": ("reuse", "stale"),
    "leave_out": ("leave_out", [{"model": "another"}]), "output_dir": ("output_dir", "another"),
    "jobs_dir": ("jobs_dir", "another"),
}  # fmt: skip
OTHER_ATTRIBUTION = {
    "name": "another", "label": "another", "family": "another", "base": "another", "meta": False, "order": 2,
    "index": "sii", "method": {"_target_": "tests.tiny.jobs.Pairs"}, "pointing_game": {"n_games": 1},
    "for_scale": "tiny",
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "changes"),
    [
        (JobKeys, OTHER),
        (AttributionKeys, {key: (f"attribution__{key}", value) for key, value in OTHER_ATTRIBUTION.items()}),
    ],
    ids=["job", "attribution"],
)
def test_the_keys_that_the_schema_marks_are_those_that_the_folder_depends_on(tmp_path, schema, changes):
    plain = {"output_dir": tmp_path, "attribution__meta": True}
    name = job_name(job_config(**plain))
    changed = {key: job_name(job_config(**plain | {place: value})) != name for key, (place, value) in changes.items()}
    marked = {each.name: each.metadata == IDENTITY for each in fields(schema)}
    assert changed == {key: value for key, value in marked.items() if key != "variants"}  # they have these keys each


@pytest.mark.parametrize(("meta", "n_folders"), [(False, 1), (True, 2)])
def test_the_estimator_counts_for_meta_attributions_only(tmp_path, meta, n_folders):
    configs = [job_config(tmp_path, attribution__meta=meta, estimator__budget=budget) for budget in (None, 4)]
    assert len(set(map(job_folder, configs))) == n_folders


# What is shipped


SUMS = "model=adder benchmark=addition attribution=meta_ig estimator=trees"
PICTURES = "model=clip_vitb16 attribution=fixlip benchmark=pointing_game"


@pytest.mark.parametrize(
    ("parts", "setting", "same"),
    [
        (SUMS, "estimator.n_threads=3", True),
        (SUMS, "estimator.batch_size=3", True),
        (SUMS, "estimator.depth=3", False),
        (SUMS, "estimator.budget=90", False),
        (PICTURES, "model.batch_size=3", True),
        (PICTURES, "attribution.method.batch_size=3", True),
        (PICTURES, "attribution.method.design.budget=9", False),
    ],
)
def test_shipped_settings_of_a_run_keep_the_folder_and_those_of_results_do_not(parts, setting, same):
    assert (job_name(composed(*parts.split())) == job_name(composed(*parts.split(), setting))) == same


def test_figures_that_show_some_of_the_prompts_share_their_jobs_with_those_that_show_others():
    figures = [composed(f"experiment={name}", "attribution=meta_attnlrp") for name in ("figure3", "figure11")]
    assert job_folder(figures[0]) == job_folder(figures[1])
