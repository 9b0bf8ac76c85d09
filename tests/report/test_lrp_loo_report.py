"""The table and figure of agreement with leave-one-out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metagame.contracts import WHOLE
from metagame.errors import UserError
from metagame.report import lrp_loo
from metagame.report.lrp_loo import lrp_loo_table, pearson, spearman
from tests.tiny.reports import Made, figure_of, made_up, only, stub_config, tokens_explained

layers_figure = figure_of(lrp_loo.layers_figure)
TOKENS = ("a", "b", "c", "d")


def job(folder, attribution, *rows, method=None):
    cfg = stub_config(
        folder,
        model={"name": "gemma", "label": "Gemma", "checkpoint": "gemma"},
        attribution={"name": attribution, "label": attribution, "family": "lrp", "base": attribution.split("@")[0]}
        | {"meta": False}
        | ({} if method is None else {"method": method}),
        benchmark={"name": "token_relevances"},
    )
    made = [Made({"n_players": 4}, {WHOLE: tokens_explained(TOKENS, row)}) for row in rows]
    return only(made_up(cfg, {f"s{number}": each for number, each in enumerate(made)}))


def by_hand(one, other):
    """Of numbers that are not all equal, from the sums."""
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
    loo = job(tmp_path, "leave_one_out", [1, 2, 3, 4], [4, 3, 2, 1], [0, 1, 0, 1])
    attnlrp = job(tmp_path, "attnlrp", [1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1])
    cp = job(tmp_path, "cp_lrp", [1, 2, 3, 5], [8, 3, 2, 1], [0, 2, 0, 2])
    table = lrp_loo_table([loo, attnlrp, cp], "tiny")
    first, second = table.rows
    assert (first["method"], second["method"]) == ("attnlrp", "cp_lrp")
    assert first["spearman"] == {"mean": 0.0, "two_se": 2.0, "n": 2}  # the third is constant
    assert second["spearman"]["n"] == 3
    assert second["spearman"]["mean"] == pytest.approx(1)
    assert second["more_spearman"] == {"mean": 1.0, "two_se": 2.0, "n": 2}
    assert [claim["holds"] for claim in table.claims] == [None, None]
    with pytest.raises(UserError, match="add attribution=leave_one_out"):
        lrp_loo_table([attnlrp], "tiny")


def test_shares_of_the_layers_that_are_the_same_in_a_small_model_are_named(tmp_path):
    loo = job(tmp_path, "leave_one_out", [1, 2, 3, 4])
    rows = {0.4: [1, 2, 3, 5], 0.6: [1, 2, 3, 5], 0.8: [1, 2, 4, 5]}
    mixed = [
        job(tmp_path, f"lrp_by_layer@{share}", row, method={"share": share, "cp_side": "above"})
        for share, row in rows.items()
    ]
    notes = [note for note in lrp_loo_table([loo, *mixed], "tiny").notes if "few layers" in note]
    assert notes == ["Gemma: lrp_by_layer@0.4 and lrp_by_layer@0.6 are the same, since the model has few layers."]


def test_the_figure_has_a_line_for_each_side_from_one_method_to_the_other(tmp_path):
    rows = [1, 2, 3, 4], [1, 3, 2, 4]
    names = ("leave_one_out", "attnlrp", "cp_lrp", "alti_logit")
    results = [job(tmp_path, name, *rows) for name in names]
    assert layers_figure(results) is None
    method = {"_target_": "metagame.attributions.lrp_by_layer.LRPByLayer", "share": 0.5, "cp_side": "above"}
    figure = layers_figure([*results, job(tmp_path, "lrp_by_layer", *rows, method=method)])
    axes = figure.axes[0]
    lines = [container.lines[0].get_xdata().tolist() for container in axes.containers]
    assert [np.round(line).tolist() for line in lines] == [[0, 0, 1], [0, 1]]
    assert any(line.get_label() == "alti_logit" for line in axes.lines)
