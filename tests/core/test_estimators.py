from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor

from metagame import AttributionGame, meta_attributions
from metagame.estimators import trees
from metagame.estimators.coalition_sample import draw_coalition_sample
from metagame.estimators.trees import tree_index
from metagame.games import all_coalitions
from tests.conftest import close, endogenous_games, games, random_game
from tests.reference import indices as reference
from tests.reference import meta as meta_reference

APPROXIMATE = ["permutation", "regression", "trees", "auto"]
KINDS = {
    "endogenous": {"endogenous": True},
    "exogenous": {"endogenous": False},
    "order 2": {"endogenous": False, "order": 2},
}
each_estimator = pytest.mark.parametrize("estimator", APPROXIMATE)
each_estimator_and_kind = pytest.mark.parametrize(
    ("estimator", "kind"), [(e, k) for e in APPROXIMATE for k in KINDS if (e, k) != ("auto", "order 2")]
)
FEW_TREES = partial(trees, n_trees=20)
"""What holds of trees does not depend on how many they are."""


def recorded(values):
    """A game, and the coalitions that it has been asked for."""
    asked, n = [], len(values).bit_length() - 1

    def fn(coalitions):
        asked.extend(coalitions)
        return values[coalitions @ (1 << np.arange(n))]

    return AttributionGame(fn, n), asked


def play(values, estimator, kind, budget=None, seed=0, **more):
    game = values if isinstance(values, AttributionGame) else AttributionGame.from_values(values)
    estimator = FEW_TREES if estimator == "trees" else estimator
    return meta_attributions(game, estimator, budget=budget, seed=seed, **KINDS[kind], **more)


def game_of_interactions(n, n_targets, most, weight, seed=0):
    """The values of a game with effects of up to ``most`` players at once, that of s players times ``weight**s``."""
    rng, coalitions = np.random.default_rng(seed), all_coalitions(n)
    sets = [list(each) for size in range(most + 1) for each in combinations(range(n), size)]
    return sum(coalitions[:, each].all(1)[:, None] * rng.normal(size=n_targets) * weight ** len(each) for each in sets)


def decaying_game(n, n_targets):
    """Interactions that fade with their order, as attributions' do."""
    return game_of_interactions(n, n_targets, n, 1 / 4)


@each_estimator_and_kind
@pytest.mark.parametrize(("n", "budget"), [(7, 127), (9, 222)])
def test_budget_is_used_and_kept_and_no_coalition_evaluated_twice(estimator, kind, n, budget):
    game, asked = recorded(random_game(n, n if kind == "endogenous" else 2))
    phi = play(game, estimator, kind, budget)
    assert len(np.unique(asked, axis=0)) == len(asked) == phi.n_evaluations <= budget
    # walks of pairs come in whole blocks and repeat coalitions, and so do many walks of few players
    fewer = estimator == "permutation" and (kind == "order 2" or budget > 2 ** (n - 1))
    assert fewer or phi.n_evaluations > budget - n


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
    exact = play(values, "exact", kind).values
    small, large = (
        np.mean([np.linalg.norm(play(values, estimator, kind, budget, seed).values - exact) for seed in range(2)])
        for budget in (75, 225)
    )
    assert large < 0.8 * small


@each_estimator_and_kind
@pytest.mark.parametrize("n", [1, 2, 6])
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


@each_estimator_and_kind
def test_what_needs_no_estimate_is_exact(estimator, kind):
    """phi(N), phi(empty), the diagonal of an endogenous game, and the influence on a constant attribution, 0."""
    values = random_game(6, 6)
    values[:, 2] = 3.0
    phi = play(values, estimator, kind, budget=50)
    assert np.array_equal(phi.first_order, values[-1])
    assert np.array_equal(phi.empty, values[0])
    on_constant = phi.values[2]
    if kind == "endogenous":
        assert np.diag(phi.values) == pytest.approx(np.diag(play(values, "exact", kind).values), abs=1e-12)
        on_constant = np.delete(on_constant, 2)
    # shapiq's KernelSHAP-IQ gives the empty and the grand coalition a large weight for an infinite one
    assert np.abs(on_constant).max() < (1e-5 if kind == "order 2" else 1e-10)


@pytest.mark.parametrize(
    ("estimator", "kind", "n", "budget"),
    [
        ("regression", "endogenous", 8, 100),
        ("regression", "exogenous", 8, 100),
        ("permutation", "endogenous", 10, 90),
        ("permutation", "exogenous", 10, 90),
        ("permutation", "order 2", 10, 900),
    ],
)
def test_standard_error_is_calibrated_and_permutation_unbiased(estimator, kind, n, budget):
    values = random_game(n, n if kind == "endogenous" else 2, seed=3)
    exact = play(values, "exact", kind).values
    estimates = [play(values, estimator, kind, budget, seed) for seed in range(200)]
    errors = np.array([phi.values - exact for phi in estimates])
    claimed = np.array([phi.standard_error for phi in estimates])
    assert 0.7 < np.sqrt((errors**2).mean() / (claimed**2).mean()) < 1.4
    if estimator == "permutation":
        assert (np.abs(errors.mean(0)) <= 5 * errors.std(0) / np.sqrt(len(errors)) + 1e-12).all()


