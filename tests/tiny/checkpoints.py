"""A small checkpoint of each kind of model, by the name of its kind: how it is saved and loaded."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file

from metagame.models.adder import Adder
from metagame.models.clip import CLIP
from metagame.models.language_model import LanguageModel
from metagame.models.open_clip import OpenCLIP
from metagame.models.siglip2 import SigLIP2
from tests.tiny import flux, language
from tests.tiny.downloads import go_offline
from tests.tiny.jobs import ROOT
from tests.tiny.vision_language import save

MAKERS = {
    "clip": partial(save, "clip"),
    "siglip2": partial(save, "siglip2"),
    "gemma3": lambda folder: language.save(language.build_net(), folder),
    "flux": flux.save,
    "open_clip": partial(save, "open_clip"),
    "adder": lambda folder: shutil.copytree(ROOT / "data/tiny/adder", folder, dirs_exist_ok=True),
}
LOADERS = {
    "clip": partial(CLIP.load, device="cpu"),
    "metaclip2": partial(CLIP.load, device="cpu"),
    "siglip2": partial(SigLIP2.load, device="cpu"),
    "gemma3": partial(LanguageModel.load, device="cpu", chat=True),
    "flux": flux.load,
    "open_clip": lambda folder: OpenCLIP.load(f"local-dir:{folder}", device="cpu"),
    "adder": Adder,
}


def without_network(monkeypatch) -> None:
    """Let nobody ask the hub, as its users say that."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    go_offline(monkeypatch)


def cached(hub: Path, make, commit: str, name: str = "org/model") -> Path:
    """The folder of a commit, its branch main, in a cache of the hub; ``make`` fills it."""
    repository = hub / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    make(folder)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return folder


def edit_weights(path: Path, edit) -> None:
    """Rewrite a file of weights as ``edit`` leaves them."""
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})
