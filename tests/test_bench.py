"""The speed comparison measures what it says, on a size that takes a moment."""

import pytest

from scripts import bench_concept


@pytest.mark.slow
def test_concept_bench_reports_ratio_error_and_memory(monkeypatch):
    monkeypatch.setattr(bench_concept, "CONCEPTS", 6)
    monkeypatch.setattr(bench_concept, "PATCHES", 64)
    result = bench_concept.bench(full=True)
    assert result["error"] < 1e-9
    assert result["ratio"] > 0 < result["ratio_two_products"]
    assert 0 < result["memory"] < 1
    assert set(result["units"]) == {"ratio", "ratio_two_products", "error", "memory"}
