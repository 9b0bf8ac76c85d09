from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor

from metagame import AttributionGame, GameError, meta_attributions
from metagame.estimators import trees
from metagame.estimators.coalition_sample import draw_coalition_sample
from metagame.estimators.permutation import _zigzags
from metagame.estimators.trees import tree_index
from metagame.games import all_coalitions
from tests.conftest import close, endogenous_games, games, random_game
from tests.reference import indices as reference

APPROXIMATE = ["permutation", "regression", "trees", "auto"]
KINDS = {
    "endogenous": {"endogenous": True},
    "exogenous": {"endogenous": False},
    "order 2": {"endogenous": False, "order": 2},
}
each_estimator = pytest.mark.parametrize("estimator", APPROXIMATE)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_estimator_and_kind = pytest.mark.parametrize(
    ("estimator", "kind"), [(e, k) for e in APPROXIMATE for k in KINDS if (e, k) != ("auto", "order 2")]
)
each_first_order_kind = pytest.mark.parametrize("kind", ["endogenous", "exogenous"])


class Recorder:
    """A game's fn that keeps the coalitions it was given."""

    def __init__(self, values):
        self.values = values
        self.n_players = len(values).bit_length() - 1
        self.calls = []

    def __call__(self, coalitions):
        self.calls.append(coalitions)
        return self.values[coalitions @ (1 << np.arange(self.n_players))]

    @property
    def coalitions(self):
        return np.concatenate(self.calls)


FEW_TREES = partial(trees, n_trees=20)
"""What holds of trees does not depend on how many they are."""


def play(values, estimator, kind, budget=None, seed=0, **more):
    game = AttributionGame.from_values(values)
    return meta_attributions(game, few(estimator), budget=budget, seed=seed, **KINDS[kind], **more)


def few(estimator):
    return FEW_TREES if estimator == "trees" else estimator


def decaying_game(n, n_targets, seed=0):
    """Interactions that fade with their order, as attributions' do."""
    rng = np.random.default_rng(seed)
    present = all_coalitions(n)
    values = np.zeros((1 << n, n_targets))
    for players in reference.subsets(range(n)):
        values += np.outer(present[:, list(players)].all(1), rng.normal(size=n_targets) / 4.0 ** len(players))
    return values


def pairwise_game(n, n_targets, seed=0):
    """Interactions of two players, none of more."""
    weights = np.random.default_rng(seed).normal(size=(n, n, n_targets))
    present = all_coalitions(n).astype(float)
    return np.einsum("si,sj,ijt->st", present, present, weights)


def error(phi, values, kind):
    exact = play(values, "exact", kind).values
    return np.sqrt(((phi.values - exact) ** 2).mean())


@each_estimator_and_kind
@pytest.mark.parametrize(("n", "budget"), [(7, 101), (7, 127), (9, 222)])
def test_budget_is_kept_and_no_coalition_evaluated_twice(estimator, kind, n, budget):
    fn = Recorder(random_game(n, n if kind == "endogenous" else 2))
    phi = meta_attributions(AttributionGame(fn, n), few(estimator), budget=budget, **KINDS[kind])
    assert len(fn.coalitions) == phi.n_evaluations <= budget
    assert len(np.unique(fn.coalitions, axis=0)) == len(fn.coalitions)


@pytest.mark.parametrize(
    ("estimator", "kind"),
    # Walks for pairs come in whole blocks and repeat coalitions, so that fewer are evaluated.
    [(e, k) for e in APPROXIMATE for k in KINDS if (e, k) not in (("permutation", "order 2"), ("auto", "order 2"))],
)
def test_budget_is_used(estimator, kind):
    n, budget = 8, 150
    phi = play(random_game(n, n), estimator, kind, budget=budget)
    assert phi.n_evaluations > budget - n


@each_estimator_and_kind
@pytest.mark.parametrize("n", [1, 3, 10])
def test_default_budget_serves_any_number_of_players(estimator, kind, n):
    n = max(n, KINDS[kind].get("order", 1))
    phi = play(random_game(n, n if kind == "endogenous" else 2), estimator, kind)
    assert np.isfinite(phi.values).all()
    assert phi.n_evaluations <= min(64 * n, 2**n)


@each_estimator_and_kind
def test_estimate_depends_on_the_seed_and_on_nothing_else(estimator, kind):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    values = decaying_game(6, 6)
    once, again, other = (play(values, estimator, kind, budget=50, seed=seed) for seed in (1, 1, 2))
    assert once.values.tobytes() == again.values.tobytes()
    assert once.values.tobytes() != other.values.tobytes()
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@each_estimator_and_kind
def test_error_falls_with_the_budget(estimator, kind):
    values = decaying_game(8, 8 if kind == "endogenous" else 2)
    small, large = (
        np.mean([error(play(values, estimator, kind, budget=budget, seed=seed), values, kind) for seed in range(2)])
        for budget in (75, 225)
    )
    assert large < 0.8 * small


