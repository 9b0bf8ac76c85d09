"""The table of both directions from records that are written here."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from metagame.jobs.records import Record
from metagame.jobs.spec import variants
from metagame.report.both_ways import CLAIMS, both_ways_figure, both_ways_table
from metagame.report.results import JobResult
from tests.tiny.vision_language import refused

BASES = ("mask_clip", "meta_mask_clip", "meta_mask_clip_text")


def results(pointing, model="clip"):
    """A job's variants: a first-order method, its metagame and that of words, each with its score of some scenes."""
    nodes = {
        name: {
            "name": name, "label": base, "family": "x", "base": base, "meta": name != base, "method": {"_target_": "x"},
        }
        for name in BASES
        for base in [name.removeprefix("meta_")]
    }  # fmt: skip
    scenes = {"_target_": "metagame.benchmarks.digits.Digits"}
    benchmark = {
        "name": "pointing_game", "_target_": "metagame.benchmarks.both_ways.BothWays", "n_images": 1,
        "scenes": {"_target_": "metagame.benchmarks.pointing_game.ComposedScenes", "images": scenes, "side": 16},
        "classes": dict(zip("abcd", range(4), strict=True)), "games": ["a-b-c-d"],
    }  # fmt: skip
    attribution = {"name": "all", "label": "all", "family": "x", "base": "all", "variants": nodes}
    config = OmegaConf.create(
        {
            "name": "both_ways", "model": {"name": model, "label": model}, "benchmark": benchmark,
            "attribution": attribution,
        }
    )  # fmt: skip
    identity = {"model": {"name": model}, "attribution": nodes}
    found = []
    for variant, scores in zip(variants(config), pointing, strict=True):
        records = [
            Record(
                f"{k}",
                f"a-b-c-d/{k}",
                "done",
                variant.name,
                scores={"pointing": p, "earlier": 0.0, "mass": None, "recognition": p},
            )
            for k, p in enumerate(scores)
        ]
        ids = [record.sample for record in records]
        found.append(JobResult(config, variant, Path("unused"), identity, ids, records, 0, variant.label))
    return found


def test_rows_have_their_direction_and_missing_scores_are_left_out():
    rows = both_ways_table(results([[0.5, 0.75], [1.0, 1.0], [0.25, 0.25]]), "tiny").rows
    assert [row["map"] for row in rows] == ["first-order map of the word alone", "word → patches", "patches → word"]
    assert [row["pointing"]["mean"] for row in rows] == [0.625, 1, 0.25]
    assert rows[0]["mass"] is None


@pytest.mark.parametrize(
    ("pointing", "holds"),
    [
        ([[0.5] * 4, [0.75] * 4, [1, 1, 0.75, 0.8]], [True, True, True]),
        ([[0.5] * 4, [0.75] * 4, [0.5, 0.55, 0.6, 0.5]], [True, False, None]),
        ([[0.5] * 4, [0.75] * 4, [0.0, 0.1, 0.0, 0.0]], [False, False, False]),
    ],
)
def test_patches_that_move_a_word_are_compared_with_chance_and_with_both_methods_for_patches(pointing, holds):
    table = both_ways_table(results(pointing), "tiny")
    claims = [f"Meta-mask_clip_text {claim}" for claim in CLAIMS]
    assert [(each["claim"], each["holds"]) for each in table.claims] == list(zip(claims, holds, strict=True))


def test_another_model_is_compared_with_itself():
    one, other = results([[0.5] * 2, [0.5] * 2, [1.0, 0.9]]), results([[0.5] * 2, [0.5] * 2, [0.1, 0.0]], "siglip")
    claims = both_ways_table([*one, *other], "tiny").claims
    assert [each["holds"] for each in claims] == [False, False, False]
    assert all("siglip" in each["difference"] for each in claims)


def test_an_image_that_the_game_does_not_have_is_refused():
    given = results([[0.5], [0.5], [0.5]])
    with refused(r"report.figure.image=1 must be an image of the first game: 0 to 0"):
        both_ways_figure(given, 1)
