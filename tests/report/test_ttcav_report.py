"""The table and figures of concept scores: corrected tests, claims and marks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from metagame.contracts import WHOLE, Explanation
from metagame.report import ttcav
from metagame.report.ttcav import cells_of, p_value, ttcav_table
from tests.tiny.reports import Made, holds, made_up, only, stub_config

REPEATS = 20
AROUND = np.linspace(-0.05, 0.05, REPEATS)
HIGH, LOW, HALF = 0.8 + AROUND, 0.2 + AROUND, 0.5 + AROUND


def made(by_class, depending=(), effects=None):
    """A concept with one layer; of each class its scores, or all the same."""
    names = list(by_class)
    scores = [[list(np.broadcast_to(values, REPEATS))] for values in by_class.values()]
    about = {"classes": names, "layers": [2], "examples": 20, "images": dict.fromkeys(names, 5)}
    targets = tuple(f"{name}, layer 2" for name in names)
    explanation = Explanation(("c",), targets, (2, 2), attribution=np.arange(4.0 * len(names)))
    size = effects or dict.fromkeys(names, 0.1)
    about |= {"depending": depending, "effects": [[list(size[name] + AROUND)] for name in names], "scores": scores}
    return Made(about, {WHOLE: explanation})


def job(folder, label="T-TCAV", **concepts):
    cfg = stub_config(folder, attribution={"name": "ttcav", "label": label}, benchmark={"name": "concept_scores"})
    return only(made_up(cfg, concepts))


def whole_job(folder, **changes):
    striped = made({"zebra": HIGH, "horse": HALF}, ["zebra"], {"zebra": 2.0, "horse": 0.1})
    concepts = {
        "striped": striped,
        "dotted": made({"zebra": LOW, "horse": HALF}),
        "random": made({"zebra": HALF, "horse": HALF}),
    }
    return job(folder, **concepts | changes)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=8).filter(lambda each: np.std(each) > 1e-3))
def test_p_values_are_those_of_the_t_distribution(scores):
    error = np.std(scores, ddof=1) / np.sqrt(len(scores))
    expected = 2 * t.sf(abs(np.mean(scores) - 0.5) / error, len(scores) - 1)
    assert p_value(np.array(scores)) == pytest.approx(expected)
    assert (p_value(np.full(5, 1.0)), p_value(np.full(5, 0.5))) == (0, 1)  # for certain, or not at all


def test_p_values_are_corrected_for_all_tests_and_what_is_found_is_above_one_half(tmp_path):
    result = whole_job(tmp_path)
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
        ({"striped": made({"zebra": HALF, "horse": HALF}, ["zebra"])}, [False, True, None, True]),
        ({"dotted": made({"zebra": HIGH, "horse": HALF})}, [False, True, True, True]),
        ({"dotted": made({"zebra": LOW, "horse": HIGH})}, [True, False, True, True]),
        ({"dotted": made({"zebra": LOW, "horse": LOW})}, [True, True, True, True]),
        ({"dotted": made({"zebra": LOW, "horse": HALF}, (), {"zebra": 3.0, "horse": 3.0})}, [True, True, False, True]),
        ({"random": made({"zebra": HIGH, "horse": HALF})}, [True, True, True, False]),
        ({"random": made({"zebra": LOW, "horse": HALF})}, [True, True, True, True]),
    ],
)
def test_each_claim_fails_where_it_should(tmp_path, changes, expected):
    table = ttcav_table([whole_job(tmp_path, **changes)], "tiny")
    assert holds(table) == expected


def test_claims_that_nothing_is_found_agree_with_the_column_and_tell_what_is_significant(tmp_path):
    table = ttcav_table([whole_job(tmp_path, random=made({"zebra": LOW, "horse": HALF}))], "tiny")
    assert not [row for row in table.rows if row["concept"] == "random" and row["found"]]
    assert table.claims[-1]["holds"] is True
    assert table.claims[-1]["difference"] == "significant: 1 of 2, 0 of them above 0.5"


def test_without_ground_truth_only_the_baseline_is_judged_and_nothing_is_framed(tmp_path):
    result = job(tmp_path, striped=made({"zebra": HIGH}, None), random=made({"zebra": HALF}, None))
    table = ttcav_table([result], "paper")
    assert [claim["claim"] for claim in table.claims] == ["It finds nothing for the random concept (Model)"]
    assert all(row["depends"] is None for row in table.rows)
    assert "false alarm" not in ttcav.ttcav_figure([result]).caption
    assert "false alarm" in ttcav.ttcav_figure([whole_job(tmp_path / "known")]).caption


def test_cells_have_their_mean_and_a_star_and_the_true_one_a_frame(tmp_path):
    figures = ttcav.ttcav_figure([whole_job(tmp_path)]).figures
    axes = figures["scores"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.80*", "0.20*", "0.50", "0.50", "0.50", "0.50"]
    frames = [patch for patch in axes.patches if patch.get_edgecolor() == (0, 0, 0, 1)]
    assert [frame.get_xy() for frame in frames] == [(-0.5, -0.5)]
    first, second, _ = figures["maps"].axes
    assert first.get_ylabel() == "striped\non class zebra"
    assert np.array_equal(first.images[0].get_array(), [[0, 1], [2, 3]])
    assert second.get_ylabel() == "dotted\non class zebra"


def test_the_random_concept_has_no_maps_and_of_jobs_without_a_finished_sample_nothing_is_drawn(tmp_path):
    figures = ttcav.ttcav_figure([job(tmp_path, random=made({"zebra": HALF}, None))]).figures
    assert not figures["maps"].axes
    assert figures["scores"].axes
    assert ttcav.ttcav_figure([job(tmp_path / "other")]) is None


def test_two_methods_of_a_model_are_told_apart(tmp_path):
    first, second = whole_job(tmp_path / "one"), whole_job(tmp_path / "other", label="T-TCAV of 9")
    names = dict.fromkeys(row["model"] for row in ttcav_table([first, second], "tiny").rows)
    assert list(names) == ["Model, T-TCAV", "Model, T-TCAV of 9"]
