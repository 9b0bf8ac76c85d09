"""AttnLRP and CP-LRP of language models; of other models tests/methods/test_attributions.py has them."""

import subprocess
import sys
import warnings
from contextlib import suppress
from itertools import combinations

import numpy as np
import pytest
import torch
from transformers import CLIPModel, SiglipModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from metagame.attributions.attnlrp import CPLRP, AttnLRP
from metagame.attributions.gradients import GradientInput
from metagame.attributions.lrp_by_layer import LRPByLayer
from metagame.attributions.lxt_rules import lxt_rules
from metagame.models.decoder_views import decoder_view
from tests.reference import language as reference
from tests.tiny.jobs import ROOT
from tests.tiny.language import ANSWER, FAMILIES, TEXT, bound_of, build, float64_throughout, masked_ids, near
from tests.tiny.vision_language import refused

LXT_TOLERANCE = 1e-7  # it divides by x + 1e-10 where the rule divides by x
FLOAT32_TOLERANCE = 1e-4
PRESENT = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
RULED = tuple(family for family in FAMILIES if family != "mistral")
UNBIASED = ("gemma3", "llama", "qwen3")
VARIANTS = {"attnLRP": AttnLRP(), "cp_LRP": CPLRP()}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_ruled = pytest.mark.parametrize("family", RULED)


def embedded(model, present=(True,) * 5):
    """Embeddings of the sequence with absent tokens, and the place from which the answer is read."""
    ids = masked_ids(model, TEXT, ANSWER, present)
    return model.net.get_input_embeddings()(torch.tensor(ids)), len(ids) - len(ANSWER)


def relevance_of_everything(model, method):
    """Relevance of all embeddings of the sequence, and f."""
    embeddings, first = embedded(model)
    embeddings = embeddings[None].requires_grad_()
    with method.backward_rules(model.net):
        logits = model.net(inputs_embeds=embeddings, use_cache=False).logits[0, first:]
        f = logits[range(len(ANSWER)), list(ANSWER)].mean()
        (gradient,) = torch.autograd.grad(f, embeddings)
    return (embeddings * gradient).sum(-1)[0].detach(), f.detach()


def twin(model, constant, present=(True,) * 5):
    """The slow twin's relevance of the whole sequence; ``constant``: whether a layer, or each, has CP-LRP's rules."""
    if isinstance(constant, bool):
        constant = [constant] * model.net.config.num_hidden_layers
    embeddings, first = embedded(model, present)
    return reference.gemma3_relevance(model.net, embeddings, first, ANSWER, constant)


def assert_walks_back(model, variant, tolerance):
    found, players = VARIANTS[variant].game(bound_of(model))(PRESENT), list(model.tokenize(TEXT).positions)
    for row, present in zip(found, PRESENT, strict=True):
        assert near(row, twin(model, variant == "cp_LRP", present)[players], tolerance)


def test_the_slow_gemma_is_the_gemma_of_transformers():
    with float64_throughout():
        net, ids = build(dtype=torch.float64).net, torch.arange(10, 30)
        logits = reference.gemma3_logits(net, net.get_input_embeddings()(ids))
        assert near(logits, net(input_ids=ids[None]).logits[0], 1e-12)


@each_variant
def test_relevance_walks_back_through_gemma_layer_by_layer(variant):
    with float64_throughout():
        assert_walks_back(build(dtype=torch.float64, seed=1), variant, LXT_TOLERANCE)


@each_variant
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_relevance_walks_back_through_gemma_with_every_attention_and_its_own_precision(variant, attention):
    assert_walks_back(build(dtype=torch.float64, attn_implementation=attention), variant, 1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"sliding_window": 3, "layer_types": ["sliding_attention"] * 2},
        {"query_pre_attn_scalar": 3, "rope_theta": 100.0},
        {"num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ],
    ids=lambda config: " ".join(config),
)
@each_variant
def test_relevance_walks_back_through_gemmas_of_other_shapes(config, variant):
    with float64_throughout():
        model = build(dtype=torch.float64, **config)
        found = relevance_of_everything(model, VARIANTS[variant])[0]
        assert near(found, twin(model, variant == "cp_LRP"), LXT_TOLERANCE)


