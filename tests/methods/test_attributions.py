from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metagame import UserError, indices
from metagame.attributions.attention import AttentionWeights
from metagame.attributions.attnlrp import CP_RULES, CPLRP, RULES, AttnLRP, relevance_rules
from metagame.attributions.gradients import GradientInput, IntegratedGradients, IntegratedHessians
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.attributions.lrp_by_layer import LRPByLayer
from metagame.attributions.method import FirstOrder
from metagame.attributions.proximity import Proximity
from metagame.attributions.random_pairs import RandomPairs
from metagame.attributions.shapley import SerialShapleyValue, ShapleyInteractions, ShapleyValue, restricted_shapley
from metagame.attributions.token_baselines import RandomTokens, Recency
from metagame.errors import GameError
from metagame.estimators.configured import ConfiguredEstimator
from metagame.estimators.exact import endogenous_index
from metagame.games import all_coalitions
from metagame.meta import meta_attributions
from metagame.models.adder import AdderNet
from metagame.models.layers import MatMul
from metagame.models.masked import MaskedModel
from tests.conftest import close, games, unchecked
from tests.reference import attributions as reference
from tests.reference import indices as reference_indices
from tests.reference import meta as reference_meta
from tests.tiny.functions import smooth_model, table_model
from tests.tiny.methods import arrays_of, method_classes, method_name, state_of

# Relevance is divided by activations, of which some are close to zero.
LRP_TOLERANCE = 1e-8


def random_net(seed=0):
    """An adder with random weights, everywhere non-zero."""
    net = AdderNet().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return net


def embedded(net, seed=0):
    """The net at random token embeddings of a, operator and b."""
    x, baseline = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    last = torch.ones(1, 8, dtype=torch.float64)

    def f(embeddings):
        return net.from_embeddings(torch.cat([embeddings, last.expand(len(embeddings), 1, -1)], dim=1))

    return MaskedModel(f, x, baseline, net, context=("=",)), last


MODELS = {"one": smooth_model(1), "four": smooth_model(4), "vectors": embedded(random_net())[0]}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@each_model
@pytest.mark.parametrize(
    ("method", "twin"),
    [
        (GradientInput(), reference.gradient_input),
        (IntegratedGradients(1), partial(reference.integrated_gradients, steps=1)),
        (IntegratedGradients(7), partial(reference.integrated_gradients, steps=7)),
        (LeaveOneOut(), reference.leave_one_out),
    ],
    ids=["gradient x input", "one step", "seven steps", "leave one out"],
)
def test_first_order_method_matches_its_definition_on_every_coalition(model, method, twin):
    expected = [twin(model, coalition) for coalition in reference.coalitions(model.n_players)]
    assert close(method.game(model)(all_coalitions(model.n_players)), expected)


@each_model
def test_second_order_methods_match_their_definitions(model):
    n, values = model.n_players, reference.output_values(model)
    assert close(ShapleyValue().game(model)(all_coalitions(n)), reference.restricted_shapley_table(values))
    assert close(SerialShapleyValue().explain(model).meta.values, reference.serial_shapley(values))
    for index in indices.INDICES if n > 1 else ():
        expected = getattr(reference_indices, index)(values, n, 2)
        assert close(ShapleyInteractions(index).explain(model).meta.values, expected)
    for steps in (1, 5):
        assert close(IntegratedHessians(steps).explain(model).meta.values, reference.integrated_hessians(model, steps))


@pytest.mark.parametrize("seed", range(2))
def test_relevance_walks_back_through_the_layers(seed):
    net = random_net(seed)
    model, last = embedded(net, seed)
    attn, cp = (method.game(model)(all_coalitions(3)) for method in (AttnLRP(), CPLRP()))
    for of_attn, of_cp, coalition in zip(attn, cp, reference.coalitions(3), strict=True):
        embeddings = torch.cat([reference.masked(model, coalition), last])
        assert close(of_attn, reference.adder_relevance(net, embeddings)[:3], LRP_TOLERANCE)
        contributions = reference.adder_constant_relevance(net, embeddings)
        assert close(of_cp, contributions[:3])
        assert close(contributions.sum(), net.from_embeddings(embeddings[None])[0].item())
    for rules in (RULES, CP_RULES):
        expected = model.values(all_coalitions(3))
        with relevance_rules(net, rules):
            assert close(model.values(all_coalitions(3)), expected)


@pytest.mark.parametrize(
    "layer",
    [nn.GELU(), nn.GELU(approximate="tanh"), nn.RMSNorm((3, 4)), nn.RMSNorm(4, elementwise_affine=False)],
    ids=str,
)
def test_relevance_rules_keep_the_output_of_every_layer_they_know(layer):
    net = nn.Sequential(layer).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = net(x)
    with relevance_rules(net, RULES):
        assert torch.allclose(net(x), expected, rtol=0, atol=1e-12)


