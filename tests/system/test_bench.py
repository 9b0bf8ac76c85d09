"""The speed comparison measures what it says, on a size that takes a moment."""

import numpy as np
import pytest
import torch

from metagame import meta_attributions
from metagame.benchmarks.prompts import review_prompts
from scripts import (
    bench_alti_logit,
    bench_attention_games,
    bench_concept,
    bench_core,
    bench_estimators,
    bench_first_order,
    bench_language,
    bench_patch_ig,
    bench_vision_language,
    compare_estimators,
    compare_fixlip,
    estimator_games,
)


@pytest.mark.slow
def test_concept_bench_reports_ratio_error_and_memory(monkeypatch):
    monkeypatch.setattr(bench_concept, "CONCEPTS", 6)
    monkeypatch.setattr(bench_concept, "PATCHES", 64)
    monkeypatch.setattr(bench_concept, "SIZES", ((8, 64),))
    monkeypatch.setattr(bench_concept, "MOST", (40, 64))
    result = bench_concept.bench(full=True)
    assert result["error"] < 1e-9
    assert result["ratio"] > 0 < result["ratio_two_products"]
    assert 0 < result["memory"] < 1
    assert result["ratio_before_n8"] > 0
    assert result["error_n8"] < 1e-9
    assert result["memory_pairs"] * 1e6 < bench_concept.MEMORY
    assert result["units"].keys() <= result.keys()


def test_attention_games_bench_reports_the_slowest_and_the_residual(monkeypatch):
    monkeypatch.setattr(bench_attention_games, "TOKENS", 6)
    result = bench_attention_games.bench()
    assert result["residual"] < 1e-12
    assert 0 < result["slowest"] < 1
    assert result["units"].keys() <= result.keys()


@pytest.mark.slow
def test_core_bench_reports_ratios_and_error(monkeypatch):
    monkeypatch.setattr(bench_core, "PLAYERS", 6)
    monkeypatch.setattr(bench_core, "TARGETS", (2,))
    result = bench_core.bench()
    assert result["error_t2"] < 1e-12
    assert min(result["ratio_moebius_t2"], result["ratio_before_t2"]) > 0
    assert result["units"].keys() <= result.keys()


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


@pytest.mark.slow
def test_patch_ig_bench_compares_exclip_with_the_product_and_meta_patch_ig_with_fixlip(monkeypatch):
    monkeypatch.setitem(bench_patch_ig.SHAPES, "small", bench_patch_ig.SMALL)
    monkeypatch.setattr(bench_patch_ig, "BUDGETS", (34, 64))
    result = bench_patch_ig.bench("small", 4, ["siglip2_p16"], n_images=1)
    assert result["error"] < 1e-5
    assert result["ratio"] > 0  # a time, of a shape too small to tell
    ours, _, *fixlip = result["measured"]
    assert (ours["products"], ours["forwards"]) == (11, 1)
    assert [each["forwards"] for each in fixlip] == [34, 64]
    assert result["siglip2_p16: Patch IG, left out"] == 0
    assert result.keys() >= result["units"].keys()


@pytest.mark.slow
def test_language_bench_counts_passes_and_reports_ratio_error_and_memory(monkeypatch):
    monkeypatch.setattr(bench_language, "SMALL", (6, 2))
    small = bench_language.bench_small()
    assert small["passes"] == {"ours": 64, "paper": 2 * 6 * 160}
    assert small["ratio"] == 30
    assert small["error"] < 1e-5 < small["error_of_the_paper"] < 0.2
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setitem(bench_language.SHAPES, "small", shape | {"num_key_value_heads": 1, "head_dim": 16})
    monkeypatch.setattr(bench_language, "TIMED_PASSES", 8)
    model = bench_language.random_gemma("small", "cpu", torch.bfloat16, 1024)
    large = bench_language.bench_large(model, "small")
    assert large["ratio_large"] == 1500
    assert large["memory"] > 0
    assert {"ratio", "ratio_large", "error", "memory"} <= set(bench_language.UNITS)


@pytest.mark.slow
def test_first_order_bench_compares_with_bare_passes(monkeypatch):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setitem(bench_alti_logit.SHAPES, "small", small | {"num_key_value_heads": 1, "vocab_size": 300})
    model = bench_alti_logit.random_llama("small", "cpu", "sdpa", bench_first_order.TOKENS_PER_BATCH)
    result = bench_first_order.bench(model, n_players=6, n_steps=2)
    assert min(result["ratio_leave_one_out"], result["ratio_ig"]) > 0
    assert result.keys() >= result["units"].keys()


