"""What a command computes: the jobs of an experiment, followed by their tracker, and then their table."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from metagame.errors import RecordError, UserError
from metagame.jobs.build import build_part
from metagame.jobs.checks import check_values, experiments_at
from metagame.jobs.grid import (
    asked_configs,
    check_commas,
    check_left_out,
    read_configs_once,
    read_refusal,
    refuse,
    sweep_configs,
)
from metagame.jobs.records import writing
from metagame.jobs.run import Outcome, run_job
from metagame.jobs.spec import OUTPUTS, is_left_out, merged, plain
from metagame.report.experiment import write_report
from metagame.report.results import EXPERIMENT, RUNS, read_job, read_jobs
from metagame.tracking import Tracker, track_job, track_report
from metagame.viewer.write import N_SAMPLES, write_page

log = logging.getLogger("metagame.experiments")


def run_one(cfg: DictConfig) -> str | None:
    """Run a job. A single one writes its table here, a sweep at its end (:class:`WriteReport`).

    Returns:
        What stopped the job of a sweep; the other jobs go on.
    """
    if is_left_out(cfg):
        log.info("%s x %s is left out of %s on purpose.", cfg.model.name, cfg.attribution.name, cfg.name)
        return None
    reason = _stopped_by(cfg)
    if HydraConfig.get().mode != RunMode.RUN:
        if reason is not None:
            with suppress(RecordError, OSError):  # where nothing can be written, the sweep's own process says so
                refuse(cfg, reason)
        return reason
    if reason is not None:
        log.error("%s", reason)
    written = finish([cfg]) if reason is None or _has_results(cfg) else False
    if reason is not None or not written:
        sys.exit(1)
    return None


def _has_results(cfg: DictConfig) -> bool:
    """Whether an earlier run has finished a sample of the job."""
    try:
        return any(result.done for result in read_job(cfg))
    except UserError:  # such as a broken record, which has stopped the job too
        return False


def _stopped_by(cfg: DictConfig) -> str | None:
    """Run the job: None, or in one sentence what stopped it, whatever that was."""
    try:
        run_tracked(cfg)
    except UserError as error:
        return str(error)
    except Exception as error:
        log.debug("job", exc_info=True)
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def run_tracked(cfg: DictConfig) -> Outcome:
    """:func:`metagame.jobs.run.run_job`, followed by the tracker of the config.

    Raises:
        UserError: as there, or a setting of the tracker has no such value.
    """
    check_values(cfg)
    tracker = build_tracker(cfg)

    def track(cfg: DictConfig, folder: Path, keys: frozenset[str]) -> AbstractContextManager[Callable[[], None]]:
        return track_job(tracker, cfg, folder, keys)

    return run_job(cfg, track)


def build_tracker(cfg: DictConfig) -> Tracker | None:
    """What the job is tracked by; None with ``tracker=none``.

    Raises:
        UserError: a setting of the tracker has no such value.
    """
    return build_part(cfg.tracker, "tracker") if "_target_" in cfg.tracker else None


def finish(configs: Sequence[DictConfig], names: Sequence[str] | None = None, *, tracked: bool = True) -> bool:
    """Write the report of the jobs with these configs, all of one experiment, and show it to their tracker.

    Args:
        configs: of the jobs.
        names: of the jobs, see :func:`metagame.report.experiment.write_report`.
        tracked: whether the tracker is shown the table.

    Returns:
        Whether every job that ran has a finished sample and the report is written; if not, why is said in one line.
    """
    try:
        tracker = build_tracker(configs[0]) if tracked else None
        barren = list(dict.fromkeys(result.job_label for result in write_report(configs, names) if not result.done))
    except UserError as error:
        log.error("%s", error)
        return False
    except Exception as error:  # a table costs no other experiment its own
        log.error("The table of %s could not be made (%s: %s).", configs[0].name, type(error).__name__, error)
        log.debug("table", exc_info=True)
        return False
    track_report(tracker, configs)
    if barren:
        log.error("No sample was computed by: %s; see the table's notes.", ", ".join(barren))
    return not barren


class WriteReport(Callback):
    """Hydra callback of a sweep: says what stopped a job, and at the end writes the table from the sweep's jobs.

    Jobs of earlier runs count. Jobs may run in other processes, on other machines: what stopped them is read from their
    folders. Hydra turns an exception of a callback into a warning, so a failure leaves as the exit status.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._start = datetime.now(UTC)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            given = config.hydra.overrides
            check_left_out(config.leave_out, [], [*given.hydra, *given.task])
        except UserError as error:
            log.error("%s", error)
            raise SystemExit(1) from None
        _check_folder(config)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._keep_command(config, [], [config.output_dir])

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        read_configs_once()
        try:
            check_values(config)
            grid, overrides = _swept(config)
            check_left_out(config.leave_out, grid, [*config.hydra.overrides.hydra, *overrides])  # such as a search path
            check_commas(config, config.hydra.overrides.task)
            _check_swept(plain(config.hydra, resolve=False)["overrides"]["task"])
        except UserError as error:
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
        try:
            finished = self._finish_sweep(config)
        except Exception as error:
            log.exception("The tables of this sweep could not be written.")
            raise SystemExit(1) from error
        if self._said or not finished:
            raise SystemExit(1)

    def _finish_sweep(self, config: DictConfig) -> bool:
        """Say what was refused, and write the table of each experiment; whether all of them are written."""
        grid, overrides = _swept(config)
        experiments: dict[str, list[DictConfig]] = {}
        for cfg in sweep_configs(grid, overrides):
            experiments.setdefault(cfg.output_dir, []).append(cfg)
        if any(read_refusal(cfg) for configs in experiments.values() for cfg in configs):
            for refusal in filter(None, map(read_refusal, asked_configs(grid, overrides))):
                self._say(refusal)
        finished = [finish(configs) for configs in experiments.values()]
        self._keep_command(config, ["-m"], list(experiments))
        return all(finished)

    def _keep_command(self, config: DictConfig, options: list[str], folders: Sequence[str]) -> None:
        """Append the command to :data:`RUNS` of each folder with a table."""
        command = ["python", "run.py", *options, *config.hydra.overrides.task]
        seconds = (datetime.now(UTC) - self._start).total_seconds()
        entry = {"command": shlex.join(command), "started": self._start.isoformat(timespec="seconds")}
        line = json.dumps(entry | {"seconds": round(seconds, 1)}, ensure_ascii=False)
        for folder in (path for path in map(Path, folders) if (path / EXPERIMENT).exists()):
            with writing(folder), (folder / RUNS).open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def _swept(config: DictConfig) -> tuple[list[str], list[str]]:
    """What the experiment's file sweeps but for the shards, and the overrides of the command line."""
    # unresolved, so that an override such as name=${seed} is one for each job
    sweep = plain(config.hydra, resolve=False)
    params = {key: value for key, value in (sweep["sweeper"].get("params") or {}).items() if key != "shard"}
    return [f"{key}={value}" for key, value in params.items()], sweep["overrides"]["task"]


