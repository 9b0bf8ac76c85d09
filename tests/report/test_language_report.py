"""Recall and pair-deletion tables, curves and token maps, mostly from records that are written here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hydra import compose
from scipy.stats import spearmanr

from metagame.benchmarks.prompts import SHARES, recalls_of_ranks
from metagame.contracts import WHOLE
from metagame.jobs.run import run_job
from metagame.report import kinds, pair_deletion, recall, token_pairs
from metagame.report.pair_deletion import pair_deletion_table
from metagame.report.recall import recall_table
from metagame.report.results import read_job, tell_apart
from metagame.report.token_pairs import Shown, shown_prompts
from tests.conftest import close
from tests.tiny.jobs import shipped_configs
from tests.tiny.reports import Made, drawn, figure_of, holds, job_of, noted, only, panels, tokens_explained

kinds_figure = figure_of(kinds.kinds_figure)
pair_deletion_figure = figure_of(pair_deletion.pair_deletion_figure)
recall_figure = figure_of(recall.recall_figure)
tokens_and_recall_figure = figure_of(token_pairs.tokens_and_recall_figure)
tokens_figure = figure_of(token_pairs.tokens_figure)
TOKENS = ("a", "b", "c")


def job(folder, attribution, values, explained=None, model="gemma", match="metagame", **changes):
    """A job with records of the given scores, and explanations."""
    explanations = [{}] * len(values) if explained is None else [{WHOLE: each} for each in explained]
    made = [Made(*each) for each in zip(values, explanations, strict=True)]
    about = {"model": {"name": "gemma", "label": model.title(), "checkpoint": model}}
    return job_of(folder, attribution, made, benchmark={"name": "prompts", "match": match}, **about, **changes)


def recalled(recall, tokens=TOKENS, unmatched=(), answer="yes"):
    """The scores of a prompt with the same recall at every K, or none."""
    scores = {f"recall_{share}": recall for share in SHARES}
    shown = {"text": " ".join(tokens), "tokens": list(tokens), "answer": answer}
    ranks = [] if recall is None else [1]
    return scores | shown | {"ranks": ranks, "unmatched": list(unmatched), "n_players": len(tokens)}


def first_order(*rows):
    return [tokens_explained(TOKENS, row) for row in rows]


def pairs(matrix, tokens=TOKENS):
    return tokens_explained(tokens, np.asarray(matrix).sum(1), matrix)


@pytest.fixture
def jobs(tmp_path):
    """AttnLRP, its metagame and leave-one-out, each on two prompts."""
    meta = [pairs(np.eye(3) - np.ones((3, 3)))] * 2
    no_pair = recalled(None, unmatched=["x + y"])
    return [
        job(tmp_path, "attnlrp", [recalled(0.0), recalled(0.5)], first_order([1, 2, 3], [3, 2, 1])),
        job(tmp_path, "meta_attnlrp", [recalled(0.5), recalled(1.0)], meta),
        job(tmp_path, "leave_one_out", [recalled(1.0), no_pair], first_order([1, 2, 3], [1, 2, 3])),
    ]


def test_recall_is_the_mean_over_the_prompts_that_have_pairs_with_its_error(jobs, tmp_path):
    table = recall_table(jobs, "tiny")
    assert table.rows[0]["recall_5"] == {"mean": 0.25, "two_se": 0.5, "n": 2}
    assert table.rows[0]["mean"]["mean"] == 0.25
    assert table.rows[2]["recall_5"] == {"mean": 1.0, "two_se": None, "n": 1}
    assert table.rows[2]["n"] == 2
    assert "s1: x + y" in " ".join(table.notes)  # a pair that was not found
    none = recall_table([job(tmp_path, "cp_lrp", [recalled(None)])], "paper")
    assert (none.rows[0]["recall_5"], none.claims) == (None, [])


RANKED = {
    "attnlrp": [[1, 9], [2]], "meta_attnlrp": [[6, 3], [9]], "cp_lrp": [[9, 1], [1]], "meta_cp_lrp": [[2, 9], [9]],
    "gi": [[9, 1], [9]],
}  # fmt: skip
"""The ranks of two pairs at their matches; of four tokens there are 12 directed pairs, K is 2 at 15 percent."""


def ranked(folder, *methods, **settings):
    """Recall at 15 percent of these methods on one prompt, each ranked as ``RANKED`` says, and the table's notes."""
    results = []
    for method in methods:
        scores = recalls_of_ranks([min(each) for each in RANKED[method]], 4)
        made = recalled(0.0, "abcd") | scores | {"match_ranks": RANKED[method]}
        results.append(job(folder, method, [made], **settings))
    table = recall_table(results, "paper")
    curves = {line.get_label(): line.get_ydata()[-1] for line in recall_figure(results).axes[0].lines}
    found = [row["recall_15"]["mean"] for row in table.rows]
    assert list(curves.values()) == found
    return found, " ".join(table.notes)


