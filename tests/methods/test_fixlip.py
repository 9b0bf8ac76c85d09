from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch

from metagame.attributions.fixlip import Design, FIxLIP
from metagame.attributions.fixlip_banzhaf import BanzhafMasks
from metagame.attributions.fixlip_least_squares import CrossedCoalitions, LeastSquares, SampledCoalitions, log_kernel
from metagame.attributions.fixlip_masks import paired_masks
from metagame.attributions.fixlip_moments import GeneralizedRegression
from metagame.games import all_coalitions
from metagame.models.vision_language import masked_pixels
from tests.conftest import close
from tests.reference import indices as reference_indices
from tests.reference import vision_language as reference
from tests.tiny.vision_language import build, prepare_one, refused, scene

EVERYTHING = SampledCoalitions(budget=10**6)
each_size = pytest.mark.parametrize(("n_patches", "n_pieces"), [(4, 2), (1, 3), (3, 1)])
each_interactions = pytest.mark.parametrize("interactions", ["cross", "all"])
each_design = pytest.mark.parametrize("design", [SampledCoalitions, CrossedCoalitions, GeneralizedRegression])


def random_values(n, seed=0):
    return np.random.default_rng(seed).normal(size=1 << n)


def smooth_values(n, seed=0):
    """A game of a saturating sum, of pairs, and a little noise."""
    rng = np.random.default_rng(seed)
    present = all_coalitions(n).astype(float)
    pairs = np.triu(rng.normal(size=(n, n)), 1) / n
    return np.tanh(present @ rng.normal(size=n) + ((present @ pairs) * present).sum(1)) + rng.normal(size=1 << n) / 20


def numbers(coalitions):
    """The row number of each coalition in a table of all values: patches are its low bits."""
    image, text = coalitions.image_masks[coalitions.image_row], coalitions.text_masks[coalitions.text_row]
    present = np.concatenate([image, text], axis=1)
    return present @ (1 << np.arange(present.shape[1]))


def fit(design, n_patches, n_pieces, values, interactions):
    """Constant, players and pairs that least squares make of a game given by all its values."""
    coalitions = design.coalitions(n_patches, n_pieces)
    return LeastSquares(coalitions, interactions).solve(values[numbers(coalitions)], values[0], values[-1])


def interactions_of(design, n_patches, n_pieces, values, interactions="cross"):
    """Interactions of patches and pieces, and their standard errors, of a game given by all its values."""
    solver = design.solver(n_patches, n_pieces, interactions)
    image, text = solver.image_masks @ (1 << np.arange(n_patches)), solver.text_masks @ (1 << np.arange(n_pieces))
    return solver.interactions(values[image[:, None] + (text << n_patches)])


def pairs_of(interactions, n_patches, n):
    if interactions == "all":
        return list(combinations(range(n), 2))
    return [(patch, piece) for patch in range(n_patches) for piece in range(n_patches, n)]


def bound(patch=16, words=("one", "two")):
    """An image of four patches (of sixteen, if they are smaller) and a text."""
    return build("clip", torch.float32, patch=patch).bound(words=words)


# Values


@each_interactions
@each_size
def test_every_design_that_has_all_masks_is_weighted_least_squares(n_patches, n_pieces, interactions, monkeypatch):
    monkeypatch.setattr("metagame.attributions.fixlip_least_squares._BLOCK", 7)
    n = n_patches + n_pieces
    values = random_values(n)
    expected = reference.weighted_least_squares(values, n, pairs_of(interactions, n_patches, n))
    constant, players, pairs = fit(EVERYTHING, n_patches, n_pieces, values, interactions)
    assert close(constant, expected[()])
    assert close(players, [expected[(i,)] for i in range(n)], 1e-8)
    assert close(
        [pairs[pair] for pair in np.ndindex(n, n)],
        [expected.get(tuple(sorted(pair)), 0.0) for pair in np.ndindex(n, n)],
        1e-8,
    )
    if interactions == "all":
        assert close(pairs + np.diag(players), reference_indices.fsii(values, n, 2), 1e-8)
    for design in (CrossedCoalitions(1 << n_patches), GeneralizedRegression(1 << n_patches), EVERYTHING):
        found, standard_error = interactions_of(design, n_patches, n_pieces, values, interactions)
        assert close(found, pairs[:n_patches, n_patches:], 1e-8)
        assert standard_error is None or not standard_error.any()


