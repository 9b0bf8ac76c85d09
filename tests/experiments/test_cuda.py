"""On a GPU, each experiment runs up to its table, whose numbers are close to those of a CPU."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from tests.experiments.running import experiments, run_experiment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PAINTS = ("figure4", "figure13", "table3")
"""Experiments with a FLUX, whose noise is drawn on its device."""
WITHOUT_A_DEVICE = ("figure1", "figure5", "figure6", "table1")
TOLERANCE = 0.05
"""Of a number in a table; two devices round differently, and an estimator may decide a near tie otherwise."""


def numbers(table):
    """All numbers of the rows, by row and column."""
    found = {}
    for row, cells in enumerate(table["rows"]):
        for column, cell in cells.items():
            for part, value in (cell if isinstance(cell, dict) else {"": cell}).items():
                with suppress(TypeError, ValueError):
                    found[row, column, part] = float(value)
    return {key: value for key, value in found.items() if "second" not in key[1]}


@pytest.mark.parametrize("experiment", sorted({*experiments("")} - {*experiments("evidence"), *WITHOUT_A_DEVICE}))
def test_a_table_made_on_a_gpu_is_close_to_that_of_a_cpu(experiment, folder):
    noise = ("model.denoising.noise=cpu",) if experiment in PAINTS else ()
    on_cpu, on_gpu = (
        numbers(run_experiment(experiment, folder / device, f"model.device={device}", *noise))
        for device in ("cpu", "cuda")
    )
    assert on_gpu
    assert on_cpu.keys() == on_gpu.keys()
    assert on_gpu == pytest.approx(on_cpu, abs=TOLERANCE, rel=TOLERANCE, nan_ok=True)
