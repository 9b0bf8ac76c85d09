"""The jobs of experiments at paper scale, whose data and weights are to be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from metagame.games import GameError
from metagame.report.experiment import asked_configs

CHOICE = "experiment="


def paper_configs(names: Sequence[str], overrides: Sequence[str], folder: Path) -> list[DictConfig]:
    """The configs of the jobs that these experiments start at paper scale, Hydra being initialized.

    Args:
        names: of experiments; none: all, unless there are overrides.
        overrides: as on the command line; without a name they are of a single job.
        folder: of the configs.

    Raises:
        GameError: there is no such experiment.
    """
    names = [*names, *(line.removeprefix(CHOICE) for line in overrides if line.startswith(CHOICE))]
    overrides = [line for line in overrides if not line.startswith(CHOICE)]
    known = sorted(path.stem for path in (folder / "experiment").glob("*.yaml"))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise GameError(f"there is no experiment {unknown[0]!r}: give some of {', '.join(known)}.")
    asked = ["scale=paper", *overrides]
    if overrides and not names:
        return asked_configs([], asked)
    return [cfg for name in names or known for cfg in asked_configs(_grid(name), [f"experiment={name}", *asked])]


def _grid(experiment: str) -> list[str]:
    """What the experiment's file sweeps, as overrides."""
    cfg = compose("config", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    swept = OmegaConf.to_container(cfg.hydra.sweeper, resolve=False).get("params") or {}
    return [f"{key}={value}" for key, value in swept.items() if key != "shard"]
