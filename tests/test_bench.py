"""The speed comparison measures what it says, on a size that takes a moment."""

import pytest

from scripts import bench_concept, bench_vision_language


@pytest.mark.slow
def test_concept_bench_reports_ratio_error_and_memory(monkeypatch):
    monkeypatch.setattr(bench_concept, "CONCEPTS", 6)
    monkeypatch.setattr(bench_concept, "PATCHES", 64)
    result = bench_concept.bench(full=True)
    assert result["error"] < 1e-9
    assert result["ratio"] > 0 < result["ratio_two_products"]
    assert 0 < result["memory"] < 1
    assert set(result["units"]) == {"ratio", "ratio_two_products", "error", "memory"}


@pytest.mark.slow
def test_vision_language_bench_reports_ratio_error_and_memory(monkeypatch):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = {
        "vision_config": small | {"patch_size": 16, "image_size": 64},
        "text_config": small,
        "projection_dim": 16,
    }
    monkeypatch.setitem(bench_vision_language.SHAPES, "small", shape)
    result = bench_vision_language.bench("small", n_images=2, n_reference=2, device="cpu")
    assert result["error"] < 1e-5
    assert result["ratio"] > 1
    assert result["memory"] > 0
    assert {"ratio", "ratio_short_backward", "ratio_to_bare_encoder", "error", "memory"} <= set(result["units"])
    assert set(result["seconds"]) >= {f"ours, {name}" for name in bench_vision_language.METHODS}
