from __future__ import annotations

from functools import partial

import pytest
import torch

from scripts import bench_diffusion
from tests.tiny.jobs import ROOT


@pytest.mark.slow
def test_diffusion_bench_counts_passes_and_reports_ratios_error_and_memory(monkeypatch):
    small = {"in_channels": 4, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12}
    monkeypatch.setattr(bench_diffusion, "SHAPE", small | {"pooled_projection_dim": 6, "axes_dims_rope": (2, 2, 4)})
    monkeypatch.setattr(bench_diffusion, "SIDE", 8)
    monkeypatch.setattr(bench_diffusion, "TEXT", 4)
    monkeypatch.setattr(bench_diffusion, "PLAYERS", 7)
    monkeypatch.setattr(bench_diffusion, "bench_cells", partial(bench_diffusion.bench_cells, n_images=1))
    monkeypatch.chdir(ROOT)
    result = bench_diffusion.bench(1, "cpu", torch.float32)
    assert result["error"] < 1e-5
    assert result["error"] >= result["error_cells"]
    assert min(result[name] for name in ("ratio", "ratio_image", "metagame_share", "images_per_second", "memory")) > 0
    # two prompts an image, against a pass for each of twelve cells and two methods
    assert result["passes_cells"] == 12
    assert set(result["units"]) <= set(result)
    assert len(result["seconds"]) == 8
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert result["what"].endswith("(1 of 19 blocks timed, cpu, float32)")
