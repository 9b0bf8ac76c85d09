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
from metagame.estimators.configured import ConfiguredEstimator
from metagame.models.concepts import ConceptLogits
from tests.conftest import close
from tests.reference.concept import by_definition
from tests.tiny.vision_language import refused

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
    directional: np.ndarray | None = None


def explain(variant, bound, directional=False):
    if variant in METAGAMES:
        maps, pairs = metagame_maps(bound, METAGAMES[variant].mean_first, directional)
    else:
        maps, pairs = concept_maps(bound, FIRST_ORDER[variant].mean_first), None
    n = len(bound.players)
    return Maps(maps[:n], maps[n:], pairs)


def softmax(column):
    return np.exp(column) / np.exp(column).sum()


def twin(variant, bound):
    """Maps and influences, a patch and a layer at a time."""
    n, layers = len(bound.players), [bound.player_logits.double(), bound.background_logits.double()]
    means = [part.mean(0, keepdim=True) for part in layers]

    def shares(players, background):
        both = np.concatenate([players, background], axis=1)
        return np.mean([[softmax(column) for column in layer.T] for layer in both], axis=0).T

    if variant in FIRST_ORDER:
        maps = shares(*(means if variant == "mean_first" else layers))
        return Maps(maps[:n], maps[n:])
    own = means if METAGAMES[variant].mean_first else layers
    of_layers = [by_definition(*layer) for layer in zip(*own, strict=True)]
    diagonal, directional = (torch.stack(parts).mean(0).numpy() for parts in zip(*of_layers, strict=True))
    return Maps(diagonal, shares(*layers)[n:], directional)


@each_variant
@pytest.mark.parametrize(
    "settings",
    [
        {"n": 1, "n_background": 0},
        {"n": 1, "n_background": 1, "n_layers": 1},
        {"n": 2, "n_background": 0},
        {"n": 5, "n_background": 3, "dtype": torch.float32},
        {"spread": 0.0},
        {"spread": 4.0},
    ],
    ids=str,
)
def test_a_variant_is_its_equation(variant, settings):
    bound = logits(**settings)
    found, expected = explain(variant, bound), twin(variant, bound)
    assert found.players.dtype == found.background.dtype == np.float64
    assert close(found.players, expected.players, 1e-9)
    assert close(found.background, expected.background, 1e-9)
    if variant in METAGAMES:
        every = explain(variant, bound, directional=True)
        assert found.directional is None
        assert close(every.directional, expected.directional, 1e-9)
        assert close(every.directional.sum(1), explain(OF_METAGAME[variant], bound).players, 1e-9)
        assert close(every.players, found.players)
        assert close(every.background, found.background)


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
def test_influences_between_players_are_those_on_every_patch_of_a_players_map(variant):
    bound = logits()
    method = ConceptAttention(METAGAMES[variant].mean_first, directional=True).metagame()
    assert type(method) is MetaConceptAttention
    found, expected = method.explain(bound), explain(variant, bound, directional=True).directional
    assert np.array_equal(found.attribution, METAGAMES[variant].explain(bound).attribution)
    assert found.meta.players == found.meta.targets == bound.players
    assert (found.meta.grid, found.meta.endogenous, found.meta.directed) == ((SIDE, SIDE), True, True)
    assert found.meta.values.dtype == np.float32
    by_map = found.meta.values.reshape(3, N_PATCHES, 3)  # target, patch, player
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


def test_influences_between_concepts_need_the_metagame_and_that_has_none_of_its_own():
    method = ConceptAttention(directional=True)
    with refused(r"attribution\.method\.directional=true needs attribution\.meta=true"):
        method.explain(logits())
    with refused("MetaConceptAttention has no metagame"):
        method.metagame().metagame()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"estimator": ConfiguredEstimator("trees")}, "is computed in closed form"),
        ({"order": 2}, "exists for order 1 only"),
        ({"index": "ksv"}, "exists for order 1 only"),
    ],
    ids=["estimator", "order", "index"],
)
def test_an_estimate_of_the_closed_form_and_pairs_of_players_are_refused(settings, reason):
    with refused(f"the metagame of ConceptAttention {reason}"):
        ConceptAttention().metagame(**settings)
