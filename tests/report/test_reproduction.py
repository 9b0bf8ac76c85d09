"""The reproduction check on made runs: the published scores with noise, and with deviations that it has to find."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from metagame.jobs.records import Record
from metagame.jobs.spec import variants
from metagame.report.pointing_game import OBJECTS, pointing_game_table
from metagame.report.published import published, published_images, published_means
from metagame.report.reproduction import Block, Comparison, Reproduction, pointing_game_reproduction
from metagame.report.results import JobResult
from metagame.report.table import without_errors

ROWS = list(published_means())
CHECKPOINTS = {
    "clip_vitb16": "openai/clip-vit-base-patch16",
    "metaclip2_vith14": "facebook/metaclip-2-worldwide-huge-quickgelu",
    "siglip2_vitb32": "google/siglip2-base-patch32-256",
    "siglip2_vitl16": "google/siglip2-large-patch16-256",
}
"""Of the published rows."""
GAMES = list(dict.fromkeys(game for game, _ in published_images()["clip_vitb16", "mask_clip", True][1]))


def made(row, change=lambda game, k, m, score: score, noise=0.004, images=50, method=(), seed=0, name=None):
    """A job whose scores are the published ones, changed and noisy, or around the printed means."""
    rng = np.random.default_rng([seed, ROWS.index(row)])
    model, base, meta = row
    name = name or ("fixlip_paper" if base == "fixlip" else base)
    node = {"name": name, "label": base, "family": "x", "base": base, "meta": meta, "method": dict(method)}
    config = OmegaConf.create({"name": "table2", "seed": 0, "limit": None, "scale": {"name": "paper"}})
    weights = {"name": model, "label": model, "checkpoint": CHECKPOINTS[model]}
    config = OmegaConf.merge(config, {"model": weights, "attribution": node, "benchmark": {"name": "pointing_game"}})
    scores = published_images().get(row)
    if scores is None:  # constant where the first order is .25 of four words
        spread = [0.0 if mean == 0.25 else 0.08 for mean in published_means()[row]]
        draws = rng.normal(size=(4, len(GAMES), 50))
        draws -= draws.mean(axis=(1, 2), keepdims=True)
        scores = {
            m: {(g, str(k)): mean + spread[m - 1] * draws[m - 1, i, k] for i, g in enumerate(GAMES) for k in range(50)}
            for m, mean in enumerate(published_means()[row], 1)
        }
        noise = 0.0
    places = [place for place in scores[1] if int(place[1]) < images]
    records = []
    for game, k in places:
        values = [change(game, int(k), m, scores[m][game, k]) for m in scores]
        own = [v if v == 0.25 else v + noise * rng.normal() for v in values]
        records.append(Record(f"{game}{k}", f"{game}/{k}", "done", scores=dict(zip(OBJECTS, own, strict=True))))
    (variant,) = variants(config)
    ids = [record.sample for record in records]
    identity = {"model": {"name": model}, "benchmark": {}, "attribution": {"": node}}
    return JobResult(config, variant, Path("unused"), identity, ids, records, 0, variant.label)


def answer(results):
    check = pointing_game_reproduction(results)
    return {block.variant.name or block.name: block.verdict() for block in check.blocks}, check


@pytest.mark.parametrize("seed", range(2))
def test_the_published_scores_with_noise_are_a_reproduction_of_all_26_rows(seed):
    verdicts, check = answer([made(row, noise=0.02 if "fixlip" in row else 0.004, seed=seed) for row in ROWS])
    assert set(verdicts.values()) == {"reproduced"}
    assert check.verdict == "Reproduction check: reproduced; 26 of 26 published blocks are compared."


def test_an_independent_run_on_other_images_of_the_same_kind_is_told_by_its_correlation_only():
    """Its means agree: images of a scenario are exchanged among themselves."""
    row = ("clip_vitb16", "mask_clip", True)
    order = np.random.default_rng(1).permutation(50)
    scores = published_images()[row]
    (verdict,) = answer([made(row, lambda game, k, m, _: scores[m][game, str(order[k])])])[0].values()
    assert verdict.startswith("image by image, a correlation of only")
    assert "beyond" not in verdict


def swapped(row):
    scores = published_images()[row]
    return lambda game, k, m, score: scores[m][game, str(49 - k)] if game == GAMES[3] else score


DEVIATIONS = {
    "one game has its images in another order": (swapped, f"other images in {GAMES[3]}"),
    "a column is shifted": (lambda _: lambda game, k, m, score: score + 0.03 * (m == 4), "4 objects +0.030"),
    "a small shift everywhere": (lambda _: lambda game, k, m, score: score + 0.015, "2 objects +0.015"),
    "single games are far off": (
        lambda _: lambda game, k, m, score: score + (0.05 if game in GAMES[:2] else -0.05 if game in GAMES[2:4] else 0),
        "differences beyond two standard errors",
    ),
    "native heads in place of one": (lambda _: lambda game, k, m, score: score - 0.035, "1 object -0.035"),
}  # fmt: skip


@pytest.mark.parametrize("case", DEVIATIONS)
def test_one_planted_deviation_is_found_among_the_rows_of_a_model_and_nothing_else(case):
    change, told = DEVIATIONS[case]
    bad = ("siglip2_vitl16", "mask_siglip", True)
    rows = [row for row in ROWS if row[0] == bad[0]]
    verdicts, check = answer([made(row, *([change(row)] if row == bad else [])) for row in rows])
    wrong = {name: verdict for name, verdict in verdicts.items() if verdict != "reproduced"}
    assert len(wrong) == 1
    assert told in next(iter(wrong.values()))
    assert check.verdict.startswith("Reproduction check: reproduced but for Meta-mask_siglip of siglip2_vitl16 (")


def test_a_run_of_something_else_is_not_a_reproduction():
    _, check = answer([made(row, lambda game, k, m, score: 1 - score) for row in ROWS[:9]])
    assert check.verdict.startswith("Reproduction check: not reproduced: ")


def test_what_cannot_be_compared_is_set_aside_with_its_reason():
    fixlip = made(("clip_vitb16", "fixlip", False), name="fixlip")
    few = made(("clip_vitb16", "grad_eclip", True), images=8)
    check = pointing_game_reproduction([fixlip, few, made(("clip_vitb16", "mask_clip", True), images=8)])
    assert [block.verdict() for block in check.blocks] == [
        "not counted: attribution=fixlip, but the published numbers are of fixlip_paper",
        "not counted: the means can only be compared for all 500 images",
        "reproduced",
    ]
    assert check.verdict.endswith("reproduced; 1 of 7 published blocks are compared.")
    native = pointing_game_reproduction([made(("clip_vitb16", "mask_clip", True), method={"heads": "native"})])
    assert native.blocks == []
    assert "nothing is compared" in native.verdict
    assert native.figure() is None


def test_the_table_names_the_block_and_the_place_that_are_furthest():
    row = ("siglip2_vitl16", "mask_siglip", True)
    check = pointing_game_reproduction([made(row, lambda game, k, m, s: s + 0.2 * (game == GAMES[0]) * (m == 2))])
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


@pytest.mark.parametrize("claim", published("pointing_game")["claims"])
def test_the_published_answer_of_each_claim_is_that_of_the_published_numbers(claim):
    means = {row: [without_errors(cell) for cell in cells] for row, cells in published_means().items()}
    answers = {}
    pairs = [(means[row], means[(*row[:2], False)], row) for row in means if row[2]]
    beaten = [(row, m) for meta, first, row in pairs for m in range(4) if meta[m] > first[m]]
    answers["meta_beats_first_order"] = len(pairs) * 4 == 44 and len(beaten) == 43
    models = {row[0] for row in means}
    best = {model: max(np.mean(v) for row, v in means.items() if row[0] == model and row[2]) for model in models}
    answers["meta_beats_fixlip"] = all(best[model] > np.mean(means[model, "fixlip", False]) for model in models)
    siglips = ["siglip2_vitl16", "siglip2_vitb32"]
    answers["mask_siglip_is_best"] = all(
        np.mean(means[model, "mask_siglip", True]) == max(np.mean(v) for row, v in means.items() if row[0] == model)
        for model in siglips
    )
    metaclip = "metaclip2_vith14"
    answers["attention_beats_grad_eclip"] = np.mean(means[metaclip, "generic_attention", True]) > np.mean(
        means[metaclip, "grad_eclip", True]
    )
    assert answers[claim]


def test_other_weights_of_a_published_models_name_are_not_compared():
    job = made(("clip_vitb16", "mask_clip", True))
    job.config.model.checkpoint = "openai/clip-vit-large-patch14"
    check = pointing_game_reproduction([job])
    assert check.blocks == []
    assert check.verdict.endswith("nothing is compared; 0 of 0 published blocks are compared.")


def test_all_26_rows_stand_beside_ours():
    table = pointing_game_table([made(row) for row in ROWS], "paper")
    assert len(table.rows) == 26
    assert all(set(row) == set(OBJECTS) for row in table.published)
    assert all(claim["published"] for claim in table.claims)
    assert Reproduction([], 0).verdict.startswith("Reproduction check: nothing is compared")
