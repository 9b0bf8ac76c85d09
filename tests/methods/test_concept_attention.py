from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from metagame.attributions.concept_attention import (
    ConceptAttention,
    MetaConceptAttention,
    concept_maps,
    metagame_maps,
)
from metagame.estimators import permutation
from metagame.estimators.configured import ConfiguredEstimator
from metagame.models.concepts import ConceptLogits
from tests.conftest import close
from tests.reference.concept import by_definition
from tests.reference.indices import row, shapley, subsets
from tests.tiny.vision_language import refused

EXACT = 1e-10
SERIES = 1e-9  # of the closed form of the metagame
FIRST_ORDER = {"concept_attention": ConceptAttention(), "mean_first": ConceptAttention(mean_first=True)}
METAGAMES = {
    "meta_per_layer": FIRST_ORDER["concept_attention"].metagame(),
    "meta_concept_attention": FIRST_ORDER["mean_first"].metagame(),
}
VARIANTS = FIRST_ORDER | METAGAMES
OF_METAGAME = dict(zip(METAGAMES, FIRST_ORDER, strict=True))
SIDE, N_PATCHES = 2, 4

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_first_order = pytest.mark.parametrize("variant", FIRST_ORDER)
each_metagame = pytest.mark.parametrize("variant", METAGAMES)
each_number = pytest.mark.parametrize("n", [1, 2, 3, 5])
each_background = pytest.mark.parametrize("n_background", [0, 1, 3])


def logits(n=3, n_background=2, n_layers=3, spread=3.0, seed=0, dtype=torch.float64):
    """Random logits of named concepts."""
    rng = np.random.default_rng(seed)
    players, background = (
        torch.tensor(rng.uniform(-spread, spread, (n_layers, count, N_PATCHES)), dtype=dtype)
        for count in (n, n_background)
    )
    names = [f"concept {i}" for i in range(n + n_background)]
    return ConceptLogits(tuple(names[:n]), tuple(names[n:]), players, background)


@dataclass(frozen=True)
class Maps:
    """Maps of players and of background concepts, and influences between players, in float64."""

    players: np.ndarray
    background: np.ndarray
    directional: np.ndarray | None


def explain(variant, bound, directional=False):
    if variant in METAGAMES:
        maps, pairs = metagame_maps(bound, METAGAMES[variant].mean_first, directional)
    else:
        maps, pairs = concept_maps(bound, FIRST_ORDER[variant].mean_first), None
    n = len(bound.players)
    return Maps(maps[:n], maps[n:], pairs)


def softmax(values):
    exponents = np.exp(values - max(values))
    return exponents / exponents.sum()


def columns(bound):
    """The logits of all concepts, players first, of each layer and patch."""
    both = np.concatenate([bound.player_logits.double(), bound.background_logits.double()], axis=1)
    return [[both[layer, :, patch] for patch in range(N_PATCHES)] for layer in range(len(both))]


def mean_columns(bound):
    return [np.mean(layers, axis=0) for layers in zip(*columns(bound), strict=True)]


def enumerated(column, n):
    """The Shapley value of each concept in its own game: its softmax among S and the background, 0 outside S."""
    values = []
    for t in range(n):
        game = np.zeros(1 << n)
        for coalition in subsets(range(n)):
            present = [*coalition, *range(n, len(column))]
            if t in coalition:
                game[row(coalition)] = softmax(column[present])[present.index(t)]
        values.append(float(shapley(game, n)[t]))
    return np.array(values)


def twin(variant, bound):
    """Maps of all concepts, players first, ``(n + m, P)``, a patch and a layer at a time."""
    n, layers = len(bound.players), columns(bound)
    attention = np.array([np.mean([softmax(layer[p]) for layer in layers], axis=0) for p in range(N_PATCHES)]).T
    if variant == "concept_attention":
        return attention
    means = mean_columns(bound)
    if variant == "mean_first":
        return np.array([softmax(mean) for mean in means]).T
    if variant == "meta_concept_attention":
        players = np.array([enumerated(mean, n) for mean in means]).T
    else:
        values = [[enumerated(layer[p], n) for p in range(N_PATCHES)] for layer in layers]
        players = np.mean(values, axis=0).T
    return np.concatenate([players, attention[n:]])


@each_variant
@each_number
@each_background
@pytest.mark.parametrize("n_layers", [1, 3])
def test_a_variant_is_its_equation(variant, n, n_background, n_layers):
    bound = logits(n, n_background, n_layers)
    found, expected = explain(variant, bound), twin(variant, bound)
    assert found.players.dtype == found.background.dtype == np.float64
    assert close(found.players, expected[:n], EXACT)
    assert close(found.background, expected[n:], EXACT)


