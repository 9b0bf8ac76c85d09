"""Download what a scale needs: the data of benchmarks, and the weights of models. The default is scale=paper."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, errors
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.filesize import decimal

from metagame.errors import UserError
from metagame.fetch.datasets import DATA, Source, sources
from metagame.fetch.transfer import NETWORK
from metagame.fetch.weights import GATE, Repository, repositories
from metagame.jobs.checks import check_scale, experiments_at
from metagame.jobs.grid import check_keys
from metagame.jobs.records import writing
from metagame.jobs.spec import configs_folder, is_left_out, merged, register

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def main(arguments: Sequence[str]) -> None:
    """Sizes and licences are shown first. If interrupted, rerun the same command to resume."""
    parser = argparse.ArgumentParser("metagame fetch", description=f"{__doc__} {main.__doc__}")
    parser.add_argument("what", choices=("data", "weights", "all"))
    parser.add_argument(
        "asked",
        nargs="*",
        metavar="EXPERIMENT",
        help="an experiment, or an override, KEY=VALUE; default: all experiments",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be downloaded")
    given = parser.parse_intermixed_args(list(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what stopped its last attempt is told in a sentence
    try:
        configs = list(asked_configs(given.asked))
        benchmarks = sorted({data_name(cfg) for cfg in configs})
        data = sources(benchmarks), DATA, "put a link to a larger disk in its place"
        weights = repositories(configs), Path(constants.HF_HUB_CACHE), "set HF_HOME to a folder on a larger disk"
        parts = {"data": [data], "weights": [weights], "all": [data, weights]}[given.what]
        well = [fetch(*part, given.dry_run) for part in parts]
    except (UserError, HydraException, OmegaConfBaseException, KeyboardInterrupt) as error:
        sys.exit(" ".join(str(error).split()) or "Stopped: rerun the same command to resume.")
    sys.exit(0 if all(well) else 1)


def fetch(things: Sequence[Source | Repository], folder: Path, advice: str, dry_run: bool) -> bool:
    """Tell what is to be fetched, then do so; whether all could be had. A UserError, with the advice: a small disk."""
    plans = [(each.name, plan) for each in things for plan in _try(each.name, folder, each.plan)]
    room = sum(plan[1] for _, plan in plans)
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    told = [plan[0] for _, plan in plans] + [f"{decimal(room)} needed, {decimal(free)} free in {folder}."]
    log.info("%s", "\n".join(told))
    if room > free:
        raise UserError(f"{folder} does not have enough room; nothing was fetched: free some space, or {advice}.")
    done = plans if dry_run else [one for name, plan in plans for one in _try(name, folder, plan[2])]
    return len(done) == len(plans) == len(things)


def _try(name: str, folder: Path, call: Callable[[], Result]) -> list[Result]:
    """What the call gives; nothing where it fails, and why is told in a sentence."""
    try:
        with writing(folder):
            return [call()]
    except UserError as error:
        log.error("%s", error)
    except errors.GatedRepoError:
        log.error("%s is gated: %s.", name, GATE.format(name))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        log.error("%s is not on the hub, or private: correct its name or revision, or run 'hf auth login'.", name)
    except (*NETWORK, OSError, RuntimeError) as error:
        text = "no connection" if isinstance(error, NETWORK) else str(error).strip().partition("\n")[0].rstrip(".")
        log.error("%s cannot be fetched (%s): rerun the same command to resume.", name, text)
    return []


def data_name(cfg: DictConfig) -> str:
    """What the data of a job's benchmark are called in datasets.yaml: those of other scales than the paper's by it."""
    return cfg.benchmark.name if cfg.scale.name == "paper" else f"{cfg.scale.name}/{cfg.benchmark.name}"


def asked_configs(asked: Sequence[str]) -> Iterator[DictConfig]:
    """The configs of the jobs asked for, at paper scale unless another is given.

    Raises:
        UserError: there is no such experiment or key, or no values for the scale.
    """
    register()
    overrides = [each for each in asked if "=" in each and not each.startswith(("experiment=", "scale="))]
    names = [each.removeprefix("experiment=") for each in asked if "=" not in each or each.startswith("experiment=")]
    scale = ["scale=paper", *(each for each in asked if each.startswith("scale="))][-1]
    known = sorted(path.stem for path in (configs_folder() / "experiment").glob("*.yaml"))
    if not {*names} <= {*known}:
        raise UserError(f"no experiment is called {', '.join({*names} - {*known})}: choose some of {', '.join(known)}.")
    check_keys(overrides, [configs_folder()])
    with initialize_config_dir(str(configs_folder()), version_base="1.3"):
        for name in names or ([""] if overrides else experiments_at(scale.removeprefix("scale=")) or known):
            chosen = [scale, *([f"experiment={name}"] if name else [])]
            swept = compose("config", chosen, return_hydra_config=True).hydra.sweeper.params
            # no method needs anything of its own
            grid = [f"{key}={value}" for key, value in swept.items() if key not in ("shard", "attribution")]
            lines = OverridesParser.create().parse_overrides([*chosen, *grid, *overrides])
            cells = (compose("config", cell) for cell in BasicSweeper.split_arguments(lines, None)[0])
            for cfg in cells:
                if not is_left_out(_of_any_method(cfg)):
                    check_scale(cfg)
                    yield cfg


def _of_any_method(cfg: DictConfig) -> DictConfig:
    """The config without the combinations that are left out of one method alone; other methods need what they need."""
    return merged(cfg, {"leave_out": [entry for entry in cfg.leave_out if "attribution" not in entry]})
