"""The weights that jobs load: which files of which repositories of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoSibling
from omegaconf import DictConfig
from rich.filesize import decimal

from metagame.digests import file_digest
from metagame.errors import UserError
from metagame.fetch.transfer import Plan, persist

SAFE = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
PICKLED = re.compile(r"(diffusion_)?pytorch_model(-\d+-of-\d+)?\.bin")
BESIDE = (".json", ".txt", ".model", ".jinja")  # configs and tokenizers
GATE = "accept its licence at https://huggingface.co/{}, then log in with 'hf auth login'"


class Repository(NamedTuple):
    """A repository of the hub, or of it only the ``files`` of this pattern."""

    name: str
    revision: str = "main"
    files: str = ""

    def plan(self) -> Plan:
        info = HfApi().model_info(self.name, revision=self.revision, files_metadata=True)
        siblings = info.siblings or []
        names = wanted([each.rfilename for each in siblings], self.files)
        if not any(self.files or SAFE.fullmatch(name) or PICKLED.fullmatch(name) for name in _bare(names)):
            held = ", ".join(sorted(each.rfilename for each in siblings)[:12]) or "nothing"
            raise UserError(
                f"{self.name} has no weights {f'of the name {self.files}' if self.files else 'that can be loaded'}: it"
                f" holds {held}; correct model.{'gguf' if self.files else 'checkpoint'}."
            )
        needed = [each for each in siblings if each.rfilename in names]
        lacking = [each for each in needed if not try_to_load_from_cache(self.name, each.rfilename, revision=info.sha)]
        parts = Path(constants.HF_HUB_CACHE).glob(f"models--{self.name.replace('/', '--')}/blobs/*.incomplete")
        to_go = max(0, sum(each.size or 0 for each in lacking) - sum(part.stat().st_size for part in parts))
        licence = (info.card_data and (info.card_data.license_name or info.card_data.license)) or "not stated"
        gate = f", gated: {GATE.format(self.name)}" if info.gated else ""
        size = f"{decimal(sum(each.size or 0 for each in needed))}, {decimal(to_go)} of it to be fetched"
        told = f"{self.name}: {len(needed)} files, {size}; licence {licence}{gate}."
        return told, to_go, lambda: persist(lambda: self._attempt(needed))

    def is_here(self) -> bool:
        """Whether the cache has all weights of this revision."""
        try:
            folder = Path(snapshot_download(self.name, revision=self.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            return False
        if self.files:
            return any(path.exists() for path in folder.glob(self.files))
        parts = [folder]
        if (folder / "model_index.json").exists():
            parts = [path.parent for path in folder.glob("*/config.json")]
        return bool(parts) and all(_has_weights(part) for part in parts)

    def _attempt(self, needed: list[RepoSibling]) -> None:
        """Fetch what is not in the cache, and compare it with the sha256 that the hub has of its large files."""
        patterns = [each.rfilename for each in needed]
        folder = snapshot_download(self.name, revision=self.revision, allow_patterns=patterns)
        for each in needed:
            path = Path(folder, each.rfilename)
            if not path.exists() or (each.lfs and file_digest(path) != each.lfs.sha256[:16]):
                path.resolve().unlink(missing_ok=True)
                raise ConnectionError(f"{each.rfilename} is not what the hub says")


def _has_weights(folder: Path) -> bool:
    """Whether a folder has a config and a file of all weights, or each file that an index names."""
    names = [path.name for path in folder.iterdir() if path.exists()]  # a link of the cache may lead nowhere
    whole = any("-of-" not in name and (SAFE.fullmatch(name) or PICKLED.fullmatch(name)) for name in names)
    indices = [json.loads((folder / name).read_text()) for name in names if name.endswith(".index.json")]
    whole |= any({*index.get("weight_map", {}).values()} <= {*names} for index in indices)
    return whole and "config.json" in names


def _bare(names: Iterable[str]) -> list[str]:
    """The names of files without their folders."""
    return [PurePosixPath(name).name for name in names]


def repositories(configs: Iterable[DictConfig]) -> list[Repository]:
    """What jobs load models and tokenizers from, each once; what is on this disk is none of it."""
    found = set()
    for cfg in configs:
        for node, files in (
            (cfg.model, cfg.model.get("gguf") or ""),
            (cfg.benchmark.get("tokenizer") or {}, "tokenizer_2/*"),
        ):
            if node.get("checkpoint") and not Path(node["checkpoint"]).is_dir():
                found.add(Repository(node["checkpoint"], node.get("revision") or "main", files))
        if cfg.model.get("pretrained") and not Path(cfg.model.pretrained).is_file():
            from open_clip import get_pretrained_cfg  # brings torch

            names = cfg.model.architecture, cfg.model.pretrained
            name, _, file = get_pretrained_cfg(*names).get("hf_hub", "/".join([*names, ""])).rpartition("/")
            found.add(Repository(name, files=f"{PurePosixPath(file).stem or 'open_clip_*model'}.*"))
    return sorted(each for each in found if not each.files or each._replace(files="") not in found)


def wanted(names: list[str], files: str = "") -> set[str]:
    """Of a repository's files those that are loaded: weights once, rather safetensors, of a pipeline its parts."""
    if files:
        found = [name for name in names if PurePosixPath(name).match(files)]
        return {name for name in found if name.endswith(".safetensors")} or set(found)
    paths = [PurePosixPath(name) for name in names]
    index = PurePosixPath("model_index.json")
    folders = {path.parent for path in paths if len(path.parts) == 1 + (index in paths)}
    safe = {path.parent for path in paths if SAFE.fullmatch(path.name)}
    loaded = {path for path in paths if path.suffix in BESIDE or SAFE.fullmatch(path.name)}
    loaded |= {path for path in paths if path.parent not in safe and PICKLED.fullmatch(path.name)}
    return {str(path) for path in loaded if path == index or path.parent in folders}
