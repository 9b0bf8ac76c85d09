"""The experiments of the paper's tables, and of pairs that are deleted."""

from __future__ import annotations

import gc

import pytest

from tests.experiments.running import experiments, run_experiment
from tests.tiny.jobs import shipped_configs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    gc.collect()
    gc.freeze()  # each job looks for garbage: let it search its own only
    with shipped_configs():
        yield tmp_path_factory.mktemp("outputs")
    gc.unfreeze()


@pytest.mark.parametrize("experiment", [*experiments("table"), *experiments("pair")])
def test_an_experiment_runs_up_to_its_table_and_figure(experiment, folder):
    table = run_experiment(experiment, folder)
    assert table["rows"]