@each_estimator_and_kind
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_with_all_coalitions_every_estimator_is_exact(estimator, kind, n):
    n = max(n, KINDS[kind].get("order", 1))
    values = random_game(n, n)
    phi, exact = play(values, estimator, kind, budget=2**n), play(values, "exact", kind)
    assert np.abs(phi.values - exact.values).max() < 1e-12
    assert phi.n_evaluations == 2**n
    assert not phi.standard_error.any()


@each_estimator
@settings(max_examples=8)
@given(values=endogenous_games(n_players=st.integers(2, 6)), endogenous=st.booleans(), seed=st.integers(0, 9))
def test_rows_are_efficient(estimator, values, endogenous, seed):
    kind = "endogenous" if endogenous else "exogenous"
    phi = play(values, estimator, kind, budget=min(2 * values.shape[1] + 3, len(values)), seed=seed)
    assert np.abs(phi.residual).max() < 1e-9


@each_estimator
def test_diagonal_of_an_endogenous_game_is_exact(estimator):
    values = random_game(7, 7)
    phi = play(values, estimator, "endogenous", budget=40)
    assert np.diag(phi.values) == pytest.approx(np.diag(play(values, "exact", "endogenous").values), abs=1e-12)


@each_estimator_and_kind
def test_first_order_and_empty_are_exact(estimator, kind):
    values = random_game(6, 6)
    phi = play(values, estimator, kind, budget=50)
    assert np.array_equal(phi.first_order, values[-1])
    assert np.array_equal(phi.empty, values[0])


@each_estimator_and_kind
def test_no_player_influences_a_constant_attribution(estimator, kind):
    values = random_game(6, 6)
    values[:, 2] = 3.0
    phi = play(values, estimator, kind, budget=50)
    expected = np.where(np.arange(6) == 2, 3.0, 0.0) if kind == "endogenous" else np.zeros(phi.values[2].shape)
    # shapiq's KernelSHAP-IQ gives the empty and the grand coalition a large weight for an infinite one
    assert np.abs(phi.values[2] - expected).max() < (1e-5 if kind == "order 2" else 1e-10)


@pytest.mark.parametrize("estimator", ["permutation", "regression"])
@each_first_order_kind
def test_standard_error_is_calibrated(estimator, kind):
    values = random_game(8, 8, seed=3)
    exact = play(values, "exact", kind).values
    estimates = [play(values, estimator, kind, budget=100, seed=seed) for seed in range(200)]
    errors = np.array([phi.values - exact for phi in estimates])
    claimed = np.array([phi.standard_error for phi in estimates])
    ratio = np.sqrt((errors**2).mean() / (claimed**2).mean())
    assert 0.7 < ratio < 1.4


def test_pairs_of_complements_leave_pairwise_interactions_no_error_and_claim_none():
    values = pairwise_game(8, 3)
    phi = play(values, "regression", "exogenous", budget=100)
    assert np.abs(phi.values - play(values, "exact", "exogenous").values).max() < 1e-10
    assert phi.standard_error.max() < 1e-10


@each_first_order_kind
def test_permutation_is_unbiased(kind):
    values = random_game(10, 10, seed=1)
    exact = play(values, "exact", kind).values
    errors = np.array([play(values, "permutation", kind, budget=90, seed=seed).values - exact for seed in range(300)])
    assert (np.abs(errors.mean(0)) <= 5 * errors.std(0) / np.sqrt(len(errors)) + 1e-12).all()


def test_standard_error_of_permutation_falls_as_one_over_the_root_of_the_walks():
    values = random_game(16, 2)
    few, many = (play(values, "permutation", "exogenous", budget=2 + 15 * walks) for walks in (40, 640))
    assert np.sqrt((few.standard_error**2).mean() / (many.standard_error**2).mean()) == pytest.approx(4, rel=0.25)


@each_estimator
def test_a_missing_standard_error_has_its_reason(estimator):
    phi = play(random_game(6, 2), estimator, "exogenous", budget=30)
    assert phi.standard_error is None
    assert phi.error_note.startswith("estimator='trees'" if estimator == "trees" else "a standard error needs a budget")


def test_a_player_that_never_varied_in_few_walks_has_the_variance_of_the_others():
    """An AND of eight players, of which most walks show nothing: an error of zero would be a claim."""
    values = all_coalitions(12)[:, :8].all(1).astype(float)[:, None]
    phi = play(values, "permutation", "exogenous", budget=96)
    assert (phi.standard_error > 0).all()
    additive = all_coalitions(12) @ np.arange(12.0)[:, None]
    assert play(additive, "permutation", "exogenous", budget=96).standard_error.max() < 1e-12