@each_variant
@pytest.mark.parametrize("spread", [0.0, 0.1, 10.0, 25.0])
def test_a_variant_is_its_equation_whatever_the_spread_of_logits(variant, spread):
    bound = logits(spread=spread)
    found, expected = explain(variant, bound), twin(variant, bound)
    assert close(found.players, expected[:3], SERIES)
    assert close(found.background, expected[3:], SERIES)


@each_variant
def test_logits_in_single_precision_are_worked_on_in_double(variant):
    bound = logits(dtype=torch.float32, spread=5.0)
    found, expected = explain(variant, bound), twin(variant, bound)
    assert close(found.players, expected[:3], SERIES)
    assert close(found.background, expected[3:], SERIES)


@each_metagame
@each_number
@each_background
def test_directional_values_are_the_mean_of_those_by_definition(variant, n, n_background):
    bound = logits(n, n_background)
    layers = zip(bound.player_logits, bound.background_logits, strict=True)
    if variant == "meta_concept_attention":
        layers = [(bound.player_logits.mean(0), bound.background_logits.mean(0))]
    expected = np.mean([by_definition(*layer)[1].numpy() for layer in layers], axis=0)
    found = explain(variant, bound, directional=True).directional
    assert found.shape == (n, n, N_PATCHES)
    assert close(found, expected, SERIES)


@each_metagame
@each_number
@each_background
def test_rows_of_directional_values_sum_to_the_softmax(variant, n, n_background):
    bound = logits(n, n_background)
    found = explain(variant, bound, directional=True).directional
    shares = explain(OF_METAGAME[variant], bound)
    assert close(found.sum(1), shares.players, SERIES)


@each_metagame
def test_rivals_only_take_away(variant):
    found = explain(variant, logits(5), directional=True).directional
    others = ~np.eye(5, dtype=bool)
    assert (found[others] < 0).all()
    assert (found[~others] > 0).all()


@each_metagame
def test_directional_values_change_no_map(variant):
    plain, directional = (explain(variant, logits(), asked) for asked in (False, True))
    assert plain.directional is None
    assert close(plain.players, directional.players)
    assert close(plain.background, directional.background)


@each_first_order
@each_background
def test_first_order_maps_share_each_patch(variant, n_background):
    found = explain(variant, logits(20, n_background))
    assert close(found.players.sum(0) + found.background.sum(0), np.ones(N_PATCHES))


@each_variant
@each_background
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_maps_go_from_zero_to_one(variant, n_background, spread):
    found = explain(variant, logits(24, n_background, spread=spread))
    assert found.players.shape == (24, N_PATCHES)
    assert found.background.shape == (n_background, N_PATCHES)
    for maps in (found.players, found.background):
        assert ((maps >= -1e-9) & (maps <= 1 + 1e-9)).all()


@each_metagame
def test_a_player_alone_has_its_softmax(variant):
    bound = logits(1)
    assert close(explain(variant, bound).players, explain(OF_METAGAME[variant], bound).players, SERIES)


@each_metagame
def test_a_player_that_outweighs_all_others_has_its_patch(variant):
    bound = logits(5)
    bound.player_logits[:, 2] += 30
    found = explain(variant, bound).players
    assert close(found[2], 1, 1e-6)


@each_metagame
def test_a_metagame_has_the_background_of_concept_attention(variant):
    found, expected = (explain(each, logits()) for each in (variant, "concept_attention"))
    assert np.array_equal(found.background, expected.background)


@pytest.mark.parametrize(
    ("softmax_first", "mean_first"),
    [("concept_attention", "mean_first"), ("meta_per_layer", "meta_concept_attention")],
)
@pytest.mark.parametrize("directional", [False, True])
def test_of_one_layer_the_order_of_softmax_and_mean_is_no_matter(softmax_first, mean_first, directional):
    for n_layers, equal in ((1, True), (2, False)):
        one, other = (explain(each, logits(n_layers=n_layers), directional) for each in (softmax_first, mean_first))
        assert close(one.players, other.players, SERIES) == equal
        if one.directional is not None:
            assert close(one.directional, other.directional, SERIES) == equal


@each_variant
def test_equal_layers_are_as_one(variant):
    one = logits(n_layers=1)
    repeated = ConceptLogits(
        one.players, one.background, one.player_logits.repeat(4, 1, 1), one.background_logits.repeat(4, 1, 1)
    )
    assert close(explain(variant, repeated).players, explain(variant, one).players)
    assert close(explain(variant, repeated).background, explain(variant, one).background)


@each_variant
def test_patches_do_not_notice_each_other(variant):
    bound = logits()
    whole = explain(variant, bound, directional=True)
    for patch in range(N_PATCHES):
        parts = (part[..., [patch]] for part in (bound.player_logits, bound.background_logits))
        alone = explain(variant, ConceptLogits(bound.players, bound.background, *parts), directional=True)
        for name, maps in vars(alone).items():
            assert maps is None or close(maps, getattr(whole, name)[..., [patch]], SERIES)


