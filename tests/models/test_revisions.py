"""A model's revision changes with every file that it is loaded from."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
from safetensors.torch import load_file, save_file

from metagame.models.adder import Adder
from metagame.models.clip import CLIP
from metagame.models.flux import Denoising, Flux
from metagame.models.language_model import LanguageModel
from metagame.models.open_clip import OpenCLIP
from metagame.models.siglip2 import SigLIP2
from tests.tiny import flux, language
from tests.tiny.jobs import ROOT
from tests.tiny.vision_language import build, save

COMMIT, OTHER_COMMIT = "0123456789abcdef0123456789abcdef01234567", 40 * "e"


def save_open_clip(folder):
    save("open_clip", folder)
    shutil.rmtree(folder / "transformers")


MAKERS = {
    "clip": lambda folder: save("clip", folder),
    "siglip2": lambda folder: save("siglip2", folder),
    "gemma3": lambda folder: language.save(language.build_net(), folder),
    "flux": flux.save,
    "open_clip": save_open_clip,
    "adder": lambda folder: shutil.copytree(ROOT / "data/tiny/adder", folder, dirs_exist_ok=True),
}
LOADERS = {
    "clip": lambda folder: CLIP.load(folder, device="cpu"),
    "siglip2": lambda folder: SigLIP2.load(folder, device="cpu"),
    "gemma3": lambda folder: LanguageModel.load(folder, device="cpu", chat=True),
    "flux": lambda folder: Flux.load(folder, None, Denoising(flux.SIDE), flux.TEXT_LENGTH, device="cpu"),
    "open_clip": lambda folder: OpenCLIP.load(f"local-dir:{folder}", device="cpu"),
    "adder": Adder,
}
FILES = {
    "clip": ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"],
    "siglip2": ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"],
    "gemma3": ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"],
    "flux": [
        *("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json"),
        *("text_encoder_2/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/tokenizer.json"),
        *("transformer/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"),
    ],
    "open_clip": ["open_clip_config.json", "tokenizer.json", "open_clip_model.safetensors"],
    "adder": ["model.safetensors"],
}
MORE = ["vocab.json", "merges.txt", "tokenizer.model", "pytorch_model.bin", "added_tokens.json"]
"""Files that such folders may have too."""
each_kind = pytest.mark.parametrize("kind", MAKERS)


def change(path):
    """Give a file other content that can be read, or make it."""
    if path.suffix == ".safetensors":
        weights = load_file(path)
        name = max(weights, key=lambda name: weights[name].numel())
        save_file(weights | {name: 2 * weights[name]}, path, metadata={"format": "pt"})
    else:
        path.write_text((path.read_text() if path.is_file() else "{}") + "\n")


@each_kind
def test_revision_changes_with_each_file(kind, tmp_path):
    MAKERS[kind](tmp_path)
    revisions = [LOADERS[kind](str(tmp_path)).revision]
    assert LOADERS[kind](str(tmp_path)).revision == revisions[0]
    for name in FILES[kind]:
        assert (tmp_path / name).is_file()
        change(tmp_path / name)
        revisions.append(LOADERS[kind](str(tmp_path)).revision)
    assert len(set(revisions)) == len(revisions)


@each_kind
def test_revision_changes_with_files_that_are_added_and_not_with_what_is_written_about_them(kind, tmp_path):
    MAKERS[kind](tmp_path)
    place = tmp_path / "tokenizer_2" if kind == "flux" else tmp_path
    before = LOADERS[kind](str(tmp_path)).revision
    for name in ("README.md", "LICENSE.txt", ".gitattributes"):
        change(place / name)
    assert LOADERS[kind](str(tmp_path)).revision == before
    revisions = {before}
    for count, name in enumerate(MORE, start=2):
        change(place / name)
        revisions.add(LOADERS[kind](str(tmp_path)).revision)
        assert len(revisions) == count


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, which cannot be reached."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub, make, commit, name="org/model"):
    """The folder of a commit in the cache."""
    repository = hub / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    make(folder)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip2", "gemma3", "flux"])
def test_revision_of_a_model_of_the_hub_is_its_commit(kind, hub):
    for commit in (COMMIT, OTHER_COMMIT):
        cached(hub, MAKERS[kind], commit)
        assert LOADERS[kind]("org/model").revision == commit


def name_tokenizer(folder, name):
    config = folder / "open_clip_config.json"
    content = json.loads(config.read_text())
    content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = name
    config.write_text(json.dumps(content))


def test_revision_of_an_open_clip_of_the_hub_is_its_commit_and_that_of_its_tokenizer(hub):
    found = []
    for commit in (COMMIT, OTHER_COMMIT):
        folder = cached(hub, save_open_clip, commit)
        name_tokenizer(folder, "org/words")
        for of_tokenizer in (COMMIT, OTHER_COMMIT):
            shutil.rmtree(hub / "models--org--words", ignore_errors=True)
            cached(hub, build("clip").tokenizer.save_pretrained, of_tokenizer, "org/words")
            found.append(OpenCLIP.load("hf-hub:org/model", device="cpu").revision)
    assert found == [f"{one}/{other}" for one in (COMMIT, OTHER_COMMIT) for other in (COMMIT, OTHER_COMMIT)]


@pytest.fixture
def architectures(tmp_path):
    """Two names of the same architecture, and its weights."""
    save_open_clip(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    del config["text_cfg"]["hf_tokenizer_name"]
    (tmp_path / "configs").mkdir()
    for name in ("small-of-revisions", "same-of-revisions"):
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    return "small-of-revisions", "same-of-revisions", tmp_path / "open_clip_model.safetensors"


def test_revision_of_weights_in_a_file_changes_with_the_file_and_the_architecture(architectures):
    one, other, weights = architectures
    first, again, second = (OpenCLIP.load(name, str(weights), device="cpu").revision for name in (one, one, other))
    assert first == again != second
    moved = Path(shutil.copy(weights, weights.parent / "elsewhere.safetensors"))
    assert OpenCLIP.load(one, str(moved), device="cpu").revision == first
    change(weights)
    assert OpenCLIP.load(one, str(weights), device="cpu").revision != first


def test_revision_of_weights_that_open_clip_names_is_their_name_and_its_version(monkeypatch):
    model = build("open_clip").model
    monkeypatch.setattr(
        open_clip, "create_model_and_transforms", lambda *args, **settings: (model.net, None, model.transform)
    )
    monkeypatch.setattr(open_clip, "__version__", "3.3.0")
    revisions = [OpenCLIP.load("ViT-B-16", name, device="cpu").revision for name in ("openai", "laion2b_s34b_b88k")]
    assert revisions == ["ViT-B-16/openai/3.3.0", "ViT-B-16/laion2b_s34b_b88k/3.3.0"]
