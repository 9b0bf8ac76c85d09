from __future__ import annotations

import pytest
import torch

from metagame.models.concept_stream import ConceptSet, concept_logits, watched_concepts
from tests.reference import concept_stream as reference
from tests.tiny.flux import (
    N_LAYERS,
    TEXT_WIDTH,
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
JOINT, DECOUPLED = ConceptSet(encodings(4)), ConceptSet(encodings(4, 1), cross_attention=False)
SETS = [JOINT, DECOUPLED, ConceptSet(encodings(25, 2))]


def doubles(guidance=False, seed=0, **config):
    """A transformer and inputs in float64."""
    inputs = {name: value.double() for name, value in transformer_inputs(guidance, seed).items()}
    return build_transformer(guidance, seed, **config).double(), inputs


def assert_those_of_the_equations(net, inputs, concepts):
    """In float64, for a set whose concepts attend to each other, and for one whose do not."""
    sets = [ConceptSet(concepts.double(), cross_attention) for cross_attention in (True, False)]
    with float64_throughout():
        logits = concept_logits(net, inputs, sets, len(net.transformer_blocks))
    for found, cross_attention in zip(logits, (True, False), strict=True):
        expected = reference.concept_logits(net, inputs, concepts.double(), cross_attention)
        assert found.dtype == torch.float64
        assert found.shape == (len(net.transformer_blocks), len(concepts), 12)
        assert near(found, expected, FLOAT64_TOLERANCE)


def all_equal(found, expected):
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("count", "seed", "guidance", "config"),
    [
        (1, 0, False, {}),
        (5, 1, True, {}),
        (3, 0, False, {"num_layers": 1, "num_single_layers": 0}),
        (3, 0, False, {"num_attention_heads": 1}),
        (3, 0, False, {"attention_head_dim": 8, "axes_dims_rope": (2, 2, 4), "num_attention_heads": 3}),
        (3, 0, False, {"num_single_layers": 3}),
    ],
)
def test_logits_are_those_of_the_equations_whatever_the_shape_of_the_transformer(count, seed, guidance, config):
    assert_those_of_the_equations(*doubles(guidance, seed, **config), encodings(count, seed))


def test_the_places_of_the_image_begin_behind_the_text_whatever_its_length():
    net, inputs = doubles()
    text = inputs["encoder_hidden_states"].repeat(1, 2, 1)
    inputs |= {"encoder_hidden_states": text, "txt_ids": torch.zeros(text.shape[1], 3)}
    assert_those_of_the_equations(net, inputs, encodings(3))


@pytest.mark.parametrize(("sets", "guidance"), [([], False), (SETS, False), ([JOINT], True)])
@torch.no_grad()
def test_forward_passes_that_concepts_watch_have_their_own_outputs_and_logits(sets, guidance):
    net, several = build_transformer(guidance), [transformer_inputs(guidance, seed) for seed in range(2)]
    expected = [net(**inputs).sample for inputs in several]
    with watched_concepts(net, sets, 2) as passes:
        assert all_equal([net(**inputs).sample for inputs in several], expected)
    for found, inputs in zip(passes, several, strict=True):
        assert all_equal(found, concept_logits(net, inputs, sets, 2))


def fail(*_):
    raise RuntimeError("inside")


def be_interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("place", "end"), [(0, fail), (1, be_interrupted), (2, fail)])
def test_no_hooks_are_left_where_a_block_fails(place, end):
    net, inputs = build_transformer(), transformer_inputs()
    expected = concept_logits(net, inputs, [JOINT], N_LAYERS)
    handle = net.transformer_blocks[place].ff.register_forward_pre_hook(end)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        concept_logits(net, inputs, [JOINT], N_LAYERS)
    handle.remove()
    assert count_hooks(net) == 0
    assert all_equal(concept_logits(net, inputs, [JOINT], N_LAYERS), expected)


def test_no_hooks_are_left_behind_those_who_watch_or_where_the_concepts_do_not_fit():
    net, sets = build_transformer(), SETS
    concept_logits(net, transformer_inputs(), sets, 2)
    assert count_hooks(net) == 0
    with watched_concepts(net, sets, 2):
        assert count_hooks(net) > 0
    assert count_hooks(net) == 0
    with pytest.raises(RuntimeError, match="inside"), watched_concepts(net, sets, 2):
        fail()
    assert count_hooks(net) == 0
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
    assert all_equal(passes[0], expected)


@pytest.mark.parametrize("n_layers", [1, 2, N_LAYERS])
def test_one_forward_pass_that_ends_behind_the_double_stream_blocks_serves_the_last_layers_of_all_sets(n_layers):
    net, inputs, sets = build_transformer(), transformer_inputs(), SETS
    blocks = [*net.transformer_blocks, *net.single_transformer_blocks, net.norm_out, net.proj_out]
    with counted(blocks) as calls, recorded(net) as passes:
        asked = concept_logits(net, inputs, sets, n_layers)
    assert calls == list(net.transformer_blocks)
    assert len(passes) == 1
    for found, logits in zip(asked, concept_logits(net, inputs, sets, N_LAYERS), strict=True):
        assert torch.equal(found, logits[-n_layers:])
        assert n_layers == N_LAYERS or not near(found, logits[:n_layers], 0.1)


def test_layers_that_the_transformer_lacks_and_fused_projections_are_refused():
    net = build_transformer()
    for n_layers in (0, N_LAYERS + 1):
        with refused(f"n_layers={n_layers} must be from 1 to 3"):
            concept_logits(net, transformer_inputs(), [JOINT], n_layers)
        assert count_hooks(net) == 0
    expected = concept_logits(net, transformer_inputs(), [JOINT], 2)
    net.fuse_qkv_projections()
    with refused(r"fused projections: call unfuse_qkv_projections\(\) first"):
        concept_logits(net, transformer_inputs(), [JOINT], 2)
    assert count_hooks(net) == 0
    net.unfuse_qkv_projections()
    assert all_equal(concept_logits(net, transformer_inputs(), [JOINT], 2), expected)
