"""Tracking of jobs by a service: what a tracker is told, and that its failure never stops a job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig

from metagame.games import GameError

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Follows one job, from ``start`` to ``close``, or one report. Any method may raise.

    What there is to track lies in the job's folder: its config, environment and records.
    """

    def start(self, cfg: DictConfig, folder: Path, keys: Collection[str]) -> None:
        """The job with this config begins; ``keys`` are those of its samples (of its shard's, where it is one)."""

    def update(self) -> None:
        """Records were appended."""

    def close(self, *, stopped: bool) -> None:
        """The job is over, or was stopped before its last sample."""

    def report(self, configs: Sequence[DictConfig]) -> None:
        """The table, and the figure if there is one, of the jobs with these configs are written."""

    def abandon(self) -> None:
        """A method raised: let go of what is held; nothing more is told."""


class Tracking:
    """Tells a tracker what happens; once it fails this is said in one sentence, and it is told nothing more.

    Args:
        tracker: None where nothing is tracked.
        unharmed: what goes on all the same, said with the failure.
    """

    def __init__(self, tracker: Tracker | None, unharmed: str) -> None:
        self._tracker = tracker
        self._unharmed = unharmed

    def tell(self, event: Callable[[Tracker], None]) -> None:
        """Call ``event`` with the tracker, if there is one that works."""
        if self._tracker is None:
            return
        try:
            event(self._tracker)
        except Exception as error:
            log.warning("Tracking stopped (%s); %s.", _in_one_line(error), self._unharmed)
            log.debug("tracking", exc_info=True)
            tracker, self._tracker = self._tracker, None
            with suppress(Exception):  # it is broken, which has been said
                tracker.abandon()


@contextmanager
def track_job(
    tracker: Tracker | None, cfg: DictConfig, folder: Path, keys: Collection[str]
) -> Iterator[Callable[[], None]]:
    """Within: the job is tracked; call what is yielded whenever records were appended."""
    tracking = Tracking(tracker, f"the job goes on, its records are in {folder}")
    tracking.tell(lambda tracker: tracker.start(cfg, folder, keys))
    try:
        yield lambda: tracking.tell(lambda tracker: tracker.update())
    except BaseException:
        tracking.tell(lambda tracker: tracker.close(stopped=True))
        raise
    tracking.tell(lambda tracker: tracker.close(stopped=False))


def track_report(tracker: Tracker | None, configs: Sequence[DictConfig]) -> None:
    """Show the tracker the table that was written of the jobs with these configs, and its figure."""
    tracking = Tracking(tracker, f"the table is in {configs[0].output_dir}")
    tracking.tell(lambda tracker: tracker.report(configs))


def _in_one_line(error: Exception) -> str:
    message = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, GameError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
