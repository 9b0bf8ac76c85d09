import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import CLIPModel, SiglipModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm

from metagame import UserError
from metagame.attributions.attnlrp import CP_RULES, CPLRP, AttnLRP, relevance_rules
from metagame.attributions.gradients import GradientInput
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.attributions.lxt_rules import lxt_rules
from metagame.contracts import WHOLE
from metagame.games import all_coalitions
from metagame.models.adder import Adder, Sum, encode
from metagame.models.masked import MaskedModel
from tests.conftest import close, smooth_model
from tests.reference import attributions as reference_attributions
from tests.reference import language as reference
from tests.tiny.jobs import ROOT
from tests.tiny.language import (
    ANSWER,
    FAMILIES,
    TEXT,
    bound_of,
    build,
    float64_throughout,
    masked_ids,
    near,
)
from tests.tiny.vision_language import refused

LXT_TOLERANCE = 1e-7  # it divides by x + 1e-10 where the rule divides by x
FLOAT32_TOLERANCE = 1e-4
PRESENT = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
RULED = tuple(family for family in FAMILIES if family != "mistral")
VARIANTS = {"attnLRP": AttnLRP(), "cp_LRP": CPLRP()}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_ruled = pytest.mark.parametrize("family", RULED)


def relevance_of_everything(model, method, text=TEXT, answer=ANSWER):
    """Relevance of all embeddings of the sequence, and f."""
    first = len(model.tokenize(text).ids) - 1
    ids = masked_ids(model, text, answer, [True] * len(model.tokenize(text).positions))
    embeddings = model.net.get_input_embeddings()(torch.tensor([ids])).requires_grad_()
    with method.backward_rules(model.net):
        logits = model.net(inputs_embeds=embeddings, use_cache=False).logits[0, first:]
        f = logits[range(len(answer)), list(answer)].mean()
        (gradient,) = torch.autograd.grad(f, embeddings)
    return (embeddings * gradient).sum(-1)[0].detach(), f.detach()


def twin(model, variant, present, answer=ANSWER):
    """The slow twin's relevance of the players, and of the whole sequence."""
    prompt = model.tokenize(TEXT)
    embeddings = model.net.get_input_embeddings()(torch.tensor(masked_ids(model, TEXT, answer, present)))
    everything = reference.gemma3_relevance(
        model.net, embeddings, len(prompt.ids) - 1, answer, constant_weights=variant == "cp_LRP"
    )
    return everything[list(prompt.positions)], everything


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_slow_gemma_is_the_gemma_of_transformers(attention):
    with float64_throughout():
        net = build(dtype=torch.float64, attn_implementation=attention).net
        ids = torch.arange(10, 30)
        logits = reference.gemma3_logits(net, net.get_input_embeddings()(ids))
        # the softmax of eager attention is in float32
        assert near(logits, net(input_ids=ids[None]).logits[0], 1e-12 if attention == "sdpa" else 1e-5)


@each_variant
@pytest.mark.parametrize("seed", range(3))
def test_relevance_walks_back_through_gemma_layer_by_layer(variant, seed):
    with float64_throughout():
        model = build(dtype=torch.float64, seed=seed)
        found = VARIANTS[variant].game(bound_of(model))(PRESENT)
        for row, present in zip(found, PRESENT, strict=True):
            assert near(row, twin(model, variant, present)[0], LXT_TOLERANCE)


@each_variant
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_relevance_walks_back_through_gemma_with_every_attention_and_its_own_precision(variant, attention):
    model = build(dtype=torch.float64, attn_implementation=attention)
    found = VARIANTS[variant].game(bound_of(model))(PRESENT)
    for row, present in zip(found, PRESENT, strict=True):
        assert near(row, twin(model, variant, present)[0], 1e-5)


@each_variant
@pytest.mark.parametrize(
    "config",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"sliding_window": 3, "layer_types": ["sliding_attention"] * 2},
        {"layer_types": ["full_attention"] * 2},
        {"query_pre_attn_scalar": 3, "rope_theta": 100.0},
        {"num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ],
    ids=lambda config: " ".join(config),
)
def test_relevance_walks_back_through_gemmas_of_other_shapes(variant, config):
    with float64_throughout():
        model = build(dtype=torch.float64, **config)
        found, _ = relevance_of_everything(model, VARIANTS[variant])
        assert near(found, twin(model, variant, [True] * 5)[1], LXT_TOLERANCE)


