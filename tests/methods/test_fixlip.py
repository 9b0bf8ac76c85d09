from contextlib import contextmanager
from itertools import combinations

import numpy as np
import pytest
import torch

from metagame.attributions.fixlip import (
    Coalitions,
    CrossedCoalitions,
    FIxLIP,
    Regression,
    SampledCoalitions,
    draw_masks,
    log_kernel,
    log_size_probability,
    masked_pixels,
)
from metagame.games import all_coalitions
from tests.conftest import close
from tests.reference import indices as reference_indices
from tests.reference import vision_language as reference
from tests.tiny.vision_language import FAMILIES, build, prepare_one, refused, scene

each_family = pytest.mark.parametrize("family", FAMILIES)
EVERYTHING = SampledCoalitions(budget=10**6)
SIZES = [(4, 2), (1, 3), (3, 1), (4, 4)]


def random_values(n, seed=0):
    return np.random.default_rng(seed).normal(size=1 << n)


def numbers(coalitions):
    """The row number of each coalition in a table of all values: patches are its low bits."""
    image, text = coalitions.image_masks[coalitions.image_row], coalitions.text_masks[coalitions.text_row]
    present = np.concatenate([image, text], axis=1)
    return present @ (1 << np.arange(present.shape[1]))


def fit(design, n_patches, n_pieces, values, interactions):
    """What a regression makes of a game given by all its values."""
    coalitions = design.coalitions(n_patches, n_pieces)
    return Regression(coalitions, interactions).solve(values[numbers(coalitions)], values[0], values[-1])


def crossing_pairs(n_patches, n):
    return [(patch, word) for patch in range(n_patches) for word in range(n_patches, n)]


@pytest.mark.parametrize(("n_patches", "n_pieces"), SIZES)
def test_all_pairs_over_all_coalitions_are_the_faithful_shapley_interactions(n_patches, n_pieces):
    import shapiq

    n = n_patches + n_pieces
    values = random_values(n)
    computer = shapiq.ExactComputer(lambda rows: values[rows @ (1 << np.arange(n))], n_players=n)
    expected = computer(index="FSII", order=2)
    constant, players, pairs = fit(EVERYTHING, n_patches, n_pieces, values, "all")
    assert close(constant, values[0])
    assert close(players, [expected[(i,)] for i in range(n)], 1e-6)
    assert all(close(pairs[i, j], expected[(i, j)], 1e-6) for i, j in combinations(range(n), 2))
    own = reference_indices.fsii(values, n, 2)
    assert close(pairs + np.diag(players), own, 1e-8)


@pytest.mark.parametrize("interactions", ["cross", "all"])
@pytest.mark.parametrize(("n_patches", "n_pieces"), SIZES)
def test_regression_over_all_coalitions_is_plain_weighted_least_squares(n_patches, n_pieces, interactions):
    n = n_patches + n_pieces
    values = random_values(n, seed=1)
    chosen = crossing_pairs(n_patches, n) if interactions == "cross" else list(combinations(range(n), 2))
    expected = reference.weighted_least_squares(values, n, chosen)
    constant, players, pairs = fit(EVERYTHING, n_patches, n_pieces, values, interactions)
    assert close(constant, expected[()])
    assert close(players, [expected[(i,)] for i in range(n)], 1e-8)
    for pair in combinations(range(n), 2):
        assert close(pairs[pair], expected.get(pair, 0.0), 1e-8)
    assert np.array_equal(pairs, pairs.T)
    assert not np.diag(pairs).any()


@pytest.mark.parametrize("interactions", ["cross", "all"])
@pytest.mark.parametrize("design", [EVERYTHING, SampledCoalitions(200, 3), CrossedCoalitions(60, 3)], ids=repr)
def test_constant_players_and_pairs_sum_to_the_full_coalition(design, interactions):
    values = random_values(8)
    constant, players, pairs = fit(design, 5, 3, values, interactions)
    assert close(constant, values[0])
    assert close(constant + players.sum() + pairs.sum() / 2, values[-1])


