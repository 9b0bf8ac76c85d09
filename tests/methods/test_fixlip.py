from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from metagame.attributions.fixlip import (
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

EVERYTHING = SampledCoalitions(budget=10**6)
SIZES = [(4, 2), (1, 3), (3, 1)]
each_size = pytest.mark.parametrize(("n_patches", "n_pieces"), SIZES)
each_interactions = pytest.mark.parametrize("interactions", ["cross", "all"])


def random_values(n, seed=0):
    return np.random.default_rng(seed).normal(size=1 << n)


def numbers(coalitions):
    """The row number of each coalition in a table of all values: patches are its low bits."""
    image, text = coalitions.image_masks[coalitions.image_row], coalitions.text_masks[coalitions.text_row]
    present = np.concatenate([image, text], axis=1)
    return present @ (1 << np.arange(present.shape[1]))


def solve(coalitions, values, interactions):
    """What a regression makes of a game given by all its values."""
    return Regression(coalitions, interactions).solve(values[numbers(coalitions)], values[0], values[-1])


def fit(design, n_patches, n_pieces, values, interactions):
    return solve(design.coalitions(n_patches, n_pieces), values, interactions)


def pairs_of(interactions, n_patches, n):
    if interactions == "all":
        return list(combinations(range(n), 2))
    return [(patch, word) for patch in range(n_patches) for word in range(n_patches, n)]


def small(words=("one", "two")):
    """An image of four patches and a text."""
    return build("clip", torch.float32, patch=16).bound(words=words)


@each_size
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
    assert close(pairs + np.diag(players), reference_indices.fsii(values, n, 2), 1e-8)


@each_interactions
@each_size
def test_regression_over_all_coalitions_is_plain_weighted_least_squares(n_patches, n_pieces, interactions, monkeypatch):
    monkeypatch.setattr("metagame.attributions.fixlip._BLOCK", 7)
    n = n_patches + n_pieces
    coalitions = EVERYTHING.coalitions(n_patches, n_pieces)
    assert len(coalitions.weights) == 2**n - 2
    for seed in range(2):
        values = random_values(n, seed)
        expected = reference.weighted_least_squares(values, n, pairs_of(interactions, n_patches, n))
        constant, players, pairs = solve(coalitions, values, interactions)
        assert close(constant, expected[()])
        assert close(players, [expected[(i,)] for i in range(n)], 1e-8)
        for pair in combinations(range(n), 2):
            assert close(pairs[pair], expected.get(pair, 0.0), 1e-8)
        assert np.array_equal(pairs, pairs.T)
        assert not np.diag(pairs).any()


@each_interactions
@pytest.mark.parametrize("design", [EVERYTHING, SampledCoalitions(300, 1), CrossedCoalitions(60, 1)], ids=repr)
def test_any_design_meets_the_full_coalition_and_finds_a_game_without_higher_orders(design, interactions):
    n_patches, n_pieces, n = 6, 2, 8
    values = random_values(n)
    constant, players, pairs = fit(design, n_patches, n_pieces, values, interactions)
    assert close(constant, values[0])
    assert close(constant + players.sum() + pairs.sum() / 2, values[-1])

    rng = np.random.default_rng(0)
    constant, players, pairs = rng.normal(), rng.normal(size=n), np.zeros((n, n))
    for i, j in pairs_of(interactions, n_patches, n):
        pairs[i, j] = pairs[j, i] = rng.normal()
    present = all_coalitions(n).astype(float)
    values = constant + present @ players + ((present @ pairs) * present).sum(1) / 2
    found = fit(design, n_patches, n_pieces, values, interactions)
    assert all(close(*both, 1e-8) for both in zip(found, (constant, players, pairs), strict=True))


@pytest.mark.usefixtures("float64_by_default")
@each_interactions
@pytest.mark.parametrize("family", FAMILIES)
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
    found = FIxLIP(EVERYTHING).explain(small())
    for names in (found, found.meta):
        assert (names.players, names.targets, names.grid) == (("one", "two"), ("image",), (2, 2))
    assert not found.meta.endogenous
    assert found.attribution is None
    assert found.meta.first_order is None


def test_batches_of_masked_images_change_nothing_but_memory_and_are_counted():
    seen = []
    whole = FIxLIP(EVERYTHING).explain(small()).meta.values
    parts = FIxLIP(EVERYTHING, batch_size=6).explain(small(), lambda done, total: seen.append((done, total)))
    assert close(parts.meta.values, whole, 1e-5)
    assert seen == [(6, 16), (12, 16), (16, 16)]


@pytest.mark.parametrize("design", [EVERYTHING, SampledCoalitions(500, 2), CrossedCoalitions(200)], ids=repr)
def test_masks_of_a_design_are_distinct(design):
    coalitions = design.coalitions(6, 3)
    for masks in (coalitions.image_masks, coalitions.text_masks):
        assert len(np.unique(masks, axis=0)) == len(masks)


@pytest.mark.parametrize(
    ("patch", "design"),
    [(8, CrossedCoalitions(40)), (16, CrossedCoalitions(100)), (16, SampledCoalitions(60)), (16, EVERYTHING)],
    ids=repr,
)
def test_distinct_masks_of_an_image_are_encoded_once_for_all_its_texts(patch, design, monkeypatch):
    model = build("clip", torch.float32, patch=patch).model
    texts = prepare_one(model, scene(0, a=("one", "two"), b=("three", "four")))
    n_patches = (32 // patch) ** 2
    masks = design.coalitions(n_patches, 2).image_masks
    with_ends = np.concatenate([masks, np.repeat([[False], [True]], n_patches, axis=1)])
    seen, encode = [], model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    method = FIxLIP(design, batch_size=16)
    for bound in texts.values():
        method.explain(bound)
    assert sum(seen) == len(np.unique(with_ends, axis=0)) <= 2**n_patches
    assert max(seen) <= 16


def test_several_images_have_masks_of_their_own():
    model, method = build("clip", torch.float32, patch=16).model, FIxLIP(CrossedCoalitions(12))
    together = [method.explain(each["text"]).meta.values for each in model.prepare([scene(0), scene(1)])]
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


@each_interactions
@pytest.mark.parametrize(
    ("design", "n_patches", "budgets"),
    [(CrossedCoalitions, 6, (100, 1_600, 25_600)), (SampledCoalitions, 10, (250, 4_000))],
)
def test_more_masks_approach_the_exact_solution(design, n_patches, budgets, interactions):
    values = random_values(n_patches + 2)
    exact = fit(EVERYTHING, n_patches, 2, values, interactions)[2]
    errors = []
    for budget in budgets:
        found = (fit(design(budget, seed), n_patches, 2, values, interactions)[2] for seed in range(3))
        errors.append(np.mean([np.abs(pairs - exact).max() for pairs in found]))
    assert all(more < few / 2 for few, more in pairwise(errors))


def test_crossed_design_combines_every_image_mask_with_every_text():
    coalitions = CrossedCoalitions(30).coalitions(9, 3)
    n_masks = len(coalitions.image_masks)
    assert 2 < n_masks <= 30
    assert coalitions.text_masks.shape == (8, 3)
    every = {(r, t) for r in range(n_masks) for t in range(8)}
    assert len(coalitions.weights) == n_masks * 8 - 2
    assert set(zip(coalitions.image_row, coalitions.text_row, strict=True)) == every - {(0, 0), (1, 7)}
    assert not coalitions.image_masks[0].any()
    assert coalitions.image_masks[1].all()


def test_image_masks_of_a_crossed_design_do_not_depend_on_the_text():
    masks = [CrossedCoalitions(30).coalitions(9, n_pieces).image_masks for n_pieces in (1, 2, 4)]
    assert all(np.array_equal(masks[0], other) for other in masks[1:])


def test_designs_serve_a_model_of_real_size():
    weights = CrossedCoalitions(512).coalitions(256, 4).weights
    assert np.isfinite(weights).all()
    assert weights.min() > 0
    assert len(SampledCoalitions(5_000).coalitions(196, 4).weights) == 5_000


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
def test_a_seed_draws_masks_of_its_own_and_leaves_the_global_random_state_alone(design):
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # noqa: NPY002
    one, same, other = (design(100, seed).coalitions(8, 3) for seed in (5, 5, 6))
    for name in ("image_masks", "text_masks", "image_row", "text_row", "weights"):
        assert getattr(one, name).tobytes() == getattr(same, name).tobytes()
    assert one.image_masks.tobytes() != other.image_masks.tobytes()
    assert (np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()) == before  # noqa: NPY002


def test_budget_of_a_sampled_design_is_its_number_of_coalitions():
    assert len(SampledCoalitions(100).coalitions(8, 3).weights) == 100
    assert len(SampledCoalitions(62).coalitions(4, 2).weights) == 62
    drawn = SampledCoalitions(61).coalitions(4, 2)
    assert len(drawn.weights) == 61
    assert (drawn.weights == 1).all()
    assert not {0, 63} & set(numbers(drawn).tolist())


def test_absent_patches_have_zero_pixels():
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.as_tensor(all_coalitions(4))
    for mask, found in zip(masks, masked_pixels(pixels, masks), strict=True):
        assert torch.equal(found, reference.masked_image(pixels, mask.tolist(), 2))


@pytest.mark.parametrize("interactions", ["pairs", "", None])
def test_unknown_interactions_are_refused(interactions):
    with refused(rf"interactions={interactions!r}: give one of cross, all"):
        FIxLIP(EVERYTHING, interactions)


@pytest.mark.parametrize(
    ("design", "interactions", "match"),
    [
        *(
            (CrossedCoalitions(masks), "cross", f"design.budget={masks} is too few for 16 patch")
            for masks in (-1, 2, 17)
        ),
        *((SampledCoalitions(b), "cross", f"{b} coalitions do not determine 51 inter") for b in (0, 1, 10)),
        (SampledCoalitions(10), "all", "10 coalitions do not determine 172 interactions: raise design.budget"),
        (CrossedCoalitions(30), "all", "do not determine 172 interactions: .* or choose interactions=cross"),
    ],
    ids=repr,
)
def test_design_that_does_not_determine_the_interactions_is_refused(design, interactions, match):
    with refused(match):
        FIxLIP(design, interactions).explain(build("clip", torch.float32).bound(words=("one", "two")))


def test_a_crossed_design_does_not_enumerate_the_masks_of_a_long_text():
    with refused("13 pieces of text have too many masks"):
        CrossedCoalitions(100).coalitions(4, 13)


def test_patches_that_change_nothing_have_no_interactions():
    bound = small()
    bound.image.pixels.zero_()
    assert close(FIxLIP(EVERYTHING, "all").explain(bound).meta.values, 0.0, 1e-5)


def test_auto_fits_every_pair_where_there_are_64_patches_or_less():
    auto, every = (FIxLIP(SampledCoalitions(600), interactions=i).explain(small()) for i in ("auto", "all"))
    assert np.array_equal(auto.meta.values, every.meta.values)
    for n_patches, n_pairs in ((64, 65 * 64 // 2), (65, 65)):
        regression = FIxLIP(SampledCoalitions(4000), interactions="auto")._make_regression(n_patches, 1)
        assert len(regression.first) == n_pairs
