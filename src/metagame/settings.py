"""What is refused of a config before any part of a job is built."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from metagame.games import GameError

SETTINGS = {
    "model", "attribution", "benchmark", "estimator", "scale", "report", "tracker",
    "name", "seed", "limit", "shards", "shard", "fail_fast", "leave_out", "output_dir",
}  # fmt: skip
"""Keys of a job's config."""

OF_ATTRIBUTION = {"name", "label", "family", "meta", "index", "method"}
"""Keys of its part ``attribution``, beside groups of values for other parts to refer to."""


def check_values(cfg: DictConfig) -> None:
    """Refuse settings that no job has, and numbers that make no sense.

    Raises:
        GameError: there is such a one.
    """
    unknown = [key for key in cfg if key not in SETTINGS | {"hydra"}]
    unknown += [
        f"attribution.{key}"
        for key, value in cfg.attribution.items()
        if key not in OF_ATTRIBUTION and not isinstance(value, DictConfig)
    ]
    if unknown:
        raise GameError(f"{', '.join(unknown)}: no job has such a setting; correct its name or remove it.")
    if cfg.limit is not None and not _is_whole(cfg.limit, 1):
        raise GameError(f"limit={cfg.limit}: give a positive whole number of samples, or null for all.")
    if not _is_whole(cfg.seed, 0):
        raise GameError(f"seed={cfg.seed}: give a whole number, not negative.")
    if not _is_whole(cfg.shards, 1):
        raise GameError(f"shards={cfg.shards}: give a positive whole number.")


def check_shard(cfg: DictConfig) -> None:
    """Refuse a job that does not say which of several shards it is.

    Raises:
        GameError: it does not.
    """
    if cfg.shard is None and cfg.shards > 1:
        raise GameError(f"shards={cfg.shards} needs a sweep over them: add -m, or give shard=0 to {cfg.shards - 1}.")
    if cfg.shard is not None and cfg.shard not in range(cfg.shards):
        raise GameError(f"shard={cfg.shard}: give a whole number from 0 to {cfg.shards - 1}, as shards={cfg.shards}.")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