ONE = ("attnlrp", "meta_attnlrp", "cp_lrp")
SEVERAL = ("cp_lrp", "meta_cp_lrp", "meta_attnlrp", "gi")
BY_OWN = "is ranked where Meta-CP_LRP ranks it best: "


@pytest.mark.parametrize(
    ("methods", "settings", "recalls", "said"),
    [
        (ONE, {}, [0.5, 0.0, 1.0], "the metagame beside it ranks it best: ATTNLRP, Meta-ATTNLRP, CP_LRP."),
        (SEVERAL, {}, [0.5, 0.5, 0.0, 0.5], f"{BY_OWN}CP_LRP, Meta-CP_LRP."),
        (SEVERAL[::-1], {}, [0.5, 0.0, 0.5, 0.5], f"{BY_OWN}Meta-CP_LRP, CP_LRP."),
        (SEVERAL, {}, [0.5, 0.5, 0.0, 0.5], "is ranked where Meta-ATTNLRP ranks it best: "),
        (ONE, {"match": "own"}, [1.0, 0.0, 1.0], "where the method itself ranks it best: ATTNLRP"),
        (("attnlrp", "cp_lrp"), {}, [1.0, 1.0], "where the method itself ranks it best: ATTNLRP"),
    ],
    ids=["one metagame", "the own one", "in any order", "else AttnLRP's", "asked for", "no metagame"],
)
def test_a_metagame_decides_where_pairs_in_several_places_are_ranked(tmp_path, methods, settings, recalls, said):
    found, notes = ranked(tmp_path, *methods, **settings)
    assert found == recalls
    assert said in notes


def test_notes_say_of_each_measure_which_place_it_takes_of_pairs_in_several(tmp_path):
    _, notes = ranked(tmp_path, "attnlrp", "meta_attnlrp")
    assert "Recall at single K, and its mean: a pair that occurs in several places is ranked where " in notes
    assert "recall of non-neighbours has the place where each method itself ranks it best" in notes
    assert "percentiles have the two places that are closest to each other" in notes
    single = recall_table([job(tmp_path, "attnlrp", [recalled(0.5)])], "tiny")
    assert not noted(single, "such a pair") + noted(single, "several places")


@pytest.mark.parametrize(
    ("ids", "model", "said"),
    [
        (["review_0", "review_1"], "data/tiny/gemma3", (True, True)),
        (["review_0", "review_1"], "mine", (True, False)),
        (["review_0", "a b c"], "data/tiny/gemma3", (False, False)),
    ],
    ids=["reviews", "another model", "one's own"],
)
def test_the_tiny_table_says_of_prompts_and_model_what_holds_for_them(tmp_path, ids, model, said):
    asked = replace(job(tmp_path, "cp_lrp", [recalled(0.5)] * len(ids), model=model), sample_ids=ids)
    notes = " ".join(recall_table([asked], "tiny").notes)
    assert ("reviews of a small grammar" in notes, "The small model was trained" in notes) == said


KINDS = [["negation", "contrast"], ["contrast", "contrast"]]
PERCENTILES = [[0.9, None], [0.2, 0.4]]
"""Of the pairs of two prompts."""


