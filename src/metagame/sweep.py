"""What happens around a run: the table at the end, and the exit status."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from metagame.games import GameError
from metagame.records import RecordError
from metagame.report.experiment import sweep_configs, write_report

log = logging.getLogger(__name__)


class WriteReport(Callback):
    """Hydra callback: when a sweep is over, write the experiment's table from its jobs, this run's or earlier ones'.

    Hydra turns an exception of a callback into a warning, so a failure leaves as the exit status.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        grid = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        try:
            finish(sweep_configs(grid, config.hydra.overrides.task))
        except Exception as error:
            log.exception("The table of %s could not be written.", config.name)
            raise SystemExit(1) from error


def finish(configs: Sequence[DictConfig]) -> None:
    """Write the report of the jobs with these configs.

    Raises:
        SystemExit: 1 where a job that ran has no finished sample, or the report cannot be written; said in one line.
    """
    try:
        barren = [result.config.attribution.name for result in write_report(configs) if not result.done]
    except (GameError, RecordError) as error:
        log.error("%s", error)
        raise SystemExit(1) from error
    if barren:
        log.error("No sample was computed by: %s; see the table's notes.", ", ".join(barren))
        raise SystemExit(1)
