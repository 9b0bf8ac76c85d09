from __future__ import annotations

import json

import numpy as np
import pytest
import sympy

from metagame.attributions import symbolic
from metagame.benchmarks.separation import Separation
from metagame.contracts import WHOLE, Explanation
from metagame.meta import MetaAttributions


def scored(function, explain):
    benchmark = Separation(function)
    (sample,) = benchmark.samples()
    return benchmark.score(sample, {WHOLE: sample}, {WHOLE: explain(sample)})


@pytest.mark.parametrize(
    ("method", "kind", "entries"),
    [
        (
            *(symbolic.ShapleyValue().metagame(), "Directional"),
            {
                "phi_11": "3*x1",
                "phi_22": "0",
                "phi_21": "x1*x2/2",
                "phi_12": "x1*x2/2",
                "phi_1": "x1*x2/2 + 3*x1",
                "phi_2": "x1*x2/2",
                "sum": "x1*x2 + 3*x1",
            },
        ),
        (
            *(symbolic.MoebiusTransform(), "Set-Based"),
            {"phi_11": "3*x1", "phi_22": "0", "pair_12": "x1*x2", "phi_1": "3*x1", "phi_2": "0", "sum": "3*x1"},
        ),
        (
            *(symbolic.GradientInput(), "First-Order"),
            {"phi_1": "x1*x2 + 3*x1", "phi_2": "x1*x2", "sum": "2*x1*x2 + 3*x1"},
        ),
    ],
)
def test_the_kind_and_the_entries_of_a_method_by_hand(method, kind, entries):
    scores = scored("3*x1 + x1*x2", method.explain)
    assert (scores["kind"], scores["entries"]) == (kind, entries)
    assert json.loads(json.dumps(scores)) == scores
    assert scored("x1 + x1*x2", symbolic.Serial(symbolic.GradientInput()).explain)["kind"] == "Serial"


def named(n, directed):
    """What the entries are called of values that say where they stand: row i, column j."""
    values = np.array([[sympy.Symbol(f"r{i}c{j}") for j in range(1, n + 1)] for i in range(1, n + 1)], dtype=object)
    meta = MetaAttributions(values, directed=directed)

    def explain(bound):
        return Explanation(bound.players, bound.targets, attribution=values.diagonal(), meta=meta)

    return scored(" + ".join(f"x{i}" for i in range(1, n + 1)), explain)["entries"]


def test_the_influence_of_feature_j_stands_in_column_j():
    found = named(3, directed=True)
    assert (found["phi_21"], found["phi_13"], found["phi_22"]) == ("r1c2", "r3c1", "r2c2")
    pairs = ["phi_21", "phi_31", "phi_12", "phi_32", "phi_13", "phi_23"]
    assert list(found) == ["phi_11", "phi_22", "phi_33", *pairs, "phi_1", "phi_2", "phi_3", "sum"]


def test_a_pair_stands_once_and_more_than_nine_features_have_names_with_an_underscore():
    pairs = [name for name in named(3, directed=False) if name.startswith("pair")]
    assert pairs == ["pair_12", "pair_13", "pair_23"]
    assert {"phi_1_10", "phi_10_1", "phi_1_1", "phi_10"} <= set(named(10, directed=True))