def test_kinds_of_pairs_have_a_mean_over_the_prompts_with_such_a_pair_and_a_place_in_the_figure(tmp_path):
    shown = [
        recalled(0.0) | {"kinds": own, "percentiles": values} for own, values in zip(KINDS, PERCENTILES, strict=True)
    ]
    results = [job(tmp_path, method, shown) for method in ("attnlrp", "cp_lrp")]
    row, _ = recall_table(results, "small").rows
    assert row["kind_negation"] == {"mean": 0.9, "two_se": None, "n": 1}
    assert row["kind_contrast"] == {"mean": pytest.approx(0.3), "two_se": None, "n": 1}
    (axes,) = kinds_figure(results).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all pairs", "negation", "contrast"]
    means = [container[0].get_ydata().tolist() for container in axes.containers]
    assert means == [pytest.approx([0.6, 0.9, 0.3])] * 2
    assert kinds_figure([job(tmp_path, "ig", [recalled(None)])]) is None


def test_agreement_of_two_seeds_is_told_and_of_nothing_else(tmp_path):
    ours = [[0.0, 3.0, 2.0], [1.0, 9.0, 4.0], [5.0, 6.0, 0.0]]
    theirs = -np.transpose(ours)
    constant = np.ones((3, 3))
    seeds = [
        job(tmp_path, "meta_attnlrp", [recalled(0.0)] * 2, [pairs(first), pairs(constant)], seed=seed)
        for seed, first in enumerate((ours, theirs))
    ]
    other = job(tmp_path, "meta_ig", [recalled(0.0)], [pairs(ours)])
    (note,) = noted(recall_table([*seeds, other], "small"), "between seed")
    off = ~np.eye(3, dtype=bool)
    expected = spearmanr(np.abs(ours)[off], np.abs(theirs)[off]).statistic
    assert f"between seed 0 and 1: {expected:.3f}".replace("0.", ".") in note.replace("0.", ".")
    assert "over 1 prompts" in note


def test_notes_name_pairs_in_two_equally_good_places_and_the_number_of_prompts_that_a_measure_rests_on(tmp_path):
    table = recall_table([job(tmp_path, "attnlrp", [recalled(0.0) | {"ambiguous": ["not + good"]}])], "small")
    (note,) = noted(table, "equally close")
    assert "s0: not + good" in note
    full = recalled(0.5) | {"percentiles": [0.5], "apart": 0.5}
    assert not noted(recall_table([job(tmp_path, "attnlrp", [full])], "small"), "recall is over")
    fewer = [full, recalled(0.5) | {"percentiles": [None], "apart": None}, recalled(None)]
    (note,) = noted(recall_table([job(tmp_path, "ig", fewer)], "small"), "recall is over")
    assert "of 3 prompts, recall is over the 2 with a pair that is found, the percentile over the 1 with" in note
    assert note.endswith("non-neighbours over 1.")


def test_first_order_methods_are_correlated_with_leave_one_out_of_their_model(jobs, tmp_path):
    rows = recall_table(jobs, "tiny").rows
    assert (rows[0]["loo"]["mean"], rows[0]["loo"]["n"]) == (0, 2)
    assert rows[1]["loo"] is rows[2]["loo"] is None
    explained = {"attnlrp": [1, 2, 3], "leave_one_out": [3, 2, 1]}
    other = [job(tmp_path, name, [recalled(0.5)], first_order(row), "other") for name, row in explained.items()]
    assert [row["loo"] and row["loo"]["mean"] for row in recall_table([*jobs, *other], "tiny").rows[3:]] == [-1, None]


def test_the_claim_compares_the_metagame_with_sums_of_every_model(jobs, tmp_path):
    assert holds(recall_table(jobs, "tiny"))[0] is True
    assert holds(recall_table(jobs[:1], "tiny")) == []
    worse = [
        job(tmp_path, name, [recalled(recall)] * 2, model="other")
        for name, recall in (("attnlrp", 1.0), ("meta_attnlrp", 0.0))
    ]
    assert holds(recall_table([*jobs, *worse], "tiny"))[0] is False


def at_distance(percentiles, **scores):
    return recalled(0.5) | {"percentiles": percentiles} | scores


