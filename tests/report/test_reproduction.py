"""The reproduction check on made runs: the published scores with noise, and with deviations that it has to find."""

from __future__ import annotations

import numpy as np
import pytest

from metagame.report.pointing_game import OBJECTS, pointing_game_table
from metagame.report.published import published, published_images, published_means
from metagame.report.reproduction import Block, Comparison, pointing_game_reproduction
from metagame.report.table import without_errors
from tests.tiny.reports import Made, made_up, only, stub_config

ROWS = list(published_means())
CHECKPOINTS = {
    "clip_vitb16": "openai/clip-vit-base-patch16",
    "metaclip2_vith14": "facebook/metaclip-2-worldwide-huge-quickgelu",
    "siglip2_vitb32": "google/siglip2-base-patch32-256",
    "siglip2_vitl16": "google/siglip2-large-patch16-256",
}
"""Of the published rows."""
MASK_CLIP, MASK_SIGLIP = ("clip_vitb16", "mask_clip", True), ("siglip2_vitl16", "mask_siglip", True)
GAMES = list(dict.fromkeys(game for game, _ in published_images()[MASK_CLIP][1]))


def around_means(row, rng):
    """Scores of 50 images a game with the printed means; constant where the first order is .25 of four words."""
    spread = [0.0 if mean == 0.25 else 0.08 for mean in published_means()[row]]
    draws = rng.normal(size=(4, len(GAMES), 50))
    draws -= draws.mean(axis=(1, 2), keepdims=True)
    return {
        m: {(g, str(k)): mean + spread[m - 1] * draws[m - 1, i, k] for i, g in enumerate(GAMES) for k in range(50)}
        for m, mean in enumerate(published_means()[row], 1)
    }


def made(row, change=lambda game, k, m, score: score, noise=0.004, images=50, method=(), name=None):
    """A job whose scores are the published ones, changed and noisy, or around the printed means."""
    rng, (model, base, meta) = np.random.default_rng([0, ROWS.index(row)]), row
    scores = published_images().get(row)
    if scores is None:
        scores, noise = around_means(row, rng), 0.0
    found = {}
    for game, k in (place for place in scores[1] if int(place[1]) < images):
        values = [change(game, int(k), m, scores[m][game, k]) for m in scores]
        own = [v if v == 0.25 else v + noise * rng.normal() for v in values]
        found[f"{game}/{k}"] = Made(dict(zip(OBJECTS, own, strict=True)))
    about = {"label": base, "base": base, "meta": meta, "method": dict(method)}
    cfg = stub_config(
        "unused",
        model={"name": model, "label": model, "checkpoint": CHECKPOINTS[model]},
        attribution=about | {"name": name or ("fixlip_paper" if base == "fixlip" else base)},
        benchmark={"name": "pointing_game"},
        scale__name="paper",
    )
    return only(made_up(cfg, found))


def verdicts(*results):
    return [block.verdict() for block in pointing_game_reproduction(results).blocks]


def test_the_published_scores_with_noise_are_a_reproduction_of_all_26_rows():
    results = [made(row, noise=0.02 if "fixlip" in row else 0.004) for row in ROWS]
    assert set(verdicts(*results)) == {"reproduced"}
    verdict = pointing_game_reproduction(results).verdict
    assert verdict == "Reproduction check: reproduced; 26 of 26 published blocks are compared."
    table = pointing_game_table(results, "paper")
    assert len(table.rows) == 26
    assert all(set(row) == set(OBJECTS) for row in table.published)
    assert all(claim["published"] for claim in table.claims)


def test_an_independent_run_on_other_images_of_the_same_kind_is_told_by_its_correlation_only():
    """Its means agree: images of a scenario are exchanged among themselves."""
    order, scores = np.random.default_rng(1).permutation(50), published_images()[MASK_CLIP]
    (verdict,) = verdicts(made(MASK_CLIP, lambda game, k, m, _: scores[m][game, str(order[k])]))
    assert verdict.startswith("image by image, a correlation of only")
    assert "beyond" not in verdict


def other_order(game, k, m, score):
    return published_images()[MASK_SIGLIP][m][game, str(49 - k)] if game == GAMES[3] else score


