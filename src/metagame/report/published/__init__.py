"""Published values, as facts in YAML."""

from functools import cache
from importlib.resources import files

import yaml


@cache
def published(name: str) -> dict:
    """The published values of a table or figure, such as ``table1``."""
    return yaml.safe_load(files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