def test_pairs_of_complements_leave_pairwise_interactions_no_error_and_claim_none():
    values = game_of_interactions(8, 3, most=2, weight=1.0)
    phi = play(values, "regression", "exogenous", budget=100)
    assert np.abs(phi.values - play(values, "exact", "exogenous").values).max() < 1e-10
    assert phi.standard_error.max() < 1e-10


@pytest.mark.parametrize("n", [8, 9])
def test_walks_for_pairs_leave_pairwise_interactions_no_error_for_even_and_odd_players(n):
    values, pairs = game_of_interactions(n, 2, most=2, weight=1.0), ~np.eye(n, dtype=bool)
    found = play(values, "permutation", "order 2", budget=230).values
    assert close(found[:, pairs], play(values, "exact", "order 2").values[:, pairs])


@each_estimator
def test_a_missing_standard_error_has_its_reason(estimator):
    phi = play(random_game(6, 2), estimator, "exogenous", budget=30)
    assert phi.standard_error is None
    assert phi.error_note.startswith("estimator='trees'" if estimator == "trees" else "a standard error needs a budget")


def test_a_player_that_never_varied_in_few_walks_has_the_variance_of_the_others():
    """An AND of eight players, of which most walks show nothing: an error of zero would be a claim."""
    values = all_coalitions(12)[:, :8].all(1).astype(float)[:, None]
    assert (play(values, "permutation", "exogenous", budget=96).standard_error > 0).all()
    additive = all_coalitions(12) @ np.arange(12.0)[:, None]
    assert play(additive, "permutation", "exogenous", budget=96).standard_error.max() < 1e-12


@pytest.mark.parametrize(
    ("estimator", "kind"), [(e, "exogenous") for e in APPROXIMATE] + [(e, "order 2") for e in APPROXIMATE[:-1]]
)
def test_targets_share_their_coalitions(estimator, kind):
    (one, asked_of_one), (three, asked_of_three) = (recorded(random_game(7, n_targets)) for n_targets in (1, 3))
    play(one, estimator, kind, budget=100)
    play(three, estimator, kind, budget=100)
    assert np.array_equal(asked_of_one, asked_of_three)


def test_banzhaf_values_of_single_players():
    values = random_game(5, 5)
    endogenous, exogenous = (play(values, "exact", kind, index="banzhaf") for kind in ("endogenous", "exogenous"))
    assert close(endogenous.values, meta_reference.endogenous_of_order(values, 1, reference.banzhaf))
    assert close(exogenous.values, [reference.banzhaf(values[:, target], 5) for target in range(5)])
    assert endogenous.index == exogenous.index == "banzhaf"


def test_banzhaf_values_by_trees_are_those_of_the_trees():
    values = decaying_game(8, 2)
    game = AttributionGame.from_values(values)
    found, exact = (
        meta_attributions(game, estimator, False, budget, index="banzhaf").values
        for estimator, budget in (("trees", 200), ("exact", None))
    )
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("index", ["sii", "ksv", "stii", "fsii", None])
def test_at_order_one_the_efficient_indices_are_the_shapley_value(index):
    values = random_game(4, 2)
    found = play(values, "exact", "exogenous", index=index)
    assert np.array_equal(found.values, play(values, "exact", "exogenous").values)
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


@pytest.mark.parametrize(("order", "depth"), [(1, 1), (1, 4), (2, 4)])
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
    samples = [draw_coalition_sample(n, 120, endogenous=endogenous, seed=seed) for seed in range(100)]
    counted = np.mean([np.bincount(sample.coalitions.sum(1), sample.shares) for sample in samples], axis=0)
    assert counted == pytest.approx(np.ones(n + 1), rel=0.1)
    assert np.ptp(np.mean([sample.coalitions.mean(0) for sample in samples], axis=0)) < 0.03


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
    game = AttributionGame.from_values(random_game(6, 6))
    one, *others = (meta_attributions(game, partial(FEW_TREES, n_threads=n), True, 40).values for n in (1, 3, None))
    assert all(np.array_equal(one, other) for other in others)


@pytest.mark.parametrize(
    ("order", "index", "tolerance"), [(2, "sii", 1e-6), (2, "ksv", 1e-6), (2, "fsii", 1e-4), (3, "fsii", 1e-4)]
)
def test_regression_finds_the_interactions_of_a_game_without_any_beyond_them(order, index, tolerance):
    game = AttributionGame.from_values(game_of_interactions(8, 2, most=order, weight=1.0))
    settings = {"endogenous": False, "order": order, "index": index}
    found = meta_attributions(game, "regression", budget=230, **settings)
    exact = meta_attributions(game, "exact", **settings)
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
