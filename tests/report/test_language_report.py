"""Recall and pair-deletion tables, curves and token maps, from jobs that really ran or from made-up records."""

import numpy as np
import pytest
from hydra import compose
from matplotlib.figure import Figure

from metagame.benchmarks.prompts import SHARES
from metagame.contracts import WHOLE
from metagame.jobs.grid import sweep_configs
from metagame.jobs.run import run_job
from metagame.report.experiment import save_figure
from metagame.report.labels import told_apart
from metagame.report.pair_deletion import pair_deletion_table
from metagame.report.recall import recall_figure, recall_table
from metagame.report.results import read_job, tell_apart
from metagame.report.scores import is_positive
from metagame.report.token_pairs import Shown, shown_prompts, tokens_and_recall_figure, tokens_figure
from tests.tiny.jobs import shipped_configs
from tests.tiny.reports import Made, made_up, only, stub_config, tokens_explained

BASES = {"meta_attnlrp": "attnlrp"}
TOKENS = ("a", "b", "c")


def job(folder, attribution, values, model="gemma", family="lrp", meta=False, explained=None, **changes):
    """A job with records of the given scores, and explanations."""
    base = BASES.get(attribution, attribution)
    cfg = stub_config(
        folder,
        model={"name": "gemma", "label": model.title(), "checkpoint": model},
        attribution={"name": attribution, "label": base.upper(), "family": family, "base": base, "meta": meta},
        benchmark={"name": "prompts"},
        **changes,
    )
    made = {
        f"s{number}": Made(scores, {} if explained is None else {WHOLE: explained[number]})
        for number, scores in enumerate(values)
    }
    return only(made_up(cfg, made))


def recalled(recall, tokens=("a", "b", "c"), unmatched=()):
    """The scores of a prompt with the same recall at every K, or none."""
    scores = {f"recall_{share}": recall for share in SHARES}
    ranks = [] if recall is None else [1]
    shown = {"text": " ".join(tokens), "tokens": list(tokens), "answer": "yes"}
    return scores | {"ranks": ranks, "unmatched": list(unmatched), "n_players": len(tokens)} | shown


def first_order(*rows):
    return [tokens_explained(TOKENS, row) for row in rows]


def pairs(matrix, tokens=TOKENS):
    return tokens_explained(tokens, np.asarray(matrix).sum(1), matrix)


@pytest.fixture
def jobs(tmp_path):
    return [
        job(tmp_path, "attnlrp", [recalled(0.0), recalled(0.5)], explained=first_order([1, 2, 3], [3, 2, 1])),
        job(
            tmp_path, "meta_attnlrp", [recalled(0.5), recalled(1.0)], meta=True,
            explained=[pairs(np.eye(3) - np.ones((3, 3)))] * 2,
        ),
        job(
            tmp_path, "leave_one_out", [recalled(1.0), recalled(None, unmatched=["x + y"])], family="removal",
            explained=first_order([1, 2, 3], [1, 2, 3]),
        ),
    ]  # fmt: skip


def test_recall_is_the_mean_over_prompts_with_its_error(jobs):
    row = recall_table(jobs, "tiny").rows[0]
    assert row["recall_5"] == {"mean": 0.25, "two_se": 0.5, "n": 2}
    assert row["mean"]["mean"] == 0.25


def test_prompts_without_pairs_do_not_count_for_recall(jobs):
    row = recall_table(jobs, "tiny").rows[2]
    assert row["recall_5"] == {"mean": 1.0, "two_se": None, "n": 1}
    assert row["n"] == "2"


def test_first_order_methods_are_correlated_with_leave_one_out(jobs):
    rows = recall_table(jobs, "tiny").rows
    assert rows[0]["loo"]["mean"] == 0
    assert rows[0]["loo"]["n"] == 2
    assert rows[1]["loo"] is None
    assert rows[2]["loo"] is None


def test_the_claim_compares_the_metagame_with_sums_of_every_model(jobs, tmp_path):
    assert recall_table(jobs, "tiny").claims[0]["holds"] is True
    assert recall_table(jobs[:1], "tiny").claims[0]["holds"] is None
    worse = [
        job(tmp_path, "attnlrp", [recalled(1.0)] * 2, model="other"),
        job(tmp_path, "meta_attnlrp", [recalled(0.0)] * 2, model="other", meta=True),
    ]
    assert recall_table([*jobs, *worse], "tiny").claims[0]["holds"] is False


def test_pairs_that_were_not_found_are_listed(jobs):
    notes = " ".join(recall_table(jobs, "paper").notes)
    assert "s1: x + y" in notes