@pytest.mark.parametrize("interactions", ["cross", "all"])
@pytest.mark.parametrize("design", [EVERYTHING, SampledCoalitions(300, 1), CrossedCoalitions(60, 1)], ids=repr)
def test_game_without_higher_orders_is_found_from_any_design(design, interactions):
    n_patches, n_pieces, n = 6, 2, 8
    rng = np.random.default_rng(0)
    chosen = crossing_pairs(n_patches, n) if interactions == "cross" else list(combinations(range(n), 2))
    constant, players, pairs = rng.normal(), rng.normal(size=n), np.zeros((n, n))
    for i, j in chosen:
        pairs[i, j] = pairs[j, i] = rng.normal()
    present = all_coalitions(n).astype(float)
    values = constant + present @ players + ((present @ pairs) * present).sum(1) / 2
    found = fit(design, n_patches, n_pieces, values, interactions)
    assert close(found[0], constant, 1e-8)
    assert close(found[1], players, 1e-8)
    assert close(found[2], pairs, 1e-8)


def test_regression_serves_the_values_of_several_images():
    coalitions = EVERYTHING.coalitions(3, 2)
    regression = Regression(coalitions, "cross")
    for seed in range(3):
        values = random_values(5, seed)
        found = regression.solve(values[numbers(coalitions)], values[0], values[-1])
        assert close(found[2], fit(EVERYTHING, 3, 2, values, "cross")[2])


def test_more_coalitions_than_a_block_of_rows_are_all_fitted():
    values = random_values(13)
    coalitions = EVERYTHING.coalitions(11, 2)
    assert len(coalitions.weights) == 2**13 - 2
    _, _, pairs = Regression(coalitions, "cross").solve(values[numbers(coalitions)], values[0], values[-1])
    expected = reference.weighted_least_squares(values, 13, crossing_pairs(11, 13))
    assert all(close(pairs[pair], expected[pair], 1e-8) for pair in crossing_pairs(11, 13))


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("interactions", ["cross", "all"])
@each_family
def test_explanation_matches_the_slow_twin(family, interactions):
    built = build(family, patch=16)
    bound = built.bound(words=("one", "two"))
    found = FIxLIP(EVERYTHING, interactions).explain(bound).meta.values
    first = 0 if family == "siglip2" else 1
    ids, players = built.ids("one two"), [first, first + 1]
    expected = reference.fixlip(built.net, bound.image.pixels, ids, players, 2, interactions)
    assert found.shape == (4, 2)
    assert close(found, expected, 1e-8)
    assert np.abs(found).max() > 1e-3


def test_explanation_names_words_and_the_grid_of_patches():
    found = FIxLIP(EVERYTHING).explain(build("clip", torch.float32, patch=16).bound(words=("one", "two")))
    assert (found.players, found.targets, found.grid) == (("one", "two"), ("image",), (2, 2))
    assert (found.meta.players, found.meta.targets, found.meta.grid) == (("one", "two"), ("image",), (2, 2))
    assert not found.meta.endogenous
    assert found.attribution is None
    assert found.meta.first_order is None


@each_family
def test_batches_of_masked_images_change_nothing_but_memory(family):
    inputs = [build(family, torch.float32, patch=16).bound(words=("one",)) for _ in range(2)]
    maps = [
        FIxLIP(EVERYTHING, batch_size=size).explain(e).meta.values for size, e in zip((256, 3), inputs, strict=True)
    ]
    assert close(*maps, 1e-5)


def test_progress_counts_masked_images():
    seen = []
    bound = build("clip", torch.float32, patch=16).bound(words=("one",))
    FIxLIP(EVERYTHING, batch_size=8).explain(bound, lambda done, total: seen.append((done, total)))
    assert seen == [(8, 16), (16, 16)]


@pytest.mark.parametrize("design", [EVERYTHING, SampledCoalitions(500, 2)], ids=repr)
def test_masks_of_a_sampled_design_are_distinct_and_kept_once(design):
    check_distinct(design.coalitions(6, 3))


