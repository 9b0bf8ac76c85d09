"""Encoders load from folders laid out as the real ones, and real tokenizers cut words as they are known to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn.functional import normalize
from transformers import CLIPModel

from metagame.models.clip import CLIP
from metagame.models.open_clip import OpenCLIP, adapt_tokenizer
from metagame.models.pretrained import PretrainedTokenizer
from metagame.models.siglip2 import SigLIP2
from metagame.models.vision_language import RetokenizedPlayers, TokenPlayers
from scripts.convert_to_open_clip import write
from tests.conftest import close
from tests.tiny.real_encoders import CLASSES, LAYOUTS, write_clip_tokenizer
from tests.tiny.vision_language import Scene, picture, prepare_one, scene


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_as_the_real_one_gives_the_embeddings_of_its_model(name, tmp_path):
    layout = LAYOUTS[name]()
    net = layout.save(tmp_path).float()
    assert (tmp_path / "model.safetensors.index.json").exists() == layout.sharded
    adapter = SigLIP2 if name.startswith("siglip2") else CLIP
    model = adapter.load(str(tmp_path), device="cpu")
    assert model.dtype == torch.float32
    bound = prepare_one(model, scene(0, text=("black", "Dog")))["text"]
    assert bound.grid == (layout.side, layout.side)
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


def test_a_clip_in_open_clips_naming_gives_the_embeddings_of_its_twin(tmp_path):
    LAYOUTS["clip_vitb16"]().save(tmp_path / "twin")
    write(str(tmp_path / "twin"), tmp_path / "open_clip")
    ours = OpenCLIP.load(f"local-dir:{tmp_path / 'open_clip'}", device="cpu")
    twin = CLIP.load(str(tmp_path / "twin"), device="cpu")
    assert isinstance(twin.net, CLIPModel)
    first, second = (prepare_one(model, scene(0, text=("black", "dog")))["text"] for model in (ours, twin))
    with torch.no_grad():
        pixels = second.image.pixels[None]
        assert close(ours.encode_images(pixels), twin.encode_images(pixels), 1e-4)
        texts = [bound.pieces.dropped([True, True]) for bound in (first, second)]
        assert close(ours.embed(texts[:1]), twin.embed(texts[1:]), 1e-4)


def test_what_is_left_of_a_caption_may_become_other_tokens_as_metaclips_tokenizer_has_them(tmp_path):
    LAYOUTS["metaclip2_vith14"]().write_tokenizer(tmp_path)
    tokenizer = PretrainedTokenizer.load(str(tmp_path), None, 77)
    players = RetokenizedPlayers(tokenizer, "dog hydrant")
    assert players.labels == ("dog", "hydr", "ant")
    assert players.dropped([True, False, True]).ids == tokenizer.encode("dogant")
    assert len(tokenizer.encode("dogant")) == 3
    assert players.dropped([True, True, True]).ids == tokenizer.encode("dog hydrant")


@pytest.fixture(scope="module")
def clip_tokenizers(tmp_path_factory):
    """CLIP's tokenizer as transformers and as open_clip have it."""
    folder = tmp_path_factory.mktemp("clip")
    write_clip_tokenizer(folder)
    return PretrainedTokenizer.load(str(folder), None, 77), adapt_tokenizer(open_clip.get_tokenizer("ViT-B-16"), 77)


def pieces(tokenizer, text):
    return TokenPlayers(tokenizer, text).labels


def test_clips_tokenizer_has_a_token_for_each_class_of_the_pointing_game(clip_tokenizers):
    for tokenizer in clip_tokenizers:
        assert [pieces(tokenizer, word) for word in CLASSES] == [(word,) for word in CLASSES]
        assert pieces(tokenizer, "Yorkshire next to a hydrant") == ("yorkshire", "next", "to", "a", "hydr", "ant")
    ids = [tokenizer.encode("a Photo of a yorkshire, a hydrant") for tokenizer in clip_tokenizers]
    assert ids[0] == ids[1]


def test_siglip_2s_vocabulary_has_a_token_for_each_class_of_the_pointing_game():
    """Its tokenizer is Gemma's with settings of its own, of which the texts' case is the adapter's."""
    folder = os.environ.get("METAGAME_REAL_TOKENIZERS")
    if folder is None:
        pytest.skip("METAGAME_REAL_TOKENIZERS names no folder with real tokenizers (siglip2, gemma3, flux/tokenizer_2)")
    tokenizer = PretrainedTokenizer.load(str(Path(folder) / "siglip2"), None, 64, SigLIP2.clean)
    assert [pieces(tokenizer, word) for word in CLASSES] == [(word,) for word in CLASSES]
    assert pieces(tokenizer, "Yorkshire next to a hydrant") == ("y", "orkshire", "next", "to", "a", "hyd", "rant")
    assert tokenizer.encode("Fish koala") == tokenizer.encode("fish koala")
    assert (tokenizer.encode("")[-1], tokenizer.pad_id) == (1, 0)
    players = RetokenizedPlayers(tokenizer, "a red hydrant")
    assert players.dropped([True] * 4).ids == tokenizer.encode("a red hydrant")
    assert players.dropped([True, True, False, True]).ids == tokenizer.encode("a redrant")


def test_a_wide_photograph_is_stretched_by_metaclips_processor_and_cropped_by_clips(tmp_path):
    """Which is what is drawn: the picture that the model is given."""
    for name, keeps_left in (("metaclip2_vith14", True), ("clip_vitb16", False)):
        folder = tmp_path / name
        folder.mkdir()
        layout = LAYOUTS[name]()
        replace(layout, text=layout.text | {"vocab_size": 64}).save(folder)  # nothing is asked of the texts
        wide = picture(0, 224).resize((448, 224))
        wide.paste((255, 0, 0), (0, 0, 60, 224))
        found = prepare_one(CLIP.load(str(folder), device="cpu"), Scene("wide", wide))["text"].picture
        assert found.shape == (224, 224, 3)
        assert (found[:, :20].mean((0, 1)) > (200, -1, -1)).all() == keeps_left
