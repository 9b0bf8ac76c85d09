"""Published values, as facts in YAML and CSV."""

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from metagame.jobs.labels import WEIGHTS, has_shipped_weights, same_name
from metagame.report.scores import clustered_cell

Row = tuple[str, str, bool]
"""A row of Tables 2 and 4: the name of its model, the base name of its method, and whether it is the metagame."""


@cache
def published(name: str) -> dict:
    """The published values of a table or figure, such as ``table1``."""
    return yaml.safe_load(files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def other_settings(cfg: DictConfig, settings: Mapping[str, Any]) -> list[str]:
    """In which settings a job is not as published numbers were made, such as ``benchmark.n_layers=2``.

    Args:
        cfg: of the job; settings that it does not have are no difference.
        settings: of the published numbers, by their keys in a job's config.
    """
    own = {key: OmegaConf.select(cfg, key, default=value) for key, value in settings.items()}
    return [f"{key}={_shown(value)}" for key, value in own.items() if not _agree(key, value, settings[key])]


def _agree(key: str, value: Any, theirs: Any) -> bool:
    """Whether a setting is the published one; a checkpoint also where it is a folder of that name."""
    return same_name(value, theirs) if key.endswith(".checkpoint") else value == theirs


def _shown(value: Any) -> Any:
    """A value as settings of the command line have it."""
    return value if not isinstance(value, bool) else str(value).lower()


def other_weights(cfg: DictConfig) -> list[str]:
    """The same of the model's weights: published values are of those that the shipped config of this name has."""
    own = {} if has_shipped_weights(cfg) else {key: cfg.model.get(key) for key in WEIGHTS}
    return [f"model.{key}={value}" for key, value in own.items() if value is not None]


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
def published_games() -> frozenset[str]:
    """The games of Tables 2 and 4, such as ``fish-koala-balloon-laptop``."""
    return frozenset(game for row in published_images().values() for game, _ in row[1])


@cache
def published_means() -> dict[Row, list]:
    """Every row of Tables 2 and 4, for 1 to 4 objects: a cell of type ``mean``, or the mean as printed."""
    printed = published("pointing_game")["rows"]
    means = {(row["model"], row["attribution"], row["meta"]): row["objects"] for row in printed}
    return means | {row: [clustered_cell(each[m]) for m in sorted(each)] for row, each in published_images().items()}