def test_masks_of_a_crossed_design_are_distinct():
    check_distinct(CrossedCoalitions(200).coalitions(6, 3))


def check_distinct(coalitions):
    for masks in (coalitions.image_masks, coalitions.text_masks):
        assert len(np.unique(masks, axis=0)) == len(masks)


@contextmanager
def images_encoded(monkeypatch, model):
    """A list of how many images each call of the image encoder was given."""
    seen, encode = [], model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    yield seen


def test_masks_of_an_image_are_encoded_once_for_all_its_texts(monkeypatch):
    model = build("clip", torch.float32, patch=8).model
    texts = prepare_one(model, scene(0, a=("one", "two"), b=("three",), c=("four", "five", "six")))
    design = CrossedCoalitions(40)
    masks = design.coalitions(16, 2).image_masks
    method = FIxLIP(design, batch_size=16)
    with images_encoded(monkeypatch, model) as seen:
        for bound in texts.values():
            method.explain(bound)
    assert sum(seen) == len(masks)
    assert seen[:2] == [16, 16]


def test_distinct_masks_only_are_encoded(monkeypatch):
    model = build("clip", torch.float32, patch=16).model
    texts = prepare_one(model, scene(0, a=("one", "two"), b=("three", "four")))
    for design in (SampledCoalitions(60), EVERYTHING):
        masks = design.coalitions(4, 2).image_masks
        with images_encoded(monkeypatch, model) as seen:
            for bound in texts.values():
                FIxLIP(design).explain(bound)
        assert len(masks) <= 16
        whole_and_none = np.repeat([[False], [True]], 4, axis=1)
        assert sum(seen) == len(np.unique(np.concatenate([masks, whole_and_none]), axis=0))


def test_crossed_design_encodes_distinct_masks_only(monkeypatch):
    model = build("clip", torch.float32, patch=16).model
    bound = prepare_one(model, scene(0, a=("one", "two")))["a"]
    with images_encoded(monkeypatch, model) as seen:
        FIxLIP(CrossedCoalitions(100)).explain(bound)
    assert sum(seen) <= 2**4 + 2


def test_several_images_have_masks_of_their_own():
    model = build("clip", torch.float32, patch=16).model
    method = FIxLIP(CrossedCoalitions(12))
    together = [method.explain(e["text"]).meta.values for e in model.prepare([scene(0), scene(1)])]
    alone = [
        FIxLIP(CrossedCoalitions(12)).explain(prepare_one(model, scene(seed))["text"]).meta.values for seed in (0, 1)
    ]
    assert close(together, alone, 1e-5)
    assert not close(*together, 1e-2)


def total_weights(coalitions, n):
    """The weight that each of all coalitions has in the design."""
    return np.bincount(numbers(coalitions), coalitions.weights, minlength=1 << n)


def kernel(n):
    sizes = all_coalitions(n).sum(1)[1:-1]
    return np.exp(log_kernel(n, sizes))


def test_all_coalitions_have_the_weights_of_the_shapley_kernel():
    found = total_weights(EVERYTHING.coalitions(4, 2), 6)[1:-1]
    assert close(found, kernel(6))
    assert close(np.exp(log_kernel(4, np.array([1, 2, 3]))), [1 / 4, 1 / 8, 1 / 4])


def test_crossed_design_weighs_coalitions_by_the_shapley_kernel_on_average():
    found = total_weights(CrossedCoalitions(100_000, seed=1).coalitions(4, 2), 6)
    assert found[0] == found[-1] == 0
    ratio = found[1:-1] / kernel(6)
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.04


def test_weighted_error_of_a_crossed_design_is_unbiased():
    """Up to a factor that all coalitions of a design share: that of the empty image mask, which is always there."""
    n_patches, n = 5, 6
    always = (1 << n_patches) - 1
    errors = random_values(n)[1:-1] ** 2
    estimates = []
    for seed in range(400):
        weights = total_weights(CrossedCoalitions(10, seed).coalitions(n_patches, 1), n)[1:-1]
        estimates.append(weights @ errors * kernel(n)[always] / weights[always])
    standard_error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - kernel(n) @ errors) < 3 * standard_error
    assert standard_error < 0.05 * np.mean(estimates)