def far_off(game, k, m, score):
    return score + (0.05 if game in GAMES[:2] else -0.05 if game in GAMES[2:4] else 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_order, f"other images in {GAMES[3]}"),
        (lambda game, k, m, score: score + 0.03 * (m == 4), "4 objects +0.030"),
        (lambda game, k, m, score: score + 0.015, "2 objects +0.015"),
        (far_off, "differences beyond two standard errors"),
        (lambda game, k, m, score: score - 0.035, "1 object -0.035"),
    ],
    ids=["order of the images of a game", "a column", "everything, a little", "single games", "everything"],
)
def test_one_planted_deviation_is_found_among_the_rows_of_a_model_and_nothing_else(change, told):
    rows = [row for row in ROWS if row[0] == MASK_SIGLIP[0]]
    check = pointing_game_reproduction([made(row, *([change] if row == MASK_SIGLIP else [])) for row in rows])
    (wrong,) = [block.verdict() for block in check.blocks if block.verdict() != "reproduced"]
    assert told in wrong
    assert check.verdict.startswith("Reproduction check: reproduced but for Meta-mask_siglip of siglip2_vitl16 (")


def test_a_run_of_something_else_is_not_a_reproduction():
    check = pointing_game_reproduction([made(row, lambda game, k, m, score: 1 - score) for row in ROWS[:9]])
    assert check.verdict.startswith("Reproduction check: not reproduced: ")


def test_what_cannot_be_compared_is_set_aside_with_its_reason():
    fixlip = made(("clip_vitb16", "fixlip", False), name="fixlip")
    few = made(("clip_vitb16", "grad_eclip", True), images=8)
    check = pointing_game_reproduction([fixlip, few, made(MASK_CLIP, images=8)])
    assert [block.verdict() for block in check.blocks] == [
        "not counted: attribution=fixlip, but the published numbers are of fixlip_paper",
        "not counted: the means can only be compared for all 500 images",
        "reproduced",
    ]
    assert check.verdict.endswith("reproduced; 1 of 7 published blocks are compared.")


def test_a_run_with_other_settings_is_not_compared():
    check = pointing_game_reproduction([made(MASK_CLIP, method={"heads": "native"})])
    assert (check.blocks, check.figure()) == ([], None)
    assert check.verdict.endswith("nothing is compared; 0 of 7 published blocks are compared.")


def test_the_table_names_the_block_and_the_place_that_are_furthest():
    job = made(MASK_SIGLIP, lambda game, k, m, score: score + 0.2 * (game == GAMES[0]) * (m == 2))
    check = pointing_game_reproduction([job])
    (cells,) = check.table("table4", "paper").rows
    assert cells["largest"].startswith(f"{GAMES[0]}, 2 objects: +0.2")
    assert cells["within"] == "39 of 40"
    assert cells["correlation"] > 0.9
    assert len(check.comparisons()) == 40


def test_chance_alone_does_not_make_a_block_deviate():
    """Two independent runs: about 1 % of the blocks have too many differences beyond two standard errors."""
    rng, found, variant = np.random.default_rng(0), 0, made(ROWS[0]).variant
    for _ in range(300):
        comparisons = [Comparison("g", f"{i % 4}", float(each), 0.0, 1.0) for i, each in enumerate(rng.normal(size=40))]
        found += any("beyond" in reason for reason in Block("m", "x", variant, comparisons).deviations())
    assert found <= 10


def test_the_published_answer_of_each_claim_is_that_of_the_published_numbers():
    values = {row: [without_errors(cell) for cell in cells] for row, cells in published_means().items()}
    means = {row: np.mean(each) for row, each in values.items()}
    pairs = [(values[row], values[(*row[:2], False)]) for row in ROWS if row[2]]
    beaten = [ours > theirs for meta, first in pairs for ours, theirs in zip(meta, first, strict=True)]
    best = {model: max(means[row] for row in ROWS if row[0] == model and row[2]) for model in CHECKPOINTS}
    siglips, metaclip = ("siglip2_vitl16", "siglip2_vitb32"), "metaclip2_vith14"
    assert {
        "meta_beats_first_order": (len(beaten), sum(beaten)) == (44, 43),
        "meta_beats_fixlip": all(best[model] > means[model, "fixlip", False] for model in CHECKPOINTS),
        "mask_siglip_is_best": all(
            means[model, "mask_siglip", True] == max(means[row] for row in ROWS if row[0] == model) for model in siglips
        ),
        "attention_beats_grad_eclip": means[metaclip, "generic_attention", True] > means[metaclip, "grad_eclip", True],
    } == dict.fromkeys(published("pointing_game")["claims"], True)