@pytest.mark.parametrize(
    ("estimator", "kind"),
    [(e, k) for e in APPROXIMATE for k in ("exogenous", "order 2") if (e, k) != ("auto", "order 2")],
)
def test_targets_share_their_coalitions(estimator, kind):
    asked = []
    for n_targets in (1, 3):
        fn = Recorder(random_game(7, n_targets))
        meta_attributions(AttributionGame(fn, 7), few(estimator), budget=100, **KINDS[kind])
        asked.append(fn.coalitions)
    assert np.array_equal(*asked)


BANZHAF = {"index": "banzhaf", "endogenous": False}


@pytest.mark.parametrize("endogenous", [True, False])
def test_banzhaf_values_of_single_players(endogenous):
    values = random_game(5, 5)
    asked = BANZHAF | {"endogenous": endogenous}
    found = meta_attributions(AttributionGame.from_values(values), "exact", **asked)
    if endogenous:
        for target in range(5):
            own = values[all_coalitions(5)[:, target], target]
            others = np.delete(found.values[target], target)
            assert others == pytest.approx(reference.banzhaf(own, 4).astype(float), abs=1e-12)
            assert found.values[target, target] == values[1 << target, target]
    else:
        expected = [reference.banzhaf(values[:, target], 5).astype(float) for target in range(5)]
        assert np.abs(found.values - expected).max() < 1e-12
    assert found.index == "banzhaf"


def test_banzhaf_values_by_trees_are_those_of_the_trees():
    values = decaying_game(8, 2)
    game = AttributionGame.from_values(values)
    found = meta_attributions(game, "trees", budget=200, **BANZHAF).values
    exact = meta_attributions(game, "exact", **BANZHAF).values
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    with pytest.raises(GameError, match="index='banzhaf' needs estimator='exact'"):
        meta_attributions(game, "regression", budget=200, **BANZHAF)


@pytest.mark.parametrize("index", ["sii", "ksv", "stii", "fsii", None])
def test_at_order_one_the_efficient_indices_are_the_shapley_value(index):
    game = AttributionGame.from_values(random_game(4, 2))
    found = meta_attributions(game, endogenous=False, index=index)
    assert np.array_equal(found.values, meta_attributions(game, endogenous=False).values)
    assert found.index is None


def test_trees_see_values_of_any_size():
    values = decaying_game(8, 2)
    tiny, usual = (play(scale * values, "trees", "exogenous", budget=150).values / scale for scale in (1e-12, 1.0))
    assert tiny == pytest.approx(usual, rel=1e-6, abs=1e-9)


def test_order_two_regression_is_what_shapiq_finds_for_each_target():
    from shapiq.approximator import KernelSHAPIQ

    n, budget = 6, 50
    values = random_game(n, 3)
    phi = play(values, "regression", "order 2", budget=budget, seed=4)
    for target in range(3):
        fn = AttributionGame.from_values(values[:, [target]])
        theirs = KernelSHAPIQ(n, max_order=2, index="SII", pairing_trick=True, random_state=4)
        found = theirs.approximate(budget, lambda c, fn=fn: fn(np.atleast_2d(c).astype(bool))[:, 0])
        ours = [phi.values[target, players[0], players[-1]] for players in found.interactions if players]
        assert ours == pytest.approx([value for players, value in found.interactions.items() if players], abs=1e-12)


@pytest.mark.parametrize("n", range(2, 12))
def test_every_pair_is_neighbours_equally_often_in_a_block_of_walks(n):
    met = np.zeros((n, n), int)
    for walk in _zigzags(n):
        assert sorted(walk) == list(range(n))
        np.add.at(met, (walk[:-1], walk[1:]), 1)
    met += met.T
    assert set(met[~np.eye(n, dtype=bool)]) == {1 if n % 2 == 0 else 2}


def test_order_two_permutation_is_unbiased_and_its_error_calibrated():
    values = random_game(10, 1)
    exact = play(values, "exact", "order 2").values
    runs = [play(values, "permutation", "order 2", budget=900, seed=seed) for seed in range(200)]
    error = np.array([run.values - exact for run in runs])
    spread = error.std(0) / np.sqrt(len(runs))
    assert (np.abs(error.mean(0)) < 5 * spread + 1e-12).all()
    claimed = np.array([run.standard_error for run in runs])
    assert 0.7 < np.sqrt((error**2).mean() / (claimed**2).mean()) < 1.4


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("depth", [1, 4])
@given(game=games(n_players=st.integers(1, 5), n_targets=st.just(1)))
def test_tree_index_is_that_of_the_predictions_on_all_coalitions(order, depth, game):
    values, n = game
    boost = GradientBoostingRegressor(n_estimators=5, max_depth=depth, learning_rate=0.3, random_state=0)
    predictions = boost.fit(all_coalitions(n), values[:, 0]).predict(all_coalitions(n))
    # scikit-learn starts from the mean and adds in float64, in another order.
    assert np.allclose(tree_index(boost, order), reference.sii(predictions, n, order).astype(float), rtol=0, atol=1e-10)


