"""Tables 2 and 4 and Figure 7 from records that are written here."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from omegaconf import OmegaConf

from metagame.benchmarks.pointing_game import recognition
from metagame.report import pointing_game
from metagame.report.maps import TOP, edge_scale
from metagame.report.pointing_game import OBJECTS, pointing_game_table
from metagame.report.published import published
from metagame.report.reproduction import pointing_game_reproduction
from metagame.report.scores import clustered_cell
from metagame.report.table import markdown, without_errors
from tests.conftest import close
from tests.tiny.benchmarks import explained
from tests.tiny.reports import Made, drawn, figure_of, made_up, noted, only, panels, stub_config

scenes_figure = figure_of(pointing_game.scenes_figure)
CLASSES = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
GAMES = ["zero-one-two-three", "four-three-two-one"]
CLAIMS = {each["claim"]: name for name, each in published("pointing_game")["claims"].items()}
CLIP, METACLIP, LARGE, SMALL = "clip_vitb16", "metaclip2_vith14", "siglip2_vitl16", "siglip2_vitb32"
LABELS = {CLIP: "CLIP", METACLIP: "MetaCLIP-2", LARGE: "SigLIP-2 (L/16)", SMALL: "SigLIP-2 (B/32)"}
WEIGHTS = {CLIP: "clip", METACLIP: "metaclip2", LARGE: "siglip2_p8", SMALL: "siglip2_p16"}
"""The shipped checkpoints of the tiny scale, in ``data/tiny``."""


def result(attribution="grad_eclip", scores=(0.5,), model=CLIP, *, failed=(), missing=0, seed=0, played=(), **changes):
    """A job: of image k of the game ``a-b-c-d`` its scores, a number for all four scenarios or four of them.

    Args:
        failed, missing: images without a score.
        seed, played: of its config: the seed, settings of the benchmark.
        changes: ``meta``, ``folder``, or arguments of the method.
    """
    base = attribution.removeprefix("meta_")
    meta, folder = changes.pop("meta", attribution != base), changes.pop("folder", "unused")
    cfg = stub_config(
        folder,
        name="table2",
        model={"name": model, "label": LABELS[model], "checkpoint": f"data/tiny/{WEIGHTS[model]}"},
        attribution={"name": attribution, "label": base.upper(), "base": base, "meta": meta, "method": changes},
        benchmark={"name": "pointing_game", **dict(played)},
        seed=seed,
    )
    fours = [score if isinstance(score, list) else [score] * 4 for score in scores]
    made = {f"a-b-c-d/{k}": Made(dict(zip(OBJECTS, four, strict=True))) for k, four in enumerate(fours)}
    ids = [[f"a-b-c-d/{k}" for k in each] for each in (failed, range(len(fours), len(fours) + missing))]
    return only(made_up(cfg, made, *ids))


def other(job, **config):
    """The same results of another config."""
    return replace(job, config=OmegaConf.merge(job.config, config))


def tiny_table(*results):
    return pointing_game_table(list(results), "tiny")


def test_a_row_is_the_mean_over_images_with_two_standard_errors():
    scores = [[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.5, 0.9], [0.2, 0.2, 0.1, 0.2]]
    row, single = tiny_table(result(scores=scores), result("mask_clip", [0.5])).rows
    assert (row["model"], row["method"], row["n"]) == ("CLIP", "GRAD_ECLIP", 3)
    for key, values in zip(OBJECTS, np.transpose(scores), strict=True):
        spread = 2 * np.sqrt(((values - values.mean()) ** 2).sum() / 2) / np.sqrt(3)
        assert close(row[key]["mean"], values.mean(), 1e-6)
        assert close(row[key]["two_se"], spread, 1e-6)
        assert row[key]["n"] == 3
    assert single["objects_1"] == {"mean": 0.5, "two_se": None, "n": 1}


def test_errors_are_clustered_by_image_within_games():
    """Image k in two games, against the same by a loop; equal in both games, it counts as one."""
    rng = np.random.default_rng(0)
    by_image, noise = rng.normal(size=20), 0.1 * rng.normal(size=(2, 20))
    values = {(f"g{g}", str(k)): by_image[k] + g + noise[g, k] for g in range(2) for k in range(20)}
    cell = clustered_cell(values)
    means = [(values["g0", str(k)] + values["g1", str(k)]) / 2 for k in range(20)]
    assert cell["two_se"] == pytest.approx(2 * np.std(means, ddof=1) / np.sqrt(20), abs=1e-6)
    assert (cell["n"], cell["mean"]) == (40, pytest.approx(np.mean(means), abs=1e-6))
    assert clustered_cell({("g0", "1"): 1.0, ("g1", "1"): 2.0})["two_se"] is None
    assert clustered_cell({}) is None


def test_images_whose_maps_are_zero_are_left_out_and_counted():
    table = tiny_table(result(scores=[[0.5, None, None, 0.1], [0.7, 0.3, None, 0.1], 0.6]), result("mask_clip"))
    row = table.rows[0]
    assert [row[key]["n"] for key in OBJECTS] == [3, 2, 1, 3]
    assert (row["objects_2"]["mean"], row["objects_3"]["mean"]) == (0.45, 0.6)
    assert noted(table, "zero") == ["GRAD_ECLIP of CLIP: left out, because all maps are zero: 0, 1, 2, 0 images."]
    nothing = tiny_table(result(scores=[[0.5, 0.5, 0.5, None]]))
    assert nothing.rows[0]["objects_4"] is None
    assert "–" in markdown(nothing)


def test_rows_come_in_the_order_of_the_jobs_with_the_number_of_their_finished_images():
    metaclip = result("meta_grad_eclip", [0.1] * 2, METACLIP, missing=2)
    table = tiny_table(metaclip, result(scores=[0.1] * 5, failed=[5]), result("fixlip", [], failed=[0]))
    rows = [(row["model"], row["method"], row["n"]) for row in table.rows]
    assert rows == [("MetaCLIP-2", "Meta-GRAD_ECLIP", 2), ("CLIP", "GRAD_ECLIP", 5), ("CLIP", "FIXLIP", 0)]
    assert {table.rows[2][key] for key in OBJECTS} == {None}
    assert table.n_samples == 5
    assert "GRAD_ECLIP of CLIP: sample a-b-c-d/5 failed: no memory for a-b-c-d/5" in table.notes
    assert "Meta-GRAD_ECLIP of MetaCLIP-2: 2 of 4 samples not computed yet." in table.notes


PUBLISHED = {
    "metagame": ([0.84, 0.87, 0.89, 0.90], result("meta_generic_attention")),
    "first-order config with a metagame": ([0.84, 0.87, 0.89, 0.90], result("generic_attention", meta=True)),
    "first order": ([0.84, 0.45, 0.32, 0.25], result("generic_attention", model=METACLIP)),
    "authors' images": ([0.296, 0.280, 0.265, 0.250], result("mask_clip")),
    "Table 4": ([0.876, 0.884, 0.883, 0.864], result("meta_mask_siglip", model=LARGE)),
    "not published": (None, result("meta_fixlip")),
    "other heads": (None, result("mask_clip", heads="native")),
    "other product": (None, result("generic_attention", product="mean_of")),
}


@pytest.mark.parametrize(("values", "job"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_values_stand_beside_the_rows_they_belong_to(values, job):
    (row,) = pointing_game_table([job], "paper").published
    means = {key: without_errors(cell) for key, cell in row.items()}
    assert means == ({} if values is None else pytest.approx(dict(zip(OBJECTS, values, strict=True)), abs=5.1e-4))


@pytest.mark.parametrize(
    ("changes", "shown", "n_known"),
    [
        ({}, True, 7),
        ({"model": {"checkpoint": "/data/clip-vit-base-patch16"}}, True, 7),
        ({"benchmark": {"games": ["fish-koala-balloon-laptop"]}}, True, 7),
        ({"model": {"checkpoint": "openai/clip-vit-large-patch14"}}, False, 0),
        ({"benchmark": {"games": ["fish-koala-balloon-laptop", "a-b-c-d"]}}, False, 7),
    ],
    ids=["as shipped", "a folder", "some games", "other checkpoint", "other games"],
)
def test_published_values_at_paper_scale_are_beside_the_models_and_games_that_they_are_of(changes, shown, n_known):
    job = other(result("mask_clip"), scale={"name": "paper"}, model={"checkpoint": "openai/clip-vit-base-patch16"})
    job = other(job, **changes)
    table = pointing_game_table([job], "paper")
    assert [bool(values) for values in table.published] == [shown]
    assert pointing_game_reproduction([job]).known == n_known


def test_other_weights_are_told_beside_the_published_values_of_another_row():
    own = other(result("mask_clip"), model={"checkpoint": "data/mine", "label": "mine"})
    table = tiny_table(result("mask_clip"), own)
    assert [bool(values) for values in table.published] == [True, False]
    assert noted(table, "This run has model.checkpoint=data/mine.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "This run has the same."),
        ({"heads": "one", "product": "of_means"}, "This run has the same."),
        ({"heads": "native", "product": "mean_of"}, "This run has heads=native, product=mean_of."),
        ({"attribution": "fixlip"}, "This run has attribution=fixlip."),
    ],
)
def test_the_table_says_with_which_settings_published_values_were_made_and_which_this_run_has(changes, said):
    notes = noted(pointing_game_table([result(), result(**changes)], "paper"), said)
    assert [note for note in notes if note.startswith("Published values were made with heads=one")]


def test_rows_that_are_not_in_the_paper_are_named_and_its_claims_are_not_about_them():
    paper = [meta_eclip(0.4, 0.4), fixlip(0.5, 0.5)]
    table = tiny_table(*paper, result("meta_patch_ig", [0.6, 0.6]), result("exclip", [0.7, 0.7]))
    assert noted(table, "Not in the paper: Meta-PATCH_IG, EXCLIP.")
    held = {CLAIMS.get(claim["claim"]): claim["holds"] for claim in table.claims}
    assert held["meta_beats_fixlip"] is claims(paper)["meta_beats_fixlip"] is False
    own = [claim for claim in table.claims if claim["claim"].startswith("not in the paper")]
    assert [(each["holds"], each["published"]) for each in own] == [(True, None)]
    assert "Meta-PATCH_IG - FIXLIP, CLIP: +0.100" in own[0]["difference"]
    assert not noted(tiny_table(*paper), "ot in the paper")


def test_a_table_says_nothing_of_what_it_does_not_show():
    """Of a metagame alone there is no claim to decide; without published values there is no note about them."""
    table = tiny_table(result("meta_grad_eclip", model=METACLIP))
    assert table.claims == []
    assert not noted(table, "Claims")
    assert noted(table, "Published values are of the real models")
    assert not noted(pointing_game_table([result()], "paper"), "Published values are of the real models")
    assert not noted(tiny_table(result("patch_ig")), "ublished values")


def twice(result):
    """Each image once more, under another number: two equal images decide what one alone does not."""
    again = [replace(record, sample=f"a-b-c-d/{100 + k}") for k, record in enumerate(result.records)]
    return replace(result, records=[*result.records, *again])


def claims(results):
    """What the claims are answered with, by name."""
    return {CLAIMS[claim["claim"]]: claim["holds"] for claim in tiny_table(*map(twice, results)).claims}


def pair(first, meta, model=CLIP, **settings):
    """Grad-ECLIP and its metagame."""
    return [result("grad_eclip", [first], model, **settings), result("meta_grad_eclip", [meta], model, **settings)]


def meta_eclip(*scores, model=CLIP):
    return result("meta_grad_eclip", scores, model)


def meta_mask(*scores):
    return result("meta_mask_clip", scores)


def fixlip(*scores, model=CLIP, **settings):
    return result("fixlip", scores, model, **settings)


def on_both(large, small):
    rivals = [result("meta_generic_attention", [0.5], model) for model in (LARGE, SMALL)]
    return [*rivals, result("meta_mask_siglip", [large], LARGE), result("meta_mask_siglip", [small], SMALL)]


def against(rival, *scores, mask=(0.6,)):
    return [result("meta_mask_siglip", mask, LARGE), result(rival, scores, LARGE)]


def on_metaclip(attention, eclip):
    return [result("meta_generic_attention", [attention], METACLIP), meta_eclip(eclip, model=METACLIP)]


GAP, NO_SCORE = [0.3, 0.3, 0.3, None], [0.9, 0.9, 0.9, None]
FEWER = {"n_games": 3, "n_images": 10, "played": ["a-b-c-d"]}
FIRST_ORDER = {
    "larger": (True, pair(0.3, 0.5)),
    "smaller": (False, pair(0.5, 0.3)),
    "equal": (None, pair(0.5, 0.5)),
    "smaller in one column": (False, pair([0.3, 0.3, 0.3, 0.3], [0.9, 0.9, 0.2, 0.9])),
    "a column unknown": (None, pair(GAP, 0.5)),
    "a column unknown, another smaller": (False, pair(GAP, [0.5, 0.2, 0.5, 0.5])),
    "nothing finished": (None, [result(scores=[], failed=[0]), result("meta_grad_eclip")]),
    "smaller on one model": (False, [*pair(0.3, 0.5), *pair(0.3, 0.1, METACLIP)]),
    "another method or model": (
        None, [result("grad_eclip", [0.9]), result("meta_mask_clip", [0.1]), result("mask_clip", [0.9], METACLIP)],
    ),
    "smaller with the first seed": (False, [*pair(0.5, 0.3, seed=1), *pair(0.3, 0.5)]),
    "smaller with the second seed": (False, [*pair(0.3, 0.5), *pair(0.5, 0.3, seed=1)]),
    "smaller with the first option": (False, [*pair(0.5, 0.3, heads="native"), *pair(0.3, 0.5)]),
    "smaller with the second option": (False, [*pair(0.3, 0.5), *pair(0.5, 0.3, heads="native")]),
    "two seeds": (True, [*pair(0.3, 0.5), *pair(0.6, 0.8, seed=1)]),
    "two options": (True, [*pair(0.3, 0.5), *pair(0.6, 0.8, heads="native")]),
    "another seed": (None, [result("meta_grad_eclip", [0.1]), result(scores=[0.9], seed=1)]),
    "another option": (None, [result("meta_grad_eclip", [0.1]), result(scores=[0.9], heads="native")]),
}  # fmt: skip
"""A metagame has to beat its method in every column, on every model, with every seed and option."""
FIXLIP = {
    "the first metagame is best": (True, [meta_eclip(0.6), meta_mask(0.1), fixlip(0.5), result("grad_eclip", [0.9])]),
    "the second metagame is best": (True, [meta_eclip(0.1), meta_mask(0.6), fixlip(0.5)]),
    "none is better": (False, [meta_eclip(0.4), meta_mask(0.1), fixlip(0.5), result("grad_eclip", [0.9])]),
    "one of two jobs is better": (False, [meta_eclip(0.6), fixlip(0.4, budget=1), fixlip(0.7, budget=2)]),
    "it plays fewer games": (True, [meta_eclip(0.6), fixlip(0.5, played=FEWER)]),
    "better on its image": (True, [meta_eclip(0.9, 0.1, 0.1, 0.1), fixlip(0.5)]),
    "better on one of its two images": (None, [meta_eclip(0.9, 0.2), fixlip(0.5, 0.5)]),
    "better by the mean over columns": (True, [meta_eclip([0.1, 0.9, 0.9, 0.9]), fixlip(0.5)]),
    "worse on one model": (
        False, [meta_eclip(0.6), fixlip(0.5), meta_eclip(0.4, model=METACLIP), fixlip(0.5, model=METACLIP)],
    ),
    "not on one model": (None, [meta_eclip(0.6), fixlip(0.5), meta_eclip(0.5, model=METACLIP)]),
    "without it": (None, [meta_eclip(0.5)]),
    "without a metagame": (None, [fixlip(0.5), result()]),
    "a column of it is empty": (None, [meta_eclip(0.5), fixlip(NO_SCORE)]),
}  # fmt: skip
"""The best metagame has to beat each job of FIxLIP, on its images and on every model."""
SIGLIP = {
    "best on both models": (True, on_both(0.6, 0.6)),
    "not on the small model": (False, on_both(0.6, 0.4)),
    "not on the large model": (False, on_both(0.4, 0.6)),
    "its method is worse": (True, against("mask_siglip", 0.5)),
    "another metagame is better": (False, against("meta_grad_esiglip", 0.7)),
    "better on the image of FIxLIP": (True, against("fixlip", 0.5, mask=[0.9, 0.1, 0.1, 0.1])),
    "alone": (None, [result("meta_mask_siglip", model=LARGE)]),
    "its method alone": (None, [result("mask_siglip", model=LARGE)]),
    "of another model": (None, [result("meta_generic_attention"), meta_eclip(0.5), result(model=METACLIP)]),
}
"""Meta-MaskSigLIP has to beat every other row of both models."""
ATTENTION = {
    "better": (True, on_metaclip(0.6, 0.5)),
    "worse": (False, on_metaclip(0.4, 0.5)),
    "without the metagame of Grad-ECLIP": (None, [*on_metaclip(0.5, 0.5)[:1], result(model=METACLIP)]),
    "of another model": (None, [result("meta_generic_attention", [0.6]), meta_eclip(0.5)]),
}
"""Of MetaCLIP-2, the metagame of attention has to beat that of Grad-ECLIP."""


CASES = {
    "meta_beats_first_order": FIRST_ORDER, "meta_beats_fixlip": FIXLIP, "mask_siglip_is_best": SIGLIP,
    "attention_beats_grad_eclip": ATTENTION,
}  # fmt: skip


@pytest.mark.parametrize(("claim", "case"), [(claim, case) for claim, cases in CASES.items() for case in cases])
def test_a_claim_is_answered_as_it_says(claim, case):
    holds, results = CASES[claim][case]
    assert claims(results).get(claim) is holds


@pytest.mark.parametrize(
    ("results", "claim"),
    [
        (on_metaclip(0.6, 0.5), "attention_beats_grad_eclip"),
        (against("mask_siglip", 0.5), "mask_siglip_is_best"),
    ],
)
def test_claims_about_a_model_are_not_about_other_weights_of_its_name(results, claim):
    others = [other(each, model={"checkpoint": "mine"}) for each in results]
    assert set(claims(results)) - set(claims(others)) == {claim}


def test_a_claim_says_what_stands_most_against_it():
    table = tiny_table(*map(twice, pair([0.3, 0.3, 0.3, 0.3], [0.9, 0.9, 0.2, 0.9])))
    assert table.claims[0]["difference"] == "Meta-GRAD_ECLIP - GRAD_ECLIP, CLIP, 3 objects: -0.100 ± 0.000"
    assert "no: the meta variant" in markdown(table)


def scenes_result(folder, maps):
    """A job on digits with the maps of each image and scenario, ``maps[k][m] (64, m)``, in its folder."""
    cfg, target = result("meta_grad_eclip", folder=folder).config, "metagame.benchmarks"
    cfg.benchmark = {
        "name": "pointing_game", "_target_": f"{target}.pointing_game.PointingGame", "classes": CLASSES, "games": GAMES,
        "scenes": {"_target_": f"{target}.pointing_game.ComposedScenes", "side": 32,
                   "images": {"_target_": f"{target}.digits.Digits"}},
        "n_games": None, "n_images": len(maps),
    }  # fmt: skip
    made = {
        f"{GAMES[0]}/{k}": Made(
            {f"objects_{m}": recognition(values) for m, values in by_m.items()},
            {str(m): explained(values=values, grid=(8, 8)) for m, values in by_m.items()},
        )
        for k, by_m in enumerate(maps)
    }
    return only(made_up(cfg, made))


def scene_maps(n_images, seed=0):
    rng = np.random.default_rng(seed)
    return [{m: rng.normal(size=(64, m)) * (k + 1) for m in range(1, 5)} for k in range(n_images)]


def check_shares_one_scale(part, shown):
    """The lines of a figure's panels are as wide as the maps say, and its titles are their recognition."""
    scale = edge_scale([values for by_m in shown for values in by_m.values()])
    for axes, (by_m, m) in zip(panels(part), product(shown, range(1, 5)), strict=True):
        assert axes.get_title() == f"recognition {recognition(by_m[m]):.2f}"
        assert close(max(line.get_linewidth() for line in axes.lines), scale.width(np.abs(by_m[m]).max()))