def test_attention_is_the_softmax_of_the_only_layer():
    net = random_net()
    model, last = embedded(net)
    attention = net.attention
    with torch.no_grad():
        normed = net.norm_attention(torch.cat([model.x, last]) + net.position)
        expected = (attention.query(normed) @ attention.key(normed).T / 8**0.5).softmax(1)
    found = AttentionWeights().explain(model)
    assert close(found.meta.values, expected)
    assert found.players == found.targets == ("x1", "x2", "x3", "=")
    assert found.attribution is None
    assert found.meta.directed


@pytest.mark.parametrize("method", [GradientInput(), AttnLRP()], ids=method_name)
def test_meta_of_a_method_is_definition_2_on_its_attributions(method):
    model, _ = embedded(random_net())
    explanation = method.metagame().explain(model)
    assert close(explanation.meta.values, reference_meta.endogenous(method.game(model)(all_coalitions(3))))
    assert close(explanation.attribution, method.explain(model).attribution)
    assert np.array_equal(explanation.attribution, explanation.meta.first_order)


def test_a_metagame_has_the_estimator_the_budget_the_seed_and_the_index_that_are_asked_for():
    model = smooth_model(5)
    game = ShapleyValue().game(model)
    estimated = ShapleyValue().metagame(ConfiguredEstimator("permutation", budget=20, seed=1)).explain(model).meta
    expected = meta_attributions(game, "permutation", endogenous=True, budget=20, seed=1)
    assert np.array_equal(estimated.values, expected.values)
    assert close(estimated.values.sum(1), ShapleyValue().explain(model).attribution)
    banzhaf = ShapleyValue().metagame(index="banzhaf").explain(model).meta
    assert banzhaf.index == "banzhaf"
    assert np.array_equal(banzhaf.values, meta_attributions(game, endogenous=True, index="banzhaf").values)


@given(game=games(st.integers(2, 6), st.just(1)))
def test_stii_is_both_directions_of_the_shapley_metagame(game):
    """Theorem 2."""
    values, n = game
    table = restricted_shapley(values[:, 0])
    assert close(table, reference.restricted_shapley_table(values[:, 0]))
    meta = endogenous_index(table)
    both = meta + meta.T
    np.fill_diagonal(both, np.diag(meta))
    assert close(indices.stii(values[:, 0], n), both)


@given(game=games(st.integers(2, 6), st.just(1)))
def test_metagame_of_leave_one_out_is_the_shapley_interaction_index(game):
    """You et al. (2025) compare LRP with leave-one-out, whose metagame is SII off the diagonal, f_{i} - f() on it."""
    values, n = game[0][:, 0], game[1]
    expected = indices.sii(values, n)
    np.fill_diagonal(expected, values[1 << np.arange(n)] - values[0])
    explanation = LeaveOneOut().metagame().explain(table_model(values))
    assert close(explanation.meta.values, expected)
    assert close(expected.sum(1), explanation.attribution)


class Product(nn.Module):
    """x1 x2 x3, from the left or from the right."""

    def __init__(self, association):
        super().__init__()
        self.association, self.inner, self.outer = association, MatMul(), MatMul()

    def forward(self, inputs):
        first, second, third = inputs[..., None].unbind(1)
        left = self.association == "left"
        parts = (self.inner(first, second), third) if left else (first, self.inner(second, third))
        return self.outer(*parts)[:, 0, 0]


@pytest.mark.parametrize(("association", "relevance"), [("left", [6, 6, 12]), ("right", [12, 6, 6])])
def test_relevance_depends_on_how_a_product_is_implemented_and_its_metagame_inherits_that(association, relevance):
    module, x = Product(association), torch.tensor([[2.0], [3.0], [4.0]], dtype=torch.float64)
    model = MaskedModel(module, x, torch.zeros_like(x), module)
    explanation = AttnLRP().metagame().explain(model)
    assert close(explanation.attribution, relevance)
    halves = np.repeat(np.array(relevance)[:, None] / 2, 3, axis=1) * ~np.eye(3, dtype=bool)
    assert close(explanation.meta.values, halves)


@given(game=games(st.integers(2, 6), st.just(1)))
def test_interactions_decompose_the_shapley_value(game):
    """Theorem 1: with half of each pair; serial: with all of it."""
    values, n = game
    model, shapley = table_model(values[:, 0]), indices.shapley(values[:, 0], n)
    serial = SerialShapleyValue().explain(model).meta.values
    assert close(serial.sum(1), shapley)
    assert close(serial, serial.T)
    for index in ("ksv", "stii", "fsii"):
        matrix = ShapleyInteractions(index).explain(model).meta.values
        assert close(np.diag(matrix) + (matrix.sum(1) - np.diag(matrix)) / 2, shapley)