@each_interactions
@pytest.mark.parametrize("design", [SampledCoalitions(300, 1), CrossedCoalitions(60, 1)], ids=repr)
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


@pytest.mark.parametrize(
    ("n_patches", "n_pieces", "budget", "interactions"), [(5, 2, 16, "cross"), (6, 1, 30, "all"), (4, 3, 12, "all")]
)
def test_generalised_regression_matches_its_slow_twin(n_patches, n_pieces, budget, interactions):
    values = random_values(n_patches + n_pieces)
    design = GeneralizedRegression(budget, seed=3, ridge=0.3)
    found, standard_error = interactions_of(design, n_patches, n_pieces, values, interactions)
    masks = paired_masks(n_patches, budget, seed=3)
    assert len(masks) < 1 << n_patches
    expected = reference.regression_estimate(values, masks, n_patches, n_pieces, interactions, 0.3)
    assert close(found, expected, 1e-8)
    assert (standard_error > 0).all()


def test_games_of_its_features_are_solved_exactly_and_do_not_change_the_error_of_generalised_regression():
    n_patches, n_pieces = 7, 2
    rng, patches = np.random.default_rng(0), all_coalitions(n_patches)
    kappa = 2 * patches.sum(1, keepdims=True) / n_patches - 1
    features = np.concatenate([(patches - 0.5) * kappa**d for d in range(4)], axis=1)
    added = (features @ rng.normal(size=(features.shape[1], 1 << n_pieces))).T.ravel()
    values, design = random_values(9), GeneralizedRegression(90, ridge=1e-9)
    (of_both, error), (of_values, same), (of_added, none) = (
        interactions_of(design, n_patches, n_pieces, each) for each in (values + added, values, added)
    )
    exact = interactions_of(EVERYTHING, n_patches, n_pieces, added)[0]
    assert close(of_added, exact, 1e-6)
    assert close(of_both - of_values, exact, 1e-6)
    assert close(error, same, 1e-6)
    assert none.max() < 1e-6 < same.min()


@pytest.mark.parametrize(
    ("n_patches", "n_pieces", "p", "interactions"),
    [(4, 2, 0.5, "cross"), (4, 2, 0.3, "all"), (1, 3, 0.3, "cross"), (3, 1, 0.5, "all")],
)
def test_banzhaf_interactions_of_all_masks_are_least_squares_whatever_pairs_are_fitted(
    n_patches, n_pieces, p, interactions
):
    n = n_patches + n_pieces
    values = random_values(n)
    found, error = interactions_of(BanzhafMasks(16, p=p), n_patches, n_pieces, values)
    pairs = pairs_of(interactions, n_patches, n)
    assert close(found, reference.banzhaf_least_squares(values, n_patches, n, p, pairs), 1e-8)
    assert not error.any()
    if p == 0.5:
        assert close(found, reference_indices.banzhaf(values, n, 2)[:n_patches, n_patches:], 1e-8)


@pytest.mark.parametrize(
    ("drawn", "exact"),
    [
        (lambda seed: GeneralizedRegression(200, seed), EVERYTHING),
        (lambda seed: BanzhafMasks(400, seed), BanzhafMasks(1024)),
        (lambda seed: BanzhafMasks(400, seed, p=0.3), BanzhafMasks(1024, p=0.3)),
    ],
    ids=["regression", "banzhaf", "banzhaf, p=0.3"],
)
def test_two_standard_errors_cover_the_exact_values(drawn, exact):
    values = smooth_values(12)
    expected = interactions_of(exact, 10, 2, values)[0]
    results = [interactions_of(drawn(seed), 10, 2, values) for seed in range(100)]
    found, error = (np.array(each) for each in zip(*results, strict=True))
    assert 0.9 < np.mean(np.abs(found - expected) <= 2 * error) < 0.99
    assert np.abs(found.mean(0) - expected).max() < 0.5 * error.mean()
    assert 0.8 < np.sqrt((error**2).mean() / ((found - expected) ** 2).mean()) < 1.3


