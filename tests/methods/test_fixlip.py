from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
import torch

from metagame.attributions.fixlip import FIxLIP
from metagame.attributions.fixlip_banzhaf import BanzhafMasks
from metagame.attributions.fixlip_least_squares import (
    CrossedCoalitions,
    LeastSquares,
    SampledCoalitions,
    _draw_distinct,
    _sampled,
    log_kernel,
    log_size_probability,
)
from metagame.attributions.fixlip_masks import paired_masks
from metagame.attributions.fixlip_moments import GeneralizedRegression
from metagame.games import all_coalitions
from metagame.models.vision_language import masked_pixels
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
    """What least squares make of a game given by all its values."""
    return LeastSquares(coalitions, interactions).solve(values[numbers(coalitions)], values[0], values[-1])


def fit(design, n_patches, n_pieces, values, interactions):
    return solve(design.coalitions(n_patches, n_pieces), values, interactions)


def logits(solver, values):
    """A game given by all its values, as logits of the masks that a solver asks for."""
    (_, n_patches), (_, n_pieces) = solver.image_masks.shape, solver.text_masks.shape
    image, text = solver.image_masks @ (1 << np.arange(n_patches)), solver.text_masks @ (1 << np.arange(n_pieces))
    return values[image[:, None] + (text << n_patches)]


def interactions_of(design, n_patches, n_pieces, values, interactions="cross"):
    """Interactions of patches and pieces, and their standard errors."""
    solver = design.solver(n_patches, n_pieces, interactions)
    return solver.interactions(logits(solver, values))


def smooth_values(n, seed=0):
    """A game of a saturating sum, of pairs, and a little noise."""
    rng = np.random.default_rng(seed)
    present = all_coalitions(n).astype(float)
    pairs = np.triu(rng.normal(size=(n, n)), 1) / n
    return np.tanh(present @ rng.normal(size=n) + ((present @ pairs) * present).sum(1)) + rng.normal(size=1 << n) / 20


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
    monkeypatch.setattr("metagame.attributions.fixlip_least_squares._BLOCK", 7)
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
    assert found.meta.standard_error is None
    assert "no standard error" in found.meta.error_note
    assert FIxLIP(GeneralizedRegression(12)).explain(small()).meta.standard_error.shape == (4, 2)
    assert found.meta.first_order is None


def test_batches_of_masked_images_change_nothing_but_memory_and_are_counted():
    seen = []
    whole = FIxLIP(EVERYTHING).explain(small()).meta.values
    parts = FIxLIP(EVERYTHING, batch_size=6).explain(small(), lambda done, total: seen.append((done, total)))
    assert close(parts.meta.values, whole, 1e-5)
    assert seen == [(6, 16), (12, 16), (16, 16)]


DESIGNS = [
    EVERYTHING,
    SampledCoalitions(400, 2),
    SampledCoalitions(90),
    CrossedCoalitions(50),
    GeneralizedRegression(40),
]


@pytest.mark.parametrize("design", DESIGNS, ids=repr)
def test_masks_of_a_design_are_distinct_between_the_empty_and_the_full_one(design):
    solver = design.solver(6, 3, "cross")
    for masks in (solver.image_masks, solver.text_masks):
        assert len(np.unique(masks, axis=0)) == len(masks)
        assert not masks[0].any()
        assert masks[-1].all()
    assert len(solver.image_masks) <= design.budget


@each_interactions
@pytest.mark.parametrize("seed", range(3))
@each_size
def test_every_design_that_has_all_masks_is_weighted_least_squares(n_patches, n_pieces, seed, interactions):
    n = n_patches + n_pieces
    values = random_values(n, seed)
    expected = reference.weighted_least_squares(values, n, pairs_of(interactions, n_patches, n))
    expected = [[expected[patch, piece] for piece in range(n_patches, n)] for patch in range(n_patches)]
    for design in (CrossedCoalitions(1 << n_patches), GeneralizedRegression(1 << n_patches), EVERYTHING):
        found, standard_error = interactions_of(design, n_patches, n_pieces, values, interactions)
        assert close(found, expected, 1e-8)
        assert standard_error is None or not standard_error.any()