@pytest.mark.parametrize("family", [family for family in RULED if family != "gpt2"])  # biases take a share everywhere
def test_cp_lrp_conserves_the_output_without_biases_and_attnlrp_where_attention_says_nothing(family):
    def conserves(variant):
        relevance, f = relevance_of_everything(model, VARIANTS[variant])
        assert abs(f) > 0.01
        return near(relevance.sum(), f, FLOAT32_TOLERANCE)

    model = build(family, torch.float64)
    assert conserves("cp_LRP") == (family in UNBIASED)
    assert not conserves("attnLRP")
    for layer in model.net.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    assert conserves("attnLRP")


def test_cp_lrp_is_what_each_embedding_makes_alone_of_the_model_with_attention_gates_and_scales_frozen():
    with float64_throughout():
        model = build(dtype=torch.float64)
        found, _ = relevance_of_everything(model, CPLRP())
        embeddings, first = embedded(model)
        parts = reference.gemma3_frozen_parts(model.net, embeddings, first, ANSWER)
        assert near(found, parts, LXT_TOLERANCE)


@pytest.mark.parametrize(
    ("share", "side", "constant"),
    [
        (0.3, "above", [False, True, True]),
        (0.7, "below", [True, True, False]),
        (0.0, "below", [False, False, False]),
        (1.0, "below", [True, True, True]),
    ],
)
def test_layers_have_the_rules_of_their_side_of_the_boundary(share, side, constant):
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    with float64_throughout():
        model = build(dtype=torch.float64, num_hidden_layers=3, layer_types=layers)
        found, _ = relevance_of_everything(model, LRPByLayer(share, side))
        assert near(found, twin(model, constant), LXT_TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_all_layers_on_one_side_are_cp_lrp_or_attnlrp(family):
    bound = bound_of(build(family))
    for method, same in ((LRPByLayer(0.0, "above"), CPLRP()), (LRPByLayer(0.0, "below"), AttnLRP())):
        assert near(method.explain(bound).attribution, same.explain(bound).attribution, 1e-6)
    assert not any(module._forward_hooks for module in bound.module.modules())


def test_layers_that_are_not_there_are_refused():
    with refused("share=1.5 must be between 0 and 1"):
        LRPByLayer(1.5, "above")
    with refused("cp_side='left' is unknown"):
        LRPByLayer(0.5, "left")
    with refused("GPT-2 does not have: choose attribution=cp_lrp"):
        LRPByLayer(0.5, "above").explain(bound_of(build("gpt2")))


@each_ruled
def test_variants_keep_outputs_and_differ_from_each_other_and_from_gradient_times_input(family):
    model = build(family)
    ids = torch.tensor([masked_ids(model, TEXT, ANSWER, [True] * 5)])
    before = model.net(input_ids=ids).logits
    for variant in VARIANTS:
        with lxt_rules(model.net, variant):
            within = model.net(input_ids=ids).logits
        # LXT's layer norm, which GPT-2 has, is another sum
        assert near(within, before, 1e-6) if family == "gpt2" else torch.equal(within, before)
    methods = AttnLRP(), CPLRP(), GradientInput()
    for one, other in combinations([method.explain(bound_of(model)).attribution for method in methods], 2):
        assert not near(one, other, 0.1)


def own_gradients(model):
    bound = bound_of(model)
    return bound.gradients(bound.masked(PRESENT))


def touched(net):
    """Everything that rules replace: what the module, and the classes of its layers, hold by name."""
    decoder = decoder_view(net, "a test")
    mlp, norm = type(decoder.layers[0].module.mlp), type(decoder.norm.module)
    places = {"modeling": sys.modules[type(net).__module__], "mlp": mlp, "norm": norm, "dropout": torch.nn.Dropout}
    return {(where, name): value for where, place in places.items() for name, value in vars(place).items()}


def same_objects(found, expected):
    return found.keys() == expected.keys() and all(found[name] is expected[name] for name in expected)


@each_variant
@each_ruled
def test_everything_is_as_before_however_the_rules_are_left(family, variant):
    model = build(family)
    before, gradients = touched(model.net), own_gradients(model)
    for error in (None, RuntimeError, KeyboardInterrupt):
        with suppress(RuntimeError, KeyboardInterrupt), lxt_rules(model.net, variant):
            if error is not None:
                raise error
        assert same_objects(touched(model.net), before)
    VARIANTS[variant].explain(bound_of(model))
    assert same_objects(touched(model.net), before)
    assert torch.equal(own_gradients(model), gradients)


@each_variant
def test_everything_is_as_before_where_a_rule_cannot_be_put_on(variant, monkeypatch):
    from lxt.efficient.models import gemma3

    def broken(target):
        raise RuntimeError("broken rule")

    monkeypatch.setitem(getattr(gemma3, variant), Gemma3RMSNorm, broken)
    net = build().net
    before = touched(net)
    with pytest.raises(RuntimeError, match="broken rule"), lxt_rules(net, variant):
        pass
    assert same_objects(touched(net), before)


@pytest.mark.parametrize("outer", VARIANTS)
@pytest.mark.parametrize("inner", VARIANTS)
def test_rules_within_rules_are_refused_and_leave_the_outer_ones(outer, inner):
    model = build()
    before = own_gradients(model)
    with warnings.catch_warnings(action="error"), lxt_rules(model.net, outer):
        expected = own_gradients(model)
        with refused(f"LXT's {inner} rules cannot be applied to .*: leave the context"):
            VARIANTS[inner].explain(bound_of(model))
        assert torch.equal(own_gradients(model), expected)
    assert torch.equal(own_gradients(model), before)
    assert not torch.equal(expected, before)


@each_variant
def test_rules_of_two_families_do_not_meet(variant):
    gemma, llama = build("gemma3"), build("llama")
    before = own_gradients(llama)
    expected = VARIANTS[variant].explain(bound_of(llama)).attribution
    with lxt_rules(gemma.net, variant):
        assert torch.equal(own_gradients(llama), before)
        assert np.array_equal(VARIANTS[variant].explain(bound_of(llama)).attribution, expected)


def clip_gradients(net):
    generator = torch.Generator().manual_seed(0)
    side = net.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=generator).requires_grad_()
    ids = torch.tensor([[1, 4, 5, 6, 2], [1, 6, 4, 5, 2]])
    embeddings = net.text_model.embeddings.token_embedding.weight
    logits = net(input_ids=ids, pixel_values=pixels).logits_per_image.diagonal().sum()
    return torch.autograd.grad(logits, [pixels, embeddings])


