"""Tables that compare methods: evidence, agreement with leave-one-out, faithfulness, both directions and concepts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from metagame.contracts import WHOLE, Explanation
from metagame.report import lrp_loo
from metagame.report.both_ways import CLAIMS, both_ways_figure, both_ways_table
from metagame.report.evidence import evidence_figure, evidence_table, pairs_table
from metagame.report.faithfulness import faithfulness_table
from metagame.report.lrp_loo import lrp_loo_table, pearson, spearman
from metagame.report.ttcav import cells_of, p_value, ttcav_figure, ttcav_table
from tests.tiny.reports import Made, figure_of, holds, job_of, made_up, noted, only, stub_config, tokens_explained
from tests.tiny.vision_language import refused

layers_figure = figure_of(lrp_loo.layers_figure)


def sentence(attractors, rank=None, skipped=None, **others):
    common = {"attractors": attractors, "margin": 1.0 - attractors, "skipped": skipped}
    return common | ({} if skipped else {"reciprocal_rank": rank, "mass": rank, "top_1": 1.0, "top_2": 1.0}) | others


def evidence_job(folder, attribution, *scores):
    made = [Made(each, {WHOLE: tokens_explained(("a", "b"), [1, 2])}) for each in scores]
    return job_of(folder, attribution, made, label=attribution.removeprefix("meta_"), benchmark={"name": "agreement"})


def test_mrr_is_by_the_number_of_attractors_and_compared_with_closeness_where_there_are_some(tmp_path):
    skipped = sentence(1, skipped="passer-by")
    found = evidence_job(tmp_path, "attnlrp", sentence(0, 0.5), sentence(1, 1.0), sentence(1, 0.8), skipped)
    recency = evidence_job(tmp_path, "recency", sentence(0, 1.0), sentence(1, 0.25), sentence(1, 0.25), skipped)
    table = evidence_table([found, recency], "tiny")
    row = table.rows[0]
    assert row["reciprocal_rank"]["mean"] == pytest.approx(2.3 / 3, abs=1e-6)
    assert (row["of_0"]["mean"], row["of_1"]["mean"], row["n"]) == (0.5, 0.9, "3")
    assert holds(table) == [True]
    assert "+0.650" in table.claims[0]["difference"]
    assert noted(table, "1 sentences are skipped, because their subject is several tokens: passer-by")
    assert noted(table, "1 of 1 with 0 attractors, 0 of 3 with 1 attractor")
    (axes,) = evidence_figure([found, recency]).axes
    assert [container.get_label() for container in axes.containers] == ["attnlrp", "recency"]


def test_pairs_are_summed_and_the_sign_of_their_influence_is_a_claim(tmp_path):
    none = {"on_subject": None, "by_subject": None}
    rows = [
        sentence(0, 1.0, **none),
        sentence(1, 1.0, on_subject=-1.0, by_subject=-2.0),
        sentence(2, 1.0, on_subject=-1.2, by_subject=2.0),
        sentence(1, 1.0, **none, split_attractors=["passers-by"]),
    ]
    first_order = [sentence(record["attractors"], 1.0) for record in rows]
    jobs = [evidence_job(tmp_path, "attnlrp", *first_order), evidence_job(tmp_path, "meta_attnlrp", *rows)]
    table = pairs_table(jobs, "tiny")
    assert [row["attractors"] for row in table.rows] == ["any", "1", "2"]
    assert table.rows[0]["on"]["mean"] == pytest.approx(-1.1)
    assert table.rows[0]["more"]["mean"] == pytest.approx(0.9)
    assert holds(table) == [True, None]
    assert noted(table, "1 sentences have no influence between subject and attractors, because an attractor is several")


def loo_job(folder, attribution, *rows, method=None):
    made = [Made({"n_players": 4}, {WHOLE: tokens_explained("abcd", row)}) for row in rows]
    return job_of(folder, attribution, made, method=method, label=attribution, benchmark={"name": "token_relevances"})


def by_hand(one, other):
    """The correlation of numbers that are not all equal, from the sums."""
    n, products = len(one), sum(a * b for a, b in zip(one, other, strict=True))
    left, right = (n * sum(a * a for a in each) - sum(each) ** 2 for each in (one, other))
    return (n * products - sum(one) * sum(other)) / (left * right) ** 0.5


def ranks_by_hand(values):
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


WHOLE_NUMBERS = st.lists(st.integers(-5, 5), min_size=5, max_size=5).filter(lambda each: len(set(each)) > 1)


@given(WHOLE_NUMBERS, WHOLE_NUMBERS)
def test_correlations_are_those_of_the_sums_and_of_the_ranks(one, other):
    one, other = np.array(one, float), np.array(other, float)
    assert pearson(one, other) == pytest.approx(by_hand(one, other), abs=1e-9)
    assert spearman(one, other) == pytest.approx(by_hand(ranks_by_hand(one), ranks_by_hand(other)), abs=1e-9)


def test_each_method_has_its_correlations_and_what_they_are_more_than_attnlrp_prompt_by_prompt(tmp_path):
    loo = loo_job(tmp_path, "leave_one_out", [1, 2, 3, 4], [4, 3, 2, 1], [0, 1, 0, 1])
    attnlrp = loo_job(tmp_path, "attnlrp", [1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1])
    table = lrp_loo_table([loo, attnlrp, loo_job(tmp_path, "cp_lrp", [1, 2, 3, 5], [8, 3, 2, 1], [0, 2, 0, 2])], "tiny")
    first, second = table.rows
    assert (first["method"], second["method"]) == ("attnlrp", "cp_lrp")
    assert first["spearman"] == {"mean": 0.0, "two_se": 2.0, "n": 2}  # the third is constant
    assert second["spearman"]["n"] == 3
    assert second["spearman"]["mean"] == pytest.approx(1)
    assert second["more_spearman"] == {"mean": 1.0, "two_se": 2.0, "n": 2}
    assert holds(table) == [None, None]
    with refused("add attribution=leave_one_out"):
        lrp_loo_table([attnlrp], "tiny")


def test_shares_of_the_layers_that_are_the_same_in_a_small_model_are_named(tmp_path):
    rows = {0.4: [1, 2, 3, 5], 0.6: [1, 2, 3, 5], 0.8: [1, 2, 4, 5]}
    mixed = [
        loo_job(tmp_path, f"lrp_by_layer@{share}", row, method={"share": share, "cp_side": "above"})
        for share, row in rows.items()
    ]
    table = lrp_loo_table([loo_job(tmp_path, "leave_one_out", [1, 2, 3, 4]), *mixed], "tiny")
    same = "Model: lrp_by_layer@0.4 and lrp_by_layer@0.6 are the same, since the model has few layers."
    assert noted(table, "few layers") == [same]


def test_the_figure_by_layer_has_a_line_for_each_side_from_one_method_to_the_other(tmp_path):
    rows = [1, 2, 3, 4], [1, 3, 2, 4]
    names = ("leave_one_out", "attnlrp", "cp_lrp", "alti_logit")
    results = [loo_job(tmp_path, name, *rows) for name in names]
    assert layers_figure(results) is None
    method = {"_target_": "metagame.attributions.lrp_by_layer.LRPByLayer", "share": 0.5, "cp_side": "above"}
    (axes,) = layers_figure([*results, loo_job(tmp_path, "lrp_by_layer", *rows, method=method)]).axes
    lines = [container.lines[0].get_xdata().tolist() for container in axes.containers]
    assert [np.round(line).tolist() for line in lines] == [[0, 0, 1], [0, 1]]
    assert any(line.get_label() == "alti_logit" for line in axes.lines)


def faithfulness_job(folder, attribution, values, n_cut=0, checkpoint="textattack/bert-base-uncased-SST-2", most=15):
    """A job whose samples have these values of comprehensiveness, and the right label from the top players."""
    names = ("comprehensiveness", "sufficiency", "published_comprehensiveness", "published_sufficiency")
    made = [
        Made(dict.fromkeys(names, value) | {"label": number % 2, "kept": number % 2, "n_cut": n_cut})
        for number, value in enumerate(values)
    ]
    benchmark = {"name": "faithfulness", "bins": [1, 5, 10, 20, 50], "divisor": None}
    benchmark["labelled"] = {"_target_": "somewhere", "most": most}
    return job_of(folder, attribution, made, model={"checkpoint": checkpoint}, benchmark=benchmark)


@pytest.fixture
def ranked(tmp_path):
    values = {
        "random_tokens": (0.1, 0.2, 0.1, 0.2),
        "pure_attention_cls": (0.1, 0.2, 0.2, 0.1),
        "attention_game_cls": (0.5, 0.6, 0.5, 0.6),
        "meta_attention_game_cls": (0.5, 0.6, 0.5, 0.6),
        "attention_game_mutual": (0.3, 0.4, 0.3, 0.4),
    }
    return [faithfulness_job(tmp_path, *each) for each in values.items()]


def test_faithfulness_has_means_and_claims_of_paired_differences_to_a_random_ranking(ranked):
    table = faithfulness_table(ranked, "tiny")
    assert table.rows[0]["gain"] is None
    assert table.rows[2]["comprehensiveness"]["mean"] == 0.55
    assert (table.rows[2]["gain"]["mean"], table.rows[2]["gain"]["two_se"]) == (0.4, 0.0)
    assert [row["f1"] for row in table.rows] == [1.0] * 5
    assert not any(table.published)
    assert holds(table) == [None, True, False]
    said = "not decided: PURE_ATTENTION_CLS; above a random ranking: ATTENTION_GAME_CLS, ATTENTION_GAME_MUTUAL"
    assert noted(table, said)
    assert noted(table, "Bins: the top 1, 5, 10, 20, 50 % of the players, rounded up; sums are divided by 6")
    assert holds(faithfulness_table(ranked[:1], "tiny")) == [None] * 3


def test_published_values_stand_beside_the_same_model_and_lengths_at_paper_scale_alone(ranked, tmp_path):
    table = faithfulness_table(ranked, "paper")
    assert [each.get("published_comprehensiveness") for each in table.published] == [None, None, 0.21, None, None]
    assert noted(table, "Published for SHAP: 0.22")
    for place, change in enumerate(({"checkpoint": "mine"}, {"most": 9})):
        other = faithfulness_job(tmp_path / str(place), "attention_game_cls", (0.5, 0.6), **change)
        assert not any(faithfulness_table([other], "paper").published)


def test_texts_that_were_cut_are_told(tmp_path):
    table = faithfulness_table([faithfulness_job(tmp_path, "ig", (0.5, 0.6), n_cut=3)], "paper")
    assert "Texts that were cut to the model's positions: 2." in table.notes


def both_ways(pointing, model="clip"):
    """A job's variants: a first-order method, its metagame and that of words, each with its score of some scenes."""
    nodes = {
        name: {"name": name, "label": base, "base": base, "meta": name != base, "method": {}}
        for name in ("mask_clip", "meta_mask_clip", "meta_mask_clip_text")
        for base in [name.removeprefix("meta_")]
    }
    scenes = {"_target_": "metagame.benchmarks.digits.Digits"}
    benchmark = {
        "name": "pointing_game", "_target_": "metagame.benchmarks.both_ways.BothWays", "n_images": 1,
        "scenes": {"_target_": "metagame.benchmarks.pointing_game.ComposedScenes", "images": scenes, "side": 16},
        "classes": dict(zip("abcd", range(4), strict=True)), "games": ["a-b-c-d"],
    }  # fmt: skip
    made = {
        name: {
            f"a-b-c-d/{k}": Made({"pointing": score, "recognition": score, "earlier": 0.0, "mass": None})
            for k, score in enumerate(scores)
        }
        for name, scores in zip(nodes, pointing, strict=True)
    }
    attribution = {"name": "all", "label": "all", "variants": nodes}
    cfg = stub_config("unused", model={"name": model, "label": model}, attribution=attribution, benchmark=benchmark)
    return made_up(cfg, made)