@each_interactions
@pytest.mark.parametrize(("n_patches", "n_pieces", "budget"), [(5, 2, 16), (6, 1, 30), (4, 3, 12)])
def test_generalised_regression_matches_its_slow_twin(n_patches, n_pieces, budget, interactions):
    values = random_values(n_patches + n_pieces)
    design = GeneralizedRegression(budget, seed=3, ridge=0.3)
    found, standard_error = interactions_of(design, n_patches, n_pieces, values, interactions)
    masks = paired_masks(n_patches, budget, seed=3)
    assert len(masks) < 1 << n_patches
    expected = reference.regression_estimate(values, masks, n_patches, n_pieces, interactions, 0.3)
    assert close(found, expected, 1e-8)
    assert (standard_error > 0).all()


def test_generalised_regression_does_not_change_by_games_of_its_features():
    n_patches, n_pieces, n = 7, 2, 9
    rng, patches = np.random.default_rng(0), all_coalitions(n_patches)
    kappa = 2 * patches.sum(1, keepdims=True) / n_patches - 1
    features = np.concatenate([(patches - 0.5) * kappa**d for d in range(4)], axis=1)
    added = (features @ rng.normal(size=(features.shape[1], 1 << n_pieces))).T.ravel()
    values, design = random_values(n), GeneralizedRegression(90, ridge=1e-9)
    (of_both, error), (of_values, same), (of_added, none) = (
        interactions_of(design, n_patches, n_pieces, each) for each in (values + added, values, added)
    )
    exact = interactions_of(GeneralizedRegression(1 << n_patches), n_patches, n_pieces, added)[0]
    assert close(of_added, exact, 1e-6)
    assert close(of_both - of_values, exact, 1e-6)
    assert close(error, same, 1e-6)
    assert none.max() < 1e-6 < same.min()


@pytest.mark.parametrize(("budget", "n_pieces"), [(100, 1), (200, 2)])
def test_two_standard_errors_of_generalised_regression_cover_the_exact_values(budget, n_pieces):
    values = smooth_values(10 + n_pieces)
    exact = interactions_of(EVERYTHING, 10, n_pieces, values)[0]
    found, error = (
        np.array(each)
        for each in zip(
            *(interactions_of(GeneralizedRegression(budget, seed), 10, n_pieces, values) for seed in range(100)),
            strict=True,
        )
    )
    assert 0.9 < np.mean(np.abs(found - exact) <= 2 * error) < 0.99
    assert np.abs(found.mean(0) - exact).max() < 0.5 * error.mean()
    assert 0.8 < np.sqrt((error**2).mean() / ((found - exact) ** 2).mean()) < 1.3


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


@pytest.mark.parametrize("budget", [-1, 2, 33])
@pytest.mark.parametrize("design", [CrossedCoalitions, GeneralizedRegression])
def test_a_budget_without_two_pairs_of_each_size_is_refused(design, budget):
    with refused(f"design.budget={budget} is too few for 16 patches: give at least 34"):
        FIxLIP(design(budget)).explain(build("clip", torch.float32).bound(words=("one", "two")))


@pytest.mark.parametrize(
    ("patch", "design", "n_forwards"),
    [
        (8, GeneralizedRegression(40), 40),
        (8, CrossedCoalitions(41), 40),
        (16, GeneralizedRegression(100), 16),
        (16, SampledCoalitions(60), 16),
        (16, EVERYTHING, 16),
    ],
    ids=repr,
)
def test_masks_of_an_image_are_encoded_once_for_all_its_texts(patch, design, n_forwards, monkeypatch):
    model = build("clip", torch.float32, patch=patch).model
    texts = prepare_one(model, scene(0, a=("one", "two"), b=("three", "four"), c=("five",)))
    seen, encode = [], model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    method = FIxLIP(design, batch_size=16)
    for bound in texts.values():
        method.explain(bound)
    assert sum(seen) == n_forwards
    assert max(seen) <= 16


