"""Random games, masked models and the hypothesis profile that all tests share."""

from __future__ import annotations

import gc
import random
from collections import Counter
from contextlib import contextmanager

import jaxtyping
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from threadpoolctl import threadpool_limits

# derandomize: a run of the suite is reproducible; deadline: the first example pays for imports.
settings.register_profile("metagame", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("metagame")

UP_TO_SIX, UP_TO_FOUR = st.integers(1, 6), st.integers(1, 4)


def pytest_collection_modifyitems(items):
    """Files with many slow tests come first, so that no process is left alone with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_runtest_setup():
    """Of a list's items beartype checks one at random: the same one in every run."""
    random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Arrays here are small: a second thread only waits, for minutes where the machine is shared."""
    import scipy.linalg  # noqa: F401  here, since the process that hands out the tests does without
    import torch

    threadpool_limits(1)
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def garbage_is_looked_for_seldom():
    """A job looks for it when it ends, but need not search what earlier files have imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_sessionfinish():
    """What is frozen is not freed at exit, and extension modules say so."""
    gc.unfreeze()


@pytest.fixture
def float64_by_default():
    """transformers makes CLIP's causal mask in the default type, which cannot hold the least float64 otherwise."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@contextmanager
def unchecked():
    """Within: annotations are not checked, so that a value which they rule out is seen to be refused by the code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def close(left, right, tolerance=1e-10):
    """Equal shapes (or a number on the right) and values, which may be exact fractions."""
    left, right = np.asarray(left, float), np.asarray(right, float)
    return right.shape in ((), left.shape) and np.allclose(left, right, rtol=0, atol=tolerance)


@st.composite
def games(draw, n_players=UP_TO_SIX, n_targets=UP_TO_FOUR):
    """All values of a game, float64 ``(2**n, t)``, and n."""
    n = draw(n_players)
    # fill=nothing: every value is drawn, none shared.
    return draw(arrays(np.float64, (1 << n, draw(n_targets)), elements=st.floats(-10, 10), fill=st.nothing())), n


@st.composite
def endogenous_games(draw, n_players=UP_TO_SIX):
    """All values of a game whose players are the targets, float64 ``(2**n, n)``."""
    n = draw(n_players)
    return draw(games(st.just(n), st.just(n)))[0]


def random_game(n, n_targets, seed=0):
    """All values of a game with interactions of every order, ``(2**n, t)``."""
    return np.random.default_rng(seed).normal(size=(1 << n, n_targets))