def test_rows_have_their_direction_and_missing_scores_are_left_out():
    rows = both_ways_table(both_ways([[0.5, 0.75], [1.0, 1.0], [0.25, 0.25]]), "tiny").rows
    assert [row["map"] for row in rows] == ["first-order map of the word alone", "word → patches", "patches → word"]
    assert [row["pointing"]["mean"] for row in rows] == [0.625, 1, 0.25]
    assert rows[0]["mass"] is None


@pytest.mark.parametrize(
    ("pointing", "answers"),
    [
        ([[0.5] * 4, [0.75] * 4, [1, 1, 0.75, 0.8]], [True, True, True]),
        ([[0.5] * 4, [0.75] * 4, [0.5, 0.55, 0.6, 0.5]], [True, False, None]),
        ([[0.5] * 4, [0.75] * 4, [0.0, 0.1, 0.0, 0.0]], [False, False, False]),
    ],
)
def test_patches_that_move_a_word_are_compared_with_chance_and_with_both_methods_for_patches(pointing, answers):
    table = both_ways_table(both_ways(pointing), "tiny")
    assert [claim["claim"] for claim in table.claims] == [f"Meta-mask_clip_text {claim}" for claim in CLAIMS]
    assert holds(table) == answers


def test_both_directions_of_another_model_are_compared_with_themselves():
    one, other = both_ways([[0.5] * 2, [0.5] * 2, [1.0, 0.9]]), both_ways([[0.5] * 2, [0.5] * 2, [0.1, 0.0]], "siglip")
    table = both_ways_table([*one, *other], "tiny")
    assert holds(table) == [False, False, False]
    assert all("siglip" in each["difference"] for each in table.claims)


