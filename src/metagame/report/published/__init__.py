"""Published values, as facts in YAML and CSV."""

import csv
from functools import cache
from importlib.resources import files

import yaml

from metagame.report.scores import clustered_cell

Row = tuple[str, str, bool]
"""A row of Tables 2 and 4: the name of its model, the base name of its method, and whether it is the metagame."""


@cache
def published(name: str) -> dict:
    """The published values of a table or figure, such as ``table1``."""
    return yaml.safe_load(files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def published_images() -> dict[Row, dict[int, dict[tuple[str, str], float]]]:
    """The score of each image in the pointing game: by row, number of objects, and (game, image ``"0"`` to ``"49"``).

    They are rounded to thousandths. The authors published them of 20 of the 26 rows.
    """
    text = files(__name__).joinpath("pointing_game_images.csv").read_text(encoding="utf-8")
    lines = list(csv.reader(text.splitlines()[1:]))
    games = {words.split()[0]: words.replace(" ", "-") for *_, objects, words, _ in lines if objects == "4"}
    found: dict[Row, dict[int, dict[tuple[str, str], float]]] = {}
    for model, attribution, meta, objects, words, scores in lines:
        of_row = found.setdefault((model, attribution, meta == "true"), {})
        of_scenario = of_row.setdefault(int(objects), {})
        game = games[words.split()[0]]  # no two games begin with the same word
        of_scenario |= {(game, str(k)): int(score) / 1000 for k, score in enumerate(scores.split())}
    return found


@cache
def published_means() -> dict[Row, list]:
    """Every row of Tables 2 and 4, for 1 to 4 objects: a cell of type ``mean``, or the mean as printed."""
    printed = published("pointing_game")["rows"]
    means = {(row["model"], row["attribution"], row["meta"]): row["objects"] for row in printed}
    return means | {row: [clustered_cell(each[m]) for m in sorted(each)] for row, each in published_images().items()}