@pytest.mark.parametrize("interactions", ["cross", "all"])
def test_more_image_masks_approach_the_exact_solution(interactions):
    values = random_values(8)
    exact = fit(EVERYTHING, 6, 2, values, interactions)[2]
    errors = [
        np.mean(
            [np.abs(fit(CrossedCoalitions(masks, s), 6, 2, values, interactions)[2] - exact).max() for s in range(3)]
        )
        for masks in (100, 1_600, 25_600)
    ]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    assert errors[2] < 0.1


def test_more_drawn_coalitions_approach_the_exact_solution():
    values = random_values(14)
    exact = fit(EVERYTHING, 12, 2, values, "cross")[2]
    few, many = (np.abs(fit(SampledCoalitions(b), 12, 2, values, "cross")[2] - exact).max() for b in (400, 16_000))
    assert many < few / 3


def test_crossed_design_combines_every_image_mask_with_every_text():
    coalitions = CrossedCoalitions(30).coalitions(9, 3)
    n_masks = len(coalitions.image_masks)
    assert 2 < n_masks <= 30
    assert coalitions.text_masks.shape == (8, 3)
    assert len(coalitions.weights) == n_masks * 8 - 2
    assert {(r, t) for r, t in zip(coalitions.image_row, coalitions.text_row, strict=True)} == {
        (r, t) for r in range(n_masks) for t in range(8)
    } - {(0, 0), (1, 7)}
    assert not coalitions.image_masks[0].any()
    assert coalitions.image_masks[1].all()
    assert np.isfinite(coalitions.weights).all()
    assert (coalitions.weights > 0).all()


def test_image_masks_of_a_crossed_design_do_not_depend_on_the_text():
    masks = [CrossedCoalitions(30).coalitions(9, n_pieces).image_masks for n_pieces in (1, 2, 4)]
    assert all(np.array_equal(masks[0], other) for other in masks[1:])


def test_weights_are_finite_for_a_model_of_real_size():
    coalitions = CrossedCoalitions(512).coalitions(256, 4)
    assert np.isfinite(coalitions.weights).all()
    assert coalitions.weights.min() > 0


@pytest.mark.parametrize("n", [2, 3, 10, 30])
def test_sizes_of_drawn_masks_follow_the_kernel(n):
    masks = draw_masks(np.random.default_rng(0), n, 40_000)
    k = np.arange(1, n)
    expected = 1 / (k * (n - k)) / (1 / (k * (n - k))).sum()
    assert close(np.exp(log_size_probability(n, k)), expected)
    share = np.bincount(masks.sum(1), minlength=n + 1) / len(masks)
    assert share[0] == share[n] == 0
    assert np.abs(share[1:-1] - expected).max() < 0.01
    assert np.abs(masks.mean(0) - 0.5).max() < 0.015


def test_drawn_masks_of_one_size_are_uniform():
    masks = draw_masks(np.random.default_rng(0), 5, 40_000)
    of_two = masks[masks.sum(1) == 2] @ (1 << np.arange(5))
    counts = np.unique(of_two, return_counts=True)[1]
    assert len(counts) == 10
    assert np.abs(counts / counts.mean() - 1).max() < 0.15


@pytest.mark.parametrize("design", [SampledCoalitions, CrossedCoalitions])
def test_same_seed_draws_the_same_masks(design):
    one, same, other = (design(100, seed).coalitions(8, 3) for seed in (5, 5, 6))
    for name in ("image_masks", "text_masks", "image_row", "text_row", "weights"):
        assert getattr(one, name).tobytes() == getattr(same, name).tobytes()
    assert one.image_masks.tobytes() != other.image_masks.tobytes()


def test_drawing_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # noqa: NPY002
    CrossedCoalitions(100).coalitions(8, 3)
    SampledCoalitions(100).coalitions(8, 3)
    assert (np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()) == before  # noqa: NPY002


