import importlib
import inspect
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metagame import UserError, attributions, indices
from metagame.attributions.attention import AttentionWeights
from metagame.attributions.attnlrp import RULES, AttnLRP, relevance_rules
from metagame.attributions.gradients import GradientInput, IntegratedGradients, IntegratedHessians
from metagame.attributions.method import FirstOrder, Metagame
from metagame.attributions.random_pairs import RandomPairs
from metagame.attributions.shapley import SerialShapleyValue, ShapleyInteractions, ShapleyValue, restricted_shapley
from metagame.estimators.configured import ConfiguredEstimator
from metagame.estimators.exact import endogenous_shapley
from metagame.games import all_coalitions
from metagame.models.adder import AdderNet
from metagame.models.masked import MaskedModel
from tests.conftest import close, games, random_game, smooth_model, table_model, unchecked
from tests.reference import attributions as reference
from tests.reference import indices as reference_indices
from tests.reference import meta as reference_meta

# Relevance is divided by activations, of which some are close to zero.
LRP_TOLERANCE = 1e-8
each_size = pytest.mark.parametrize("n", [1, 2, 3, 4])


def random_net(seed=0, net_class=AdderNet):
    """An adder with random weights, everywhere non-zero."""
    net = net_class().double()
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


def models(n):
    """A function of n numbers and, where it has n features, a module over vectors."""
    return [smooth_model(n), *([embedded(random_net())[0]] if n == 3 else [])]


@each_size
def test_gradient_input_matches_its_definition(n):
    for model in models(n):
        expected = [reference.gradient_input(model, coalition) for coalition in reference.coalitions(n)]
        assert close(GradientInput().game(model)(all_coalitions(n)), expected)


@each_size
@pytest.mark.parametrize("steps", [1, 7])
def test_integrated_gradients_match_their_definition(n, steps):
    for model in models(n):
        expected = [reference.integrated_gradients(model, coalition, steps) for coalition in reference.coalitions(n)]
        assert close(IntegratedGradients(steps).game(model)(all_coalitions(n)), expected)


@each_size
@pytest.mark.parametrize("steps", [1, 5])
def test_integrated_hessians_match_their_definition(n, steps):
    for model in models(n):
        assert close(IntegratedHessians(steps).explain(model).meta.values, reference.integrated_hessians(model, steps))


@each_size
def test_shapley_value_matches_its_definition_on_every_coalition(n):
    for model in models(n):
        expected = reference.restricted_shapley_table(reference.output_values(model))
        assert close(ShapleyValue().game(model)(all_coalitions(n)), expected)


@each_size
def test_serial_shapley_value_matches_its_definition(n):
    for model in models(n):
        expected = reference.serial_shapley(reference.output_values(model))
        assert close(SerialShapleyValue().explain(model).meta.values, expected)


@pytest.mark.parametrize("index", indices.PAIRWISE)
@each_size
def test_shapley_interactions_match_their_definition(index, n):
    for model in models(n):
        expected = getattr(reference_indices, index)(reference.output_values(model), n, 2)
        assert close(ShapleyInteractions(index).explain(model).meta.values, expected)


@pytest.mark.parametrize("seed", range(5))
def test_attnlrp_is_the_relevance_that_walks_back_through_the_layers(seed):
    net = random_net(seed)
    model, last = embedded(net, seed)
    found = AttnLRP().game(model)(all_coalitions(3))
    for relevance, coalition in zip(found, reference.coalitions(3), strict=True):
        embeddings = torch.cat([reference.masked(model, coalition), last])
        assert close(relevance, reference.adder_relevance(net, embeddings)[:3], LRP_TOLERANCE)


def test_attnlrp_differs_from_gradient_input():
    model, _ = embedded(random_net())
    assert not close(AttnLRP().explain(model).attribution, GradientInput().explain(model).attribution, 1e-3)


def test_relevance_rules_keep_the_output():
    model, _ = embedded(random_net())
    before = model.values(all_coalitions(3))
    with relevance_rules(model.module, RULES):
        assert close(model.values(all_coalitions(3)), before)


def test_every_layer_of_the_adder_that_has_a_rule_gets_it():
    net = random_net()
    with relevance_rules(net, RULES):
        hooked = [layer for layer in net.modules() if layer._forward_hooks]
    assert {type(layer) for layer in hooked} == set(RULES)
    assert len(hooked) == 6