def test_a_recall_figure_has_a_panel_for_each_model_and_a_curve_for_each_method_of_lrp(jobs, tmp_path):
    other = job(tmp_path, "cp_lrp", [recalled(1.0)], model="other")
    figure = recall_figure([*jobs, other])
    assert [text.get_text() for text in figure.legends[0].texts] == ["ATTNLRP", "Meta-ATTNLRP", "CP_LRP"]
    panels = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in panels] == ["Gemma", "Other"]
    assert [line.get_label() for line in panels[0].lines] == ["ATTNLRP", "Meta-ATTNLRP"]
    assert {axes.get_ylim() for axes in panels} == {(0, 1)}
    np.testing.assert_allclose(panels[0].lines[0].get_ydata(), 0.25)


def test_the_strongest_pairs_go_from_player_to_target():
    shown = Shown("a b", "yes", ["a", "b"], np.array([[9.0, 1.0], [-2.0, 9.0]]))
    assert shown.strongest() == [("a → b", -2.0), ("b → a", 1.0)]


def test_tokens_that_occur_twice_are_told_apart():
    assert told_apart(["it", "was", "it"]) == ["it (1)", "was", "it (3)"]
    shown = Shown("it it", "yes", ["it", "it"], np.array([[0.0, 1.0], [2.0, 0.0]]))
    assert shown.strongest()[0] == ("it (1) → it (2)", 2.0)


def test_ten_pairs_are_shown_of_many():
    matrix = np.arange(64.0).reshape(8, 8)
    assert len(Shown("", "", list("abcdefgh"), matrix).strongest()) == 10


def test_first_order_jobs_alone_have_no_map(jobs):
    assert tokens_figure([jobs[0], jobs[2]]) is None
    assert tokens_and_recall_figure([jobs[0], jobs[2]], ["s0"]) is None


def test_prompts_without_pairs_have_no_curve(tmp_path):
    assert recall_figure([job(tmp_path, "attnlrp", [recalled(None)])]) is None


def maps_of(figure):
    """The matrices that are drawn."""
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def scales_of(figure):
    """What is written at the colour scales."""
    return [axes.get_xlabel() for axes in figure.axes if "influence of player j" in axes.get_xlabel()]


def test_each_job_with_a_map_has_a_part_whose_scale_names_it(jobs, tmp_path):
    explained = [pairs(2 * np.eye(3))]
    other = job(tmp_path, "random_pairs", [recalled(0.5)], model="other", explained=explained, family="random")
    figure = tokens_figure([jobs[0], other, jobs[1]])
    assert [label.split(",")[0] for label in scales_of(figure)] == ["Meta-ATTNLRP of Gemma", "RANDOM_PAIRS of Other"]
    sums = [float(np.abs(matrix).sum()) for matrix in maps_of(figure)]
    assert sums == [6.0, 6.0, 6.0]  # two prompts of six ones, one of three twos


def test_jobs_of_two_seeds_are_drawn_apart(tmp_path):
    results = [
        job(tmp_path, name, [recalled(0.5 + seed / 4)], meta=meta, explained=[matrix], seed=seed)
        for seed in (0, 1)
        for name, meta, matrix in (
            ("attnlrp", False, first_order([1, 2, 3])[0]),
            ("meta_attnlrp", True, pairs((seed + 1) * np.eye(3))),
        )
    ]
    for figure in (tokens_figure(tell_apart(results)), tokens_and_recall_figure(tell_apart(results), ["s0"])):
        assert [label.split(", in")[0] for label in scales_of(figure)] == [
            "Meta-ATTNLRP of Gemma (seed=0)", "Meta-ATTNLRP of Gemma (seed=1)",
        ]  # fmt: skip
        assert [float(matrix.max()) for matrix in maps_of(figure)] == [1.0, 2.0]
    titles = [axes.get_title().split(":")[0] for axes in figure.axes if "mean over prompts" in axes.get_title()]
    assert titles == ["Gemma (seed=0)", "Gemma (seed=1)"]
    curves = [[line.get_ydata()[0] for line in axes.lines] for axes in figure.axes if axes.get_legend()]
    assert curves == [[0.5, 0.5], [0.75, 0.75]]


def test_four_jobs_are_drawn_and_the_others_counted(tmp_path):
    results = [
        job(tmp_path, "random_pairs", [recalled(0.5)], explained=[pairs(np.eye(3))], seed=seed) for seed in range(6)
    ]
    for figure in (tokens_figure(results), tokens_and_recall_figure(results, ["s0"])):
        assert len(maps_of(figure)) == 4
        assert all("(2 more jobs in the table)" in label for label in scales_of(figure))


