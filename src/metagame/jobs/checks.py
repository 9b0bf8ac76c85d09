"""What is refused of a job's config before any work: keys that nothing reads, and values that make no sense."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from metagame.errors import UserError
from metagame.jobs.spec import (
    IDENTITY,
    OF_ESTIMATOR,
    PARTS,
    AttributionKeys,
    JobKeys,
    complete,
    configs_folder,
    is_combination,
    jobs_folder,
    locate,
)

OF_SCALE = ("name", "needs_gpu", "threads")
OF_REPORT = ("table", "figure", "reproduction")
OF_POINTING_GAME = ("n_games", "n_images", "played")


def check_values(cfg: DictConfig) -> None:
    """Refuse settings that no job has, and numbers that make no sense.

    Raises:
        UserError: there is such a one.
    """
    unknown = [*_unknown_keys(cfg), *(f"estimator.{key}" for key in _unknown_to_estimator(cfg.estimator))]
    if unknown:
        raise UserError(
            f"the config has unknown settings ({', '.join(unknown)}): check their spelling, or remove them."
        )
    _check_variants(cfg.attribution)
    _check_scale_values(cfg.scale)
    strange = [entry for entry in cfg.leave_out if not is_combination(entry)]
    if strange:
        raise UserError(
            f"leave_out has {strange[0]}, which is no combination of parts: give names of {', '.join(PARTS)}, such as"
            " {model: x, attribution: [y, z]}."
        )
    for part in OF_REPORT:
        node = cfg.report.get(part)
        if not OmegaConf.is_dict(node) and (part == "table" or node is not None):
            raise UserError(f"report.{part}={node} must be a mapping with a _target_: choose report=NAME.")
    if cfg.limit is not None and not _is_whole(cfg.limit, 1):
        raise UserError(f"limit={cfg.limit} must be a positive integer, or null for all samples.")
    if Path(cfg.output_dir) == jobs_folder(cfg):
        raise UserError(f"{cfg.output_dir} is the folder of the records, not of a table: choose another name=NAME.")
    if not _is_whole(cfg.seed, 0):
        raise UserError(f"seed={cfg.seed} must be a non-negative integer.")
    if not _is_whole(cfg.shards, 1):
        raise UserError(f"shards={cfg.shards} must be a positive integer.")
    if cfg.reuse not in ("fresh", "stale"):
        raise UserError(
            f"reuse={cfg.reuse} is unknown: choose fresh, or stale to keep results that were computed with other code"
            " or files."
        )


def _unknown_keys(cfg: DictConfig) -> Iterator[str]:
    """The keys that nothing reads, with the node that they stand in; parts with a ``_target_`` refuse theirs."""
    yield from _others(cfg, {*(each.name for each in fields(JobKeys)), "hydra"})
    of_attribution = {each.name for each in fields(AttributionKeys)}
    yield from _others(cfg.attribution, of_attribution, "attribution.")
    yield from _others(cfg.attribution.get("pointing_game") or {}, OF_POINTING_GAME, "attribution.pointing_game.")
    for name, node in (cfg.attribution.get("variants") or {}).items():
        yield from _others(node, of_attribution - {"variants", "pointing_game"}, f"attribution.variants.{name}.")
    yield from _others(cfg.scale, OF_SCALE, "scale.")
    yield from _others(cfg.report, OF_REPORT, "report.")
    if "_target_" not in cfg.tracker:
        yield from _others(cfg.tracker, {"name"}, "tracker.")


def _others(node: Mapping[Any, Any], known: Collection[str], path: str = "") -> Iterator[str]:
    yield from (f"{path}{key}" for key in node if key not in known)


def _check_scale_values(scale: DictConfig) -> None:
    threads = scale.get("threads")
    if threads is not None and not _is_whole(threads, 1):
        raise UserError(f"scale.threads={threads} must be a positive integer, or null for the libraries' own choice.")
    if not isinstance(scale.get("needs_gpu", False), bool):
        raise UserError(f"scale.needs_gpu={scale.needs_gpu} must be true or false.")


def _unknown_to_estimator(node: DictConfig) -> list[str]:
    """Keys that the estimator does not take; none of one that is not there, which building it tells of."""
    if "_target_" not in node:
        return []
    try:
        taken = inspect.signature(locate(node["_target_"])).parameters.values()
    except UserError:
        return []
    if any(each.kind == each.VAR_KEYWORD for each in taken):
        return []
    known = {*OF_ESTIMATOR, "budget", "budget_per_player", *(each.name for each in taken)}
    return [str(key) for key in node if key not in known and not str(key).startswith("_")]


def _check_variants(attribution: DictConfig) -> None:
    """Refuse keys beside the variants that count only for a method without variants."""
    several = attribution.get("variants")
    if not several:
        return
    node = complete(attribution)
    marked = [each for each in fields(AttributionKeys) if each.metadata == IDENTITY and each.name != "name"]
    idle = [each.name for each in marked if node[each.name] != each.default]
    if idle:
        raise UserError(
            f"attribution={attribution.name} has variants, for which attribution.{idle[0]} has no effect: set"
            f" attribution.variants.NAME.{idle[0]} instead, with NAME one of {', '.join(several)}."
        )


def check_scale(cfg: DictConfig) -> None:
    """Refuse a choice that has no values for the scale: those of another are never taken in their place.

    A choice whose values depend on the scale says by ``for_scale`` which they are for.

    Raises:
        UserError: there is such a choice, or one without a value that it needs.
    """
    scale = cfg.scale.name
    if cfg.get("for_scale") not in (None, scale):
        raise UserError(
            f"experiment {cfg.name} has no values for scale={scale}: choose scale={cfg.for_scale},"
            f" or one that has a file of this name in configs/experiment/by_scale; or add one to"
            f" configs/experiment/by_scale/{scale}, and set for_scale: {scale} in it."
        )
    nodes = [(group, cfg[group]) for group in ("model", "benchmark", "attribution")]
    nodes += [("attribution", node) for node in (cfg.attribution.get("variants") or {}).values()]
    for group, node in nodes:
        if node.get("for_scale") not in (None, scale):
            raise UserError(
                f"{group}={node.name} has no values for scale={scale}: add"
                f" configs/{group}/by_scale/{scale}/{node.name}.yaml, and set for_scale: {scale} in it."
            )
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise UserError(
                f"{group}={node.name} at scale={scale} lacks {', '.join(missing)}: choose another {group}, or set"
                f" {missing[0]}=VALUE."
            )


def experiments_at(scale: str) -> list[str]:
    """Names of the shipped experiments whose files have values for a scale; none of a scale that is not known."""
    if not (configs_folder() / "scale" / f"{scale}.yaml").exists():
        return []
    names = sorted(path.stem for path in (configs_folder() / "experiment").glob("*.yaml"))
    return [name for name in names if all(_has_values(*part, scale) for part in _parts_of(name, scale))]


def _parts_of(experiment: str, scale: str) -> set[tuple[str, str]]:
    """The experiment, and its models and benchmarks, each as its group and name."""
    parts: dict[str, str] = {"experiment": experiment}
    for folder in ("experiment", f"experiment/by_scale/{scale}"):
        content = _content(folder, experiment)
        entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
        chosen = {key.removeprefix("override /"): value for entry in entries for key, value in entry.items()}
        chosen |= content.get("hydra", {}).get("sweeper", {}).get("params", {})
        parts |= {group: chosen[group] for group in ("model", "benchmark") if group in chosen}
    return {(group, name) for group, names in parts.items() for name in names.split(",")}


def _has_values(group: str, name: str, scale: str) -> bool:
    of_scale = _content(f"{group}/by_scale/{scale}", name)
    return {**_content(group, name), **of_scale}.get("for_scale") in (None, scale)


def _content(folder: str, name: str) -> dict[str, Any]:
    path = configs_folder() / folder / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def check_shard(cfg: DictConfig) -> None:
    """Refuse a job that does not say which of several shards it is.

    Raises:
        UserError: it does not.
    """
    if cfg.shard is None and cfg.shards > 1:
        raise UserError(
            f"shards={cfg.shards} needs a sweep over the shards: add -m, or choose one of them with shard=0 to"
            f" shard={cfg.shards - 1}."
        )
    if cfg.shard is not None and cfg.shard not in range(cfg.shards):
        raise UserError(f"shard={cfg.shard} must be an integer from 0 to {cfg.shards - 1}, since shards={cfg.shards}.")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
