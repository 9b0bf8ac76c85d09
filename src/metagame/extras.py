"""Packages that are not installed, and the extra of this one that brings them."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires

from metagame.errors import UserError

DISTRIBUTIONS = {
    "PIL": "pillow", "hydra": "hydra-core", "open_clip": "open-clip-torch", "sklearn": "scikit-learn",
    "submitit": "hydra-submitit-launcher", "yaml": "pyyaml",
}  # fmt: skip
"""What is installed under another name than it is imported by."""


def main() -> None:
    """The entry point ``metagame``, which says what it needs where that is not installed."""
    try:
        with needed_by("the command metagame"):
            from metagame.cli import main as command
    except UserError as error:
        sys.exit(str(error))
    command()


@contextmanager
def needed_by(what: str) -> Generator[None]:
    """Within: where an import finds no package, one sentence says what needs it and how to install it.

    ``what`` may be the dotted path that a config names; where its own package is not found, the error stays as it is.

    Raises:
        UserError: a package is not installed.
    """
    try:
        yield
    except (ImportError, UserError) as error:
        package = _missing_package(error)
        if package is None or package == what.partition(".")[0]:
            raise
        name = DISTRIBUTIONS.get(package, package)
        raise UserError(f"{what} needs {name}, which is not installed: {_how_to_install(name)}.") from error


def _missing_package(error: BaseException | None) -> str | None:
    """The package that is not found, by an error or its cause; None where something else is wrong."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
            return error.name
        error = error.__cause__
    return None


def _how_to_install(name: str) -> str:
    extras = [f"'metagame[{extra}]'" for extra in extras_with(name)]
    return f"pip install {' or '.join(extras)}" if extras else "install it beside metagame"


def extras_with(name: str) -> list[str]:
    """The extras that name a distribution, as the installed metadata of this one has them."""
    try:
        lines = requires("metagame") or []
    except PackageNotFoundError:  # it is used from its source
        return []
    found = (re.match(r"([\w.-]+).*\bextra == ['\"]([\w.-]+)", line) for line in lines)
    return [each[2] for each in found if each and _normalised(each[1]) == _normalised(name)]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
