from __future__ import annotations

import numpy as np
import pytest
import torch

from metagame.attributions.concept_attention import VARIANTS, ConceptAttention, ConceptMaps
from metagame.models.concepts import ConceptLogits
from tests.conftest import close
from tests.reference.concept import by_definition
from tests.reference.indices import row, shapley, subsets
from tests.vision_language_fixtures import refused

EXACT = 1e-10
SERIES = 1e-9  # of the closed form of the metagame
FIRST_ORDER, METAGAMES = ("concept_attention", "mean_first"), ("meta_concept_attention", "meta_per_layer")
N_PATCHES = 4

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_first_order = pytest.mark.parametrize("variant", FIRST_ORDER)
each_metagame = pytest.mark.parametrize("variant", METAGAMES)
each_number = pytest.mark.parametrize("n", [1, 2, 3, 5])
each_background = pytest.mark.parametrize("n_background", [0, 1, 3])


def logits(n=3, n_background=2, n_layers=3, spread=3.0, seed=0, dtype=torch.float64, picture=None):
    """Random logits of named concepts."""
    rng = np.random.default_rng(seed)
    players, background = (
        torch.tensor(rng.uniform(-spread, spread, (n_layers, count, N_PATCHES)), dtype=dtype)
        for count in (n, n_background)
    )
    names = [f"concept {i}" for i in range(n + n_background)]
    return ConceptLogits(tuple(names[:n]), tuple(names[n:]), players, background, picture)


def explain(variant, explicand, directional=False):
    return ConceptAttention([variant], directional).explain(explicand).maps[variant]


def softmax(values):
    exponents = np.exp(values - max(values))
    return exponents / exponents.sum()


def columns(explicand):
    """The logits of all concepts, players first, of each layer and patch."""
    both = np.concatenate([explicand.player_logits.double(), explicand.background_logits.double()], axis=1)
    return [[both[layer, :, patch] for patch in range(N_PATCHES)] for layer in range(len(both))]


def mean_columns(explicand):
    return [np.mean(layers, axis=0) for layers in zip(*columns(explicand), strict=True)]


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


def twin(variant, explicand):
    """Maps of all concepts, players first, ``(n + m, P)``, a patch and a layer at a time."""
    n, layers = len(explicand.players), columns(explicand)
    attention = np.array([np.mean([softmax(layer[p]) for layer in layers], axis=0) for p in range(N_PATCHES)]).T
    if variant == "concept_attention":
        return attention
    means = mean_columns(explicand)
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
    explicand = logits(n, n_background, n_layers)
    found, expected = explain(variant, explicand), twin(variant, explicand)
    assert found.players.dtype == found.background.dtype == np.float64
    assert close(found.players, expected[:n], EXACT)
    assert close(found.background, expected[n:], EXACT)


@each_variant
@pytest.mark.parametrize("spread", [0.0, 0.1, 10.0, 25.0])
def test_a_variant_is_its_equation_whatever_the_spread_of_logits(variant, spread):
    explicand = logits(spread=spread)
    found, expected = explain(variant, explicand), twin(variant, explicand)
    assert close(found.players, expected[:3], SERIES)
    assert close(found.background, expected[3:], SERIES)


@each_variant
def test_logits_in_single_precision_are_worked_on_in_double(variant):
    explicand = logits(dtype=torch.float32, spread=5.0)
    found, expected = explain(variant, explicand), twin(variant, explicand)
    assert close(found.players, expected[:3], SERIES)
    assert close(found.background, expected[3:], SERIES)


@each_metagame
@each_number
@each_background
def test_directional_values_are_the_mean_of_those_by_definition(variant, n, n_background):
    explicand = logits(n, n_background)
    layers = zip(explicand.player_logits, explicand.background_logits, strict=True)
    if variant == "meta_concept_attention":
        layers = [(explicand.player_logits.mean(0), explicand.background_logits.mean(0))]
    expected = np.mean([by_definition(*layer)[1].numpy() for layer in layers], axis=0)
    found = explain(variant, explicand, directional=True).directional
    assert found.shape == (n, n, N_PATCHES)
    assert close(found, expected, SERIES)


@each_metagame
@each_number
@each_background
def test_rows_of_directional_values_sum_to_the_softmax(variant, n, n_background):
    explicand = logits(n, n_background)
    found = explain(variant, explicand, directional=True).directional
    shares = explain(
        {"meta_concept_attention": "mean_first", "meta_per_layer": "concept_attention"}[variant], explicand
    )
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
def test_a_first_order_variant_has_no_directional_values(variant):
    assert explain(variant, logits(), directional=True).directional is None


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
    explicand, share = logits(1), {"meta_concept_attention": "mean_first", "meta_per_layer": "concept_attention"}
    assert close(explain(variant, explicand).players, explain(share[variant], explicand).players, SERIES)


