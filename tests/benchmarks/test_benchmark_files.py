"""What every shipped benchmark says of itself and its samples, at the tiny scale."""

from __future__ import annotations

import inspect

import pytest
from hydra import compose

from metagame.contracts import Benchmark, Sample
from metagame.jobs.build import build_part
from tests.tiny.jobs import ROOT, shipped_configs

NAMES = sorted(path.stem for path in (ROOT / "configs/benchmark").glob("[!_]*.yaml"))
WITHOUT_FILES = {
    "addition", "agreement", "concept_scores", "concepts", "faithfulness", "pointing_game", "prompts", "separation",
    "token_relevances",
}  # fmt: skip
"""Benchmarks whose samples are texts, are painted by the model, or are made of scikit-learn's digits."""
OF_ALL = {
    "voc": {"tokenizer.json"}, "coco": {"tokenizer.json", "panoptic_val2017.json"},
    "imagenet_seg": {"tokenizer.json", "names.json"},
}  # fmt: skip
RUNTIME = {
    "prompts": {"ids", "match"}, "voc": {"expected", "all_players"},
    "coco": {"expected", "all_players"}, "imagenet_seg": {"expected", "all_players"},
}  # fmt: skip
TEXTS = {
    "prompts": {"prompt"}, "illustration": {"caption", "image"},
    "concepts": {"prompt", "image"}, "separation": {"function"},
}  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    """A benchmark and its name, its folder being the current one."""
    with shipped_configs():
        cfg = compose("config", overrides=[f"benchmark={request.param}", "scale=tiny"])
        yield build_part(cfg.benchmark), request.param


def test_samples_are_told_apart_and_fulfil_the_contract(shipped):
    benchmark, _ = shipped
    samples = benchmark.samples()
    assert Benchmark in type(benchmark).__mro__
    assert all(Sample in type(sample).__mro__ for sample in samples)
    assert len({sample.id for sample in samples}) == len(samples) > 0
    assert [sample.id for sample in benchmark.samples()] == [sample.id for sample in samples]
    assert all(isinstance(sample.description(), str | None) for sample in samples)


def test_the_files_that_decide_a_sample_or_all_are_there(shipped):
    benchmark, name = shipped
    of_samples = [path for sample in benchmark.samples() for path in sample.files()]
    assert all(path.is_file() for path in (*of_samples, *benchmark.files()))
    assert (not of_samples) == (name in WITHOUT_FILES)
    assert {path.name for path in benchmark.files()} >= OF_ALL.get(name, set())


def test_declared_arguments_are_arguments(shipped):
    benchmark, name = shipped
    runtime, texts = (set(getattr(type(benchmark), key, ())) for key in ("runtime_arguments", "text_arguments"))
    assert (runtime, texts) == (RUNTIME.get(name, set()), TEXTS.get(name, set()))
    assert runtime | texts <= set(inspect.signature(type(benchmark)).parameters)
