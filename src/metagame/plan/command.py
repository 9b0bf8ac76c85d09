"""Estimate the cost of jobs and list what is missing, as in 'metagame plan experiment=table2 scale=paper'."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from metagame.errors import UserError
from metagame.jobs.checks import check_scale, check_values
from metagame.jobs.grid import check_keys
from metagame.jobs.spec import configs_folder


def main(arguments: Sequence[str]) -> None:
    """The command ``metagame plan``."""
    parser = argparse.ArgumentParser("metagame plan", description=__doc__)
    parser.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE",
        help="as for metagame run; plan.tflops=RATE sets the speed that the hours assume, in 10^12 FLOPs per second",
    )  # fmt: skip
    given = parser.parse_args(list(arguments)).overrides
    from metagame.plan.cost import plan_job, planned_configs, read_rate, show  # here, since it takes seconds to import

    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        tflops = read_rate([each.partition("=")[2] for each in given if each.startswith("plan.tflops=")])
        overrides = [each for each in given if not each.startswith("plan.tflops=")]
        check_keys(overrides, [configs_folder()])
        configs = planned_configs(overrides)
        for cfg in configs:
            check_values(cfg)
            check_scale(cfg)
        plans = [plan_job(cfg, configs) for cfg in configs]
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(" ".join(str(error).split()))
    show(plans, tflops)