@pytest.mark.parametrize(
    ("net_class", "name", "attention"), [(CLIPModel, "clip", "eager"), (SiglipModel, "siglip2_p8", "sdpa")]
)
def test_other_models_of_the_process_keep_their_gradients_and_dropout(net_class, name, attention):
    net = net_class.from_pretrained(ROOT / "data/tiny" / name, attn_implementation=attention).eval()
    shared = dict(ALL_ATTENTION_FUNCTIONS.items())
    before = clip_gradients(net)
    assert all(gradient.abs().max() > 0 for gradient in before)
    for variant in VARIANTS:
        with lxt_rules(build().net, variant):
            within = clip_gradients(net)
            assert (torch.nn.Dropout(0.5)(torch.ones(1000)) == 0).any()
            assert same_objects(dict(ALL_ATTENTION_FUNCTIONS.items()), shared)
        assert same_objects(dict(ALL_ATTENTION_FUNCTIONS.items()), shared)
        for found in (within, clip_gradients(net)):
            assert all(map(torch.equal, found, before))


def test_a_family_without_rules_and_rules_of_no_name_are_refused():
    model = build("mistral")
    before = touched(model.net)
    with refused("for MistralForCausalLM that fit the installed transformers: choose a model of Gemma 3, GPT-2, Llama"):
        AttnLRP().explain(bound_of(model))
    assert same_objects(touched(model.net), before)
    with refused("no nonsense rules for Gemma3ForCausalLM"), lxt_rules(build().net, "nonsense"):
        pass


def test_lxt_and_transformers_are_imported_where_they_are_needed():
    lines = (
        "import sys",
        "import metagame.attributions.attnlrp",
        "from metagame.models.adder import Adder, Sum",
        f"adder = Adder({str(ROOT / 'data/tiny/adder')!r})",
        "metagame.attributions.attnlrp.CPLRP().explain(adder.bind(Sum.parse('3 - 5'))[''])",
        "assert not {'lxt', 'transformers'} & set(sys.modules)",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
