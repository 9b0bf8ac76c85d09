"""Copy the table and the figure of a run on real weights into docs/results, with what they were made from.

python -m scripts.publish_results outputs/small/figure3 docs/results/small/smollm2-135m-instruct/figure3 \
    [--checkpoint FOLDER]

Beside the table, its figures and their caption stands made.json: the commands of the run and the seconds that each
took, the versions of the libraries, the revision of the weights, and the SHA-256 of the checkpoint's files and of those
copied. A checkpoint's folder is named FOLDER in the commands.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from metagame.errors import UserError
from metagame.jobs.environment import computed_with
from metagame.report.results import RUNS, read_experiment

COPIED = ("table.json", "table.md", "figure.png", "figure_*.png", "caption.txt")


def publish(run: Path, target: Path, checkpoint: Path | None = None) -> None:
    """Copy the files of ``run`` and write ``made.json``.

    Raises:
        UserError: the run has no table.
    """
    if not (run / "table.json").exists():
        raise UserError(f"{run} has no table.json: give the folder of an experiment that has run.")
    target.mkdir(parents=True, exist_ok=True)
    copied = [path.name for pattern in COPIED for path in sorted(run.glob(pattern))]
    for name in copied:
        shutil.copyfile(run / name, target / name)
    made = {
        "runs": _runs(run, checkpoint),
        "environments": _environments(run),
        "checkpoint": {} if checkpoint is None else {path.name: _sha256(path) for path in sorted(checkpoint.iterdir())},
        "files": {name: _sha256(target / name) for name in copied},
    }
    (target / "made.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _runs(run: Path, checkpoint: Path | None) -> list[dict]:
    """The commands that wrote the table, by start."""
    lines = (run / RUNS).read_text(encoding="utf-8")
    if checkpoint is not None:
        lines = lines.replace(str(checkpoint), "FOLDER")
    return [json.loads(line) for line in lines.splitlines()]


def _environments(run: Path) -> list[dict]:
    """What the run's jobs were computed with, each environment once.

    The commit is left out, since one of a branch may not be found again.
    """
    found = []
    for result in read_experiment(run):
        last = json.loads((result.folder / "environment.json").read_text(encoding="utf-8"))
        del last["git_commit"]
        for own in (last, *(last | each for each in result.environments() if each != computed_with(last))):
            if own not in found:
                found.append(own)
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    publish(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
