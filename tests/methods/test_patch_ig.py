"""Patch IG, its metagame in closed form, and exCLIP: twins, completeness, and what is refused."""

import numpy as np
import pytest
import torch

from metagame.attributions import exclip, patch_ig
from metagame.attributions.exclip import ExCLIP
from metagame.attributions.method import Metagame
from metagame.attributions.patch_ig import MetaPatchIG, PatchIG, token_parts
from metagame.estimators.configured import ConfiguredEstimator
from metagame.models.vision_language import VisionLanguage
from tests.conftest import close
from tests.reference import vision_language as reference
from tests.tiny.vision_language import CLASS_TOKEN_FAMILIES, FAMILIES, build, prepare_one, refused, scene

each_family = pytest.mark.parametrize("family", FAMILIES)
each_family_and_block = pytest.mark.parametrize(
    ("family", "block"), [("clip", -1), ("metaclip2", -2), ("siglip2", -2), ("siglip2", -1), ("open_clip", -1)]
)
float64 = pytest.mark.usefixtures("float64_by_default")
WORDS = ("one", "two", "three")


def ids_and_reference(built):
    """Ids of a text and of its reference, padded as the model has them, the players' places, and where it is pooled."""
    ids, first = built.ids(" ".join(WORDS)), 0 if built.family == "siglip2" else 1
    players = range(first, first + len(WORDS))
    pad = built.tokenizer.pad_token_id
    end = len(ids) - 1 if built.family == "siglip2" else first + len(WORDS)
    return ids, [pad if place in players else token for place, token in enumerate(ids)], players, end


@float64
@each_family_and_block
def test_exclip_matches_the_product_of_both_mean_jacobians(family, block):
    built = build(family, patch=16)
    bound = built.bound()
    ids, other, players, end = ids_and_reference(built)
    whole = reference.exclip(built.net, bound.image.pixels, ids, other, end, 3, block)
    own = whole[list(players)]
    found = ExCLIP(3, block).explain(bound)
    assert close(found.meta.values, own[:, -4:].T)
    assert np.abs(found.meta.values).max() > 1e-3
    assert (found.players, found.targets, found.grid) == (WORDS, ("image",), (2, 2))
    assert found.attribution is None
    left_out = 1 - np.abs(own[:, -4:]).sum() / np.abs([*own, whole.sum(0) - own.sum(0)]).sum()
    assert close(ExCLIP(3, block).completeness(bound).left_out, left_out)


@float64
@each_family_and_block
@pytest.mark.parametrize("method", [PatchIG, ExCLIP])
def test_all_parts_add_up_and_the_error_falls_with_the_square_of_the_steps(method, family, block):
    bound = build(family, patch=16).bound()
    few, most = (method(steps, block).completeness(bound) for steps in (8, 64))
    assert most.error < 1e-2
    assert most.error < few.error / 20 or few.error < 1e-4
    if method is PatchIG:
        assert (most.left_out > 0.01) == (family in CLASS_TOKEN_FAMILIES)


@float64
@each_family
def test_the_metagame_is_the_map_of_the_shapley_value_of_the_embedding_and_efficient(family):
    bound, method = build(family, patch=16).bound(), PatchIG(4)
    found, played = method.metagame().explain(bound), Metagame(method).explain(bound)
    assert isinstance(method.metagame(), MetaPatchIG)
    for name in ("values", "first_order", "empty", "standard_error"):
        assert close(getattr(found.meta, name), getattr(played.meta, name))
    assert close(found.meta.residual, 0)
    assert close(found.attribution, method.explain(bound).attribution)
    assert (found.meta.players, found.meta.targets, found.meta.grid) == (WORDS, ("image",), (2, 2))
    assert not found.meta.endogenous


@pytest.mark.parametrize(
    ("settings", "closed"),
    [
        ({}, True),
        ({"order": 2, "index": "ksv"}, False),
        ({"estimator": ConfiguredEstimator("permutation", budget=40)}, False),
        ({"estimator": ConfiguredEstimator("exact")}, True),
    ],
)
def test_pairs_and_approximations_are_played_on_maps(settings, closed):
    assert isinstance(PatchIG().metagame(**settings), MetaPatchIG) is closed
    assert isinstance(PatchIG().metagame(**settings), Metagame)


def test_the_path_is_run_through_once_for_all_texts_of_a_metagame_that_is_played(monkeypatch):
    runs = []
    monkeypatch.setattr(patch_ig, "token_parts", lambda *args: runs.append(len(args[1])) or token_parts(*args))
    Metagame(PatchIG()).explain(build("clip", torch.float32).bound())
    assert runs == [8]


def test_a_player_takes_one_vector_jacobian_product_and_the_empty_text_one_for_all_texts(monkeypatch):
    seen, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **settings: seen.append(1) or grad(*args, **settings))
    texts = prepare_one(build("clip", torch.float32).model, scene(0, a=("one", "two"), b=("three",)))
    method = PatchIG().metagame()
    for name, count in (("a", 3), ("b", 1)):
        method.explain(texts[name])
        assert len(seen) == count
        seen.clear()


def test_the_text_side_of_exclip_is_made_once_for_all_images(monkeypatch):
    model = build("clip", torch.float32, patch=16).model
    seen, made = [], exclip.text_parts
    monkeypatch.setattr(exclip, "text_parts", lambda *args: seen.append(1) or made(*args))
    for each in model.prepare([scene(0), scene(1)]):
        ExCLIP().explain(each["text"])
    assert len(seen) == 1


@pytest.mark.parametrize("method", [PatchIG, ExCLIP])
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": 0}, "steps=0 must be a positive integer"),
        ({"steps": 2.5}, "steps=2.5 must be a positive integer"),
        *(({"block": block}, f"block={block!r} must be a negative integer") for block in (0, "last", True)),
    ],
)
def test_setting_that_a_path_does_not_have_is_refused(method, settings, match):
    with refused(match):
        method(**settings)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (PatchIG(block=-4), "block=-4 .* image encoder has 3 blocks: give -3 to -1"),
        (PatchIG(block=-4).metagame(), "block=-4 .* image encoder has 3 blocks: give -3 to -1"),
        (ExCLIP(block=-3), "block=-3 .* text encoder has 2 blocks: give -2 to -1"),
    ],
)
def test_block_that_an_encoder_lacks_is_refused(method, match):
    with refused(match):
        method.explain(build("clip", torch.float32, patch=16).bound())


def test_a_text_encoder_of_which_nothing_is_known_is_refused(monkeypatch):
    bound = build("clip", torch.float32, patch=16).bound()
    monkeypatch.setattr(type(bound.model), "text_blocks", VisionLanguage.text_blocks, raising=False)
    with refused("blocks of the text encoder, which CLIP does not define: define text_blocks"):
        ExCLIP().explain(bound)
    assert PatchIG().explain(bound).attribution.shape == (4,)