def _check_swept(overrides: Sequence[str]) -> None:
    """Refuse to sweep over keys whose values would not be jobs, or tables, of their own.

    Args:
        overrides: of the command line, their interpolations not resolved.

    Raises:
        UserError: one of them is swept.
    """
    own_table = any("${limit}" in line for line in overrides)
    for line in (each for each in overrides if "," in each):
        if line.startswith("shards="):
            raise UserError(f"{line} would sweep over shards, which is not possible: give one positive integer.")
        if line.startswith("limit=") and not own_table:
            raise UserError(
                f"{line} would write one table over the other: give one positive integer, or each table a name of its"
                " own with 'name=NAME-${limit}'."
            )


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
        log.error("%s cannot be created (%s): choose another folder with output_dir=FOLDER.", folder, error.strerror)
        raise SystemExit(1) from None


# metagame report


def report(arguments: Sequence[str]) -> None:
    """Render the tables, figures and the page of a scale from its records, without a model."""
    parser = argparse.ArgumentParser(prog="metagame report", description=report.__doc__)
    parser.add_argument("experiments", nargs="*", help="folders of results to render; default: all")
    parser.add_argument("--scale", default="tiny", help="the scale whose results are rendered; default: tiny")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="the folder of all results; default: outputs")
    parser.add_argument(
        "--samples", type=int, default=N_SAMPLES, help="how many samples of each job to show on the page"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page, but no tables or figures")
    asked = parser.parse_args(list(arguments))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("metagame").setLevel(logging.INFO)
    folder = asked.outputs / asked.scale
    rendered = [] if asked.page_only else [_render_again(path) for path in _folders(folder, asked.experiments)]
    done = all(rendered)
    try:
        page = write_page(folder, experiments_at(asked.scale), asked.samples)
        log.info("wrote %s (%.1f MB)", page, page.stat().st_size / 1e6)
    except UserError as error:
        log.error("%s", error)
        done = False
    sys.exit(0 if done else 1)


def _folders(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Those of the named experiments, or of all that have a table."""
    if names:
        yield from (folder / name for name in names)
    else:
        yield from (path.parent for path in sorted(folder.glob(f"*/{EXPERIMENT}")))


def _render_again(folder: Path) -> bool:
    """Write the table and the figure of an experiment's folder; whether there was anything to write them from."""
    jobs = read_jobs(folder)
    if not jobs:
        command = f"python run.py experiment=table1 scale={folder.parent.name}"
        log.error("%s has no %s: run the experiment first, for example '%s'.", folder, EXPERIMENT, command)
        return False
    moved = [merged(cfg, {"output_dir": str(folder)}) for cfg in jobs.values()]
    return finish(moved, list(jobs), tracked=False)
