"""What tables, notes and plans call models and jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from metagame.jobs.spec import configs_folder, variants

WEIGHTS = ("gguf", "checkpoint", "architecture", "pretrained")
"""Keys of a model that say which weights it has."""


def job_label(cfg: DictConfig, jobs: Sequence[DictConfig]) -> str:
    """What notes call a job: its method, and its model and benchmark where ``jobs`` have several."""
    several = variants(cfg)
    label = several[0].label if len(several) == 1 else cfg.attribution.label
    models = {(each.model.name, model_label(each)) for each in jobs}
    model = f" of {model_label(cfg)}" if len(models) > 1 else ""
    return label + model + (f" on {cfg.benchmark.name}" if len({each.benchmark.name for each in jobs}) > 1 else "")


def model_label(cfg: DictConfig) -> str:
    """What tables call the model: its label, unless a config has it for other weights; else the weights' own name."""
    label = cfg.model.get("label")
    meant = [node for node in _shipped_nodes(cfg) if label is not None and node.get("label") == label]
    if label is None or (meant and not any(_same_weights(cfg.model, node) for node in meant)):
        return _weights_name(cfg.model)
    return label


def has_shipped_weights(cfg: DictConfig) -> bool:
    """Whether the model's weights are those that its config file names for the scale, or a folder of that name."""
    node = _shipped_model(cfg.model.name, _scale(cfg))
    return bool(node) and _same_weights(cfg.model, node)


def _weights_name(model: DictConfig) -> str:
    """The last part of the checkpoint's name, or of its GGUF file's; of open_clip, those of both its names."""
    found = [_last_part(value) for key in WEIGHTS if (value := model.get(key))]
    if model.get("gguf") or model.get("checkpoint"):
        return found[0].removesuffix(".gguf")
    return ", ".join(found) or model.name


def _same_weights(model: DictConfig, node: Mapping[str, Any]) -> bool:
    """Whether two nodes name the same weights."""
    return all(same_name(model.get(key), node.get(key)) for key in WEIGHTS)


def same_name(one: str | None, other: str | None) -> bool:
    """Whether two paths or ids of the hub have the same last part, whatever its case."""
    return _last_part(one).casefold() == _last_part(other).casefold()


def _last_part(value: str | None) -> str:
    return Path(value or "").name


def _shipped_nodes(cfg: DictConfig) -> Iterator[Mapping[str, Any]]:
    """The nodes of shipped configs that may have given the model its label: its own file's, then experiments'."""
    yield _shipped_model(cfg.model.name, _scale(cfg))
    yield from _models_of_experiments()


def _scale(cfg: DictConfig) -> str:
    return OmegaConf.select(cfg, "scale.name", default="")


@cache
def _shipped_model(name: str, scale: str) -> Mapping[str, Any]:
    """The keys of a model as its shipped file has them at a scale, without Hydra; {} of a model of one's own."""
    return _read(configs_folder() / "model", name, scale)


def _read(group: Path, name: str, scale: str) -> dict[str, Any]:
    """A choice of a group with those of its defaults that are merged into it."""
    path = group / f"{name}.yaml"
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for entry in content.get("defaults", ["_self_"]):
        place, choice = ("", entry) if isinstance(entry, str) else next(iter(entry.items()))
        if choice == "_self_":
            found |= {key: value for key, value in content.items() if key != "defaults"}
        elif place == "" or place.endswith("@_here_"):
            folder = place.removeprefix("optional ").removesuffix("@_here_")
            found |= _read(group / folder, choice.removesuffix("@_here_").replace("${scale}", scale), scale)
    return found


@cache
def _models_of_experiments() -> Sequence[Mapping[str, Any]]:
    """The nodes ``model`` of the shipped experiments that give it a label."""
    paths = sorted((configs_folder() / "experiment").rglob("*.yaml"))
    contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]
    return [content["model"] for content in contents if "label" in (content.get("model") or {})]
