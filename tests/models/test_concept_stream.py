from __future__ import annotations

import pytest
import torch

from metagame.models.concept_stream import ConceptSet, concept_logits, watched_concepts
from tests.reference import concept_stream as reference
from tests.tiny.flux import (
    N_HEADS,
    N_LAYERS,
    TEXT_WIDTH,
    as_double,
    build_pipeline,
    build_transformer,
    count_hooks,
    counted,
    encodings,
    recorded,
    transformer_inputs,
)
from tests.tiny.language import float64_throughout, near
from tests.tiny.vision_language import refused

FLOAT64_TOLERANCE = 1e-10
FLOAT32_TOLERANCE = 1e-4  # diffusers has the angles of time (up to 1000) and place in float32
JOINT, DECOUPLED = ConceptSet(encodings(4)), ConceptSet(encodings(4, 1), cross_attention=False)
SETS = {"no set": [], "one set": [JOINT], "several sets": [JOINT, DECOUPLED, ConceptSet(encodings(25, 2))]}
each_sets = pytest.mark.parametrize("sets", SETS.values(), ids=SETS)
each_guidance = pytest.mark.parametrize("guidance", [False, True], ids=["no guidance", "guidance"])
each_attention = pytest.mark.parametrize("cross_attention", [True, False], ids=["joint", "decoupled"])


def streams_of(net, run):
    """What every double-stream block makes of text and image while ``run`` runs."""
    outputs = []
    handles = [
        block.register_forward_hook(lambda _, inputs, output: outputs.extend(output))
        for block in net.transformer_blocks
    ]
    run()
    for handle in handles:
        handle.remove()
    return outputs


@each_guidance
@pytest.mark.parametrize("seed", range(2))
def test_the_slow_flux_is_the_flux_of_diffusers(seed, guidance):
    net, inputs = build_transformer(guidance, seed).double(), as_double(transformer_inputs(guidance, seed))
    with torch.no_grad(), float64_throughout():
        own = streams_of(net, lambda: net(**inputs))
    slow = reference.forward(net, inputs, encodings(1), cross_attention=True)
    assert len(own) == 2 * len(slow) == 2 * N_LAYERS
    for text, image, layer in zip(own[::2], own[1::2], slow, strict=True):
        assert near(text[0], layer.text, FLOAT64_TOLERANCE)
        assert near(image[0], layer.image, FLOAT64_TOLERANCE)


@each_guidance
@each_attention
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("seed", range(2))
def test_logits_are_those_of_the_equations(seed, count, cross_attention, guidance):
    net, inputs = build_transformer(guidance, seed).double(), as_double(transformer_inputs(guidance, seed))
    concepts = ConceptSet(encodings(count, seed).double(), cross_attention)
    with float64_throughout():
        (found,) = concept_logits(net, inputs, [concepts], N_LAYERS)
    assert found.dtype == torch.float64
    assert found.shape == (N_LAYERS, count, 12)
    assert near(found, reference.concept_logits(net, inputs, concepts.encodings, cross_attention), FLOAT64_TOLERANCE)


@pytest.mark.parametrize(
    "config",
    [
        {"num_layers": 1, "num_single_layers": 0},
        {"num_attention_heads": 1},
        {"attention_head_dim": 8, "axes_dims_rope": (2, 2, 4), "num_attention_heads": 3},
        {"num_single_layers": 3},
    ],
    ids=lambda config: " ".join(config),
)
@each_attention
def test_logits_of_transformers_of_other_shapes_are_those_of_the_equations(cross_attention, config):
    net, inputs = build_transformer(**config).double(), as_double(transformer_inputs())
    sets = [ConceptSet(encodings(3).double(), cross_attention)]
    n_layers = len(net.transformer_blocks)
    with float64_throughout():
        (found,) = concept_logits(net, inputs, sets, n_layers)
    expected = reference.concept_logits(net, inputs, sets[0].encodings, cross_attention)
    assert near(found, expected, FLOAT64_TOLERANCE)


@each_attention
def test_logits_in_single_precision_are_those_of_the_equations(cross_attention):
    net, inputs = build_transformer(), transformer_inputs()
    (found,) = concept_logits(net, inputs, [ConceptSet(encodings(5), cross_attention)], N_LAYERS)
    assert found.dtype == torch.float32
    assert near(found, reference.concept_logits(net, inputs, encodings(5), cross_attention), FLOAT32_TOLERANCE)


@each_attention
def test_logits_in_half_precision_are_float32_and_close(cross_attention):
    net, inputs = build_transformer(), transformer_inputs()
    expected = reference.concept_logits(net, inputs, encodings(5), cross_attention)
    half = {name: value.bfloat16() for name, value in inputs.items()}
    sets = [ConceptSet(encodings(5).bfloat16(), cross_attention)]
    (found,) = concept_logits(net.bfloat16(), half, sets, N_LAYERS)
    assert found.dtype == torch.float32
    assert near(found, expected, 0.1)


