"""A progress bar for whatever tells how far it is."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec

from metagame.extras import needed_by
from metagame.games import Progress


@contextmanager
def progress_bar(title: str = "coalitions") -> Generator[Progress]:
    """Context manager that draws one progress bar, in a terminal or a notebook with ipywidgets.

    Pass what it yields as ``progress``.

    Raises:
        UserError: rich is not installed.
    """
    with needed_by("progress_bar()"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

    console = Console(stderr=True)
    drawn = find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, disable=not drawn) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, planned: bars.update(bar, completed=done, total=planned)