@pytest.mark.parametrize("answer", [ANSWER[:1], (*ANSWER, *ANSWER)], ids=len)
@each_variant
def test_relevance_walks_back_from_answers_of_any_length(variant, answer):
    with float64_throughout():
        model = build(dtype=torch.float64)
        found = VARIANTS[variant].explain(bound_of(model, answer=answer)).attribution
        assert near(found, twin(model, variant, [True] * 5, answer)[0], LXT_TOLERANCE)


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3"])
@pytest.mark.parametrize("seed", range(3))
def test_cp_lrp_conserves_the_output_of_a_model_without_biases(family, seed):
    relevance, f = relevance_of_everything(build(family, torch.float64, seed), VARIANTS["cp_LRP"])
    assert near(relevance.sum(), f, FLOAT32_TOLERANCE)


def test_cp_lrp_of_a_model_with_biases_does_not_conserve():
    relevance, f = relevance_of_everything(build("qwen2", torch.float64), VARIANTS["cp_LRP"])
    assert not near(relevance.sum(), f, 1e-2)


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3"])
def test_attnlrp_does_not_conserve_through_attention(family):
    relevance, f = relevance_of_everything(build(family, torch.float64), VARIANTS["attnLRP"])
    assert not near(relevance.sum(), f, 1e-2)


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3"])
def test_attnlrp_conserves_where_attention_says_nothing(family):
    model = build(family, torch.float64)
    for layer in model.net.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    relevance, f = relevance_of_everything(model, VARIANTS["attnLRP"])
    assert abs(f) > 0.01
    assert near(relevance.sum(), f, FLOAT32_TOLERANCE)


@each_variant
@each_ruled
def test_outputs_within_the_rules_are_those_without(variant, family):
    model = build(family)
    ids = torch.tensor([masked_ids(model, TEXT, ANSWER, [True] * 5)])
    before = model.net(input_ids=ids).logits
    with lxt_rules(model.net, variant):
        assert torch.equal(model.net(input_ids=ids).logits, before)


@each_variant
@each_ruled
def test_relevance_is_not_gradient_times_input(variant, family):
    bound = bound_of(build(family))
    relevance, other = (m.explain(bound).attribution for m in (VARIANTS[variant], GradientInput()))
    assert not near(relevance, other, 0.1)


@each_ruled
def test_variants_differ(family):
    bound = bound_of(build(family))
    assert not near(*(method.explain(bound).attribution for method in VARIANTS.values()), 0.1)


def own_gradients(model):
    bound = bound_of(model)
    return bound.gradients(bound.masked(PRESENT))


def touched(net):
    """Everything that rules replace: what the module, and the classes of its layers, hold by name."""
    layer = net.model.layers[0]
    modeling, mlp, norm = sys.modules[type(net).__module__], type(layer.mlp), type(net.model.norm)
    places = {"modeling": modeling, "mlp": mlp, "norm": norm, "dropout": torch.nn.Dropout}
    return {(where, name): value for where, place in places.items() for name, value in vars(place).items()}


def same_objects(found, expected):
    return found.keys() == expected.keys() and all(found[name] is expected[name] for name in expected)


def leave(net, variant):
    with lxt_rules(net, variant):
        pass


def fail_inside(net, variant):
    with pytest.raises(RuntimeError, match="inside"), lxt_rules(net, variant):
        raise RuntimeError("inside")


def be_interrupted_inside(net, variant):
    with pytest.raises(KeyboardInterrupt), lxt_rules(net, variant):
        raise KeyboardInterrupt


def nest(net, variant):
    for second in VARIANTS:
        with lxt_rules(net, variant), pytest.raises(UserError), lxt_rules(net, second):
            pass


def nest_and_give_up(net, variant):
    with refused("leave the context of those first"), lxt_rules(net, variant), lxt_rules(net, "attnLRP"):
        pass


