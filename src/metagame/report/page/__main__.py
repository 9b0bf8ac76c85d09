"""Write the HTML report of a scale: ``python -m metagame.report.page --scale tiny``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from metagame.games import GameError
from metagame.records import RecordError
from metagame.report.page.write import N_SAMPLES, write_page

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Read the results under ``--outputs`` and write ``report/index.html`` beside them."""
    parser = argparse.ArgumentParser(prog="python -m metagame.report.page", description=__doc__)
    parser.add_argument("--scale", choices=("tiny", "paper"), default="tiny")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of all results")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="whose experiments are listed")
    parser.add_argument("--samples", type=int, default=N_SAMPLES, help="of each job, the first ones, in the browser")
    asked = parser.parse_args(arguments)
    known = [path.stem for path in (asked.configs / "experiment").glob("*.yaml")]
    try:
        path = write_page(asked.outputs / asked.scale, known, asked.samples)
    except (GameError, RecordError) as error:
        log.error("%s", error)
        sys.exit(1)
    log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