def test_budget_of_a_sampled_design_is_its_number_of_coalitions():
    assert len(SampledCoalitions(100).coalitions(8, 3).weights) == 100
    assert len(SampledCoalitions(62).coalitions(4, 2).weights) == 62
    drawn = SampledCoalitions(61).coalitions(4, 2)
    assert len(drawn.weights) == 61
    assert (drawn.weights == 1).all()
    assert not {0, 63} & set(numbers(drawn).tolist())


def test_many_players_are_drawn_whatever_the_budget():
    coalitions = SampledCoalitions(5_000).coalitions(196, 4)
    assert len(coalitions.weights) == 5_000


def test_absent_patches_have_zero_pixels():
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.as_tensor(all_coalitions(4))
    for mask, found in zip(masks, masked_pixels(pixels, masks), strict=True):
        assert torch.equal(found, reference.masked_image(pixels, mask.tolist(), 2))


@pytest.mark.parametrize("interactions", ["pairs", "", None])
def test_unknown_interactions_are_refused(interactions):
    with refused(rf"interactions={interactions!r}: give one of cross, all"):
        FIxLIP(EVERYTHING, interactions)


@pytest.mark.parametrize("masks", [-1, 0, 2, 17])
def test_too_few_image_masks_are_refused(masks):
    bound = build("clip", torch.float32).bound()
    with refused(f"design.budget={masks} is too few for 16 patches"):
        FIxLIP(CrossedCoalitions(masks)).explain(bound)


@pytest.mark.parametrize("interactions", ["cross", "all"])
@pytest.mark.parametrize("budget", [0, 1, 10])
def test_design_that_does_not_determine_the_interactions_is_refused(budget, interactions):
    n_columns = 1 + 18 + (32 if interactions == "cross" else 18 * 17 // 2)
    bound = build("clip", torch.float32).bound(words=("one", "two"))
    with refused(f"{budget} coalitions do not determine {n_columns} interactions: raise design.budget"):
        FIxLIP(SampledCoalitions(budget), interactions).explain(bound)


def test_crossed_design_with_too_few_masks_for_all_pairs_is_refused():
    bound = build("clip", torch.float32).bound(words=("one", "two"))
    with refused("do not determine 172 interactions: .* or choose interactions=cross"):
        FIxLIP(CrossedCoalitions(30), "all").explain(bound)


def test_coalitions_of_ones_own_can_be_fitted():
    masks = all_coalitions(3)
    image_row, text_row = (rows.ravel()[1:-1] for rows in np.indices((8, 2)))
    coalitions = Coalitions(masks, all_coalitions(1), image_row, text_row, np.ones(14))
    values = random_values(4)
    constant, players, pairs = Regression(coalitions, "cross").solve(values[numbers(coalitions)], values[0], values[-1])
    assert close(constant + players.sum() + pairs.sum() / 2, values[-1])


def test_patches_that_change_nothing_have_no_interactions():
    model = build("clip", torch.float32, patch=16).model
    bound = prepare_one(model, scene(0, text=("one", "two")))["text"]
    bound.image.pixels.zero_()
    assert close(FIxLIP(EVERYTHING, "all").explain(bound).meta.values, 0.0, 1e-5)


def test_auto_fits_every_pair_where_there_are_64_patches_or_less():
    for family_patch, expected in ((8, 16), (16, 4)):
        bound = build("clip", torch.float32, patch=family_patch).bound(words=("one", "two"))
        found = FIxLIP(SampledCoalitions(600), interactions="auto").explain(bound)
        every = FIxLIP(SampledCoalitions(600), interactions="all").explain(bound)
        assert found.meta.values.shape == (expected, 2)
        assert np.array_equal(found.meta.values, every.meta.values)
    assert len(FIxLIP(SampledCoalitions(4000), interactions="auto")._make_regression(65, 1).first) == 65


def test_a_crossed_design_does_not_enumerate_the_masks_of_a_long_text():
    with refused("13 pieces of text have too many masks"):
        CrossedCoalitions(100).coalitions(4, 13)