def attribute(net, variant):
    bound = bound_of(build())
    VARIANTS[variant].explain(bound)


WAYS = [leave, fail_inside, be_interrupted_inside, nest, nest_and_give_up, attribute]


@each_variant
@each_ruled
@pytest.mark.parametrize("way", WAYS)
def test_everything_is_as_before_however_the_rules_are_left(way, family, variant):
    model = build(family)
    before, gradients = touched(model.net), own_gradients(model)
    way(model.net, variant)
    assert same_objects(touched(model.net), before)
    assert torch.equal(own_gradients(model), gradients)


@each_variant
def test_the_functions_of_gemma_are_its_own_again(variant):
    def functions():
        return (
            modeling_gemma3.eager_attention_forward,
            modeling_gemma3.ALL_ATTENTION_FUNCTIONS,
            Gemma3MLP.forward,
            Gemma3RMSNorm._norm,
            torch.nn.Dropout.forward,
        )

    before = functions()
    with lxt_rules(build().net, variant):
        within = functions()
    assert all(one is other for one, other in zip(functions(), before, strict=True))
    assert [one is other for one, other in zip(within, before, strict=True)] == [False] * 4 + [True]
    assert before[1] is ALL_ATTENTION_FUNCTIONS


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


@each_variant
def test_dropout_still_drops_within_the_rules(variant):
    ones = torch.ones(1000)
    with lxt_rules(build().net, variant):
        assert (torch.nn.Dropout(0.5)(ones) == 0).any()


@each_ruled
def test_variants_can_follow_each_other(family):
    bound = bound_of(build(family))
    attn, cp, attn_again, cp_again = (
        VARIANTS[variant].game(bound)(PRESENT) for variant in ("attnLRP", "cp_LRP", "attnLRP", "cp_LRP")
    )
    assert np.array_equal(attn, attn_again)
    assert np.array_equal(cp, cp_again)
    assert not near(attn, cp, 0.1)