@each_sets
@each_guidance
def test_image_and_text_do_not_notice_the_concepts(guidance, sets):
    net, inputs = build_transformer(guidance), transformer_inputs(guidance)
    with torch.no_grad():
        alone = streams_of(net, lambda: net(**inputs))
    beside = streams_of(net, lambda: concept_logits(net, inputs, sets, 1))
    assert len(alone) == 2 * N_LAYERS
    assert all(torch.equal(*pair) for pair in zip(beside, alone, strict=True))


@each_sets
@torch.no_grad()
def test_a_forward_pass_has_its_own_output_while_concepts_watch(sets):
    net, inputs = build_transformer(), transformer_inputs()
    expected = net(**inputs).sample
    with watched_concepts(net, sets, N_LAYERS) as passes:
        assert torch.equal(net(**inputs).sample, expected)
    assert [len(each) for each in passes] == [len(sets)]


def test_a_pipeline_paints_the_same_picture_while_concepts_watch():
    pipeline = build_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def paint():
        generator = torch.Generator().manual_seed(1)
        settings = {"num_inference_steps": 3, "guidance_scale": 0.0, "max_sequence_length": 6, "output_type": "np"}
        return torch.from_numpy(pipeline("a seven", height=16, width=16, generator=generator, **settings).images)

    expected = paint()
    with torch.no_grad(), watched_concepts(pipeline.transformer, SETS["several sets"], 2) as passes:
        assert torch.equal(paint(), expected)
    assert [[logits.shape for logits in each] for each in passes] == [[(2, 4, 16), (2, 4, 16), (2, 25, 16)]] * 3


@torch.no_grad()
def test_each_forward_pass_has_logits_of_its_own():
    net, sets = build_transformer(), [JOINT, DECOUPLED]
    both = [transformer_inputs(seed=seed) for seed in range(2)]
    with watched_concepts(net, sets, 2) as passes:
        for inputs in both:
            net(**inputs)
    for found, inputs in zip(passes, both, strict=True):
        expected = concept_logits(net, inputs, sets, 2)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def fail(*_):
    raise RuntimeError("inside")


def be_interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [fail, be_interrupted])
@pytest.mark.parametrize("place", range(N_LAYERS))
def test_no_hooks_are_left_where_a_block_fails(place, end):
    net, inputs = build_transformer(), transformer_inputs()
    expected = concept_logits(net, inputs, [JOINT], N_LAYERS)
    handle = net.transformer_blocks[place].ff.register_forward_pre_hook(end)
    before = count_hooks(net)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        concept_logits(net, inputs, [JOINT], N_LAYERS)
    assert count_hooks(net) == before == 1
    handle.remove()
    assert torch.equal(concept_logits(net, inputs, [JOINT], N_LAYERS)[0], expected[0])


@each_sets
def test_no_hooks_are_left(sets):
    net, inputs = build_transformer(), transformer_inputs()
    concept_logits(net, inputs, sets, 2)
    assert count_hooks(net) == 0
    with watched_concepts(net, sets, 2):
        assert count_hooks(net) > 0
    assert count_hooks(net) == 0
    with pytest.raises(RuntimeError, match="inside"), watched_concepts(net, sets, 2):
        fail()
    assert count_hooks(net) == 0


def test_no_hooks_are_left_where_the_concepts_do_not_fit():
    net = build_transformer()
    with pytest.raises(RuntimeError):
        concept_logits(net, transformer_inputs(), [ConceptSet(torch.zeros(2, TEXT_WIDTH + 1))], 2)
    assert count_hooks(net) == 0


@torch.no_grad()
def test_a_pass_that_failed_midway_leaves_nothing_to_the_next():
    net, inputs = build_transformer(), transformer_inputs()
    expected = concept_logits(net, inputs, [JOINT], N_LAYERS)
    with watched_concepts(net, [JOINT], N_LAYERS) as passes:
        handle = net.transformer_blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="inside"):
            net(**transformer_inputs(seed=1))
        handle.remove()
        assert passes == []
        net(**inputs)
    assert torch.equal(passes[0][0], expected[0])


@pytest.mark.parametrize("n_layers", [1, N_LAYERS])
@each_sets
def test_one_forward_pass_serves_all_sets_and_ends_behind_the_double_stream_blocks(sets, n_layers):
    net = build_transformer()
    blocks = [*net.transformer_blocks, *net.single_transformer_blocks, net.norm_out, net.proj_out]
    with counted(blocks) as calls, recorded(net) as passes:
        concept_logits(net, transformer_inputs(), sets, n_layers)
    assert calls == list(net.transformer_blocks)
    assert len(passes) == 1


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_last_layers_are_asked(n_layers):
    net, inputs, sets = build_transformer(), transformer_inputs(), [JOINT, DECOUPLED]
    everything = concept_logits(net, inputs, sets, N_LAYERS)
    for found, logits in zip(concept_logits(net, inputs, sets, n_layers), everything, strict=True):
        assert torch.equal(found, logits[-n_layers:])
        assert not near(found, logits[:n_layers], 0.1)


@pytest.mark.parametrize("n_layers", [0, -1, N_LAYERS + 1])
def test_layers_that_the_transformer_lacks_are_refused(n_layers):
    net = build_transformer()
    with refused(f"n_layers={n_layers}: the transformer has 3 double-stream blocks"):
        concept_logits(net, transformer_inputs(), [JOINT], n_layers)
    assert count_hooks(net) == 0