def test_panels_of_recall_are_told_apart_and_a_method_looks_the_same_in_all(tmp_path):
    jobs = [job(tmp_path, name, [recalled(0.5)], seed=seed) for seed in (0, 1) for name in ("attnlrp", "cp_lrp")]
    figure = recall_figure(tell_apart([*jobs[:2], jobs[3]]))
    panels = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in panels] == ["Gemma (seed=0)", "Gemma (seed=1)"]
    assert [[line.get_label() for line in axes.lines] for axes in panels] == [["ATTNLRP", "CP_LRP"], ["CP_LRP"]]
    first, second = panels[0].lines[1], panels[1].lines[0]
    assert (first.get_color(), first.get_linestyle()) == (second.get_color(), second.get_linestyle())


def test_rows_and_notes_of_a_sweep_are_told_apart(tmp_path):
    results = [job(tmp_path, "attnlrp", [recalled(0.25 + seed / 2)] * (seed + 1), seed=seed) for seed in (0, 1)]
    table = recall_table(tell_apart(results), "tiny")
    assert [(row["method"], row["recall_5"]["mean"]) for row in table.rows] == [
        ("ATTNLRP (seed=0)", 0.25), ("ATTNLRP (seed=1)", 0.75),
    ]  # fmt: skip
    assert {"Gemma (seed=0): 1 pairs in 1 prompts.", "Gemma (seed=1): 2 pairs in 2 prompts."} <= set(table.notes)


def test_six_prompts_are_drawn_of_many(tmp_path):
    many = job(tmp_path, "meta_attnlrp", [recalled(None)] * 8, explained=[pairs(np.eye(3))] * 8, meta=True)
    figure = tokens_figure([many])
    assert sum(bool(axes.images) for axes in figure.axes) == 6
    assert any("2 more prompts" in axes.get_xlabel() for axes in figure.axes)


def test_models_of_one_name_are_not_mixed(tmp_path):
    jobs = [
        job(tmp_path, "attnlrp", [recalled(0.5)], model="one", explained=first_order([1, 2, 3])),
        job(tmp_path, "leave_one_out", [recalled(0.5)], model="one", explained=first_order([1, 2, 3])),
        job(tmp_path, "attnlrp", [recalled(0.5)], model="two", explained=first_order([1, 2, 3])),
        job(tmp_path, "leave_one_out", [recalled(0.5)], model="two", explained=first_order([3, 2, 1])),
    ]
    rows = recall_table(jobs, "tiny").rows
    assert [row["loo"] and row["loo"]["mean"] for row in rows] == [1, None, -1, None]