def test_integrated_gradients_are_complete_and_integrated_hessians_decompose_them():
    """Theorem 1, serial: no 1/2. Gradients of a square are linear along a path, so that midpoints integrate them."""
    generator, n = torch.Generator().manual_seed(0), 4
    square, x, baseline = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((n, n), (n,), (n,)))
    model = MaskedModel.of_function(lambda inputs: ((inputs @ square) * inputs).sum(1) + inputs.sum(1), x, baseline)
    attributions = IntegratedGradients(1).game(model)(all_coalitions(n))
    values = model.values(all_coalitions(n)).numpy()
    assert close(attributions.sum(1), values - values[0])
    matrix = IntegratedHessians(1).explain(model).meta.values
    assert close(matrix.sum(1), attributions[-1])
    assert close(matrix, matrix.T)


@pytest.mark.parametrize(
    ("ask", "count"),
    [
        (ShapleyValue().explain, 16),
        (ShapleyValue().metagame().explain, 16),
        (SerialShapleyValue().explain, 16),
        (LeaveOneOut().explain, 5),
        (lambda model: LeaveOneOut().game(model)(all_coalitions(4)), 16),
    ],
)
def test_a_model_is_called_once_for_each_coalition(ask, count):
    rows = []

    def f(inputs):
        rows.extend(map(tuple, inputs.tolist()))
        return inputs.prod(1)

    ask(MaskedModel.of_function(f, torch.arange(1.0, 5)))
    assert len(rows) == len(set(rows)) == count


def methods_of_masked_models():
    """Every attribution method that explains a masked model, and the metagame of each that is a game.

    But for CP-LRP in some layers, which is for decoders of transformers alone.
    """
    for method in method_classes(MaskedModel):
        if method is LRPByLayer:
            continue
        yield method()
        if isinstance(method(), FirstOrder):
            yield method().metagame()


METHODS = list(methods_of_masked_models())
each_method = pytest.mark.parametrize("method", METHODS, ids=method_name)


@each_method
def test_method_leaves_model_as_found_also_after_an_error(method):
    net, faults = random_net(), []
    net.attention.requires_grad_(False)
    net.feedforward.train(False)

    def fail(*_):
        if faults:
            raise RuntimeError("broken layer")

    net.head.register_forward_hook(fail)  # the last layer
    model, _ = embedded(net)
    before, outputs = state_of(net), model.values(all_coalitions(3))
    method.explain(model)
    assert state_of(net) == before
    if not isinstance(method, RandomPairs | Proximity | RandomTokens | Recency):  # which ask nothing of the model
        faults.append(1)
        with pytest.raises((RuntimeError, GameError), match="broken layer"):
            method.explain(model)
        faults.clear()
    assert state_of(net) == before
    assert torch.equal(model.values(all_coalitions(3)), outputs)
    assert not model.x.requires_grad


@each_method
def test_explanation_is_deterministic_and_names_what_its_numbers_are_about(method):
    model = replace(embedded(random_net())[0], names=("three", "minus", "five"))
    found, again = method.explain(model), method.explain(model)
    assert arrays_of(found)
    assert all(array.dtype == np.float64 for array in arrays_of(found))
    assert [array.tobytes() for array in arrays_of(found)] == [array.tobytes() for array in arrays_of(again)]
    names = model.names + model.context if isinstance(method, AttentionWeights) else model.names
    assert found.players == found.targets == names
    assert found.grid is None
    if found.attribution is not None:
        assert found.attribution.shape == (len(names),)
    if found.meta is not None:
        assert found.meta.values.shape == (len(names),) * 2
        assert (found.meta.players, found.meta.targets, found.meta.grid) == (names, names, None)
        assert found.meta.endogenous


@pytest.mark.parametrize(
    ("method", "index", "directed"),
    [
        (ShapleyValue().metagame(), None, True),
        (ShapleyInteractions("fsii"), "fsii", False),
        (SerialShapleyValue(), "serial", True),
        (IntegratedHessians(2), "serial", True),
        (RandomPairs(), None, True),
    ],
)
def test_explanation_says_what_its_pairs_are(method, index, directed):
    found = method.explain(smooth_model(3)).meta
    assert (found.index, found.directed, found.order) == (index, directed, 1)


def test_method_of_second_order_has_no_metagame():
    second = [method for method in METHODS if not isinstance(method, FirstOrder)]
    assert len(second) > 5
    for method in second:
        with pytest.raises(UserError, match=f"{type(method).__name__} has no metagame"):
            method.metagame()


