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
EVERYWHERE = np.ones((2, 2), bool)


def table(*rows, kind=float):
    return np.array(rows, kind)


def whole(rows):
    return table(*rows, kind=int)


def same_counts(left, right):
    """Equal counts, and average precisions up to rounding."""
    counts = [{name: value for name, value in each.items() if name != "ap"} for each in (left, right)]
    if isinstance(left["ap"], dict):
        same_names = list(left["ap"]) == list(right["ap"])
        return counts[0] == counts[1] and same_names and close(list(left["ap"].values()), list(right["ap"].values()))
    return counts[0] == counts[1] and close(left["ap"], right["ap"])


def test_a_map_that_ranks_all_pixels_of_the_class_first_is_perfect():
    own = table([0, 0], [1, 1], kind=bool)
    assert single_scores(table([0, 1], [2, 3]), own, EVERYWHERE) == {
        "correct": 4, "pixels": 4, "intersection": [2, 2], "union": [2, 2], "ap": 1.0,
    }  # fmt: skip


def test_a_map_that_is_half_wrong_has_the_counts_of_a_hand():
    # scaled to 0, 1, 1/4, 3/4 with mean 1/2; ranked: two right at 1, two wrong at 3/4, two right at 1/4
    found = single_scores(table([0, 4], [1, 3]), table([0, 1], [1, 0], kind=bool), EVERYWHERE)
    expected = {"correct": 2, "pixels": 4, "intersection": [1, 1], "union": [3, 3], "ap": 1 / 2 + 1 / 2 * 4 / 6}
    assert same_counts(found, expected)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0])
def test_a_flat_map_has_no_foreground(value):
    # 1 - map is 1 everywhere, of which 3 of 4 are background, and the map 0
    found = single_scores(np.full((2, 2), value), table([1, 0], [0, 0], kind=bool), EVERYWHERE)
    expected = {"correct": 3, "pixels": 4, "intersection": [3, 0], "union": [4, 1], "ap": 9 / 16 + 1 / 4 * 1 / 2}
    assert same_counts(found, expected)


def test_unlabelled_pixels_do_not_count_but_are_part_of_the_map_that_is_split():
    heat, own = table([0, 2], [3, 19]), table([0, 1], [1, 0], kind=bool)
    # the unlabelled 19 lifts the mean to 6: nothing labelled lies above
    found = single_scores(heat, own, table([1, 1], [1, 0], kind=bool))
    assert (found["correct"], found["pixels"]) == (1, 3)
    assert (found["intersection"], found["union"]) == ([1, 0], [3, 2])
    assert single_scores(heat, own, EVERYWHERE)["pixels"] == 4


@pytest.mark.parametrize("own", [np.zeros((2, 2), bool), EVERYWHERE])
def test_an_image_without_a_labelled_pixel_counts_nothing(own):
    assert single_scores(table([0, 1], [2, 3]), own, ~EVERYWHERE) == {
        "correct": 0, "pixels": 0, "intersection": [0, 0], "union": [0, 0], "ap": 0.0,
    }  # fmt: skip


def test_a_class_without_a_pixel_is_background_everywhere():
    found = single_scores(table([0, 1], [3, 4]), ~EVERYWHERE, EVERYWHERE)
    # ranked: right at 1, wrong at 1, right at 3/4, wrong at 3/4 and so on
    assert same_counts(found, {"correct": 2, "pixels": 4, "intersection": [2, 0], "union": [4, 2], "ap": 0.5})


def test_a_class_with_all_pixels_is_foreground_everywhere():
    found = single_scores(table([0, 1], [3, 4]), EVERYWHERE, EVERYWHERE)
    assert same_counts(found, {"correct": 2, "pixels": 4, "intersection": [0, 2], "union": [2, 4], "ap": 0.5})


