"""Progress bars of a job: one for its samples, one inside a long sample; nothing where there is no terminal."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class JobProgress:
    """A context manager around the work on ``n_samples``, of which ``n_done`` were done before."""

    def __init__(self, title: str, n_samples: int, n_done: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True, speed_estimate_period=600
        )
        self._samples = self._bars.add_task(title, total=n_samples, completed=n_done)
        self._inside = self._bars.add_task("  this sample", total=None, visible=False)

    def __enter__(self) -> JobProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def advance(self) -> None:
        """One sample is over."""
        self._bars.reset(self._inside, total=None, visible=False)
        self._bars.advance(self._samples)

    def within_sample(self, done: int, total: int) -> None:
        """So much of the sample in work is done (coalitions evaluated, targets fitted, or terms derived)."""
        if done <= self._bars.tasks[self._inside].completed:  # another part of the work
            self._bars.reset(self._inside)
        self._bars.update(self._inside, completed=done, total=total, visible=True)


class StderrHandler(logging.StreamHandler):
    """Logs to what ``sys.stderr`` is at the moment: while bars are drawn, lines then appear above them."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """The stream given at construction is not kept."""
