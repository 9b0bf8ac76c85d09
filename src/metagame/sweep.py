"""What happens around a run: the table at the end, and the exit status."""

from __future__ import annotations

import logging
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from metagame.games import GameError
from metagame.records import RecordError
from metagame.report.experiment import sweep_configs, write_report

log = logging.getLogger(__name__)


class WriteReport(Callback):
    """Hydra callback: when a sweep is over, write the experiment's table from its jobs, this run's or earlier ones'.

    Hydra turns an exception of a callback into a warning, so failure leaves as the exit status.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        grid = [f"{key}={value}" for key, value in (OmegaConf.select(config, "hydra.sweeper.params") or {}).items()]
        configs = sweep_configs(grid, config.hydra.overrides.task)
        try:
            write_report(configs)
        except (GameError, RecordError) as error:
            log.error("%s", error)
            raise SystemExit(1) from error
