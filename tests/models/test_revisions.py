"""A model's revision is of all files that it is loaded from, or the hub's commit."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch

from metagame.digests import folder_digest
from metagame.models.open_clip import OpenCLIP
from tests.tiny.checkpoints import LOADERS, MAKERS, cached, edit_weights, without_network
from tests.tiny.vision_language import build, picture

COMMIT, OTHER_COMMIT = "0123456789abcdef0123456789abcdef01234567", 40 * "e"


@pytest.mark.parametrize("kind", MAKERS)
def test_revision_of_a_folder_is_the_hash_of_all_its_files(kind, tmp_path):
    MAKERS[kind](tmp_path)
    assert LOADERS[kind](str(tmp_path)).revision == folder_digest(tmp_path)


@pytest.mark.parametrize("name", [COMMIT[:-1], f"{COMMIT}0"])
def test_revision_of_a_flux_in_a_folder_whose_name_is_no_commit_is_the_hash_of_its_files(name, tmp_path):
    folder = MAKERS["flux"](tmp_path / name)
    assert LOADERS["flux"](str(folder)).revision == folder_digest(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, which cannot be reached."""
    without_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("kind", ["clip", "gemma3", "flux"])
def test_revision_of_a_model_of_the_hub_is_its_commit(kind, hub):
    cached(hub, MAKERS[kind], COMMIT)
    assert LOADERS[kind]("org/model").revision == COMMIT
    cached(hub, MAKERS[kind], OTHER_COMMIT)
    assert LOADERS[kind]("org/model", "main").revision == OTHER_COMMIT
    assert LOADERS[kind]("org/model", COMMIT).revision == COMMIT


def test_revision_of_an_open_clip_of_the_hub_is_its_commit_and_that_of_its_tokenizer(hub):
    found = []
    for commit in (COMMIT, OTHER_COMMIT):
        folder = cached(hub, MAKERS["open_clip"], commit)
        config = folder / "open_clip_config.json"
        content = json.loads(config.read_text())
        content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"
        config.write_text(json.dumps(content))
        for of_tokenizer in (COMMIT, OTHER_COMMIT):
            shutil.rmtree(hub / "models--org--words", ignore_errors=True)
            cached(hub, build("clip").tokenizer.save_pretrained, of_tokenizer, "org/words")
            found.append(OpenCLIP.load("hf-hub:org/model", device="cpu").revision)
    assert found == [f"{one}/{other}" for one in (COMMIT, OTHER_COMMIT) for other in (COMMIT, OTHER_COMMIT)]


def test_revision_of_weights_in_a_file_changes_with_the_file_and_the_architecture(tmp_path):
    one, other = "small-of-revisions", "same-of-revisions"
    MAKERS["open_clip"](tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    del config["text_cfg"]["hf_tokenizer_name"]
    (tmp_path / "configs").mkdir()
    for name in (one, other):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    weights = tmp_path / "open_clip_model.safetensors"
    moved = Path(shutil.copy(weights, tmp_path / "elsewhere.safetensors"))
    loaded = OpenCLIP.load(one, str(weights), device="cpu")
    again, second = (OpenCLIP.load(name, str(moved), device="cpu") for name in (one, other))
    assert loaded.revision == again.revision != second.revision
    edit_weights(weights, lambda each: each["logit_scale"].mul_(2))
    assert OpenCLIP.load(one, str(weights), device="cpu").revision != loaded.revision
    pixels = loaded.process(picture())[None]
    own = build("open_clip", torch.float32).model.net.encode_image(pixels).detach()
    assert torch.allclose(loaded.encode_images(pixels), own, rtol=0, atol=1e-6)


def test_revision_of_weights_that_open_clip_names_is_their_name_and_its_version(monkeypatch):
    model = build("open_clip").model
    monkeypatch.setattr(
        open_clip, "create_model_and_transforms", lambda *args, **settings: (model.net, None, model.transform)
    )
    monkeypatch.setattr(open_clip, "__version__", "3.3.0")
    revisions = [OpenCLIP.load("ViT-B-16", name, device="cpu").revision for name in ("openai", "laion2b_s34b_b88k")]
    assert revisions == ["ViT-B-16/openai/3.3.0", "ViT-B-16/laion2b_s34b_b88k/3.3.0"]