@pytest.mark.parametrize("inner", VARIANTS)
@pytest.mark.parametrize("outer", VARIANTS)
def test_rules_within_rules_are_refused_and_leave_the_outer_ones(outer, inner):
    model = build()
    before = own_gradients(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lxt_rules(model.net, outer):
            expected = own_gradients(model)
            with (
                refused(f"LXT's {inner} rules cannot be put on .*, which has other ones already: leave the context"),
                lxt_rules(model.net, inner),
            ):
                pass
            with refused("leave the context"):
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


@each_variant
@pytest.mark.parametrize(("net_class", "name"), [(CLIPModel, "clip"), (SiglipModel, "siglip2_p8")])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_models_of_the_process_keep_their_gradients(variant, net_class, name, attention):
    net = net_class.from_pretrained(ROOT / "data/tiny" / name, attn_implementation=attention).eval()
    shared = dict(ALL_ATTENTION_FUNCTIONS.items())
    before = clip_gradients(net)
    with lxt_rules(build().net, variant):
        within = clip_gradients(net)
        assert same_objects(dict(ALL_ATTENTION_FUNCTIONS.items()), shared)
    after = clip_gradients(net)
    assert same_objects(dict(ALL_ATTENTION_FUNCTIONS.items()), shared)
    for expected, *found in zip(before, within, after, strict=True):
        assert expected.abs().max() > 0
        assert all(torch.equal(one, expected) for one in found)


@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
def test_a_family_without_rules_is_refused(method):
    model = build("mistral")
    before = touched(model.net)
    with refused(
        "rules for MistralForCausalLM: choose a model of Gemma 3, Llama, Qwen2 or Qwen3, or attribution=gradient_input"
    ):
        method.explain(bound_of(model))
    assert same_objects(touched(model.net), before)


def test_rules_of_no_name_are_refused():
    with refused("no nonsense rules for Gemma3ForCausalLM"), lxt_rules(build().net, "nonsense"):
        pass


@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
def test_a_plain_function_is_refused(method):
    with refused(f"{type(method).__name__} needs a torch module; .* use attribution=gradient_input"):
        method.explain(smooth_model(3))


def test_lxt_and_transformers_are_imported_where_they_are_needed():
    lines = (
        "import sys",
        "import metagame.attributions.attnlrp",
        "assert not {'lxt', 'transformers'} & set(sys.modules)",
        "from metagame.models.adder import Adder, Sum",
        f"adder = Adder({str(ROOT / 'data/tiny/adder')!r})",
        "metagame.attributions.attnlrp.CPLRP().explain(adder.bind(Sum.parse('3 - 5'))[''])",
        "assert not {'lxt', 'transformers'} & set(sys.modules)",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def random_adder(seed=0):
    """A sum for an adder with random weights, and the embedding of its last token, which does not play."""
    adder = Adder(ROOT / "data/tiny/adder")
    generator = torch.Generator().manual_seed(seed)
    for parameter in adder.net.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return adder.bind(Sum.parse("3 - 5"))[WHOLE], adder.net.embedding(encode(["3", "-", "5"]))[3:]


@pytest.mark.parametrize("seed", range(5))
def test_cp_lrp_of_the_adder_is_what_each_token_contributes_to_a_constant_map(seed):
    model, last = random_adder(seed)
    net = model.module
    found = CPLRP().game(model)(all_coalitions(3))
    for relevance, coalition in zip(found, reference_attributions.coalitions(3), strict=True):
        embeddings = torch.cat([reference_attributions.masked(model, coalition), last])
        contributions = reference.adder_constant_relevance(net, embeddings)
        assert close(relevance, contributions[:3])
        assert close(contributions.sum(), net.from_embeddings(embeddings[None])[0].item())


@pytest.mark.parametrize("seed", range(5))
def test_cp_lrp_of_the_adder_conserves_with_its_positions(seed):
    model, last = random_adder(seed)
    net = model.module
    embeddings = torch.cat([model.x, last])[None].requires_grad_()
    with relevance_rules(net, CP_RULES):
        output = net.from_embeddings(embeddings)
        (gradient,) = torch.autograd.grad(output.sum(), embeddings)
    assert close(((embeddings + net.position) * gradient).sum().item(), output.item())


def test_rules_of_cp_lrp_keep_the_output_of_the_adder_and_are_not_those_of_attnlrp():
    model, _ = random_adder()
    before = model.values(all_coalitions(3))
    with relevance_rules(model.module, CP_RULES):
        assert close(model.values(all_coalitions(3)), before)
    attributions = [method.explain(model).attribution for method in (AttnLRP(), CPLRP(), GradientInput())]
    assert not close(attributions[0], attributions[1], 1e-3)
    assert not close(attributions[1], attributions[2], 1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_leave_one_out_matches_its_definition(n):
    for model in (smooth_model(n), *([random_adder()[0]] if n == 3 else [])):
        expected = [reference.leave_one_out(model, coalition) for coalition in reference_attributions.coalitions(n)]
        assert close(LeaveOneOut().game(model)(all_coalitions(n)), expected)


def test_leave_one_out_of_a_prompt_matches_its_definition():
    bound = bound_of(build())
    expected = [reference.leave_one_out(bound, row) for row in PRESENT]
    assert near(LeaveOneOut().game(bound)(PRESENT), expected, FLOAT32_TOLERANCE)


def test_leave_one_out_gives_an_absent_feature_nothing():
    present = all_coalitions(4)
    assert not LeaveOneOut().game(smooth_model(4))(present)[~present].any()


@pytest.mark.parametrize(("coalitions", "count"), [(all_coalitions(4)[-1:], 5), (all_coalitions(4), 16)])
def test_leave_one_out_asks_for_each_coalition_once(coalitions, count):
    rows = []

    def f(inputs):
        rows.extend(map(tuple, inputs.tolist()))
        return inputs.prod(1)

    LeaveOneOut().game(MaskedModel.of_function(f, torch.arange(1.0, 5)))(coalitions)
    assert len(rows) == len(set(rows)) == count


def test_leave_one_out_evaluates_the_model_in_its_batches():
    model = build()
    model.batches.budget = 2 * len(masked_ids(model, TEXT, ANSWER, [True] * 5))
    passes = []
    model.net.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    LeaveOneOut().explain(bound_of(model))
    assert len(passes) == 3