def test_several_images_have_masks_of_their_own():
    model, method = build("clip", torch.float32, patch=16).model, FIxLIP(GeneralizedRegression(12))
    together = [method.explain(each["text"]).meta.values for each in model.prepare([scene(0), scene(1)])]
    alone = [
        FIxLIP(GeneralizedRegression(12)).explain(prepare_one(model, scene(s))["text"]).meta.values for s in (0, 1)
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
    assert close(found, kernel(6) / kernel(6).sum())
    assert close(np.exp(log_kernel(4, np.array([1, 2, 3]))), [1 / 4, 1 / 8, 1 / 4])


@pytest.mark.parametrize("design", [CrossedCoalitions, SampledCoalitions])
def test_weights_are_those_of_the_shapley_kernel_on_average(design):
    found = np.mean([total_weights(design(28, seed).coalitions(5, 1), 6) for seed in range(1000)], axis=0)
    assert found[0] == found[-1] == 0
    ratio = found[1:-1] / kernel(6)
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.2


def test_with_a_mass_of_one_drawn_coalitions_weigh_as_if_no_size_were_enumerated():
    """As in the paper's code; the enumerated ones keep the kernel's weights."""
    one, remaining = (SampledCoalitions(40, 0, mass).coalitions(5, 1).weights for mass in ("one", "remaining"))
    enumerated = 2 * 6
    left = remaining[enumerated:].sum()
    assert close(one[:enumerated], remaining[:enumerated])
    assert close(one[enumerated:], remaining[enumerated:] / left)
    assert close([one[enumerated:].sum(), remaining.sum()], [1, 1])
    assert left < 0.7


@each_interactions
@pytest.mark.parametrize(
    ("design", "n_patches", "budgets"),
    [
        (CrossedCoalitions, 10, (128, 700)),
        (GeneralizedRegression, 10, (64, 700)),
        (SampledCoalitions, 10, (250, 3_000)),
    ],
)
def test_more_masks_approach_the_exact_solution(design, n_patches, budgets, interactions):
    values = random_values(n_patches + 2)
    exact = interactions_of(EVERYTHING, n_patches, 2, values, interactions)[0]
    errors = []
    for budget in budgets:
        found = (interactions_of(design(budget, seed), n_patches, 2, values, interactions)[0] for seed in range(3))
        errors.append(np.mean([np.abs(each - exact).max() for each in found]))
    assert all(more < few / 2 for few, more in pairwise(errors))


def test_crossed_design_combines_every_image_mask_with_every_text():
    coalitions = CrossedCoalitions(30).coalitions(9, 3)
    every = {(r, t) for r in range(30) for t in range(8)}
    assert len(coalitions.weights) == len(every) - 2
    assert set(zip(coalitions.image_row, coalitions.text_row, strict=True)) == every - {(0, 0), (29, 7)}


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


@pytest.mark.parametrize("n", [2, 3, 10, 30])
def test_sizes_are_drawn_by_the_kernel_and_coalitions_of_one_uniformly(n):
    k = np.arange(1, n)
    expected = 1 / (k * (n - k)) / (1 / (k * (n - k))).sum()
    assert close(np.exp(log_size_probability(n, k)), expected)
    present, times = _draw_distinct(np.random.default_rng(0), expected, min(2**n - 2, 20_000))
    assert len(np.unique(present, axis=0)) == len(present)
    share = np.bincount(present.sum(1), times, minlength=n + 1) / times.sum()
    assert np.abs(share[1:-1] - expected).max() < 0.35 / n
    if n == 10:
        pairs = times[present.sum(1) == 2]
        assert np.abs(pairs / pairs.mean() - 1).max() < 0.4


@pytest.mark.parametrize(("n", "budget"), [(6, 40), (6, 62), (6, 64), (13, 256), (13, 6000), (12, 4095), (20, 3)])
def test_sizes_that_the_budget_would_hold_are_enumerated_and_the_others_drawn_until_it_is_used_up(n, budget):
    present, weights = _sampled(n, budget, 0, "remaining")
    sizes = reference.sampled_sizes(n, budget)
    counts = np.bincount(present.sum(1), minlength=n + 1)
    assert all(counts[k] == comb(n, k) for k in range(1, n) if k not in sizes)
    assert len(np.unique(present, axis=0)) == len(present) == budget - 2
    assert close(weights.sum(), 1)


@pytest.mark.parametrize("design", [SampledCoalitions, CrossedCoalitions, GeneralizedRegression])
def test_a_seed_draws_masks_of_its_own_and_leaves_the_global_random_state_alone(design):
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # noqa: NPY002
    one, same, other = (design(100, seed).solver(8, 3, "cross") for seed in (5, 5, 6))
    for name in ("image_masks", "text_masks"):
        assert getattr(one, name).tobytes() == getattr(same, name).tobytes()
    assert one.image_masks.tobytes() != other.image_masks.tobytes()
    assert (np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()) == before  # noqa: NPY002


def test_absent_patches_have_zero_pixels():
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.as_tensor(all_coalitions(4))
    for mask, found in zip(masks, masked_pixels(pixels, masks, 4), strict=True):
        assert torch.equal(found, reference.masked_image(pixels, mask.tolist(), 2))
    larger = torch.rand(3, 11, 10, generator=torch.Generator().manual_seed(1))  # no patch reads the last pixels
    for mask, found in zip(masks, masked_pixels(larger, masks, 4), strict=True):
        assert torch.equal(found[:, :8, :8], reference.masked_image(larger[:, :8, :8], mask.tolist(), 2))
        assert torch.equal(found[:, 8:], larger[:, 8:])
        assert torch.equal(found[:, :8, 8:], larger[:, :8, 8:])


@pytest.mark.parametrize("interactions", ["pairs", "", None])
def test_unknown_interactions_are_refused(interactions):
    with refused(rf"interactions={interactions!r} is unknown"):
        FIxLIP(EVERYTHING, interactions)


@pytest.mark.parametrize(
    ("design", "interactions", "match"),
    [
        *((SampledCoalitions(b), "cross", f"{max(b, 2)} coalitions do not determine 51 inter") for b in (0, 1, 10)),
        (SampledCoalitions(10), "all", "10 coalitions do not determine 172 interactions: raise design.budget"),
        (CrossedCoalitions(34), "all", "do not determine 172 interactions: .* or choose interactions=cross"),
    ],
    ids=repr,
)
def test_design_that_does_not_determine_the_interactions_is_refused(design, interactions, match):
    with refused(match):
        FIxLIP(design, interactions).explain(build("clip", torch.float32).bound(words=("one", "two")))


@pytest.mark.parametrize("design", [CrossedCoalitions(100), GeneralizedRegression(100)])
def test_the_masks_of_a_long_text_are_not_all_encoded(design):
    with refused("11 pieces of text have too many masks"):
        design.solver(4, 11, "cross")


@pytest.mark.parametrize("mass", ["two", "", None])
def test_unknown_masses_are_refused(mass):
    with refused(f"design.sampled_mass={mass!r} is unknown"):
        SampledCoalitions(100, sampled_mass=mass)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_is_refused(ridge):
    with refused(f"design.ridge={ridge} must be a positive number"):
        GeneralizedRegression(100, ridge=ridge)


def test_patches_that_change_nothing_have_no_interactions():
    bound = small()
    bound.image.pixels.zero_()
    assert close(FIxLIP(EVERYTHING, "all").explain(bound).meta.values, 0.0, 1e-5)


def test_auto_fits_every_pair_where_there_are_64_patches_or_less():
    auto, every = (FIxLIP(SampledCoalitions(600), interactions=i).explain(small()) for i in ("auto", "all"))
    assert np.array_equal(auto.meta.values, every.meta.values)
    for n_patches, n_pairs in ((64, 65 * 64 // 2), (65, 65)):
        solver = FIxLIP(SampledCoalitions(4000), interactions="auto")._make_solver(n_patches, 1)
        assert len(solver.first) == n_pairs


@each_interactions
@pytest.mark.parametrize("p", [0.5, 0.3])
@each_size
def test_banzhaf_interactions_of_all_masks_are_weighted_least_squares(n_patches, n_pieces, p, interactions):
    n = n_patches + n_pieces
    values = random_values(n)
    found, error = interactions_of(BanzhafMasks(16, p=p), n_patches, n_pieces, values)
    pairs = pairs_of(interactions, n_patches, n)
    assert close(found, reference.banzhaf_least_squares(values, n_patches, n, p, pairs), 1e-8)
    assert not error.any()
    if p == 0.5:
        assert close(found, reference_indices.banzhaf(values, n, 2)[:n_patches, n_patches:], 1e-8)


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_two_standard_errors_of_drawn_banzhaf_interactions_cover_the_exact_ones(p):
    values = smooth_values(12)
    exact = interactions_of(BanzhafMasks(1024, p=p), 10, 2, values)[0]
    drawn = [interactions_of(BanzhafMasks(400, seed, p), 10, 2, values) for seed in range(60)]
    found, error = (np.array(each) for each in zip(*drawn, strict=True))
    assert 0.9 < np.mean(np.abs(found - exact) <= 2 * error) < 0.99
    assert np.abs(found.mean(0) - exact).max() < 0.6 * error.mean()
    games = [random_values(12), values]
    more = [np.abs(interactions_of(BanzhafMasks(900, 1, p), 10, 2, v)[0]).max() for v in games]
    assert np.isfinite(more).all()


@pytest.mark.usefixtures("float64_by_default")
def test_banzhaf_interactions_are_products_of_banzhaf_values_of_embeddings():
    """The logit is bilinear and the masks of both sides are independent."""
    bound = small()
    images = FIxLIP(BanzhafMasks(16))._image_embeddings(bound, all_coalitions(4), None).numpy()
    texts = bound.masked_texts(all_coalitions(2)).numpy()
    of_images, of_texts = (
        np.stack([reference_indices.banzhaf(column, n) for column in embeddings.T], axis=1)
        for embeddings, n in ((images, 4), (texts, 2))
    )
    expected = of_images @ of_texts.T * bound.model.logit_scale.item()
    assert close(FIxLIP(BanzhafMasks(16), "cross").explain(bound).meta.values, expected, 1e-5)


def test_drawn_masks_are_followed_by_their_opposites_and_have_the_probability():
    masks, weights = BanzhafMasks(2000, seed=1).image_masks(12)
    assert weights is None
    assert (masks[::2] ^ masks[1::2]).all()
    drawn, _ = BanzhafMasks(20_000, p=0.3).image_masks(16)
    assert np.abs(drawn.mean(0) - 0.3).max() < 0.01
    assert (drawn[::2] & drawn[1::2]).sum() == 0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        *(({"budget": 100, "p": p}, f"design.p={p} must be a probability between 0 and 1") for p in (0, 1, -0.1, 1.5)),
        *(({"budget": b}, f"design.budget={b} is too small: give at least 4") for b in (-1, 0, 3)),
        ({"budget": 100, "ridge": 0}, "design.ridge=0 must be a positive number"),
    ],
)
def test_settings_that_banzhaf_masks_do_not_have_are_refused(settings, match):
    with refused(match):
        BanzhafMasks(**settings)


def test_pairs_that_change_no_banzhaf_interaction_are_refused():
    with refused("interactions=all has no effect on Banzhaf interactions: choose interactions=cross"):
        FIxLIP(BanzhafMasks(100), "all").explain(small())
    with refused("11 pieces of text have too many masks"):
        BanzhafMasks(100).solver(4, 11, "cross")