def test_designs_serve_a_model_of_real_size():
    weights = CrossedCoalitions(1024).coalitions(256, 4).weights
    assert np.isfinite(weights).all()
    assert weights.min() > 0
    assert len(SampledCoalitions(5_000).coalitions(196, 4).weights) == 4_998
    solver = GeneralizedRegression(2048, ridge=1e-6).solver(256, 4, "cross")
    effect = np.random.default_rng(0).normal(size=(256, 4))
    found, error = solver.interactions(solver.image_masks @ effect @ solver.text_masks.T)
    assert close(found, effect, 1e-3)
    assert np.isfinite(error).all()


# Masks


@pytest.mark.parametrize(("n_patches", "budget"), [(1, 2), (2, 4), (7, 60), (8, 100), (16, 200), (64, 130), (9, 10**6)])
def test_paired_masks_have_equally_many_complements_of_every_size(n_patches, budget):
    masks = paired_masks(n_patches, budget, seed=0)
    smaller, larger = masks[1:-1:2], masks[2:-1:2]
    counts = np.bincount(smaller.sum(1), minlength=n_patches // 2 + 1)[1:]
    capacities = np.array([comb(n_patches, k) // (1 + (2 * k == n_patches)) for k in range(1, n_patches // 2 + 1)])
    assert (smaller ^ larger).all()
    assert len(np.unique(masks, axis=0)) == len(masks) <= min(budget, 1 << n_patches)
    assert len(masks) in (1 << n_patches, budget // 2 * 2)
    assert (counts <= capacities).all()
    sampled = counts[counts < capacities]
    assert len(sampled) == 0 or (np.ptp(sampled) <= 1 and sampled.max() == counts.max())


@pytest.mark.parametrize(("n_patches", "size"), [(8, 3), (8, 4), (7, 2)])
def test_paired_masks_of_a_size_are_uniform(n_patches, size):
    drawn = np.concatenate([paired_masks(n_patches, 6 * n_patches, seed)[1:-1] for seed in range(600)])
    own = drawn[drawn.sum(1) == size] @ (1 << np.arange(n_patches))
    counts = np.unique(own, return_counts=True)[1]
    assert len(counts) == comb(n_patches, size)
    assert np.abs(counts / counts.mean() - 1).max() < 0.35


def test_drawn_banzhaf_masks_are_followed_by_their_opposites_and_have_the_probability():
    masks, weights = BanzhafMasks(2000, seed=1).image_masks(12)
    assert weights is None
    assert (masks[::2] ^ masks[1::2]).all()
    drawn, _ = BanzhafMasks(20_000, p=0.3).image_masks(16)
    assert np.abs(drawn.mean(0) - 0.3).max() < 0.01
    assert (drawn[::2] & drawn[1::2]).sum() == 0


@pytest.mark.parametrize("design", [CrossedCoalitions, SampledCoalitions])
def test_weights_are_those_of_the_shapley_kernel_on_average(design):
    drawn = [design(28, seed).coalitions(5, 1) for seed in range(1000)]
    found = np.mean([np.bincount(numbers(each), each.weights, minlength=64) for each in drawn], axis=0)
    assert found[0] == found[-1] == 0
    ratio = found[1:-1] / np.exp(log_kernel(6, all_coalitions(6).sum(1)[1:-1]))
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.2
    assert close(np.exp(log_kernel(4, np.array([1, 2, 3]))), [1 / 4, 1 / 8, 1 / 4])


def test_with_a_mass_of_one_drawn_coalitions_weigh_as_if_no_size_were_enumerated():
    """As in the paper's code; the enumerated ones keep the kernel's weights."""
    one, remaining = (SampledCoalitions(40, 0, mass).coalitions(5, 1).weights for mass in ("one", "remaining"))
    enumerated = 2 * 6
    left = remaining[enumerated:].sum()
    assert close(one[:enumerated], remaining[:enumerated])
    assert close(one[enumerated:], remaining[enumerated:] / left)
    assert close([one[enumerated:].sum(), remaining.sum()], [1, 1])
    assert left < 0.7


@pytest.mark.parametrize(("n", "budget"), [(6, 40), (6, 62), (6, 64), (13, 256), (13, 6000), (12, 4095), (20, 3)])
def test_sizes_that_the_budget_would_hold_are_enumerated_and_the_others_drawn_until_it_is_used_up(n, budget):
    drawn = SampledCoalitions(budget).coalitions(n - 1, 1)
    present = np.concatenate([drawn.image_masks[drawn.image_row], drawn.text_masks[drawn.text_row]], axis=1)
    sizes = reference.sampled_sizes(n, budget)
    counts = np.bincount(present.sum(1), minlength=n + 1)
    assert all(counts[k] == comb(n, k) for k in range(1, n) if k not in sizes)
    assert len(np.unique(present, axis=0)) == len(present) == budget - 2
    assert close(drawn.weights.sum(), 1)


@each_design
def test_a_seed_draws_masks_of_its_own_and_leaves_the_global_random_state_alone(design):
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # noqa: NPY002
    one, same, other = (design(100, seed).solver(8, 3, "cross") for seed in (5, 5, 6))
    for name in ("image_masks", "text_masks"):
        assert getattr(one, name).tobytes() == getattr(same, name).tobytes()
    assert one.image_masks.tobytes() != other.image_masks.tobytes()
    assert (np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()) == before  # noqa: NPY002


def test_absent_patches_have_zero_pixels():
    pixels = torch.rand(3, 11, 10, generator=torch.Generator().manual_seed(1))  # no patch reads the last pixels
    masks = torch.as_tensor(all_coalitions(4))
    for mask, found in zip(masks, masked_pixels(pixels, masks, 4), strict=True):
        expected = pixels.clone()
        expected[:, :8, :8] = reference.masked_image(pixels[:, :8, :8], mask.tolist(), 2)
        assert torch.equal(found, expected)


# Explanations


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize(
    ("family", "interactions"), [("clip", "cross"), ("metaclip2", "all"), ("siglip2", "cross"), ("open_clip", "all")]
)
def test_explanation_matches_the_slow_twin(family, interactions):
    built = build(family, patch=16)
    inputs = built.bound(words=("one", "two"))
    found = FIxLIP(EVERYTHING, interactions).explain(inputs).meta.values
    first = 0 if family == "siglip2" else 1
    ids, players = built.ids("one two"), [first, first + 1]
    expected = reference.fixlip(built.net, inputs.image.pixels, ids, players, 2, interactions)
    assert close(found, expected, 1e-8)
    assert np.abs(found).max() > 1e-3


def test_explanation_names_words_and_the_grid_of_patches():
    found = FIxLIP(EVERYTHING).explain(bound())
    for names in (found, found.meta):
        assert (names.players, names.targets, names.grid) == (("one", "two"), ("image",), (2, 2))
    assert not found.meta.endogenous
    assert found.attribution is found.meta.first_order is found.meta.standard_error is None
    assert "no standard error" in found.meta.error_note
    assert FIxLIP(GeneralizedRegression(12)).explain(bound()).meta.standard_error.shape == (4, 2)


def test_batches_of_masked_images_change_nothing_but_memory_and_are_counted():
    seen = []
    whole = FIxLIP(EVERYTHING).explain(bound()).meta.values
    parts = FIxLIP(EVERYTHING, batch_size=6).explain(bound(), lambda done, total: seen.append((done, total)))
    assert close(parts.meta.values, whole, 1e-5)
    assert seen == [(6, 16), (12, 16), (16, 16)]


def test_auto_fits_every_pair_where_there_are_64_patches_or_less():
    class Asked(Design):
        def solver(self, n_patches, n_pieces, interactions):
            asked.append((n_patches, interactions))
            return EVERYTHING.solver(2, 1, interactions)

    asked = []
    for n_patches in (64, 65):
        FIxLIP(Asked(), interactions="auto").solver(n_patches, 1)
    assert asked == [(64, "all"), (65, "cross")]


@pytest.mark.parametrize(
    ("patch", "design", "n_forwards"),
    [(8, GeneralizedRegression(40), 40), (8, CrossedCoalitions(41), 40), (16, SampledCoalitions(60), 16)],
    ids=repr,
)
def test_masks_of_an_image_are_encoded_once_for_all_its_texts(patch, design, n_forwards, monkeypatch):
    model = build("clip", torch.float32, patch=patch).model
    texts = prepare_one(model, scene(0, a=("one", "two"), b=("three", "four"), c=("five",)))
    seen, encode = [], model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    method = FIxLIP(design, batch_size=16)
    for each in texts.values():
        method.explain(each)
    assert sum(seen) == n_forwards
    assert max(seen) <= 16


def test_several_images_have_masks_of_their_own():
    model, method = build("clip", torch.float32, patch=16).model, FIxLIP(GeneralizedRegression(12))
    one, other = (each["text"] for each in model.prepare([scene(0), scene(1)]))
    alone = FIxLIP(GeneralizedRegression(12)).explain(prepare_one(model, scene(1))["text"]).meta.values
    before, found = (method.explain(each).meta.values for each in (one, other))
    assert close(found, alone, 1e-5)
    assert not close(found, before, 1e-2)


# Refusals


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FIxLIP(EVERYTHING, "pairs"), "interactions='pairs' is unknown"),
        (lambda: SampledCoalitions(100, sampled_mass="two"), "design.sampled_mass='two' is unknown"),
        (lambda: GeneralizedRegression(100, ridge=0.0), "design.ridge=0.0 must be a positive number"),
        (lambda: GeneralizedRegression(100, ridge=float("nan")), "design.ridge=nan must be a positive number"),
        (lambda: BanzhafMasks(100, ridge=0), "design.ridge=0 must be a positive number"),
        (lambda: BanzhafMasks(100, p=0), "design.p=0 must be a probability between 0 and 1"),
        (lambda: BanzhafMasks(100, p=1), "design.p=1 must be a probability between 0 and 1"),
        (lambda: BanzhafMasks(3), "design.budget=3 is too small: give at least 4"),
    ],
)
def test_settings_that_there_are_not_are_refused(make, match):
    with refused(match):
        make()


@pytest.mark.parametrize(
    ("design", "interactions", "match"),
    [
        (CrossedCoalitions(33), "cross", "design.budget=33 is too few for 16 patches: give at least 34"),
        (GeneralizedRegression(-1), "cross", "design.budget=-1 is too few for 16 patches: give at least 34"),
        (SampledCoalitions(0), "cross", "2 coalitions do not determine 51 interactions"),
        (SampledCoalitions(10), "all", "10 coalitions do not determine 172 interactions: raise design.budget"),
        (CrossedCoalitions(34), "all", "do not determine 172 interactions: .* or choose interactions=cross"),
        (BanzhafMasks(100), "all", "interactions=all has no effect on Banzhaf interactions: choose interactions=cross"),
    ],
    ids=repr,
)
def test_design_that_does_not_fit_the_image_and_the_pairs_is_refused(design, interactions, match):
    with refused(match):
        FIxLIP(design, interactions).explain(bound(patch=8))


@pytest.mark.parametrize("design", [CrossedCoalitions(100), GeneralizedRegression(100), BanzhafMasks(100)])
def test_the_masks_of_a_long_text_are_not_all_encoded(design):
    with refused("11 pieces of text have too many masks"):
        design.solver(4, 11, "cross")
