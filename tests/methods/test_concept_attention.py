from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from metagame.attributions import concept_attention
from metagame.attributions.concept_attention import (
    ConceptAttention,
    MetaConceptAttention,
    arithmetic,
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
each_metagame = pytest.mark.parametrize("variant", METAGAMES)
each_shape = pytest.mark.parametrize(("n", "n_background"), [(1, 0), (1, 1), (2, 0), (3, 2), (5, 3)])


def logits(n=3, n_background=2, n_layers=3, spread=1.5, seed=0, dtype=torch.float64):
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
@each_shape
@pytest.mark.parametrize("n_layers", [1, 3])
def test_a_variant_is_its_equation(variant, n, n_background, n_layers):
    bound = logits(n, n_background, n_layers)
    found, expected = explain(variant, bound), twin(variant, bound)
    assert found.players.dtype == found.background.dtype == np.float64
    assert close(found.players, expected[:n], EXACT)
    assert close(found.background, expected[n:], EXACT)


@each_variant
@pytest.mark.parametrize(("spread", "dtype"), [(0.0, torch.float64), (4.0, torch.float64), (4.0, torch.float32)])
def test_a_variant_is_its_equation_whatever_the_spread_and_precision_of_logits(variant, spread, dtype):
    bound = logits(spread=spread, dtype=dtype)
    found, expected = explain(variant, bound), twin(variant, bound)
    assert close(found.players, expected[:3], SERIES)
    assert close(found.background, expected[3:], SERIES)


@each_metagame
@each_shape
def test_directional_values_are_the_mean_of_those_by_definition_and_sum_to_the_softmax(variant, n, n_background):
    bound = logits(n, n_background)
    layers = zip(bound.player_logits, bound.background_logits, strict=True)
    if variant == "meta_concept_attention":
        layers = [(bound.player_logits.mean(0), bound.background_logits.mean(0))]
    expected = np.mean([by_definition(*layer)[1].numpy() for layer in layers], axis=0)
    found = explain(variant, bound, directional=True)
    assert found.directional.shape == (n, n, N_PATCHES)
    assert close(found.directional, expected, SERIES)
    assert close(found.directional.sum(1), explain(OF_METAGAME[variant], bound).players, SERIES)
    plain = explain(variant, bound)
    assert plain.directional is None
    assert close(plain.players, found.players)
    assert close(plain.background, found.background)


@each_metagame
def test_a_gpus_arithmetic_changes_maps_by_a_millionth(variant, monkeypatch):
    bound = logits(n=8, spread=6.0)
    expected = explain(variant, bound, directional=True)
    assert (arithmetic("cpu"), arithmetic("cuda")) == (torch.float64, torch.float32)
    monkeypatch.setattr(concept_attention, "arithmetic", lambda device_type: torch.float32)
    found = explain(variant, bound, directional=True)
    assert found.players.dtype == np.float64
    assert found.directional.dtype == np.float32
    assert close(found.players, expected.players, 5e-6)
    assert close(found.directional, expected.directional, 5e-6)


def test_variants_differ():
    maps = [explain(variant, logits()).players for variant in VARIANTS]
    assert all(not close(one, other, 1e-3) for i, one in enumerate(maps) for other in maps[:i])


@each_variant
@pytest.mark.parametrize("n_background", [0, 2])
def test_explanation_has_the_maps_of_all_concepts_in_single_precision(variant, n_background):
    bound = logits(3, n_background)
    found, maps = VARIANTS[variant].explain(bound), explain(variant, bound)
    assert VARIANTS[variant].input_type is ConceptLogits
    assert found.players == ("concept 0", "concept 1", "concept 2")
    assert found.targets == bound.players + bound.background
    assert found.grid == (SIDE, SIDE)
    assert found.meta is None
    assert found.attribution.dtype == np.float32
    expected = np.concatenate([maps.players, maps.background])
    assert np.array_equal(found.attribution, expected.ravel().astype(np.float32))


@each_metagame
@pytest.mark.parametrize("n", [1, 3])
def test_influences_between_players_are_those_on_every_patch_of_a_players_map(variant, n):
    bound = logits(n)
    method = ConceptAttention(METAGAMES[variant].mean_first, directional=True).metagame()
    found, expected = method.explain(bound), explain(variant, bound, directional=True).directional
    assert np.array_equal(found.attribution, METAGAMES[variant].explain(bound).attribution)
    assert found.meta.players == found.meta.targets == bound.players
    assert (found.meta.grid, found.meta.endogenous, found.meta.directed) == ((SIDE, SIDE), True, True)
    assert found.meta.values.dtype == np.float32
    by_map = found.meta.values.reshape(n, N_PATCHES, n)  # target, patch, player
    assert np.array_equal(by_map, expected.transpose(0, 2, 1).astype(np.float32))
    assert close(found.meta.residual, 0.0, 1e-6)
    assert not found.meta.standard_error.any()


@each_variant
@pytest.mark.parametrize(("part", "value"), [("player_logits", float("nan")), ("background_logits", float("inf"))])
def test_logits_that_are_no_numbers_are_refused(part, value, variant):
    bound = logits()
    getattr(bound, part)[1, 0, 2] = value
    with refused("NaN or inf"):
        VARIANTS[variant].explain(bound)


@pytest.mark.parametrize("mean_first", [False, True])
@pytest.mark.parametrize("directional", [False, True])
def test_a_metagame_has_the_settings_of_its_method_and_none_of_its_own(mean_first, directional):
    found = ConceptAttention(mean_first, directional).metagame()
    assert type(found) is MetaConceptAttention
    assert (found.mean_first, found.directional) == (mean_first, directional)
    with refused("MetaConceptAttention has no metagame"):
        found.metagame()


@pytest.mark.parametrize("mean_first", [False, True])
def test_influences_between_concepts_need_the_metagame(mean_first):
    with refused(r"attribution\.method\.directional=true needs attribution\.meta=true"):
        ConceptAttention(mean_first, directional=True).explain(logits())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"estimator": ConfiguredEstimator("trees")}, "is computed in closed form"),
        ({"estimator": ConfiguredEstimator(permutation)}, "is computed in closed form"),
        ({"estimator": ConfiguredEstimator(budget=10)}, "is computed in closed form"),
        ({"order": 2}, "exists for order 1 only"),
        ({"order": 2, "index": "ksv"}, "exists for order 1 only"),
        ({"index": "ksv"}, "exists for order 1 only"),
    ],
    ids=["by name", "by function", "a budget", "order", "index of pairs", "index"],
)
def test_an_estimate_of_the_closed_form_and_pairs_of_players_are_refused(settings, reason):
    with refused(f"the metagame of ConceptAttention {reason}"):
        ConceptAttention().metagame(**settings)
