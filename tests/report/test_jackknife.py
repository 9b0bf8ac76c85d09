"""Scores that are pooled over images, against the same by one loop after the other."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metagame.report.jackknife import JackknifeRatio
from tests.conftest import close
from tests.tiny.reports import two_errors


def ratio_by_loops(parts, wholes):
    """The mean over the classes that have a whole of their pooled ratio; NaN where none has."""
    ratios = []
    for number in range(len(wholes[0]) if len(wholes) else 0):
        whole = sum(image[number] for image in wholes)
        if whole > 0:
            ratios.append(sum(image[number] for image in parts) / whole)
    return sum(ratios) / len(ratios) if ratios else math.nan


def without_by_loops(parts, wholes):
    """The ratio of all images but one, for each of them."""
    return [
        ratio_by_loops(
            [image for place, image in enumerate(parts) if place != left_out],
            [image for place, image in enumerate(wholes) if place != left_out],
        )
        for left_out in range(len(parts))
    ]


@st.composite
def counts(draw, least=1):
    """Parts and wholes of some images and classes; a whole may be 0, and then its part is."""
    shape = draw(st.tuples(st.integers(least, 6), st.integers(1, 4)))
    wholes = draw(arrays(np.int64, shape, elements=st.integers(0, 9), fill=st.nothing()))
    shares = draw(arrays(np.float64, shape, elements=st.floats(0, 1), fill=st.nothing()))
    return np.floor(shares * wholes), wholes


@given(counts())
def test_the_value_those_without_an_image_and_the_error_are_the_loops(case):
    pooled, without = JackknifeRatio.of_ratios(*case), without_by_loops(*case)
    assert np.allclose(pooled.value, ratio_by_loops(*case), rtol=0, atol=1e-12, equal_nan=True)
    assert np.allclose(pooled.without, without, rtol=0, atol=1e-12, equal_nan=True)
    if len(without) > 1 and np.isfinite(without).all():
        assert close(pooled.cell()["two_se"], two_errors(without), 1e-6)
        assert pooled.cell()["n"] == len(without)


def test_a_fraction_of_a_class_that_only_one_image_has_leaves_nothing_behind():
    """0.1 + 0.2 + 0.3 - 0.3 is not 0.3 in floating point: what is left of a part must not count."""
    parts = np.array([[0.1, 0.0], [0.2, 0.0], [0.3, 0.7]])
    wholes = np.array([[1, 0], [1, 0], [1, 1]])
    assert close(JackknifeRatio.of_ratios(parts, wholes).without, [(0.25 + 0.7) / 2, (0.2 + 0.7) / 2, 0.15], 1e-15)


@pytest.mark.parametrize("wholes", [[[0, 0], [0, 0]], np.zeros((2, 0))])
def test_without_any_whole_there_is_no_value(wholes):
    pooled = JackknifeRatio.of_ratios(np.zeros_like(wholes), wholes)
    assert math.isnan(pooled.value)
    assert np.isnan(pooled.without).all()
    assert pooled.cell() is None


@pytest.mark.parametrize(("parts", "wholes", "mean"), [([[3, 1]], [[4, 1]], 0.875), ([[3], [0]], [[4], [0]], 0.75)])
def test_where_one_image_has_all_that_is_counted_there_is_no_error(parts, wholes, mean):
    cell = JackknifeRatio.of_ratios(parts, wholes).cell()
    assert cell == {"mean": mean, "two_se": None, "n": len(parts)}


@given(counts(least=2), st.integers(0, 2**32 - 1))
def test_a_difference_is_taken_image_by_image(case, seed):
    parts, wholes = case
    other = np.floor(np.random.default_rng(seed).random(wholes.shape) * wholes)
    assume(np.isfinite(without_by_loops(parts, wholes)).all())
    difference = JackknifeRatio.of_ratios(parts, wholes) - JackknifeRatio.of_ratios(other, wholes)
    left_out = np.subtract(without_by_loops(parts, wholes), without_by_loops(other, wholes))
    assert close(difference.value, ratio_by_loops(parts, wholes) - ratio_by_loops(other, wholes))
    assert close(difference.without, left_out)
    assert close(difference.cell()["two_se"], two_errors(left_out), 1e-6)
    assert (difference - difference).cell() == {"mean": 0.0, "two_se": 0.0, "n": len(parts)}


def test_a_cell_is_of_six_decimals_and_can_be_written_as_json():
    pooled = JackknifeRatio.of_ratios([[1], [2], [2]], [[3], [3], [7]])
    cell = json.loads(json.dumps(pooled.cell()))
    assert cell == {"mean": round(5 / 13, 6), "two_se": round(float(two_errors(pooled.without)), 6), "n": 3}