@pytest.mark.slow
def test_estimators_are_compared_with_the_exact_metagame_and_the_paper(monkeypatch):
    prompts = review_prompts(1, 7, 7)
    monkeypatch.setattr(compare_estimators, "review_prompts", lambda *arguments, **settings: prompts)
    monkeypatch.setattr(compare_estimators, "BUDGETS", (0.2, 2))
    result = compare_estimators.compare(n_prompts=1, n_seeds=1)
    assert result["errors"]["trees, 2 B"] < 1e-8 < result["errors"]["trees, 0.2 B"]
    assert result["error_of_the_paper"] == result["errors"]["paper"]
    axes = compare_estimators.curve_figure(result | {"standard_errors": dict.fromkeys(result["errors"], 0.0)}).axes[0]
    assert axes.get_xlabel().startswith("coalitions in all")


@pytest.mark.slow
def test_games_of_the_comparison_have_the_exact_values_that_they_say():
    rng = np.random.default_rng(0)
    for game in (estimator_games.sparse(rng, 8), estimator_games.parity(8, np.array([1, 4, 6]))):
        exact = meta_attributions(game.play(), "exact", False).values
        assert game.exact == pytest.approx(exact, abs=1e-12)
        assert game.error(1.1 * exact) == pytest.approx(0.1)


@pytest.mark.slow
def test_estimators_are_compared_on_games_with_those_of_shapiq(monkeypatch):
    monkeypatch.setattr(
        compare_estimators, "games", lambda seed: [("a", estimator_games.sparse(np.random.default_rng(seed), 9))]
    )
    monkeypatch.setattr(compare_estimators, "PER_PLAYER", (16,))
    monkeypatch.setattr(compare_estimators, "THEIRS", {"KernelSHAP": (16,), "PermutationSamplingSV": (16,)})
    rows = compare_estimators.compare_games(2)
    assert {row["estimator"] for row in rows} == {*compare_estimators.OURS, "KernelSHAP", "PermutationSamplingSV"}
    assert all(0 < row["error"] < 1 for row in rows)
    (ratio,) = compare_estimators.ratios(rows).values()
    assert 0 < ratio < 2
    assert [panel.get_title() for panel in compare_estimators.games_figure(rows).axes[:1]] == ["a"]


@pytest.mark.slow
def test_growth_of_estimators_is_measured_over_players_targets_and_coalitions(monkeypatch):
    monkeypatch.setattr(bench_estimators, "alone", bench_estimators.measure)
    monkeypatch.setattr(bench_estimators, "LARGE", {"regression": (2, 4)})
    monkeypatch.setattr(bench_estimators, "LARGE_PLAYERS", 12)
    sizes = {"players": [(6, 2, 4)], "targets": [(6, 2, 4)], "coalitions for each player": [(6, 2, 4)]}
    monkeypatch.setattr(bench_estimators, "GROWTH", sizes)
    result = bench_estimators.bench()
    assert {cell["estimator"] for cell in result["cells"]} == set(bench_estimators.ESTIMATORS)
    assert all(cell["memory"] > 0 for cell in result["cells"])
    assert result["ratio_before"] > 1
    assert result.keys() >= result["units"].keys()
    assert len(bench_estimators.growth_figure(result).axes) == 3


@pytest.mark.slow
def test_designs_of_fixlip_are_compared_by_their_image_forwards(tmp_path, monkeypatch):
    designs = {"paper": (compare_fixlip.paper, (2048,)), "crossed": (compare_fixlip.crossed, (256,))}
    designs["generalised regression"] = (compare_fixlip.regression, (64, 2048))
    monkeypatch.setattr(compare_fixlip, "FOLDER", tmp_path)
    monkeypatch.setattr(compare_fixlip, "DESIGNS", designs)
    result = compare_fixlip.compare(["siglip2_p16"], n_images=1, n_seeds=1, n_masks=8192)
    assert result["siglip2_p16: ratio"] > 5
    assert abs(result["siglip2_p16: bias"]) < 0.02
    errors = {(each["design"], each["budget"]): each["error"] for each in result["measured"]}
    assert errors["generalised regression", 2048] < errors["crossed", 256] < errors["paper", 2048]
    forwards = {(each["design"], each["budget"]): each["forwards"] for each in result["measured"]}
    assert forwards["paper", 2048] > forwards["generalised regression", 2048] / 2
    assert forwards["crossed", 256] == 256
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(compare_fixlip, "encoded", None)
    assert len(compare_fixlip.load_pool("siglip2_p16", 0, 8192).masks) == 8192
    assert kept.name.startswith("siglip2_p16_0_8192_")
    measured = [compare_fixlip.Measured(**each) for each in result["measured"]]
    above, below = compare_fixlip.draw(measured, ["siglip2_p16"]).axes
    assert (len(above.lines), below.get_xlabel()) == (3, "image forward passes")