def test_an_image_that_the_game_does_not_have_is_refused():
    with refused(r"report.figure.image=1 must be an image of the first game: 0 to 0"):
        both_ways_figure(both_ways([[0.5], [0.5], [0.5]]), 1)


REPEATS = 20
AROUND = np.linspace(-0.05, 0.05, REPEATS)
HIGH, LOW, HALF = 0.8 + AROUND, 0.2 + AROUND, 0.5 + AROUND


def concept(by_class, depending=(), effects=None):
    """A concept with one layer; of each class its scores, or all the same."""
    names = list(by_class)
    scores = [[list(np.broadcast_to(values, REPEATS))] for values in by_class.values()]
    about = {"classes": names, "layers": [2], "examples": 20, "images": dict.fromkeys(names, 5)}
    targets = tuple(f"{name}, layer 2" for name in names)
    explanation = Explanation(("c",), targets, (2, 2), attribution=np.arange(4.0 * len(names)))
    size = effects or dict.fromkeys(names, 0.1)
    about |= {"depending": depending, "effects": [[list(size[name] + AROUND)] for name in names], "scores": scores}
    return Made(about, {WHOLE: explanation})


def ttcav_job(folder, label="T-TCAV", **concepts):
    cfg = stub_config(folder, attribution={"name": "ttcav", "label": label}, benchmark={"name": "concept_scores"})
    return only(made_up(cfg, concepts))