def test_modified_backward_is_linear_in_the_output_seed():
    net = random_net()
    model, _ = embedded(net)
    doubled = MaskedModel(lambda inputs: 2 * model.f(inputs), model.x, model.baseline, net)
    assert close(AttnLRP().explain(doubled).attribution, 2 * AttnLRP().explain(model).attribution)


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


def test_attention_over_a_token_without_a_name_is_refused():
    model, _ = embedded(random_net())
    with pytest.raises(UserError, match=r"shape \(4, 4\) for the tokens x1, x2, x3: name .* in MaskedModel\.context"):
        AttentionWeights().explain(replace(model, context=()))


@pytest.mark.parametrize("method", [GradientInput(), IntegratedGradients(4), ShapleyValue(), AttnLRP()])
def test_meta_of_a_method_is_definition_2_on_its_attributions(method):
    model, _ = embedded(random_net())
    explanation = method.metagame().explain(model)
    assert close(explanation.meta.values, reference_meta.endogenous(method.game(model)(all_coalitions(3))))
    assert close(explanation.attribution, method.explain(model).attribution)
    assert np.array_equal(explanation.attribution, explanation.meta.first_order)


@pytest.mark.parametrize("estimator", ["permutation", "regression", "trees"])
def test_metagame_passes_estimator_budget_and_seed_on(estimator):
    model = smooth_model(5)
    one, same, other = (
        ShapleyValue().metagame(ConfiguredEstimator(estimator, budget=20, seed=seed)).explain(model).meta.values
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert close(one.sum(1), ShapleyValue().explain(model).attribution)


@given(game=games(n_targets=st.just(1)))
def test_restricted_shapley_values_match_enumeration(game):
    assert close(restricted_shapley(game[0][:, 0]), reference.restricted_shapley_table(game[0][:, 0]))


@given(game=games(n_targets=st.just(1)))
def test_stii_is_both_directions_of_the_shapley_metagame(game):
    """Theorem 2."""
    values, n = game
    meta = endogenous_shapley(restricted_shapley(values[:, 0]))
    stii = indices.stii(values[:, 0], n)
    both = meta + meta.T
    np.fill_diagonal(both, np.diag(meta))
    assert close(stii, both)


@given(game=games(n_targets=st.just(1)))
def test_serial_shapley_rows_sum_to_the_shapley_value(game):
    """Theorem 1, serial: no 1/2."""
    model = table_model(game[0][:, 0])
    matrix = SerialShapleyValue().explain(model).meta.values
    assert close(matrix.sum(1), indices.shapley(game[0][:, 0], game[1]))
    assert close(matrix, matrix.T)


@pytest.mark.parametrize("index", ["ksv", "stii", "fsii"])
@given(game=games(n_targets=st.just(1)))
def test_interactions_decompose_the_shapley_value_with_half_of_each_pair(index, game):
    """Theorem 1."""
    model = table_model(game[0][:, 0])
    matrix = ShapleyInteractions(index).explain(model).meta.values
    rows = np.diag(matrix) + (matrix.sum(1) - np.diag(matrix)) / 2
    assert close(rows, ShapleyValue().explain(model).attribution)


def quadratic_model(n, seed=0):
    """Gradients are linear along a path, so that midpoints integrate them exactly."""
    generator = torch.Generator().manual_seed(seed)
    square, x, baseline = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((n, n), (n,), (n,)))
    return MaskedModel.of_function(lambda inputs: ((inputs @ square) * inputs).sum(1) + inputs.sum(1), x, baseline)


@each_size
def test_integrated_hessians_decompose_integrated_gradients(n):
    """Theorem 1, serial: no 1/2."""
    model = quadratic_model(n)
    matrix = IntegratedHessians(1).explain(model).meta.values
    assert close(matrix.sum(1), IntegratedGradients(1).explain(model).attribution)
    assert close(matrix, matrix.T)


def test_integrated_hessians_decompose_integrated_gradients_as_the_steps_grow():
    model = smooth_model(3)
    whole = IntegratedGradients(4096).explain(model).attribution
    missed = [np.abs(IntegratedHessians(s).explain(model).meta.values.sum(1) - whole) for s in (16, 128)]
    assert missed[1].max() < missed[0].max() / 20
    assert missed[1].max() < 1e-3


@each_size
def test_integrated_gradients_are_complete(n):
    model = quadratic_model(n)
    attributions = IntegratedGradients(1).game(model)(all_coalitions(n))
    values = model.values(all_coalitions(n)).numpy()
    assert close(attributions.sum(1), values - values[0])