def test_the_figure_of_scenes_has_a_row_for_each_image_that_was_computed_and_a_column_for_each_number_of_words(
    tmp_path,
):
    maps = scene_maps(3)
    job = scenes_result(tmp_path, maps)
    figure = scenes_figure([job], images=[0, 2, 7])
    words = GAMES[0].split("-")
    assert [[text.get_text() for text in axes.texts] for axes in panels(figure)] == 2 * [words[:m] for m in range(1, 5)]
    assert [len(axes.lines) for axes in panels(figure)] == 2 * [TOP * m for m in range(1, 5)]
    check_shares_one_scale(figure, [maps[0], maps[2]])
    assert figure.get_suptitle() == "Meta-GRAD_ECLIP of CLIP"
    assert all(len(axes.collections) == 2 for axes in panels(figure))  # the borders of the quadrants
    assert scenes_figure([job], images=[7]) is None


def test_each_job_has_a_part_of_the_figure_with_its_own_maps_and_scale(tmp_path):
    maps = [scene_maps(1), scene_maps(1, seed=1)]
    jobs = [scenes_result(tmp_path / str(place), each) for place, each in enumerate(maps)]
    figure = drawn(scenes_figure([jobs[0], other(jobs[1], model={"label": "Other"})], images=[0]))
    names = [part.get_suptitle() for part in figure.subfigs]
    assert names == ["Meta-GRAD_ECLIP of CLIP", "Meta-GRAD_ECLIP of Other"]
    for part, shown in zip(figure.subfigs, maps, strict=True):
        check_shares_one_scale(part, shown)


def test_a_scene_whose_maps_are_zero_has_no_recognition_over_it(tmp_path):
    figure = drawn(scenes_figure([scenes_result(tmp_path, [{m: np.zeros((64, m)) for m in range(1, 5)}])], images=[0]))
    assert [axes.get_title() for axes in panels(figure)] == [""] * 4
