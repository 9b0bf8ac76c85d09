"""A device without memory: what did not fit costs its own samples, is let go of, and is told with what to change."""

from __future__ import annotations

import re
import weakref
from typing import ClassVar

import pytest
import torch
from hydra import compose
from threadpoolctl import threadpool_info, threadpool_limits

from metagame.errors import UserError
from metagame.experiments import finish
from metagame.jobs.accelerator import use_threads
from metagame.jobs.build import build_method
from metagame.jobs.records import RecordStore
from metagame.jobs.run import memory_advice, run_job
from metagame.jobs.spec import variants
from tests.tiny.jobs import Plain, Share, job_config, shipped_configs
from tests.tiny.runs import contents, n_recorded, table

TOO_LARGE = "CUDA out of memory. Tried to allocate 20.00 GiB."


class Tensor:
    """Stands for what a device holds; ``alive`` is what nobody has let go of."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self):
        self.alive.add(self)


class Batched(Plain):
    """A model that takes samples together, but two at most, and is told what comes next.

    ``n_alive``: what the device holds before each batch; ``ahead``: after each batch, the ids of the next.
    """

    wraps: ClassVar[bool] = False
    runtime_arguments: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    n_alive: ClassVar[list[int]] = []
    ahead: ClassVar[list[list[str]]] = []

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def prepare(self, samples):
        self.n_alive.append(len(Tensor.alive))
        try:
            self._encode(samples)
        except torch.OutOfMemoryError as error:
            if self.wraps:
                raise UserError("lower model.batch_size.") from error
            raise
        return super().prepare(samples)

    def _encode(self, samples):
        images = Tensor()  # noqa: F841
        if len(samples) > 2:
            raise torch.OutOfMemoryError(TOO_LARGE)

    def read_ahead(self, samples):
        self.ahead.append([sample.id for sample in samples])
        raise RuntimeError("can't start new thread")


class Hungry(Share):
    """Sample 2 does not fit the device; ``n_alive``: what the device holds before each sample."""

    n_alive: ClassVar[list[int]] = []

    def explain(self, bound, progress=None):
        self.n_alive.append(len(Tensor.alive))
        gradients = Tensor()  # noqa: F841
        if bound.id == "2":
            raise torch.OutOfMemoryError(TOO_LARGE)
        return super().explain(bound, progress)


@pytest.fixture(autouse=True)
def empty_device(monkeypatch):
    monkeypatch.setattr(Tensor, "alive", weakref.WeakSet())
    for owner, name in ((Batched, "n_alive"), (Batched, "ahead"), (Hungry, "n_alive")):
        monkeypatch.setattr(owner, name, [])


def batched(folder, batch_size):
    return job_config(
        folder, model___target_=f"{__name__}.Batched", model__batch_size=batch_size,
        benchmark__values=list(range(1, 9)),
    )  # fmt: skip


@pytest.mark.parametrize("wraps", [False, True])
def test_a_batch_that_does_not_fit_fails_its_samples_only_is_let_go_of_and_a_smaller_one_does_them(
    tmp_path, monkeypatch, wraps
):
    monkeypatch.setattr(Batched, "wraps", wraps)
    cfg, smaller, whole = batched(tmp_path, 3), batched(tmp_path, 2), batched(tmp_path / "whole", 2)
    outcome = run_job(cfg)
    error = "out of memory on the device: lower model.batch_size."
    assert (outcome.n_done, outcome.n_failed, outcome.errors) == (2, 6, (error,))
    assert Batched.n_alive == [0, 0, 0]
    assert finish([cfg])
    assert table(tmp_path)["notes"] == [f"Share: sample {number} failed: {error}" for number in range(1, 7)]
    for each in (smaller, whole):
        assert run_job(each).n_done == 8
        assert finish([each])
    assert contents(tmp_path) == contents(tmp_path / "whole")
    assert n_recorded(tmp_path) == 8 + 6


def test_a_sample_that_does_not_fit_is_recorded_and_what_it_held_is_free_for_the_next(tmp_path):
    outcome = run_job(job_config(tmp_path, attribution__method___target_=f"{__name__}.Hungry"))
    found = [(record.sample, record.status) for record in RecordStore(outcome.folder).read().values()]
    assert found == [("1", "done"), ("2", "failed"), ("3", "done")]
    assert Hungry.n_alive == [0, 0, 0]


def test_a_model_may_read_the_next_batch_ahead_and_fail_in_it(tmp_path):
    assert run_job(batched(tmp_path, 2)).n_done == 8
    assert Batched.ahead == [["3", "4"], ["5", "6"], ["7", "8"], []]


# What a job has, and what it is told to change
ADVICE = {
    "model=clip_vitb16 attribution=meta_grad_eclip": ["estimator.batch_size", "model.batch_size"],
    "model=clip_vitb16 attribution=fixlip": ["attribution.method.batch_size", "model.batch_size"],
    "model=gemma3_1b_it attribution=attnlrp": ["model.tokens_per_batch"],
    "model=flux_schnell attribution=concept_maps": ["model.offload=true"],
    "model=flux_schnell attribution=concept_maps model.offload=true": [],
    "model=adder attribution=sv": [],
}


@pytest.mark.parametrize("parts", ADVICE)
def test_who_runs_out_of_memory_is_told_settings_that_the_job_has(parts):
    with shipped_configs():
        cfg = compose("config", overrides=parts.split())
        advice = memory_advice(cfg, [build_method(variant, cfg) for variant in variants(cfg)])
    assert re.findall(r"[a-z_]+\.[a-z_.=]+", advice) == ADVICE[parts]
    assert advice.startswith(("lower", "set", "choose a smaller model"))


def test_a_number_of_threads_is_that_of_torch_and_of_linear_algebra():
    with threadpool_limits(2):
        use_threads(None)
        assert 2 in {each["num_threads"] for each in threadpool_info()}
        use_threads(1)
        assert {each["num_threads"] for each in threadpool_info()} == {torch.get_num_threads()} == {1}


def test_a_job_computes_float32_convolutions_in_full_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run_job(batched(tmp_path, 2))
    assert not torch.backends.cudnn.allow_tf32
