from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from metagame.benchmarks.masks import OTHER, UNLABELLED
from metagame.benchmarks.segmentation_metrics import multi_scores, resize_nearest, single_scores
from tests.conftest import close
from tests.reference import segmentation as twin

X, N = UNLABELLED, OTHER


def table(*rows, kind=float):
    return np.array(rows, kind)


def bits(*rows):
    return table(*rows, kind=bool)


def everywhere(value):
    return np.full((2, 2), value)


def counts(correct, pixels, intersection, union, ap):
    return {"correct": correct, "pixels": pixels, "intersection": intersection, "union": union, "ap": ap}


def same_counts(left, right):
    """Equal counts, and average precisions up to rounding; the left ones can be written as JSON."""
    assert json.loads(json.dumps(left)) == left
    ours, theirs = left.pop("ap"), right.pop("ap")
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    return left == right and close(ours, theirs)


ALL = everywhere(True)
SINGLE = {
    # scaled to 0, 1, 1/4, 3/4 with mean 1/2; ranked: two right at 1, two wrong at 3/4, two right at 1/4
    "half wrong": (
        table([0, 4], [1, 3]), bits([0, 1], [1, 0]), ALL, counts(2, 4, [1, 1], [3, 3], 1 / 2 + 1 / 2 * 4 / 6),
    ),
    # 1 - map is 1 everywhere, of which 3 of 4 are background, and the map 0
    "flat": (everywhere(-7.0), bits([1, 0], [0, 0]), ALL, counts(3, 4, [3, 0], [4, 1], 9 / 16 + 1 / 4 * 1 / 2)),
    # the unlabelled 19 lifts the mean to 6: nothing labelled lies above
    "an unlabelled pixel": (
        table([0, 2], [3, 19]), bits([0, 1], [1, 0]), bits([1, 1], [1, 0]),
        counts(1, 3, [1, 0], [3, 2], 1 / 3 + 1 / 3 * 2 / 4 + 1 / 3 * 3 / 5),
    ),
    "no labelled pixel": (table([0, 1], [2, 3]), ALL, ~ALL, counts(0, 0, [0, 0], [0, 0], 0.0)),
}  # fmt: skip


@pytest.mark.parametrize("case", SINGLE)
def test_single_counts_by_hand(case):
    *image, expected = SINGLE[case]
    assert same_counts(single_scores(*image), dict(expected))


EIGHTHS = st.integers(0, 8)


@st.composite
def single_images(draw):
    """A map whose values are eighths of its range, so that ties with its mean are exact; the class; what counts."""
    side = draw(st.integers(2, 5))
    heat = draw(arrays(float, (side, side), elements=EIGHTHS, fill=st.nothing()))
    heat[0, 0], heat[-1, -1] = draw(st.permutations([0, 8]))
    heat = heat * draw(st.sampled_from([0.125, 1.0, 4.0])) - draw(st.sampled_from([0.0, 2.0]))
    own, labelled = (draw(arrays(bool, (side, side), fill=st.nothing())) for _ in range(2))
    return heat, own, labelled


@given(image=single_images(), seed=st.integers(0, 999))
def test_single_counts_match_the_pixel_by_pixel_twin_with_equal_values_and_without(image, seed):
    assert same_counts(single_scores(*image), twin.single(*image))
    rng = np.random.default_rng(seed)
    image = rng.random((6, 6)), rng.random((6, 6)) < 0.4, rng.random((6, 6)) < 0.8
    assert same_counts(single_scores(*image), twin.single(*image))


MULTI = {
    # predicted: 3, 1 / background, 3; class 3 is right at .6, wrong at .5 and .2, right at .1; class 1 wrong at .8,
    # right at .3 with a wrong one
    "the largest map wins": (
        {3: table([0.6, 0.1], [0.2, 0.5]), 1: table([0.3, 0.8], [0.3, 0.1])}, [table([0.1, 0.1], [0.5, 0.4])],
        [[3, 3], [1, N]],
        counts(1, 3, {"1": 0, "3": 1}, {"1": 2, "3": 3}, {"3": 1 / 2 * 1 + 1 / 2 * 2 / 4, "1": 1 / 3}),
    ),
    "classes without a pixel": (
        {0: table([0.9, 0.9], [0.9, 0.1]), 1: table([0.1, 0.1], [0.1, 0.9]), 2: everywhere(0.0)}, [], [[0, 0], [0, 0]],
        counts(3, 4, {"0": 3, "1": 0}, {"0": 4, "1": 1}, {}),
    ),
    "no labelled pixel": (
        {0: everywhere(1.0), 2: everywhere(0.0)}, [], [[X, X], [X, X]], counts(0, 0, {}, {}, {}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MULTI)
def test_multi_counts_by_hand(case):
    maps, background, truth, expected = MULTI[case]
    assert same_counts(multi_scores(maps, background, np.array(truth)), dict(expected))


@st.composite
def multi_images(draw):
    """Maps of some classes in any order, of background, and a truth that may have classes without a map."""
    side, n_classes, n_background = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 2))
    order = draw(st.permutations(range(6)))[:n_classes]
    maps = {each: draw(arrays(float, (side, side), elements=EIGHTHS, fill=st.nothing())) for each in order}
    background = [draw(arrays(float, (side, side), elements=EIGHTHS, fill=st.nothing())) for _ in range(n_background)]
    labels = st.sampled_from([X, N, *range(6)])
    return maps, background, draw(arrays(np.int16, (side, side), elements=labels, fill=st.nothing()))


@given(image=multi_images(), full=st.booleans())
def test_multi_counts_match_the_pixel_by_pixel_twin(image, full):
    assert same_counts(multi_scores(*image, full), twin.multi(*image, full))


@given(
    both=st.lists(st.tuples(st.booleans(), EIGHTHS), min_size=1).filter(lambda each: any(truth for truth, _ in each))
)
def test_average_precision_of_the_twin_is_scikit_learns(both):
    truth, scores = zip(*both, strict=True)
    assert close(twin.average_precision(truth, scores), average_precision_score(truth, scores))


LENGTHS = (*range(1, 130), 192, 256, 281, 320, 333, 375, 427, 480, 500, 512, 576, 640, 1024)


@pytest.mark.parametrize("side", [1, 2, 7, 12, 48, 64, 224])
def test_resizing_takes_the_pixels_that_pillow_takes(side):
    """Also where a pixel's centre falls between two: Pillow adds up a step that is rounded."""
    for length in LENGTHS:
        rows = np.repeat(np.arange(length)[:, None], 2, axis=1)
        assert np.array_equal(resize_nearest(rows, side), twin.resized(rows, side)), length


@pytest.mark.parametrize("shape", [(1, 9), (6, 1), (7, 13), (40, 31), (8, 8)])
def test_resizing_pictures_that_are_no_squares_alone_or_in_a_stack_is_pillows_and_keeps_the_type(shape):
    labels = np.random.default_rng(0).integers(-2, 90, shape, dtype=np.int16)
    for side in (1, 5, 8, 32):
        found = resize_nearest(labels, side)
        assert found.dtype == labels.dtype
        assert np.array_equal(found, twin.resized(labels, side))
        stack = np.stack([labels, -labels]).astype(float)
        assert np.array_equal(resize_nearest(stack, side), [found, -found])