def concepts_job(folder, **changes):
    striped = concept({"zebra": HIGH, "horse": HALF}, ["zebra"], {"zebra": 2.0, "horse": 0.1})
    concepts = {
        "striped": striped,
        "dotted": concept({"zebra": LOW, "horse": HALF}),
        "random": concept({"zebra": HALF, "horse": HALF}),
    }
    return ttcav_job(folder, **concepts | changes)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=8).filter(lambda each: np.std(each) > 1e-3))
def test_p_values_are_those_of_the_t_distribution(scores):
    error = np.std(scores, ddof=1) / np.sqrt(len(scores))
    expected = 2 * t.sf(abs(np.mean(scores) - 0.5) / error, len(scores) - 1)
    assert p_value(np.array(scores)) == pytest.approx(expected)
    assert (p_value(np.full(5, 1.0)), p_value(np.full(5, 0.5))) == (0, 1)  # for certain, or not at all


def test_p_values_are_corrected_for_all_tests_and_what_is_found_is_above_one_half(tmp_path):
    result = concepts_job(tmp_path)
    cells, table = cells_of(result), ttcav_table([result], "tiny")
    assert [(cell.name, cell.concept) for cell in cells[:3]] == [("zebra", c) for c in ("striped", "dotted", "random")]
    assert cells[0].p == pytest.approx(6 * p_value(HIGH))
    assert cells[2].p == 1
    for column in ("found", "depends"):
        assert [row[column] for row in table.rows] == [True, False, False, False, False, False]
    assert holds(table) == [True] * 4
    assert "striped at layers 2" in table.claims[0]["difference"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"striped": concept({"zebra": HALF, "horse": HALF}, ["zebra"])}, [False, True, None, True]),
        ({"dotted": concept({"zebra": HIGH, "horse": HALF})}, [False, True, True, True]),
        ({"dotted": concept({"zebra": LOW, "horse": HIGH})}, [True, False, True, True]),
        ({"dotted": concept({"zebra": LOW, "horse": LOW})}, [True, True, True, True]),
        (
            {"dotted": concept({"zebra": LOW, "horse": HALF}, (), {"zebra": 3.0, "horse": 3.0})},
            [True, True, False, True],
        ),
        ({"random": concept({"zebra": HIGH, "horse": HALF})}, [True, True, True, False]),
        ({"random": concept({"zebra": LOW, "horse": HALF})}, [True, True, True, True]),
    ],
)
def test_each_claim_about_concepts_fails_where_it_should(tmp_path, changes, expected):
    table = ttcav_table([concepts_job(tmp_path, **changes)], "tiny")
    assert holds(table) == expected