def test_pixels_at_the_mean_are_background():
    found = single_scores(table([0, 1], [1, 2]), table([0, 1], [1, 1], kind=bool), EVERYWHERE)
    assert (found["correct"], found["intersection"], found["union"]) == (2, [1, 1], [3, 3])


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


@given(image=single_images())
def test_single_counts_match_the_pixel_by_pixel_twin(image):
    assert same_counts(single_scores(*image), twin.single(*image))


@given(seed=st.integers(0, 999))
def test_single_counts_match_the_twin_where_no_two_values_are_equal(seed):
    rng = np.random.default_rng(seed)
    image = rng.random((6, 6)), rng.random((6, 6)) < 0.4, rng.random((6, 6)) < 0.8
    assert same_counts(single_scores(*image), twin.single(*image))


@given(image=single_images(), factor=st.sampled_from([0.25, 2.0, 64.0]), shift=st.sampled_from([-16.0, 0.0, 3.0]))
def test_single_counts_do_not_depend_on_the_scale_of_the_map(image, factor, shift):
    heat, own, labelled = image
    assert single_scores(heat * factor + shift, own, labelled) == single_scores(heat, own, labelled)


def test_the_largest_map_wins_each_pixel():
    maps = {3: table([0.6, 0.1], [0.2, 0.5]), 1: table([0.3, 0.8], [0.3, 0.1])}
    background = [table([0.1, 0.1], [0.5, 0.4])]
    # predicted: 3, 1 / background, 3
    found = multi_scores(maps, background, whole([[3, 3], [1, N]]))
    assert same_counts(
        found,
        {
            "correct": 1, "pixels": 3, "intersection": {"1": 0, "3": 1}, "union": {"1": 2, "3": 3},
            # class 3 is right at .6, wrong at .5 and .2, right at .1; class 1 wrong at .8, right at .3 with a wrong one
            "ap": {"3": 1 / 2 * 1 + 1 / 2 * 2 / 4, "1": 1 / 3},
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("maps", "winner"),
    [
        ({5: 0.4, 2: 0.4}, 5),
        ({2: 0.4, 5: 0.4}, 2),
        ({2: 0.3, 5: 0.4}, 5),
        ({2: 0.3, 5: 0.3}, None),
    ],
)
def test_a_class_wins_a_tie_with_the_background_and_the_earlier_class_one_with_another(maps, winner):
    for truth in (2, 5):
        background = [np.full((2, 2), 0.4), np.full((2, 2), 0.1)]
        each = {label: np.full((2, 2), value) for label, value in maps.items()}
        found = multi_scores(each, background, np.full((2, 2), truth))
        assert found["correct"] == 4 * (truth == winner)


def test_a_flat_map_of_everything_says_the_first_class():
    maps, background = {0: np.zeros((2, 2)), 1: np.zeros((2, 2))}, [np.zeros((2, 2))]
    found = multi_scores(maps, background, whole([[0, 1], [N, X]]))
    expected = {
        "correct": 1, "pixels": 2, "intersection": {"0": 1, "1": 0}, "union": {"0": 3, "1": 1},
        "ap": {"0": 1 / 3, "1": 1 / 3},
    }  # fmt: skip
    assert same_counts(found, expected)


def test_a_class_that_has_no_pixel_counts_where_it_is_predicted_only():
    maps = {0: table([0.9, 0.9], [0.9, 0.1]), 1: table([0.1, 0.1], [0.1, 0.9]), 2: table([0, 0], [0, 0])}
    found = multi_scores(maps, [], whole([[0, 0], [0, 0]]))
    assert same_counts(
        found,
        {"correct": 3, "pixels": 4, "intersection": {"0": 3, "1": 0}, "union": {"0": 4, "1": 1}, "ap": {"0": 1.0}},
    )


def test_a_class_without_a_map_counts_its_pixels():
    found = multi_scores({0: np.ones((2, 2))}, [np.zeros((2, 2))], whole([[0, 0], [7, 7]]))
    assert (found["correct"], found["pixels"]) == (2, 4)
    assert (found["intersection"], found["union"]) == ({"0": 2, "7": 0}, {"0": 4, "7": 2})
    assert list(found["ap"]) == ["0"]


def test_an_image_of_no_class_has_no_accuracy_but_its_wrong_pixels_count():
    maps = {4: table([0.9, 0.1], [0.1, 0.1])}
    assert multi_scores(maps, [np.full((2, 2), 0.5)], whole([[N, N], [N, X]])) == {
        "correct": 0, "pixels": 0, "intersection": {"4": 0}, "union": {"4": 1}, "ap": {},
    }  # fmt: skip


@pytest.mark.parametrize("background", [[], [np.zeros((2, 2))]])
def test_an_image_without_a_labelled_pixel_counts_nothing_in_multi_either(background):
    assert multi_scores({0: np.ones((2, 2)), 2: np.zeros((2, 2))}, background, np.full((2, 2), X)) == {
        "correct": 0, "pixels": 0, "intersection": {}, "union": {}, "ap": {},
    }  # fmt: skip


@st.composite
def multi_images(draw):
    """Maps of some classes in any order, of background, and a truth that may have classes without a map."""
    side, n_classes, n_background = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 2))
    order = draw(st.permutations(range(6)))[:n_classes]
    maps = {each: draw(arrays(float, (side, side), elements=EIGHTHS, fill=st.nothing())) for each in order}
    background = [draw(arrays(float, (side, side), elements=EIGHTHS, fill=st.nothing())) for _ in range(n_background)]
    labels = st.sampled_from([X, N, *range(6)])
    return maps, background, draw(arrays(np.int16, (side, side), elements=labels, fill=st.nothing()))


