"""The speed comparisons measure what they say, on sizes that take a moment."""

from __future__ import annotations

from functools import partial

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
    bench_diffusion,
    bench_estimators,
    bench_first_order,
    bench_language,
    bench_patch_ig,
    bench_vision_language,
    compare_estimators,
    compare_fixlip,
    estimator_games,
)
from tests.tiny.jobs import ROOT

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def changed(monkeypatch):
    """Other sizes of a script."""

    def change(script, **sizes):
        for name, value in sizes.items():
            monkeypatch.setattr(script, name, value)

    return change


def checked(result):
    """The result, of which everything that is said to have a unit is a part."""
    assert result["units"].keys() <= result.keys()
    return result


def test_concept_bench_reports_ratio_error_and_memory(changed):
    changed(bench_concept, CONCEPTS=6, PATCHES=64, SIZES=((8, 64),), MOST=(40, 64))
    result = checked(bench_concept.bench(full=True))
    assert max(result["error"], result["error_n8"]) < 1e-9
    assert min(result[f"ratio{which}"] for which in ("", "_two_products", "_before_n8")) > 0
    assert 0 < result["memory"] < 1
    assert result["memory_pairs"] * 1e6 < bench_concept.MEMORY


def test_attention_games_bench_reports_the_slowest_and_the_residual(changed):
    changed(bench_attention_games, TOKENS=6)
    result = checked(bench_attention_games.bench())
    assert result["residual"] < 1e-12
    assert 0 < result["slowest"] < 1


def test_core_bench_reports_ratios_and_error(changed):
    changed(bench_core, PLAYERS=6, TARGETS=(2,))
    result = checked(bench_core.bench())
    assert result["error_t2"] < 1e-12
    assert min(result["ratio_moebius_t2"], result["ratio_before_t2"]) > 0


def test_vision_language_bench_reports_ratio_error_and_memory(changed):
    vision = SMALL | {"patch_size": 16, "image_size": 64}
    shape = {"vision_config": vision, "text_config": SMALL, "projection_dim": 16}
    changed(bench_vision_language, SHAPES={"small": shape})
    result = bench_vision_language.bench("small", n_images=2, n_reference=2, device="cpu")
    assert result["error"] < 1e-5
    assert result["ratio"] > 1
    assert result["memory"] > 0
    assert {"ratio", "ratio_short_backward", "ratio_to_bare_encoder", "error", "memory"} <= set(result["units"])
    assert set(result["seconds"]) >= {f"ours, {name}" for name in bench_vision_language.METHODS}


def test_patch_ig_bench_compares_exclip_with_the_product_and_meta_patch_ig_with_fixlip(changed):
    changed(bench_patch_ig, SHAPES={"small": bench_patch_ig.SMALL}, BUDGETS=(34, 64))
    result = checked(bench_patch_ig.bench("small", 4, ["siglip2_p16"], n_images=1))
    assert result["error"] < 1e-5
    assert result["ratio"] > 0  # a time, of a shape too small to tell
    ours, _, *fixlip = result["measured"]
    assert (ours["products"], ours["forwards"]) == (11, 1)
    assert [each["forwards"] for each in fixlip] == [34, 64]
    assert result["siglip2_p16: Patch IG, left out"] == 0


def test_language_bench_counts_passes_and_reports_ratio_error_and_memory(changed):
    changed(bench_language, SMALL=(6, 2), TIMED_PASSES=8)
    small = bench_language.bench_small()
    assert small["passes"] == {"ours": 64, "paper": 2 * 6 * 160}
    assert small["ratio"] == 30
    assert small["error"] < 1e-5 < small["error_of_the_paper"] < 0.2
    changed(bench_language, SHAPES={"small": SMALL | {"num_key_value_heads": 1, "head_dim": 16}})
    model = bench_language.random_gemma("small", "cpu", torch.bfloat16, 1024)
    large = bench_language.bench_large(model, "small")
    assert large["ratio_large"] == 1500
    assert large["memory"] > 0
    assert {"ratio", "ratio_large", "error", "memory"} <= set(bench_language.UNITS)


def test_first_order_bench_compares_with_bare_passes(changed):
    changed(bench_alti_logit, SHAPES={"small": SMALL | {"num_key_value_heads": 1, "vocab_size": 300}})
    model = bench_alti_logit.random_llama("small", "cpu", "sdpa", bench_first_order.TOKENS_PER_BATCH)
    result = checked(bench_first_order.bench(model, n_players=6, n_steps=2))
    assert min(result["ratio_leave_one_out"], result["ratio_ig"]) > 0