def test_claims_that_nothing_is_found_agree_with_the_column_and_tell_what_is_significant(tmp_path):
    table = ttcav_table([concepts_job(tmp_path, random=concept({"zebra": LOW, "horse": HALF}))], "tiny")
    assert not [row for row in table.rows if row["concept"] == "random" and row["found"]]
    assert table.claims[-1]["holds"] is True
    assert table.claims[-1]["difference"] == "significant: 1 of 2, 0 of them above 0.5"


def test_without_ground_truth_only_the_baseline_is_judged_and_nothing_is_framed(tmp_path):
    result = ttcav_job(tmp_path, striped=concept({"zebra": HIGH}, None), random=concept({"zebra": HALF}, None))
    table = ttcav_table([result], "paper")
    assert [claim["claim"] for claim in table.claims] == ["It finds nothing for the random concept (Model)"]
    assert all(row["depends"] is None for row in table.rows)
    assert "false alarm" not in ttcav_figure([result]).caption
    assert "false alarm" in ttcav_figure([concepts_job(tmp_path / "known")]).caption


def test_cells_have_their_mean_and_a_star_and_the_true_one_a_frame(tmp_path):
    figures = ttcav_figure([concepts_job(tmp_path)]).figures
    axes = figures["scores"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.80*", "0.20*", "0.50", "0.50", "0.50", "0.50"]
    frames = [patch for patch in axes.patches if patch.get_edgecolor() == (0, 0, 0, 1)]
    assert [frame.get_xy() for frame in frames] == [(-0.5, -0.5)]
    first, second, _ = figures["maps"].axes
    assert first.get_ylabel() == "striped\non class zebra"
    assert np.array_equal(first.images[0].get_array(), [[0, 1], [2, 3]])
    assert second.get_ylabel() == "dotted\non class zebra"


def test_the_random_concept_has_no_maps_and_of_jobs_without_a_finished_sample_nothing_is_drawn(tmp_path):
    figures = ttcav_figure([ttcav_job(tmp_path, random=concept({"zebra": HALF}, None))]).figures
    assert not figures["maps"].axes
    assert figures["scores"].axes
    assert ttcav_figure([ttcav_job(tmp_path / "other")]) is None


def test_two_methods_for_the_concepts_of_a_model_are_told_apart(tmp_path):
    first, second = concepts_job(tmp_path / "one"), concepts_job(tmp_path / "other", label="T-TCAV of 9")
    names = dict.fromkeys(row["model"] for row in ttcav_table([first, second], "tiny").rows)
    assert list(names) == ["Model, T-TCAV", "Model, T-TCAV of 9"]