@pytest.mark.parametrize("method", [IntegratedGradients(5), ShapleyValue()])
def test_absent_feature_gets_nothing(method):
    present = all_coalitions(3)
    for model in models(3):
        assert not method.game(model)(present)[~present].any()


@each_size
@pytest.mark.parametrize(
    "explain", [ShapleyValue().explain, ShapleyValue().metagame().explain, SerialShapleyValue().explain]
)
def test_shapley_methods_call_the_model_once_per_coalition(n, explain):
    rows = []

    def f(inputs):
        rows.extend(inputs.tolist())
        return inputs.sum(1)

    explain(MaskedModel.of_function(f, torch.arange(1.0, n + 1)))
    assert len(rows) == len({tuple(row) for row in rows}) == 2**n


class FaultyLinear(nn.Linear):
    """Raises where the forward pass has gone through every hooked layer but the last."""

    broken = False

    def forward(self, x):
        if self.broken:
            raise RuntimeError("broken layer")
        return super().forward(x)


class FaultyNet(AdderNet):
    def __init__(self):
        super().__init__()
        self.head = FaultyLinear(8, 1, bias=False)


def methods_of_masked_models():
    """Every attribution method that explains a masked model, and the metagame of each that is a game."""
    for module in pkgutil.iter_modules(attributions.__path__):
        for method in vars(importlib.import_module(f"metagame.attributions.{module.name}")).values():
            own = getattr(method, "__module__", "").endswith(f".{module.name}") and not inspect.isabstract(method)
            if own and getattr(method, "input_type", None) is MaskedModel:
                yield method()
                if isinstance(method(), FirstOrder):
                    yield method().metagame()


METHODS = list(methods_of_masked_models())


def method_name(method):
    return f"Meta-{type(method.method).__name__}" if isinstance(method, Metagame) else type(method).__name__


def test_methods_are_found():
    assert {"GradientInput", "Meta-AttnLRP", "AttentionWeights", "ShapleyInteractions"} <= set(
        map(method_name, METHODS)
    )


