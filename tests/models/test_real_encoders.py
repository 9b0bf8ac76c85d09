"""Encoders load from folders laid out as the real ones, and CLIP's tokenizer cuts words as it is known to."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from metagame.models.clip import CLIP
from metagame.models.open_clip import adapt_tokenizer
from metagame.models.pretrained import PretrainedTokenizer
from metagame.models.siglip2 import SigLIP2
from metagame.models.vision_language import RetokenizedPlayers, TokenPlayers
from tests.conftest import close
from tests.tiny.real_encoders import CLASSES, LAYOUTS, write_clip_tokenizer
from tests.tiny.vision_language import Scene, picture, prepare_one, scene


@pytest.fixture(scope="module", params=[name for name in LAYOUTS if name != "metaclip2_vith14_378"])
def real(request, tmp_path_factory):
    """The name of a layout, its number of patches in a row, its folder, and the model that was saved there."""
    layout, folder = LAYOUTS[request.param](), tmp_path_factory.mktemp(request.param)
    net = layout.save(folder).float()
    assert (folder / "model.safetensors.index.json").exists() == layout.sharded
    return request.param, layout.side, folder, net


def test_a_folder_as_the_real_one_gives_the_embeddings_of_its_model_and_draws_what_it_is_given(real):
    name, side, folder, net = real
    adapter = SigLIP2 if name.startswith("siglip2") else CLIP
    model = adapter.load(str(folder), device="cpu")
    assert model.dtype == torch.float32
    bound = prepare_one(model, scene(0, text=("black", "Dog")))["text"]
    assert bound.grid == (side, side)
    ids = list(model.tokenizer.encode("black Dog"))
    if adapter is SigLIP2:
        ids += [0] * (64 - len(ids))
        assert 3 not in ids
    with torch.no_grad():
        pixels = bound.image.pixels[None]
        expected = normalize(net.get_image_features(pixel_values=pixels), dim=-1)
        assert close(normalize(model.encode_images(pixels), dim=-1), expected, 1e-5)
        expected = normalize(net.get_text_features(input_ids=torch.tensor([ids])), dim=-1)
        assert close(model.embed([bound.pieces.dropped([True, True])]), expected, 1e-5)
    wide = picture(0, 224).resize((448, 224))
    wide.paste((255, 0, 0), (0, 0, 60, 224))
    found = prepare_one(model, Scene("wide", wide))["text"].picture
    assert found.shape == (*pixels.shape[2:], 3)
    keeps_left = (found[:, :20].mean((0, 1)) > (200, -1, -1)).all()
    assert keeps_left == (not name.startswith("clip"))  # CLIP's processor crops, the others' stretch


def test_clips_tokenizer_has_a_token_for_each_class_of_the_pointing_game(tmp_path):
    """As transformers and as open_clip have it."""
    write_clip_tokenizer(tmp_path)
    of_transformers = PretrainedTokenizer.load(str(tmp_path), None, 77)
    of_open_clip = adapt_tokenizer(open_clip.get_tokenizer("ViT-B-16"), 77)
    for tokenizer in (of_transformers, of_open_clip):
        assert [TokenPlayers(tokenizer, word).labels for word in CLASSES] == [(word,) for word in CLASSES]
        caption = TokenPlayers(tokenizer, "Yorkshire next to a hydrant")
        assert caption.labels == ("yorkshire", "next", "to", "a", "hydr", "ant")
    text = "a Photo of a yorkshire, a hydrant"
    assert of_transformers.encode(text) == of_open_clip.encode(text)


def test_what_is_left_of_a_caption_may_become_other_tokens_as_metaclips_tokenizer_has_them(tmp_path):
    LAYOUTS["metaclip2_vith14"]().write_tokenizer(tmp_path)
    tokenizer = PretrainedTokenizer.load(str(tmp_path), None, 77)
    players = RetokenizedPlayers(tokenizer, "dog hydrant")
    assert players.labels == ("dog", "hydr", "ant")
    assert players.dropped([True, False, True]).ids == tokenizer.encode("dogant")
    assert len(tokenizer.encode("dogant")) == 3
