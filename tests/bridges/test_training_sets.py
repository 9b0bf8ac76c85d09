"""The points of a training set as players: data values, and the points that an attribution comes from."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LinearRegression, LogisticRegression

from metagame import UserError, meta_attributions
from metagame.bridges.sklearn import of_training_set
from tests.conftest import close
from tests.reference.knn_shapley import knn_shapley

RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(9, 2)), RNG.normal(size=(6, 2))
Y, Y_TEST = RNG.integers(3, size=9), RNG.integers(3, size=6)


class Neighbours(ClassifierMixin, BaseEstimator):
    """Of the k nearest points, or all where there are fewer, the share of k that has the right class."""

    def __init__(self, k=3):
        self.k = k

    def fit(self, x, y):
        self.x_, self.y_ = x, y
        return self

    def utilities(self, x, y):
        distances = np.linalg.norm(self.x_ - x[:, None], axis=-1)
        nearest = np.argsort(distances, axis=1)[:, : self.k]
        return (self.y_[nearest] == y[:, None]).sum(1) / self.k


def coefficients(fitted):
    return [*fitted.coef_, fitted.intercept_]


@pytest.mark.parametrize("k", [1, 3, 9])
def test_data_values_of_nearest_neighbours_are_those_of_the_closed_form(k):
    """Jia et al., 2019, Theorem 1."""
    game = of_training_set(Neighbours(k), X, Y, lambda fitted: fitted.utilities(X_TEST, Y_TEST), np.zeros(6))
    phi = meta_attributions(game, endogenous=False)
    assert close(phi.values, [knn_shapley(X, Y, x, y, k) for x, y in zip(X_TEST, Y_TEST, strict=True)])
    assert phi.players == tuple(map(str, range(9)))


def test_the_values_of_points_add_up_to_what_training_changes():
    frame = pd.DataFrame(X[:6], columns=["a", "b"], index=[f"row {n}" for n in range(6)])
    y = X[:6] @ [1.0, 2.0] + 3
    game = of_training_set(LinearRegression(), frame, y, coefficients, [0, 0, 0], targets=["a", "b", "intercept"])
    phi = meta_attributions(game, endogenous=False)
    assert close(phi.values.sum(1), [1, 2, 3])
    assert (phi.players[0], phi.targets) == ("row 0", ("a", "b", "intercept"))


def test_a_classifier_of_one_class_is_untrained_where_it_cannot_be_fitted():
    game = of_training_set(LogisticRegression(), X[:3], [0, 0, 1], lambda fitted: fitted.score(X, Y), 0.25)
    several = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    assert close(game(several)[:2], 0.25)
    assert game(several)[2] == LogisticRegression().fit(X[:3], [0, 0, 1]).score(X, Y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, Y[:3], [0, 0, 0]), "y has shape .3,. for 9 points"),
        ((X, Y, 0.0), "attribute= gives 3 targets, but untrained= has 1"),
        ((csr_array(X), Y, [0, 0, 0]), r"x is a sparse matrix: give x.toarray\(\)"),
        ((X * np.nan, Y, [0, 0, 0]), "LinearRegression cannot be fitted to . points .Input X contains NaN"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    x, y, untrained = given
    with pytest.raises(UserError, match=message):
        meta_attributions(of_training_set(LinearRegression(), x, y, coefficients, untrained), endogenous=False)