@pytest.mark.parametrize("broken", [False, True], ids=["ok", "raises"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("method", METHODS, ids=method_name)
def test_method_leaves_model_as_found(method, training, broken):
    net = random_net(net_class=FaultyNet).train(training)
    net.attention.requires_grad_(False)
    net.feedforward.train(not training)
    model, _ = embedded(net)
    before, outputs = state(net), model.values(all_coalitions(3))
    net.head.broken = broken
    if broken and not isinstance(method, RandomPairs):  # which asks nothing of the model
        with pytest.raises(RuntimeError, match="broken layer"):
            method.explain(model)
    else:
        method.explain(model)
    net.head.broken = False
    assert state(net) == before
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(model.values(all_coalitions(3)), outputs)
    assert not model.x.requires_grad
    assert torch.is_grad_enabled()


def state(net):
    """What a method might leave behind in a module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    layers = [
        (
            name,
            layer.training,
            type(layer).forward,
            "forward" in vars(layer),
            [len(getattr(layer, hook)) for hook in hooks],
        )
        for name, layer in net.named_modules()
    ]
    return layers, [(name, p.requires_grad, p.detach().numpy().tobytes()) for name, p in net.named_parameters()]


@pytest.mark.parametrize("method", METHODS, ids=method_name)
def test_method_is_deterministic_and_float64(method):
    model, _ = embedded(random_net())
    once, again = (arrays(method.explain(model)) for _ in range(2))
    assert once
    assert all(array.dtype == np.float64 for array in once)
    assert [array.tobytes() for array in once] == [array.tobytes() for array in again]


def arrays(explanation):
    held = [explanation.attribution]
    if explanation.meta is not None:
        held += [explanation.meta.values, explanation.meta.first_order, explanation.meta.empty]
    return [array for array in held if array is not None]


@pytest.mark.parametrize("method", METHODS, ids=method_name)
def test_explanation_names_what_its_numbers_are_about(method):
    model = replace(embedded(random_net())[0], names=("three", "minus", "five"))
    found = method.explain(model)
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


@pytest.mark.parametrize(
    "method", [method for method in METHODS if not isinstance(method, FirstOrder)], ids=method_name
)
def test_method_of_second_order_has_no_metagame(method):
    with pytest.raises(UserError, match=f"{type(method).__name__} has no metagame"):
        method.metagame()


def test_pairs_of_players_that_are_the_targets_are_refused():
    with pytest.raises(UserError, match="order=2 needs a method whose targets are not its players"):
        ShapleyValue().metagame(order=2)


def test_index_without_pairs_is_refused():
    with pytest.raises(UserError, match="index=ksv needs order=2"):
        ShapleyValue().metagame(index="ksv")


@pytest.mark.parametrize("method", [IntegratedGradients, IntegratedHessians])
@pytest.mark.parametrize("steps", [0, -3])
def test_path_without_steps_is_refused(method, steps):
    with pytest.raises(UserError, match=f"steps={steps}: give a positive whole number"):
        method(steps)


def test_unknown_index_is_refused():
    with pytest.raises(UserError, match=r"attribution\.method\.index='sorcery' is unknown: choose one of sii"):
        ShapleyInteractions("sorcery")


@pytest.mark.parametrize(("method", "name"), [(AttentionWeights(), "attribution=attention"), (AttnLRP(), "AttnLRP")])
def test_plain_function_has_no_layers(method, name):
    with pytest.raises(UserError, match=f"{name} needs"):
        method.explain(smooth_model(3))


def test_attention_of_a_model_with_two_softmax_layers_is_refused():
    net = random_net()
    net.second = nn.Softmax(dim=-1)
    with pytest.raises(UserError, match=r"attribution=attention needs .* this one has 2"):
        AttentionWeights().explain(embedded(net)[0])


@pytest.mark.parametrize("method", [ShapleyValue(), SerialShapleyValue(), ShapleyInteractions()])
def test_too_many_features_are_refused(method):
    with pytest.raises(UserError, match="the input has 13 features"):
        method.explain(smooth_model(13))


@pytest.mark.parametrize(
    "method",
    [GradientInput(), IntegratedGradients(2), IntegratedHessians(2), ShapleyValue(), SerialShapleyValue()],
    ids=method_name,
)
def test_output_that_is_not_finite_is_an_error(method):
    model = MaskedModel.of_function(lambda inputs: inputs.sum(1) * torch.nan, torch.ones(3))
    with pytest.raises(UserError, match=r"(?i)nan"):
        method.explain(model)


@pytest.mark.parametrize("baseline", [torch.zeros(3, 2), torch.zeros(2, 1)])
def test_baseline_of_another_shape_is_refused(baseline):
    with unchecked(), pytest.raises(UserError, match=r"x \(3, 1\), baseline"):
        MaskedModel(lambda inputs: inputs.sum((1, 2)), torch.zeros(3, 1), baseline)


def test_masked_input_has_x_where_present():
    model = MaskedModel.of_function(lambda inputs: inputs.sum(1), torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]))
    assert model.masked(all_coalitions(2))[..., 0].tolist() == [[10, 20], [1, 20], [10, 2], [1, 2]]
    assert model.values(all_coalitions(2)).tolist() == [30, 21, 12, 3]


def test_table_model_has_the_values_of_its_table():
    values = random_game(3, 1)[:, 0]
    assert np.array_equal(reference.output_values(table_model(values)), values)


@pytest.mark.parametrize(
    "method", [GradientInput(), IntegratedGradients(2), IntegratedHessians(2), ShapleyValue()], ids=method_name
)
@pytest.mark.parametrize("f", [lambda x: torch.stack([x.sum(1), x.prod(1)], 1), lambda x: x.sum()])
def test_model_without_one_output_for_each_input_is_refused(method, f):
    model = MaskedModel.of_function(f, torch.ones(3))
    with pytest.raises(UserError, match=r"f returned shape .* select one"):
        method.explain(model)


@pytest.mark.parametrize(
    "layer",
    [
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.RMSNorm(4),
        nn.RMSNorm((3, 4)),
        nn.RMSNorm(4, elementwise_affine=False),
    ],
    ids=str,
)
def test_relevance_rules_keep_the_output_of_every_layer_they_know(layer):
    net = nn.Sequential(layer).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = net(x)
    with relevance_rules(net, RULES):
        assert torch.allclose(net(x), expected, rtol=0, atol=1e-12)


def test_relevance_rules_refuse_a_layer_they_do_not_know():
    net = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.LayerNorm(4))
    with pytest.raises(UserError, match="no rule for LayerNorm, SiLU"), relevance_rules(net, RULES):
        pass
