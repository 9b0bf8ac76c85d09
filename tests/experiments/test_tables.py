"""The experiments of the paper's tables, and those that are not in the paper."""

from __future__ import annotations

import pytest

from tests.experiments.running import experiments, run_experiment


@pytest.mark.parametrize(
    "experiment", sorted({*experiments("")} - {*experiments("figure")} - {*experiments("evidence")})
)
def test_an_experiment_runs_up_to_its_table_and_figure(experiment, folder):
    table = run_experiment(experiment, folder)
    assert table["rows"]