@each_metagame
def test_a_player_that_outweighs_all_others_has_its_patch(variant):
    explicand = logits(5)
    explicand.player_logits[:, 2] += 30
    found = explain(variant, explicand).players
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
    explicand = logits()
    whole = explain(variant, explicand, directional=True)
    for patch in range(N_PATCHES):
        parts = (part[..., [patch]] for part in (explicand.player_logits, explicand.background_logits))
        alone = explain(variant, ConceptLogits(explicand.players, explicand.background, *parts), directional=True)
        for name, maps in vars(alone).items():
            assert maps is None or close(maps, getattr(whole, name)[..., [patch]], SERIES)


@each_variant
def test_the_order_of_players_permutes_their_maps(variant):
    explicand, order = logits(5), [3, 0, 4, 1, 2]
    players = tuple(explicand.players[i] for i in order)
    permuted = ConceptLogits(
        players, explicand.background, explicand.player_logits[:, order], explicand.background_logits
    )
    found, expected = (explain(variant, each, directional=True) for each in (permuted, explicand))
    assert close(found.players, expected.players[order], SERIES)
    assert close(found.background, expected.background, SERIES)
    if variant in METAGAMES:
        assert close(found.directional, expected.directional[np.ix_(order, order)], SERIES)


@each_variant
def test_a_constant_that_is_added_to_a_patch_changes_nothing(variant):
    explicand = logits()
    shift = 100 * torch.randn(3, 1, N_PATCHES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = ConceptLogits(
        explicand.players, explicand.background, explicand.player_logits + shift, explicand.background_logits + shift
    )
    assert close(explain(variant, shifted).players, explain(variant, explicand).players, SERIES)


def test_all_variants_are_made_of_the_same_logits():
    explicand = logits(picture=np.zeros((8, 8, 3), np.uint8))
    together = ConceptAttention(list(VARIANTS), directional=True).explain(explicand)
    assert list(together.maps) == list(VARIANTS)
    assert together.picture is explicand.picture
    for variant, maps in together.maps.items():
        for name, value in vars(explain(variant, explicand, directional=True)).items():
            assert np.array_equal(value, getattr(maps, name)) if value is not None else getattr(maps, name) is None


def test_variants_differ():
    maps = [explain(variant, logits()).players for variant in VARIANTS]
    assert all(not close(one, other, 1e-3) for i, one in enumerate(maps) for other in maps[:i])


@pytest.mark.parametrize("picture", [None, np.arange(12, dtype=np.uint8).reshape(2, 2, 3)], ids=["photo", "painting"])
@pytest.mark.parametrize("directional", [False, True])
def test_arrays_are_named_by_variant_and_in_single_precision(directional, picture):
    found = ConceptAttention(list(VARIANTS), directional).explain(logits(picture=picture)).arrays()
    names = {f"{variant}.{part}" for variant in VARIANTS for part in ("players", "background")}
    if directional:
        names |= {f"{variant}.directional" for variant in METAGAMES}
    assert set(found) == names | (set() if picture is None else {"picture"})
    if picture is not None:
        assert np.array_equal(found.pop("picture"), picture)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    for variant in VARIANTS:
        assert close(found[f"{variant}.players"], explain(variant, logits()).players, 1e-6)


@each_variant
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["player_logits", "background_logits"])
def test_logits_that_are_no_numbers_are_refused(part, value, variant):
    explicand = logits()
    getattr(explicand, part)[1, 0, 2] = value
    with refused("NaN or inf"):
        explain(variant, explicand)


@pytest.mark.parametrize("name", ["players", "background", "directional"])
def test_maps_that_are_no_numbers_are_refused(name):
    maps = {"players": np.zeros((2, 3)), "background": np.zeros((1, 3)), "directional": np.zeros((2, 2, 3))}
    maps[name] = maps[name].copy()
    maps[name].flat[0] = np.nan
    with refused(f"the maps of {name} hold NaN or inf: check the model on this image"):
        ConceptMaps(**maps)


@pytest.mark.parametrize("variants", [["nonsense"], ["concept_attention", "nonsense"], []], ids=str)
def test_variants_that_are_none_are_refused(variants):
    with refused(r"attribution\.method\.variants=.*: give some of concept_attention, mean_first, meta_concept"):
        ConceptAttention(variants)


def test_logits_are_what_is_explained():
    assert ConceptAttention(["mean_first"]).explicand_type is ConceptLogits
