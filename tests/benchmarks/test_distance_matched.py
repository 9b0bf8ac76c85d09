"""Measures of annotated pairs at equal distance against loops, by chance, and of closeness itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metagame.attributions.proximity import Proximity
from metagame.benchmarks.distance_matched import (
    chance_of_recall,
    closest_places,
    pair_scores,
    percentile,
    same_distance_recall,
    unordered_rank,
)
from metagame.benchmarks.prompts import distance_matched, most_pairs, pair_ranks
from metagame.models.masked import MaskedModel
from tests.reference import distance_matched as twin

TOKENS = tuple("abcdefghij")


@st.composite
def cases(draw):
    """A matrix with ties, up to three pairs of it, other places of their words, and how many are the largest."""
    n = draw(st.integers(2, 8))
    matrix = draw(arrays(float, (n, n), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])))
    places = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] != pair[1])
    some = st.lists(places, max_size=2)
    return matrix, draw(st.lists(places, min_size=1, max_size=3)), draw(some), draw(st.integers(1, n * (n - 1)))


@given(cases())
def test_percentiles_ranks_and_controls_are_those_of_loops(case):
    matrix, pairs, others, most = case
    scores = pair_scores(matrix)
    for pair in pairs:
        assert percentile(scores, pair, others) == pytest.approx(twin.percentile(matrix, *pair, others))
        assert unordered_rank(scores, pair) == twin.rank(matrix, *pair)
    expected = twin.same_distance_recall(matrix, pairs, most, others)
    assert same_distance_recall(scores, pairs, most, others) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("places", [((0, 1),), ((0, 1), (1, 2)), ((0, 1), (1, 2), (0, 2))])
def test_the_recall_of_chance_is_that_of_all_orders(symmetric, places):
    n = 3
    for most in range(1, n * (n - 1) + 1):
        expected = twin.chance(n, most, symmetric, places)
        assert chance_of_recall(n, most, symmetric, len(places)) == pytest.approx(expected)


def test_words_that_occur_several_times_have_the_chance_of_all_and_are_nobodys_others():
    tokens = ("very", "good", "a", "very", "good", "b", "very", "good", "c", "d")
    oracle = np.random.default_rng(1).uniform(0, 0.5, (10, 10))
    for place in (0, 3, 6):
        oracle[place, place + 1] = 1.0 - place / 10
    found = distance_matched([("very", "good")], tokens, oracle.T, symmetric=False)
    assert found["percentiles"] == [1.0]
    assert found["same_distance"] < 0.2
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(10, 10)) for _ in range(300)]
    for symmetric in (False, True):
        matrices = [matrix + matrix.T if symmetric else matrix for matrix in noise]
        ranks = [min(pair_ranks([("very", "good")], tokens, matrix)[0][0]) for matrix in matrices]
        recall = np.mean([[rank <= most_pairs(share, 10) for share in range(1, 16)] for rank in ranks])
        assert found["chance_at_one"] < 0.2
        chance = distance_matched([("very", "good")], tokens, matrices[0], symmetric=symmetric)["chance"]
        assert recall == pytest.approx(chance, abs=0.06)
    assert distance_matched([("x", "y")], tokens, oracle, symmetric=False)["chance"] is None


def test_meaningless_scores_have_a_percentile_of_a_half_and_the_recall_of_chance():
    rng = np.random.default_rng(0)
    found = [distance_matched([("b", "f")], TOKENS, rng.normal(size=(10, 10)), symmetric=False) for _ in range(100)]
    unordered = np.mean([max(1, round(share * 90 / 200)) / 45 for share in range(1, 16)])
    for name, expected in (("percentiles", 0.5), ("same_distance", unordered), ("unordered", unordered)):
        values = np.ravel([each[name] for each in found])
        assert values.mean() == pytest.approx(expected, abs=4 * np.std(values) / 10)
    directed = np.mean([chance_of_recall(10, most_pairs(share, 10), False) for share in range(1, 16)])
    assert found[0]["chance"] == pytest.approx(directed)


def test_closeness_alone_recalls_neighbours_and_knows_nothing_at_equal_distance():
    bound = MaskedModel.of_function(lambda x: x.sum(-1), np.zeros(10))
    seeds = [Proximity(seed).explain(bound).meta.values for seed in range(100)]
    near = [distance_matched([("d", "e")], TOKENS, each, symmetric=True) for each in seeds]
    assert np.mean([each["percentiles"] for each in near]) == pytest.approx(0.5, abs=0.06)
    assert near[0]["apart"] is None
    rows, columns = np.triu_indices(10, 1)
    for each in seeds[:3]:
        assert (np.diff((columns - rows)[np.argsort(-each[rows, columns])]) >= 0).all()
        assert np.array_equal(each, each.T)


def test_the_closest_match_counts_whatever_a_method_says_and_pairs_without_enough_others_have_no_percentile():
    assert closest_places([0, 7], [3, 9]) == (7, 9)
    assert closest_places([4], [4]) is None
    assert closest_places([], [4]) is None
    tokens = ("x", "a", "q", "b", "a")
    found = distance_matched([("a", "b"), ("x", "b"), ("x", "zz")], tokens, np.eye(5), symmetric=False)
    assert found["distances"] == [1, 3]
    assert found["percentiles"] == [0.5, None]