@each_variant
def test_the_order_of_players_permutes_their_maps(variant):
    bound, order = logits(5), [3, 0, 4, 1, 2]
    players = tuple(bound.players[i] for i in order)
    permuted = ConceptLogits(players, bound.background, bound.player_logits[:, order], bound.background_logits)
    found, expected = (explain(variant, each, directional=True) for each in (permuted, bound))
    assert close(found.players, expected.players[order], SERIES)
    assert close(found.background, expected.background, SERIES)
    if variant in METAGAMES:
        assert close(found.directional, expected.directional[np.ix_(order, order)], SERIES)


@each_variant
def test_a_constant_that_is_added_to_a_patch_changes_nothing(variant):
    bound = logits()
    shift = 100 * torch.randn(3, 1, N_PATCHES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = ConceptLogits(
        bound.players, bound.background, bound.player_logits + shift, bound.background_logits + shift
    )
    assert close(explain(variant, shifted).players, explain(variant, bound).players, SERIES)


def test_variants_differ():
    maps = [explain(variant, logits()).players for variant in VARIANTS]
    assert all(not close(one, other, 1e-3) for i, one in enumerate(maps) for other in maps[:i])


@each_variant
@pytest.mark.parametrize("n_background", [0, 2])
def test_explanation_has_the_maps_of_all_concepts_in_single_precision(variant, n_background):
    bound = logits(3, n_background)
    found, maps = VARIANTS[variant].explain(bound), explain(variant, bound)
    assert found.players == ("concept 0", "concept 1", "concept 2")
    assert found.targets == bound.players + bound.background
    assert found.grid == (SIDE, SIDE)
    assert found.meta is None
    assert found.attribution.dtype == np.float32
    assert found.attribution.shape == ((3 + n_background) * N_PATCHES,)
    expected = np.concatenate([maps.players, maps.background])
    assert np.array_equal(found.attribution.reshape(-1, N_PATCHES), expected.astype(np.float32))


@each_metagame
@each_number
def test_influences_between_players_are_those_on_every_patch_of_a_players_map(variant, n):
    bound = logits(n)
    method = ConceptAttention(METAGAMES[variant].mean_first, directional=True).metagame()
    found, expected = method.explain(bound), explain(variant, bound, directional=True).directional
    assert np.array_equal(found.attribution, METAGAMES[variant].explain(bound).attribution)
    assert found.meta.players == found.meta.targets == bound.players
    assert (found.meta.grid, found.meta.endogenous, found.meta.directed) == ((SIDE, SIDE), True, True)
    assert found.meta.values.dtype == np.float32
    assert found.meta.values.shape == (n * N_PATCHES, n)
    for target in range(n):
        for player in range(n):
            of_map = found.meta.values[target * N_PATCHES : (target + 1) * N_PATCHES, player]
            assert np.array_equal(of_map, expected[target, player].astype(np.float32))


@each_variant
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["player_logits", "background_logits"])
def test_logits_that_are_no_numbers_are_refused(part, value, variant):
    bound = logits()
    getattr(bound, part)[1, 0, 2] = value
    with refused("NaN or inf"):
        VARIANTS[variant].explain(bound)


@pytest.mark.parametrize("mean_first", [False, True])
@pytest.mark.parametrize("directional", [False, True])
def test_a_metagame_has_the_settings_of_its_method(mean_first, directional):
    found = ConceptAttention(mean_first, directional).metagame()
    assert type(found) is MetaConceptAttention
    assert (found.mean_first, found.directional) == (mean_first, directional)


@each_first_order
def test_influences_between_concepts_need_the_metagame(variant):
    method = ConceptAttention(FIRST_ORDER[variant].mean_first, directional=True)
    with refused(r"attribution\.method\.directional=true needs attribution\.meta=true"):
        method.explain(logits())


@pytest.mark.parametrize(
    "settings",
    [{"estimator": "trees"}, {"estimator": permutation}, {"budget": 10}],
    ids=["by name", "by function", "a budget"],
)
def test_an_estimate_of_the_closed_form_is_refused(settings):
    with refused("the metagame of ConceptAttention is computed in closed form"):
        ConceptAttention().metagame(ConfiguredEstimator(**settings))


@pytest.mark.parametrize("settings", [{"order": 2}, {"order": 2, "index": "ksv"}, {"index": "ksv"}], ids=str)
def test_pairs_of_players_are_refused(settings):
    with refused("the metagame of ConceptAttention has order 1 only"):
        ConceptAttention().metagame(**settings)


@each_metagame
def test_a_metagame_has_no_metagame(variant):
    with refused("MetaConceptAttention has no metagame"):
        METAGAMES[variant].metagame()


def test_logits_are_what_is_explained():
    assert all(method.input_type is ConceptLogits for method in VARIANTS.values())