def test_diffusion_bench_counts_passes_and_reports_ratios_error_and_memory(changed, monkeypatch):
    shape = {
        "in_channels": 4, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12,
        "pooled_projection_dim": 6, "axes_dims_rope": (2, 2, 4),
    }  # fmt: skip
    cells = partial(bench_diffusion.bench_cells, n_images=1)
    changed(bench_diffusion, SHAPE=shape, SIDE=8, TEXT=4, PLAYERS=7, bench_cells=cells)
    monkeypatch.chdir(ROOT)
    result = checked(bench_diffusion.bench(1, "cpu", torch.float32))
    assert result["error_cells"] <= result["error"] < 1e-5
    assert min(result[name] for name in ("ratio", "ratio_image", "metagame_share", "images_per_second", "memory")) > 0
    # two prompts an image, against a pass for each of twelve cells and two methods
    assert result["passes_cells"] == 12
    assert (len(result["seconds"]), min(result["seconds"].values()) > 0) == (8, True)
    assert result["what"].endswith("(1 of 19 blocks timed, cpu, float32)")


def test_estimators_are_compared_with_the_exact_metagame_and_the_paper(changed):
    prompts = review_prompts(1, 7, 7)
    changed(compare_estimators, review_prompts=lambda *arguments, **settings: prompts, BUDGETS=(0.2, 2))
    result = compare_estimators.compare(n_prompts=1, n_seeds=1)
    assert result["errors"]["trees, 2 B"] < 1e-8 < result["errors"]["trees, 0.2 B"]
    assert result["error_of_the_paper"] == result["errors"]["paper"]


def test_games_of_the_comparison_have_the_exact_values_that_they_say():
    rng = np.random.default_rng(0)
    for game in (estimator_games.sparse(rng, 8), estimator_games.parity(8, np.array([1, 4, 6]))):
        exact = meta_attributions(game.play(), "exact", False).values
        assert game.exact == pytest.approx(exact, abs=1e-12)
        assert game.error(1.1 * exact) == pytest.approx(0.1)


def test_estimators_are_compared_on_games_with_those_of_shapiq(changed):
    theirs = {"KernelSHAP": (16,), "PermutationSamplingSV": (16,)}
    games = lambda seed: [("a", estimator_games.sparse(np.random.default_rng(seed), 9))]  # noqa: E731
    changed(compare_estimators, games=games, PER_PLAYER=(16,), THEIRS=theirs)
    rows = compare_estimators.compare_games(2)
    assert {row["estimator"] for row in rows} == {*compare_estimators.OURS, *theirs}
    assert all(0 < row["error"] < 1 for row in rows)
    (ratio,) = compare_estimators.ratios(rows).values()
    assert 0 < ratio < 2
    assert [panel.get_title() for panel in compare_estimators.games_figure(rows).axes[:1]] == ["a"]


def test_growth_of_estimators_is_measured_over_players_targets_and_coalitions(changed):
    sizes = {name: [(6, 2, 4)] for name in ("players", "targets", "coalitions for each player")}
    changed(bench_estimators, alone=bench_estimators.measure, LARGE={"regression": (2, 4)}, LARGE_PLAYERS=12)
    changed(bench_estimators, GROWTH=sizes)
    result = checked(bench_estimators.bench())
    assert {cell["estimator"] for cell in result["cells"]} == set(bench_estimators.ESTIMATORS)
    assert all(cell["memory"] > 0 for cell in result["cells"])
    assert result["ratio_before"] > 1
    assert len(bench_estimators.growth_figure(result).axes) == 3


def test_designs_of_fixlip_are_compared_by_their_image_forwards(tmp_path, changed):
    designs = {
        "paper": (compare_fixlip.paper, (2048,)),
        "crossed": (compare_fixlip.crossed, (256,)),
        "generalised regression": (compare_fixlip.regression, (64, 2048)),
    }
    changed(compare_fixlip, FOLDER=tmp_path, DESIGNS=designs)
    result = compare_fixlip.compare(["siglip2_p16"], n_images=1, n_seeds=1, n_masks=8192)
    assert result["siglip2_p16: ratio"] > 5
    assert abs(result["siglip2_p16: bias"]) < 0.02
    errors, forwards = (
        {(each["design"], each["budget"]): each[name] for each in result["measured"]} for name in ("error", "forwards")
    )
    assert errors["generalised regression", 2048] < errors["crossed", 256] < errors["paper", 2048]
    assert forwards["paper", 2048] > forwards["generalised regression", 2048] / 2
    assert forwards["crossed", 256] == 256
    (kept,) = tmp_path.iterdir()
    changed(compare_fixlip, encoded=None)
    assert len(compare_fixlip.load_pool("siglip2_p16", 0, 8192).masks) == 8192
    assert kept.name.startswith("siglip2_p16_0_8192_")
    measured = [compare_fixlip.Measured(**each) for each in result["measured"]]
    above, below = compare_fixlip.draw(measured, ["siglip2_p16"]).axes
    assert (len(above.lines), below.get_xlabel()) == (3, "image forward passes")
