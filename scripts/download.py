"""Fetch what the paper scale needs: the data of benchmarks, and the weights of models.

    python -m scripts.download data [EXPERIMENT ...] [--dry-run] [--keep-archives] [--data data]
    python -m scripts.download weights [EXPERIMENT ...] [--dry-run]

Without names: of all experiments. Overrides are those of run.py: weights figure3 model=gemma3_4b_it. What is fetched
and which room it takes is told before anything starts. Run the same command again after a cut or a kill: it goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

from metagame.downloads.datasets import Dataset, get, plan, read_manifest
from metagame.downloads.disk import check_room
from metagame.downloads.experiments import paper_configs
from metagame.downloads.open_clip_weights import get_open_clip_weights, open_clip_weights
from metagame.downloads.weights import Listing, Repository, get_weights, is_cached, list_files, repositories
from metagame.games import GameError
from metagame.progress import StderrHandler
from metagame.records import RecordError

CONFIGS = Path(__file__).parents[1] / "configs"

log = logging.getLogger("metagame.download")


def download_data(datasets: dict[str, Dataset], data: Path, *, dry_run: bool, keep_archives: bool) -> bool:
    """Tell what the benchmarks need, fetch it, tell what is left to the user; whether all could be fetched.

    Raises:
        GameError: the disk is too small; nothing is fetched.
    """
    steps = plan(datasets, data)
    for step in steps:
        print(step.line())
    if any(not step.is_there for step in steps):
        advice = f"put a link to a larger disk in place of {data}"
        print(check_room((step.need(keep_archives=keep_archives) for step in steps), data, advice), flush=True)
    well = True
    for step in [] if dry_run else steps:
        try:
            get(step.source, data, keep_archive=keep_archives)
        except (GameError, RecordError) as error:
            log.error("%s: %s", step.benchmark, error)
            well = False
    for name, dataset in datasets.items():
        yours = dataset.left_to_you(data)
        if yours is not None:
            print(f"{name}, left to you: {yours}")
    return well


def download_weights(configs: Sequence[DictConfig], *, dry_run: bool) -> bool:
    """Tell which weights the jobs need, fetch them; whether all are there, or with ``dry_run`` can be told.

    Raises:
        GameError: the disk is too small; nothing is fetched.
    """
    asked = repositories(configs)
    if constants.HF_HUB_OFFLINE:
        return _look_into_cache(asked)
    listings: list[Listing] = []
    well = True
    for repository in asked:
        try:
            listings.append(list_files(repository))
        except GameError as error:
            log.error("%s", error)
            well = False
    named = open_clip_weights(configs)
    for each in (*listings, *named):
        print(each.line())
    if not asked and not named:
        print("No weights are to be fetched.")
    if any(listing.missing for listing in listings):
        needs = (listing.need() for listing in listings)
        print(check_room(needs, Path(constants.HF_HUB_CACHE), "set HF_HOME to a folder on a larger disk"), flush=True)
    if dry_run:
        return well
    for fetch, each in [*((get_weights, one) for one in listings), *((get_open_clip_weights, one) for one in named)]:
        try:
            fetch(each)
        except (GameError, RecordError) as error:
            log.error("%s", error)
            well = False
    return well


def _look_into_cache(asked: Sequence[Repository]) -> bool:
    cached = {each.name: is_cached(each) for each in asked}
    for name, there in cached.items():
        print(f"{name}: {'in the cache, not checked' if there else 'missing'}, HF_HUB_OFFLINE is set.")
    return all(cached.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "weights"))
    parser.add_argument("asked", nargs="*", metavar="EXPERIMENT", help="or an override, key=value")
    parser.add_argument("--dry-run", action="store_true", help="only tell")
    parser.add_argument("--keep-archives", action="store_true", help="do not remove archives once they are unpacked")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data; configs name data/")
    given = parser.parse_intermixed_args(arguments)
    names = [each for each in given.asked if "=" not in each]
    overrides = [each for each in given.asked if "=" in each]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            configs = paper_configs(names, overrides, CONFIGS)
        if given.what == "data":
            datasets = _datasets(configs)
            well = download_data(datasets, given.data, dry_run=given.dry_run, keep_archives=given.keep_archives)
        else:
            well = download_weights(configs, dry_run=given.dry_run)
    except (GameError, RecordError, HydraException) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped: run the same command again, it goes on where it stopped.")
    if not well:
        sys.exit(1)


def _datasets(configs: Sequence[DictConfig]) -> dict[str, Dataset]:
    """The datasets of the jobs' benchmarks; says which benchmarks need none."""
    manifest = read_manifest()
    benchmarks = sorted({cfg.benchmark.name for cfg in configs})
    without = [name for name in benchmarks if name not in manifest]
    if without:
        print(f"Nothing to fetch for {', '.join(without)}.")
    return {name: manifest[name] for name in benchmarks if name in manifest}


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", handlers=[StderrHandler()])
    logging.getLogger("metagame").setLevel(logging.INFO)
    main()