def test_percentiles_at_equal_distance_decide_what_recall_cannot(tmp_path):
    good, bad = [[0.9, None], [0.8, 0.9], [1.0]], [[0.5, None], [0.3, 0.4], [0.6]]
    meta = job(tmp_path, "meta_attnlrp", [at_distance(each, chance=0.16, apart=None) for each in good])
    first = job(tmp_path, "attnlrp", [at_distance(each, chance=0.09, apart=0.25) for each in bad])
    table = recall_table([meta, first], "paper")
    rows = {row["method"]: row for row in table.rows}
    assert rows["Meta-ATTNLRP"]["percentile"]["mean"] == pytest.approx((0.9 + 0.85 + 1.0) / 3, abs=1e-6)
    assert (rows["Meta-ATTNLRP"]["chance"]["mean"], rows["ATTNLRP"]["chance"]["mean"]) == (0.16, 0.09)
    assert (rows["Meta-ATTNLRP"]["apart"], rows["ATTNLRP"]["apart"]["mean"]) == (None, 0.25)
    assert holds(table) == [None, True, True]
    assert table.claims[1]["claim"].endswith("above AttnLRP")
    assert table.claims[1]["difference"].startswith("Meta-ATTNLRP - ATTNLRP, Gemma: +0.433")


def curves_of(figure):
    """Of each panel with curves, its title, and label, colour, kind and first value of each."""
    return [
        (axes.get_title(), [(line.get_label(), line.get_color(), line.get_linestyle(), line.get_ydata()[0])
                            for line in axes.lines])
        for axes in figure.axes if axes.lines
    ]  # fmt: skip


def test_the_legend_of_recall_lies_within_the_figure(tmp_path):
    methods = ("attnlrp", "cp_lrp", "ig", "gradient_input", "leave_one_out")
    figure = drawn(recall_figure([job(tmp_path, method, [recalled(1.0)]) for method in methods]))
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_a_recall_figure_has_a_panel_for_each_model_and_a_curve_for_each_method(jobs, tmp_path):
    figure = recall_figure([*jobs, job(tmp_path, "cp_lrp", [recalled(1.0)], model="other")])
    methods = ["ATTNLRP", "Meta-ATTNLRP", "LEAVE_ONE_OUT", "CP_LRP"]
    assert [text.get_text() for text in figure.legends[0].texts] == methods
    found = [(title, [(line[0], line[-1]) for line in lines]) for title, lines in curves_of(figure)]
    gemma = [("ATTNLRP", 0.25), ("Meta-ATTNLRP", 0.75), ("LEAVE_ONE_OUT", 1.0)]
    assert found == [("Gemma", gemma), ("Other", [("CP_LRP", 1.0)])]
    assert {axes.get_ylim() for axes in figure.axes if axes.lines} == {(0, 1)}
    assert recall_figure([job(tmp_path, "attnlrp", [recalled(None)], seed=1)]) is None


def test_the_ten_strongest_pairs_go_from_player_to_target_and_tokens_that_occur_twice_are_told_apart():
    shown = Shown("a b", "yes", ["a", "b"], np.array([[9.0, 1.0], [-2.0, 9.0]]))
    assert shown.strongest() == [("a → b", -2.0), ("b → a", 1.0)]
    assert len(Shown("", "", list("abcdefgh"), np.arange(64.0).reshape(8, 8)).strongest()) == 10
    shown = Shown("it it", "yes", ["it", "it"], np.array([[0.0, 1.0], [2.0, 0.0]]))
    assert shown.strongest()[0] == ("it (1) → it (2)", 2.0)


def scales_of(figure):
    """What is written at the colour scales."""
    return [axes.get_xlabel() for axes in figure.axes if "influence of player j" in axes.get_xlabel()]


def test_each_job_with_a_map_has_a_part_whose_scale_names_it(jobs, tmp_path):
    assert tokens_figure([jobs[0], jobs[2]]) is None  # of the first order
    assert tokens_and_recall_figure([jobs[0], jobs[2]], ["s0"]) is None
    other = job(tmp_path, "meta_cp_lrp", [recalled(0.5)], [pairs(2 * np.eye(3))], "other")
    random = job(tmp_path, "random_pairs", [recalled(0.5)], [pairs(3 * np.eye(3))])
    figure = tokens_figure([jobs[0], other, jobs[1], random])
    assert [label.split(",")[0] for label in scales_of(figure)] == ["Meta-ATTNLRP of Gemma", "Meta-CP_LRP of Other"]
    assert len(scales_of(tokens_figure([random]))) == 1  # where there is nothing else
    sums = [float(np.abs(axes.images[0].get_array()).sum()) for axes in panels(figure)]
    assert sums == [6.0, 6.0, 6.0]  # two prompts of six ones, one of three twos


