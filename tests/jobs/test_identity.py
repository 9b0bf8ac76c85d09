"""What a job is: which keys and arguments its folder depends on, and which of them reach its parts."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from metagame.estimators import exact
from metagame.jobs.build import Job, build_estimator
from metagame.jobs.spec import IDENTITY, AttributionKeys, JobKeys, job_folder, job_name
from tests.tiny.jobs import ROOT, Numbers, Plain, Share, job_config, shipped_configs

CONFIGS = ROOT / "configs"
NAMES = ("scales", "ids", "label", "expected", "device", "n_threads", "batch_size")
"""Arguments that one might take for settings which do not change results."""


class ToldModel(Plain):
    def __init__(self, scales=1, ids=1, label=1, expected=1, device=1, n_threads=1, batch_size=1):
        super().__init__()
        self.told = dict(zip(NAMES, (scales, ids, label, expected, device, n_threads, batch_size), strict=True))


class ToldBenchmark(Numbers):
    def __init__(self, values, scales=1, ids=1, label=1, expected=1, device=1, n_threads=1, batch_size=1):
        super().__init__(values)
        self.told = dict(zip(NAMES, (scales, ids, label, expected, device, n_threads, batch_size), strict=True))


class ToldMethod(Share):
    def __init__(self, scales=1, ids=1, label=1, expected=1, device=1, n_threads=1, batch_size=1, inner=None):
        super().__init__()
        self.told = dict(zip(NAMES, (scales, ids, label, expected, device, n_threads, batch_size), strict=True))
        self.inner = inner


def told_estimator(
    game, *, scales=1, ids=1, label=1, expected=1, device=1, n_threads=1, batch_size=1, **call
):  # called as those in metagame.estimators
    return exact(game, **call)


def told_config(part, argument, value, tmp_path):
    """A job of which one part takes an argument, and what of the built job was told."""
    changes = {
        "model": {"model___target_": "tests.jobs.test_identity.ToldModel", f"model__{argument}": value},
        "benchmark": {"benchmark___target_": "tests.jobs.test_identity.ToldBenchmark", f"benchmark__{argument}": value},
        "method": {"attribution__method": {"_target_": "tests.jobs.test_identity.ToldMethod", argument: value}},
        "a method within": {
            "attribution__method": {
                "_target_": "tests.jobs.test_identity.ToldMethod",
                "inner": {"_target_": "tests.jobs.test_identity.ToldMethod", argument: value},
            }
        },
        "estimator": {
            "attribution__meta": True,
            "estimator": {
                "name": "told", "_target_": f"{__name__}.told_estimator", "_partial_": True, argument: value,
            },
        },
    }[part]  # fmt: skip
    return job_config(tmp_path, **changes)


TOLD = {
    "model": lambda cfg: Job.build(cfg).model.told,
    "benchmark": lambda cfg: Job.build(cfg).benchmark.told,
    "method": lambda cfg: Job.build(cfg).methods[""].told,
    "a method within": lambda cfg: Job.build(cfg).methods[""].inner.told,
    "estimator": lambda cfg: build_estimator(cfg).estimator.keywords,
}


@pytest.mark.parametrize("argument", NAMES)
@pytest.mark.parametrize("part", TOLD)
def test_an_argument_of_ones_own_reaches_its_class_and_makes_another_job_whatever_it_is_called(
    tmp_path, part, argument
):
    first, second = (told_config(part, argument, value, tmp_path) for value in (1, 2))
    assert job_folder(first) != job_folder(second)
    assert [TOLD[part](cfg)[argument] for cfg in (first, second)] == [1, 2]


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
    ("target", "n_folders"),
    [("ToldModel", 2), ("OnADevice", 1), ("OnADeviceToo", 1), ("OnOneDeviceOnly", 2), ("OnOneDeviceOnly.load", 2)],
)
def test_what_a_class_declares_not_to_change_results_keeps_the_folder(tmp_path, target, n_folders):
    configs = [
        job_config(tmp_path, model___target_=f"tests.jobs.test_identity.{target}", model__device=device)
        for device in ("cpu", "cuda")
    ]
    assert len(set(map(job_folder, configs))) == n_folders
    assert [Job.build(cfg).model.told["device"] for cfg in configs] == ["cpu", "cuda"]


def test_keys_of_a_node_that_its_class_does_not_take_are_not_given_to_it(tmp_path):
    plain = job_config(tmp_path)
    described = job_config(tmp_path, model__label="A plain model", model__for_scale="tiny", benchmark__label="Few")
    assert job_folder(described) == job_folder(plain)
    assert Job.build(described)


# The schema, the file and the identity name the same keys


def composed(*overrides):
    with shipped_configs():
        return compose("config", overrides=list(overrides))


def test_the_schema_and_the_config_have_the_same_keys():
    content = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    groups = {key for entry in content["defaults"] if isinstance(entry, dict) for key in entry}
    keys = {each.name for each in fields(JobKeys)}
    assert (set(content) | groups) - {"defaults", "hydra"} - keys == {"experiment"} | {
        key for key in groups if key.startswith("override ")
    }
    assert keys <= set(content) | groups
    assert set(composed()) == keys


def test_defaults_of_the_schema_are_those_of_the_config():
    content = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    schema = OmegaConf.structured(JobKeys)
    for key in set(content) - {"defaults", "hydra"}:
        assert OmegaConf.to_container(schema, resolve=False)[key] == content[key], key


OTHER = {
    "model": {"model__seconds": 1.0},
    "attribution": {"attribution__method__factor": 2.0},
    "benchmark": {"benchmark__values": [1]},
    "estimator": {"estimator__budget": 4},
    "scale": {"scale__name": "paper"},
    "report": {"report__table": {"_target_": "tests.tiny.jobs.broken_table"}},
    "tracker": {"tracker__name": "another"},
    "name": {"name": "another"},
    "for_scale": {"for_scale": "tiny"},
    "seed": {"seed": 1},
    "limit": {"limit": 1},
    "shards": {"shards": 2},
    "shard": {"shard": 0},
    "fail_fast": {"fail_fast": True},
    "reuse": {"reuse": "stale"},
    "leave_out": {"leave_out": [{"model": "another"}]},
    "output_dir": {"output_dir": "another"},
    "jobs_dir": {"jobs_dir": "another"},
}


def test_the_keys_that_the_schema_marks_are_those_that_the_folder_depends_on(tmp_path):
    plain = job_config(tmp_path, attribution__meta=True)
    changed = {
        key: job_name(job_config(**{"output_dir": tmp_path, "attribution__meta": True} | change)) != job_name(plain)
        for key, change in OTHER.items()
    }
    assert changed == {each.name: each.metadata == IDENTITY for each in fields(JobKeys)}


OTHER_ATTRIBUTION = {
    "name": "another",
    "label": "another",
    "family": "another",
    "base": "another",
    "meta": False,
    "order": 2,
    "index": "sii",
    "method": {"_target_": "tests.tiny.jobs.Pairs"},
    "pointing_game": {"n_games": 1},
    "for_scale": "tiny",
}


def test_the_keys_of_an_attribution_that_the_schema_marks_are_those_that_the_folder_depends_on(tmp_path):
    plain = job_config(tmp_path, attribution__meta=True)
    changed = {
        key: job_name(job_config(tmp_path, **{"attribution__meta": True, f"attribution__{key}": value}))
        != job_name(plain)
        for key, value in OTHER_ATTRIBUTION.items()
    }
    marked = {each.name: each.metadata == IDENTITY for each in fields(AttributionKeys)}
    assert changed == {key: value for key, value in marked.items() if key != "variants"}  # they have these keys each


def test_the_name_of_the_method_alone_does_not_make_two_methods_one_job(tmp_path):
    other = job_config(tmp_path, attribution__method={"_target_": "tests.tiny.jobs.Pairs"})
    assert job_name(other) != job_name(job_config(tmp_path))


# What is shipped

MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("[!_]*.yaml"))


@pytest.mark.parametrize("model", MODELS)
def test_the_device_of_a_shipped_model_keeps_the_folder(model):
    with shipped_configs():
        plain = compose("config", overrides=[f"model={model}"])
        if "device" in plain.model:
            on_cpu = compose("config", overrides=[f"model={model}", "model.device=cpu"])
            assert on_cpu.model.device != plain.model.device
            assert job_folder(on_cpu) == job_folder(plain)
        else:
            assert model in ("adder", "polynomial")


@pytest.mark.parametrize(
    ("runtime", "of_results"),
    [
        ("estimator.n_threads=3", "estimator.depth=3"),
        ("estimator.batch_size=3", "estimator.budget=90"),
    ],
)
def test_threads_and_batches_of_an_estimator_keep_the_folder(runtime, of_results):
    parts = ["model=adder", "benchmark=addition", "attribution=meta_ig", "estimator=trees"]
    names = [job_name(composed(*parts, *more)) for more in ([], [runtime], [of_results])]
    assert names[0] == names[1] != names[2]


def test_what_is_asked_of_a_benchmark_is_no_part_of_what_a_job_is():
    """So that figures that show some of the prompts share their jobs with figures that show others."""
    parts = ["model=gemma3_1b_it", "benchmark=prompts", "attribution=meta_attnlrp"]
    assert job_name(composed(*parts)) == job_name(composed(*parts, "benchmark.ids=[review_0]"))
    figures = [composed(f"experiment={name}", "attribution=meta_attnlrp") for name in ("figure3", "figure11")]
    assert job_folder(figures[0]) == job_folder(figures[1])