@given(image=multi_images())
def test_multi_counts_match_the_pixel_by_pixel_twin(image):
    assert same_counts(multi_scores(*image), twin.multi(*image))


@given(image=multi_images(), single=single_images())
def test_counts_can_be_written_as_json(image, single):
    for found in (multi_scores(*image), single_scores(*single)):
        assert json.loads(json.dumps(found)) == found


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
    wrong = {}
    for length in LENGTHS:
        rows = np.repeat(np.arange(length)[:, None], 2, axis=1)
        found, expected = resize_nearest(rows, side)[:, 0], twin.resized(rows, side)[:, 0]
        if not np.array_equal(found, expected):
            wrong[length] = int((found != expected).sum())
    assert wrong == {}


@pytest.mark.parametrize("side", [1, 5, 8, 32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (6, 1), (7, 13), (13, 7), (40, 31), (31, 50), (8, 8)])
def test_resizing_pictures_that_are_no_squares_is_pillows(side, shape):
    labels = np.random.default_rng(0).integers(-2, 90, shape, dtype=np.int16)
    found = resize_nearest(labels, side)
    assert found.dtype == labels.dtype
    assert np.array_equal(found, twin.resized(labels, side))


def test_a_stack_of_maps_is_resized_map_by_map():
    maps = np.random.default_rng(0).random((3, 5, 9))
    expected = np.stack([resize_nearest(each, 16) for each in maps])
    assert np.array_equal(resize_nearest(maps, 16), expected)
    assert close(expected, np.stack([twin.resized(each, 16) for each in maps]), 1e-6)


def test_a_square_of_the_same_side_stays_as_it_is():
    labels = np.arange(49).reshape(7, 7)
    assert np.array_equal(resize_nearest(labels, 7), labels)


def test_a_class_can_vanish_when_it_is_resized_and_counts_nothing():
    labels = np.full((16, 24), N)
    labels[0, 0] = 4
    small = resize_nearest(labels, 8)
    assert not (small == 4).any()
    assert multi_scores({4: np.zeros((8, 8))}, [np.ones((8, 8))], small) == {
        "correct": 0, "pixels": 0, "intersection": {}, "union": {}, "ap": {},
    }  # fmt: skip
