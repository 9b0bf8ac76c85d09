"""What happens around a run: what is looked at before, the table at the end, and the exit status."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from metagame.games import GameError
from metagame.jobs import build_tracker, read_refusal
from metagame.records import RecordError, writing
from metagame.report.experiment import asked_configs, sweep_configs, write_report
from metagame.settings import check_values
from metagame.tracking import track_report

log = logging.getLogger(__name__)


class WriteReport(Callback):
    """Hydra callback of a sweep: says what stopped a job, and at the end writes the table from the sweep's jobs.

    Jobs of earlier runs count. Jobs may run in other processes, on other machines: what stopped them is read from their
    folders. Hydra turns an exception of a callback into a warning, so a failure leaves as the exit status.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_folder(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check_values(config)
            for line in config.hydra.overrides.task:
                if line.startswith("shards=") and "," in line:
                    raise GameError(f"{line}: shards cannot be swept, give one positive whole number.")
        except GameError as error:
            log.error("%s", error)
            raise SystemExit(1) from None
        _check_folder(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        refusal = job_return.return_value if job_return.status == JobStatus.COMPLETED else None
        if refusal is not None:
            self._say(refusal)

    def _say(self, refusal: str) -> None:
        if refusal not in self._said:
            log.error("%s", refusal)
            self._said.add(refusal)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # unresolved, so that an override such as name=${seed} is one for each job
        sweep = OmegaConf.to_container(config.hydra, resolve=False)
        params = {key: value for key, value in (sweep["sweeper"].get("params") or {}).items() if key != "shard"}
        grid = [f"{key}={value}" for key, value in params.items()]
        try:
            experiments: dict[str, list[DictConfig]] = {}
            for cfg in sweep_configs(grid, sweep["overrides"]["task"]):
                experiments.setdefault(cfg.output_dir, []).append(cfg)
            if any(read_refusal(cfg) for configs in experiments.values() for cfg in configs):
                for refusal in filter(None, map(read_refusal, asked_configs(grid, sweep["overrides"]["task"]))):
                    self._say(refusal)
            finished = [finish(configs) for configs in experiments.values()]
        except Exception as error:
            log.exception("The table of %s could not be written.", config.name)
            raise SystemExit(1) from error
        if self._said or not all(finished):
            raise SystemExit(1)


def _check_folder(config: DictConfig) -> None:
    """Stop here, in one line, where results cannot be written: the disk is full, or the folder read-only."""
    folder = Path(config.output_dir)
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(1 << 15))  # more than Hydra writes of its own
                file.flush()
    except RecordError as error:
        log.error("%s", error)
        raise SystemExit(1) from None
    except OSError as error:
        log.error("%s cannot be made (%s): choose another folder, with output_dir=FOLDER.", folder, error.strerror)
        raise SystemExit(1) from None


def finish(configs: Sequence[DictConfig]) -> bool:
    """Write the report of the jobs with these configs, all of one experiment.

    Returns:
        Whether every job that ran has a finished sample and the report is written; if not, why is said in one line.
    """
    try:
        tracker = build_tracker(configs[0])
        barren = [result.config.attribution.label for result in write_report(configs) if not result.done]
    except (GameError, RecordError) as error:
        log.error("%s", error)
        return False
    track_report(tracker, configs)
    if barren:
        log.error("No sample was computed by: %s; see the table's notes.", ", ".join(barren))
    return not barren