def test_a_background_set_imputes_absent_features_by_its_mean():
    smooth = smooth_model(4)

    def f(inputs):
        return smooth.f(inputs[..., None])

    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model = MaskedModel.of_function(f, smooth.x[:, 0], rows)
    expected = reference.marginal_values(f, smooth.x[:, 0].tolist(), rows.tolist())
    assert close(model.values(all_coalitions(4)), expected)
    assert close(ShapleyValue().explain(model).attribution, reference_indices.shapley(expected, 4))
    for index in indices.INDICES:
        found = ShapleyInteractions(index).explain(model).meta.values
        assert close(found, getattr(reference_indices, index)(expected, 4, 2))
    with pytest.raises(UserError, match=r"no single masked input: attribute within over_background\(\)"):
        model.masked(all_coalitions(4))


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        (IntegratedGradients(8).metagame(), 1e-10),
        (GradientInput().metagame(), 1e-10),
        (LeaveOneOut().metagame(), 1e-10),
        (IntegratedHessians(4), 1e-10),
        (AttnLRP().metagame(), LRP_TOLERANCE),
    ],
    ids=["ig", "gradient", "leave one out", "ih", "attnlrp"],
)
def test_methods_of_a_background_set_are_the_mean_over_its_rows_as_baselines(method, tolerance):
    model, _ = embedded(random_net())
    rows = torch.stack([model.baseline, model.baseline + 1, model.baseline / 2])
    by_row = [method.explain(replace(model, baseline=row)).meta.values for row in rows]
    assert close(method.explain(replace(model, baseline=rows)).meta.values, np.mean(by_row, axis=0), tolerance)
    assert close(method.explain(replace(model, baseline=rows[:1])).meta.values, by_row[0], tolerance)


def two_softmax_layers():
    net = random_net()
    net.second = nn.Softmax(dim=-1)
    return embedded(net)[0]


def with_baseline(*shape):
    return partial(MaskedModel, torch.sum, torch.zeros(3, 1), torch.zeros(shape))


def at_ones(method, f):
    return partial(method.explain, MaskedModel.of_function(f, torch.ones(3)))


def not_finite(x):
    return x.sum(1) * torch.nan


def two_outputs(x):
    return torch.stack([x.sum(1), x.prod(1)], 1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (partial(ShapleyValue().metagame, order=0), "order=0 must be a positive integer"),
        (partial(ShapleyValue().metagame, index="ksv"), "index=ksv needs order=2"),
        (partial(IntegratedGradients, 0), "steps=0 must be a positive integer"),
        (partial(IntegratedHessians, -3), "steps=-3 must be a positive integer"),
        (partial(ShapleyInteractions, "sorcery"), r"method\.index='sorcery' is unknown: choose one of sii"),
        (relevance_rules(nn.Sequential(nn.SiLU(), nn.LayerNorm(4)), RULES).__enter__, "no .* rule for LayerNorm, SiLU"),
        (partial(AttnLRP().explain, smooth_model(3)), "AttnLRP needs a torch module, .* attribution=gradient_input"),
        (partial(CPLRP().explain, smooth_model(3)), "CPLRP needs a torch module, .* attribution=gradient_input"),
        (partial(AttentionWeights().explain, smooth_model(3)), "attribution=attention needs"),
        (partial(AttentionWeights().explain, two_softmax_layers()), "attribution=attention needs .* this one has 2"),
        (
            partial(AttentionWeights().explain, replace(MODELS["vectors"], context=())),
            r"shape \(4, 4\) for the tokens x1, x2, x3: name .* in MaskedModel\.context",
        ),
        (partial(ShapleyValue().explain, smooth_model(13)), "the input has 13 features"),
        (partial(SerialShapleyValue().explain, smooth_model(13)), "the input has 13 features"),
        (partial(ShapleyInteractions().explain, smooth_model(13)), "the input has 13 features"),
        (at_ones(GradientInput(), not_finite), "(?i)nan"),
        (at_ones(IntegratedHessians(2), not_finite), "(?i)nan"),
        (at_ones(SerialShapleyValue(), not_finite), "(?i)nan"),
        (at_ones(GradientInput(), two_outputs), "f returned shape .* select one"),
        (at_ones(IntegratedHessians(2), two_outputs), "f returned shape .* select one"),
        (at_ones(ShapleyValue(), torch.sum), "f returned shape .* select one"),
        (with_baseline(3, 2), r"x \(3, 1\), baseline \(3, 2\)"),
        (with_baseline(5, 2, 1), r"x \(3, 1\), baseline \(5, 2, 1\)"),
        (with_baseline(0, 3, 1), r"x \(3, 1\), baseline \(0, 3, 1\)"),
        (with_baseline(1, 5, 3, 1), r"x \(3, 1\), baseline \(1, 5, 3, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with unchecked(), pytest.raises(UserError, match=match):
        call()