def test_maps_of_a_figure_share_their_colours_and_their_axis_of_sums(jobs):
    figure = tokens_figure(jobs)
    maps = [axes for axes in figure.axes if axes.images]
    assert len({(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in maps}) == 1
    sums = [axes for axes in figure.axes if "sum of the row" in axes.get_title()]
    assert len(sums) == 2
    assert len({axes.get_xlim() for axes in sums}) == 1


def test_a_figure_shows_the_prompts_that_it_names_or_the_first_ones(jobs):
    assert len(shown_prompts(jobs[1], ["s1"])) == 1
    for prompts, n_maps in ((["s1"], 1), (["elsewhere"], 1), (["s0", "s1"], 2)):
        figure = tokens_and_recall_figure(jobs, prompts)
        assert sum(bool(axes.images) for axes in figure.axes) == n_maps


def test_characters_of_formulas_stay_as_they_are(tmp_path):
    tokens = ("$x_1$", "%", "{y}")
    scores = recalled(None, tokens=tokens) | {"answer": "$5^2"}
    odd = job(tmp_path, "meta_attnlrp", [scores], explained=[pairs(np.eye(3), tokens)], meta=True)
    save_figure(tokens_figure([odd]), tmp_path)
    assert (tmp_path / "figure.png").exists()


def test_long_answers_are_cut(tmp_path):
    scores = recalled(None) | {"answer": "word " * 300}
    long = job(tmp_path, "meta_attnlrp", [scores], explained=[pairs(np.eye(3))], meta=True)
    written = [text.get_text() for axes in tokens_figure([long]).axes for text in axes.texts]
    assert any("…" in text and text.count("word") < 100 for text in written)


def deleted(area):
    return {"insertion": area + 1.0, "deletion": 1.0, "area": area}


def test_pair_deletion_has_means_and_the_gain_over_random_pairs_prompt_by_prompt(tmp_path):
    jobs = [
        job(tmp_path, "meta_attnlrp", [deleted(3.0), deleted(5.0)], meta=True),
        job(tmp_path, "attnlrp", [deleted(0.5), deleted(2.0)]),
        job(tmp_path, "random_pairs", [deleted(1.0)]),
    ]
    table = pair_deletion_table(jobs, "tiny")
    assert table.rows[0]["area"] == {"mean": 4.0, "two_se": 2.0, "n": 2}
    assert table.rows[0]["gain"] == {"mean": 2.0, "two_se": None, "n": 1}
    assert table.rows[2]["gain"] is None
    assert table.claims[0]["holds"] is True
    assert "Gemma: Meta-ATTNLRP less sums of ATTNLRP, prompt by prompt" in " ".join(table.notes)
    assert "area +2.750 ± 0.500" in " ".join(table.notes)
    assert pair_deletion_table(jobs[1:], "tiny").claims[0]["holds"] is None


def test_pair_deletion_of_two_seeds_is_compared_seed_by_seed(tmp_path):
    results = tell_apart(
        [
            job(tmp_path, name, [deleted(area + seed), deleted(area + seed)], meta=meta, seed=seed)
            for seed, better in ((0, 1.0), (1, 3.0))
            for name, meta, area in (
                ("attnlrp", False, 0.0),
                ("meta_attnlrp", True, better),
                ("random_pairs", False, 0.5),
            )
        ]
    )
    table = pair_deletion_table(results, "tiny")
    assert [row["gain"] and row["gain"]["mean"] for row in table.rows] == [-0.5, 0.5, None, -0.5, 2.5, None]
    notes = [note for note in table.notes if "less sums" in note]
    assert [note.split(":")[0] for note in notes] == ["Gemma (seed=0)", "Gemma (seed=1)"]
    assert ["area +1.000" in notes[0], "area +3.000" in notes[1]] == [True, True]


@pytest.mark.parametrize(
    ("differences", "holds"),
    [([1.0, 1.1], True), ([-1.0, -1.1], False), ([1.0, -0.5], None), ([2.0], None), ([], None), ([0.0, 0.0], None)],
)
def test_a_difference_within_two_standard_errors_is_not_decided(differences, holds):
    assert is_positive(differences) is holds


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Jobs of Figure 3's methods on two short prompts, by the shipped configs."""
    folder = tmp_path_factory.mktemp("figure3")
    with shipped_configs():
        overrides = ["experiment=figure3", f"output_dir={folder}", "benchmark.ids=[review_10,review_21]"]
        configs = sweep_configs(["attribution=attnlrp,meta_attnlrp,leave_one_out"], overrides)
        for cfg in configs:
            run_job(cfg)
        return [only(read_job(cfg)) for cfg in configs]


def test_figure_3_is_drawn_from_its_jobs(computed, tmp_path):
    figure = tokens_and_recall_figure(computed, ["review_10"])
    assert isinstance(figure, Figure)
    save_figure(figure, tmp_path)
    first = (tmp_path / "figure.png").read_bytes()
    save_figure(tokens_and_recall_figure(computed, ["review_10"]), tmp_path)
    assert (tmp_path / "figure.png").read_bytes() == first


def test_rows_of_the_maps_sum_to_the_first_order_attributions(computed):
    attnlrp, meta, _ = computed
    for first, second in zip(attnlrp.done, meta.done, strict=True):
        matrix = meta.explanations(second)[WHOLE].meta.values
        np.testing.assert_allclose(matrix.sum(1), attnlrp.explanations(first)[WHOLE].attribution, atol=1e-5)


def test_the_metagame_finds_the_pairs_that_the_grammar_made(computed):
    _, meta, _ = computed
    assert [record.scores["ranks"] for record in meta.done] == [[1], [1]]
    assert [record.scores["answer"] for record in meta.done] == ["negative", "negative"]


def test_a_prompt_of_ones_own_needs_no_pairs(tmp_path):
    with shipped_configs():
        cfg = compose(
            "config",
            overrides=["experiment=figure11", "benchmark.prompt='the film was not bad .'", f"output_dir={tmp_path}"],
        )
        run_job(cfg)
        result = only(read_job(cfg))
    assert result.done[0].scores["recall_5"] is None
    table = recall_table([result], "tiny")
    assert table.rows[0]["recall_5"] is None
    assert table.claims[0]["holds"] is None


def test_the_estimator_of_prompts_is_trees_unless_another_is_asked_for():
    with shipped_configs():
        assert compose("config", overrides=["benchmark=prompts"]).estimator.name == "trees"
        assert (
            compose("config", overrides=["benchmark=prompts", "estimator=permutation"]).estimator.name == "permutation"
        )
        assert compose("config", overrides=["experiment=figure3"]).estimator.name == "trees"
        assert compose("config", overrides=["experiment=table2"]).estimator.name == "exact"