def test_fused_projections_are_refused():
    net = build_transformer()
    expected = concept_logits(net, transformer_inputs(), [JOINT], 2)
    net.fuse_qkv_projections()
    with refused(r"fused projections: call unfuse_qkv_projections\(\) first"):
        concept_logits(net, transformer_inputs(), [JOINT], 2)
    assert count_hooks(net) == 0
    net.unfuse_qkv_projections()
    assert torch.equal(concept_logits(net, transformer_inputs(), [JOINT], 2)[0], expected[0])


@pytest.mark.parametrize("added", [1, 24])
def test_concepts_that_are_added_change_those_of_a_joint_set_only(added):
    net, inputs = build_transformer().double(), as_double(transformer_inputs())
    few, more = encodings(25)[:3].double(), encodings(25)[: 3 + added].double()
    with float64_throughout():
        before, after, joint_before, joint_after = concept_logits(
            net,
            inputs,
            [ConceptSet(each, cross_attention) for cross_attention in (False, True) for each in (few, more)],
            N_LAYERS,
        )
    assert near(after[:, :3], before, 1e-12)
    assert not near(joint_after[:, :3], joint_before, 0.01)


def test_concepts_that_are_added_do_not_change_those_of_a_decoupled_set_in_single_precision():
    net, sets = build_transformer(), [ConceptSet(encodings(25)[:count], cross_attention=False) for count in (3, 25)]
    few, more = concept_logits(net, transformer_inputs(), sets, N_LAYERS)
    assert near(more[:, :3], few, 1e-6)


@pytest.mark.parametrize("count", [4, 25])
@each_attention
def test_the_order_of_concepts_permutes_their_logits(cross_attention, count):
    net, inputs, concepts = build_transformer().double(), as_double(transformer_inputs()), encodings(count).double()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    with float64_throughout():
        found, permuted = concept_logits(
            net, inputs, [ConceptSet(each, cross_attention) for each in (concepts, concepts[order])], N_LAYERS
        )
    assert near(permuted, found[:, order], 1e-12)
    assert not near(permuted, found, 0.01)


def test_a_set_does_not_notice_which_others_run_beside_it():
    net, inputs, sets = build_transformer(), transformer_inputs(), SETS["several sets"]
    together = concept_logits(net, inputs, sets, N_LAYERS)
    for each, found in zip(sets, together, strict=True):
        assert torch.equal(concept_logits(net, inputs, [each], N_LAYERS)[0], found)
    reversed_order = concept_logits(net, inputs, sets[::-1], N_LAYERS)
    assert all(torch.equal(*pair) for pair in zip(reversed_order[::-1], together, strict=True))


@each_attention
def test_equal_concepts_have_equal_logits(cross_attention):
    net, inputs = build_transformer().double(), as_double(transformer_inputs())
    with float64_throughout():
        (found,) = concept_logits(
            net, inputs, [ConceptSet(encodings(1).double().repeat(3, 1), cross_attention)], N_LAYERS
        )
    assert near(found[:, 1:], found[:, :1].repeat(1, 2, 1), 1e-12)


def test_a_concept_that_attends_to_itself_is_not_one_that_attends_to_the_image_alone():
    sets = [ConceptSet(encodings(1), cross_attention) for cross_attention in (True, False)]
    joint, decoupled = concept_logits(build_transformer(), transformer_inputs(), sets, N_LAYERS)
    assert not near(joint, decoupled, 0.01)


@each_attention
def test_the_places_of_the_image_begin_behind_the_text_whatever_its_length(cross_attention):
    net, inputs, concepts = build_transformer().double(), as_double(transformer_inputs()), encodings(3).double()
    text = inputs["encoder_hidden_states"].repeat(1, 2, 1)
    inputs |= {"encoder_hidden_states": text, "txt_ids": torch.zeros(text.shape[1], 3)}
    with float64_throughout():
        (found,) = concept_logits(net, inputs, [ConceptSet(concepts, cross_attention)], N_LAYERS)
    assert near(found, reference.concept_logits(net, inputs, concepts, cross_attention), FLOAT64_TOLERANCE)


def test_logits_need_no_gradients():
    net, inputs = build_transformer(), transformer_inputs()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not concept_logits(net, inputs, [JOINT], 1)[0].requires_grad


def test_a_logit_is_the_sum_of_those_of_the_heads_alone():
    net, inputs = build_transformer().double(), as_double(transformer_inputs())
    concepts, of_heads = ConceptSet(encodings(3).double()), []
    for head in range(N_HEADS):
        alone = build_transformer().double()
        attention, width = alone.transformer_blocks[-1].attn, alone.inner_dim // N_HEADS
        kept = (torch.arange(alone.inner_dim) // width == head).double()
        for layer in (attention.to_v, attention.add_v_proj):
            layer.weight.data *= kept[:, None]
            layer.bias.data *= kept
        of_heads.append(concept_logits(alone, inputs, [concepts], 1)[0])
    assert near(sum(of_heads), concept_logits(net, inputs, [concepts], 1)[0], 1e-6)
