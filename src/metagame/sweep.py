"""What happens around a run: the table at the end, and the exit status."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from metagame.games import GameError
from metagame.records import RecordError
from metagame.report.experiment import sweep_configs, write_report

log = logging.getLogger(__name__)


class WriteReport(Callback):
    """Hydra callback of a sweep: says what stopped a job, and at the end writes the table from the sweep's jobs.

    Jobs of earlier runs count. Hydra turns an exception of a callback into a warning, so a failure leaves as the exit
    status.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        refusal = job_return.return_value if job_return.status == JobStatus.COMPLETED else None
        if refusal is not None and refusal not in self._said:
            log.error("%s", refusal)
            self._said.add(refusal)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # unresolved, so that an override such as name=${seed} is one for each job
        sweep = OmegaConf.to_container(config.hydra, resolve=False)
        grid = [f"{key}={value}" for key, value in (sweep["sweeper"].get("params") or {}).items()]
        try:
            experiments: dict[str, list[DictConfig]] = {}
            for cfg in sweep_configs(grid, sweep["overrides"]["task"]):
                experiments.setdefault(cfg.output_dir, []).append(cfg)
            finished = [finish(configs) for configs in experiments.values()]
        except Exception as error:
            log.exception("The table of %s could not be written.", config.name)
            raise SystemExit(1) from error
        if self._said or not all(finished):
            raise SystemExit(1)


def finish(configs: Sequence[DictConfig]) -> bool:
    """Write the report of the jobs with these configs, all of one experiment.

    Returns:
        Whether every job that ran has a finished sample and the report is written; if not, why is said in one line.
    """
    try:
        barren = [result.config.attribution.label for result in write_report(configs) if not result.done]
    except (GameError, RecordError) as error:
        log.error("%s", error)
        return False
    if barren:
        log.error("No sample was computed by: %s; see the table's notes.", ", ".join(barren))
    return not barren
