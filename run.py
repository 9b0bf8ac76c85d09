"""Run one job, or with -m (or an experiment) a sweep of jobs, and write the experiment's table.

python run.py model=adder attribution=meta_ig benchmark=addition
python run.py experiment=table1
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from metagame.games import GameError
from metagame.jobs import is_left_out, refuse, run_job
from metagame.records import RecordError
from metagame.sweep import finish

log = logging.getLogger("metagame.run")


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(cfg: DictConfig) -> str | None:
    """Run a job. A single one writes its table here, a sweep at its end (metagame.sweep.WriteReport).

    Returns:
        Why the job of a sweep could not start; the other jobs go on.
    """
    single = HydraConfig.get().mode == RunMode.RUN
    if is_left_out(cfg):
        log.info("%s x %s is left out of %s on purpose.", cfg.model.name, cfg.attribution.name, cfg.name)
        return None
    if cfg.scale.threads is not None:
        torch.set_num_threads(cfg.scale.threads)
    try:
        run_job(cfg)
    except (GameError, RecordError) as error:
        if not single:
            with suppress(RecordError, OSError):  # where nothing can be written, the sweep's own process says so
                refuse(cfg, str(error))
            return str(error)
        log.error("%s", error)
        sys.exit(1)
    if single and not finish([cfg]):
        sys.exit(1)
    return None


def explain_parse_errors(arguments: list[str]) -> None:
    """Answer an override that Hydra cannot read with how to quote it."""
    parser = OverridesParser.create()
    for argument in (argument for argument in arguments if "=" in argument and not argument.startswith("-")):
        try:
            parser.parse_override(argument)
        except HydraException as error:
            key, value = argument.split("=", 1)
            reason = str(error).splitlines()[0].split(" expecting ")[0]
            quoted = value.replace("'", "\\'")
            sys.exit(
                f"Hydra cannot read {argument!r} ({reason}): quote the value inside the quotes, \"{key}='{quoted}'\"."
            )


def stop(number: int, frame: FrameType | None) -> None:
    """Leave at once where the process is told to, by a user or by a cluster whose time is over."""
    log.error("Stopped by %s: run the same command again, it goes on where it stopped.", signal.Signals(number).name)
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # the cursor, which progress bars hide
    sys.stderr.flush()
    os._exit(128 + number)  # an exception may be swallowed on its way out; what is on the disk is whole at any moment


if __name__ == "__main__":
    explain_parse_errors(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, stop)
    main()