def test_maps_of_a_job_share_their_colours_and_their_axis_of_sums(tmp_path):
    explained = [pairs(-np.eye(3)), pairs(2 * np.eye(3))]
    figure = tokens_figure([job(tmp_path, "meta_attnlrp", [recalled(0.5)] * 2, explained)])
    assert {(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in panels(figure)} == {(-2, 2)}
    ours, theirs = (axes.get_xlim() for axes in figure.axes if "sum of the row" in axes.get_title())
    assert ours == theirs


def test_jobs_of_two_seeds_are_apart_in_the_table_the_curves_and_the_maps(tmp_path):
    first, second = ([pairs((seed + 1) * np.eye(3))] * (seed + 1) for seed in (0, 1))
    results = tell_apart(
        [
            job(tmp_path, "attnlrp", [recalled(0.25)], first_order([1, 2, 3]), seed=0),
            job(tmp_path, "meta_attnlrp", [recalled(0.5)], first, seed=0),
            job(tmp_path, "meta_attnlrp", [recalled(0.75)] * 2, second, seed=1),
        ]
    )
    names, table = ["Gemma (seed=0)", "Gemma (seed=1)"], recall_table(results, "tiny")
    assert [(row["method"], row["recall_5"]["mean"]) for row in table.rows] == [
        ("ATTNLRP", 0.25), ("Meta-ATTNLRP (seed=0)", 0.5), ("Meta-ATTNLRP (seed=1)", 0.75),
    ]  # fmt: skip
    assert {f"{names[0]}: 1 pairs in 1 prompts.", f"{names[1]}: 2 pairs in 2 prompts."} <= set(table.notes)
    curves, maps, both = recall_figure(results), tokens_figure(results), tokens_and_recall_figure(results, ["s0"])
    for figure in (maps, both):
        assert [label.split(", in")[0] for label in scales_of(figure)] == [f"Meta-ATTNLRP of {name}" for name in names]
        assert {float(axes.images[0].get_array().max()) for axes in panels(figure)} == {1.0, 2.0}
    for found in (curves_of(curves), [panel for panel in curves_of(both) if "mean over prompts" in panel[0]]):
        assert [title.split(":")[0] for title, _ in found] == names
        (_, (_, left)), (_, (right,)) = found
        assert (left[-1], right[-1]) == (0.5, 0.75)
        assert left[:-1] == right[:-1]  # a method looks the same in all panels


def test_four_jobs_and_six_prompts_of_a_job_are_drawn_and_the_others_counted(tmp_path):
    results = [job(tmp_path, "random_pairs", [recalled(0.5)], [pairs(np.eye(3))], seed=seed) for seed in range(6)]
    for figure in (tokens_figure(results), tokens_and_recall_figure(results, ["s0"])):
        assert len(panels(figure)) == 4
        assert all("(2 more jobs in the table)" in label for label in scales_of(figure))
    figure = tokens_figure([job(tmp_path, "meta_attnlrp", [recalled(None)] * 8, [pairs(np.eye(3))] * 8)])
    assert len(panels(figure)) == 6
    assert "2 more prompts" in scales_of(figure)[0]


def test_a_figure_shows_the_prompts_that_it_names_or_the_first_ones(jobs):
    assert len(shown_prompts(jobs[1], ["s1"])) == 1
    for prompts, n_maps in ((["s1"], 1), (["elsewhere"], 1), (["s0", "s1"], 2)):
        assert len(panels(tokens_and_recall_figure(jobs, prompts))) == n_maps


def test_characters_of_formulas_stay_as_they_are_and_long_answers_are_cut(tmp_path):
    tokens = ("$x_1$", "%", "{y}")
    scores = recalled(None, tokens=tokens, answer="$5^2" + " word" * 300)
    figure = drawn(tokens_figure([job(tmp_path, "meta_attnlrp", [scores], [pairs(np.eye(3), tokens)])]))
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any("$5^2" in text and "…" in text and text.count("word") < 100 for text in written)


def deleted(*areas):
    return [{"insertion": area + 1.0, "deletion": 1.0, "area": area} for area in areas]


def test_pair_deletion_has_means_and_the_gain_over_random_pairs_prompt_by_prompt(tmp_path):
    areas = {"meta_attnlrp": (3.0, 5.0), "attnlrp": (0.5, 2.0), "random_pairs": (1.0,)}
    jobs = [job(tmp_path, name, deleted(*each)) for name, each in areas.items()]
    table = pair_deletion_table(jobs, "tiny")
    assert table.rows[0]["area"] == {"mean": 4.0, "two_se": 2.0, "n": 2}
    assert table.rows[0]["gain"] == {"mean": 2.0, "two_se": None, "n": 1}
    assert table.rows[2]["gain"] is None
    assert table.claims[0]["holds"] is True
    (note,) = noted(table, "Gemma: Meta-ATTNLRP minus sums of ATTNLRP, prompt by prompt")
    assert "area +2.750 ± 0.500" in note
    assert pair_deletion_table(jobs[1:], "tiny").claims == []


def test_the_curves_of_pair_deletion_are_means_over_the_prompts_that_have_them(tmp_path):
    insertions = [[0.0, 1.0, 4.0], [0.0, 3.0, 4.0]]
    made = [
        scores | {"curve_shares": [0.0, 0.5, 1.0], "insertion_curve": curve, "deletion_curve": curve[::-1]}
        for scores, curve in zip(deleted(1.0, 1.0), insertions, strict=True)
    ]
    jobs = [job(tmp_path, "meta_attnlrp", [*made, *deleted(2.0)]), job(tmp_path, "attnlrp", deleted(1.0))]
    figure = drawn(pair_deletion_figure(jobs))
    insertion, deletion = figure.axes
    (put,), (taken,) = insertion.lines, deletion.lines
    assert close(np.interp([0, 25, 50, 100], *put.get_data()), [0.0, 1.0, 2.0, 4.0])
    assert close(put.get_ydata(), taken.get_ydata()[::-1])
    assert [text.get_text() for text in figure.legends[0].texts] == ["Meta-ATTNLRP"]
    assert pair_deletion_figure(jobs[1:]) is None


def test_pair_deletion_of_two_seeds_is_compared_seed_by_seed(tmp_path):
    areas = {"attnlrp": (0.0, 1.0), "meta_attnlrp": (1.0, 4.0), "random_pairs": (0.5, 1.5)}
    jobs = [
        job(tmp_path, name, deleted(each[seed], each[seed]), seed=seed)
        for seed in (0, 1)
        for name, each in areas.items()
    ]
    table = pair_deletion_table(tell_apart(jobs), "tiny")
    assert [row["gain"] and row["gain"]["mean"] for row in table.rows] == [-0.5, 0.5, None, -0.5, 2.5, None]
    for note, seed, gain in zip(noted(table, "minus sums"), (0, 1), ("area +1.000", "area +3.000"), strict=True):
        assert note.startswith(f"Gemma (seed={seed}): ")
        assert gain in note


def test_the_metagame_of_the_small_model_finds_the_pair_that_the_grammar_made(tmp_path):
    with shipped_configs():
        overrides = ["experiment=figure3", f"output_dir={tmp_path}", "benchmark.ids=[review_0]"]
        overrides += ["estimator.budget_per_player=12"]
        configs = [compose("config", overrides=[*overrides, f"attribution={name}attnlrp"]) for name in ("", "meta_")]
        for cfg in configs:
            run_job(cfg)
        attnlrp, meta = (only(read_job(cfg)) for cfg in configs)
    (first,), (second,) = attnlrp.done, meta.done
    assert (second.scores["ranks"], second.scores["answer"]) == ([1], "positive")
    matrix = meta.explanations(second)[WHOLE].meta.values
    assert close(matrix.sum(1), attnlrp.explanations(first)[WHOLE].attribution, 1e-5)


def test_the_estimator_of_prompts_is_auto_unless_another_is_asked_for():
    expected = {
        "benchmark=prompts": "auto",
        "benchmark=prompts estimator=permutation": "permutation",
        "experiment=figure3": "auto",
        "experiment=table2": "exact",
    }
    with shipped_configs():
        assert {text: compose("config", overrides=text.split()).estimator.name for text in expected} == expected