@pytest.mark.parametrize("endogenous", [True, False])
@given(n=st.integers(1, 9), over=st.integers(0, 100), seed=st.integers(0, 9))
def test_coalition_sample_holds_distinct_coalitions_the_bounds_first(endogenous, n, over, seed):
    budget = min(2 * n + 2, 2**n) + over
    sample = draw_coalition_sample(n, budget, endogenous=endogenous, seed=seed)
    assert not sample.coalitions[0].any()
    assert sample.coalitions[1].all()
    assert len(np.unique(sample.coalitions, axis=0)) == len(sample.coalitions) <= budget
    assert endogenous <= (np.bincount(sample.coalitions.sum(1), minlength=n + 1)[[1, -2]] == n).all() or n == 1


@pytest.mark.parametrize("endogenous", [True, False])
def test_shares_of_a_coalition_sample_estimate_the_mean_of_each_size(endogenous):
    n = 8
    samples = [draw_coalition_sample(n, 120, endogenous=endogenous, seed=seed) for seed in range(300)]
    counted = np.mean([np.bincount(sample.coalitions.sum(1), sample.shares) for sample in samples], axis=0)
    assert counted == pytest.approx(np.ones(n + 1), rel=0.1)
    met = np.mean([sample.coalitions.mean(0) for sample in samples], axis=0)
    assert np.ptp(met) < 0.03


@given(n=st.integers(5, 8), seed=st.integers(0, 9))
def test_exogenous_coalition_sample_pairs_complements(n, seed):
    sample = draw_coalition_sample(n, 2 * n + 12, endogenous=False, seed=seed)
    rows = {coalition.tobytes() for coalition in sample.coalitions}
    assert all((~coalition).tobytes() in rows for coalition in sample.coalitions)


def test_a_coalition_sample_that_was_written_to_is_drawn_again_as_it_was():
    first, second = (draw_coalition_sample(6, 30, endogenous=False, seed=0) for _ in range(2))
    first.coalitions[:], first.shares[:] = True, 0
    third = draw_coalition_sample(6, 30, endogenous=False, seed=0)
    assert np.array_equal(second.coalitions, third.coalitions)
    assert np.array_equal(second.shares, third.shares)


def test_threads_change_nothing():
    values = random_game(6, 6)
    one, several, all_cores = (
        meta_attributions(AttributionGame.from_values(values), partial(trees, n_threads=count), True, 40).values
        for count in (1, 3, None)
    )
    assert np.array_equal(one, several)
    assert np.array_equal(one, all_cores)


def additive_game(n, order, n_targets=2, seed=0):
    """A game without effects of more than ``order`` players at once, by its values ``(2**n, t)``."""
    rng, coalitions = np.random.default_rng(seed), all_coalitions(n)
    sets = [list(each) for size in range(order + 1) for each in combinations(range(n), size)]
    return sum(coalitions[:, each].all(1)[:, None] * rng.normal(size=n_targets) for each in sets)


@pytest.mark.parametrize(
    ("order", "index", "tolerance"), [(2, "sii", 1e-6), (2, "ksv", 1e-6), (2, "fsii", 1e-4), (3, "fsii", 1e-4)]
)
def test_regression_finds_the_interactions_of_a_game_without_any_beyond_them(order, index, tolerance):
    values = additive_game(8, order)
    settings = {"endogenous": False, "order": order, "index": index}
    found = meta_attributions(AttributionGame.from_values(values), "regression", budget=230, **settings)
    exact = meta_attributions(AttributionGame.from_values(values), "exact", **settings)
    assert close(found.values, exact.values, tolerance)  # shapiq's FSII is good to 1e-6 times the values


@pytest.mark.parametrize("estimator", ["permutation", "regression", "trees"])
def test_ksv_of_order_two_is_that_of_the_interactions_that_are_found(estimator):
    sii, ksv = (
        play(random_game(7, 2), estimator, "order 2", budget=100, index=index).values for index in ("sii", "ksv")
    )
    own = np.einsum("tjj->tj", sii)
    expected = sii.copy()
    np.einsum("tjj->tj", expected)[:] = own - (sii.sum(2) - own) / 2
    assert close(ksv, expected, 1e-8)
