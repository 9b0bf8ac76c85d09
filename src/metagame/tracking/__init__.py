"""Tracking of jobs by a service: what a tracker is told, and that its failure never stops a job."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from omegaconf import DictConfig

from metagame.errors import UserError

log = logging.getLogger(__name__)
SECONDS_BETWEEN = 5.0  # from one look at the records of a running job to the next, at least


class Tracker(Protocol):
    """Shows elsewhere what the files of one job, or one report, say. A method may raise, or take too long.

    ``sync`` shows what is new of the job's records with these keys, ``last`` at its end; ``report`` the table of jobs,
    and their figure if there is one. ``abandon`` lets go of what is held: it follows a failure, and nothing follows it.
    """

    timeout: float  # seconds that a job waits for a method

    def sync(self, cfg: DictConfig, folder: Path, keys: Collection[str], last: bool) -> None: ...
    def report(self, configs: Sequence[DictConfig]) -> None: ...
    def abandon(self) -> None: ...


@contextmanager
def track_job(
    tracker: Tracker | None, cfg: DictConfig, folder: Path, keys: Collection[str]
) -> Generator[Callable[[], None], None, None]:
    """Within: the job is tracked; call what is yielded whenever records were appended."""
    looked = -math.inf

    def sync(last: bool = False) -> None:
        nonlocal tracker, looked
        if last or time.monotonic() >= looked + SECONDS_BETWEEN:
            unharmed = f"the job continues, and its records are in {folder}"
            tracker = _guarded(tracker, lambda tracker: tracker.sync(cfg, folder, keys, last), unharmed)
            looked = time.monotonic()

    sync()
    try:
        yield sync
    finally:
        sync(last=True)


def track_report(tracker: Tracker | None, configs: Sequence[DictConfig]) -> None:
    """Show the tracker the table that was written of the jobs with these configs, and its figure."""
    _guarded(tracker, lambda tracker: tracker.report(configs), f"the table is in {configs[0].output_dir}")


def _guarded(tracker: Tracker | None, call: Callable[[Tracker], None], unharmed: str) -> Tracker | None:
    """Call the tracker if there is one. Returns it, or None if it failed, which is said in one sentence."""
    if tracker is None:
        return None
    try:
        within(tracker.timeout, lambda: call(tracker))
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        log.warning("Tracking stopped (%s%s); %s.", kind, " ".join(str(error).split()).rstrip("."), unharmed)
        with suppress(Exception, SystemExit):  # it is broken, which has been said
            within(1.0, tracker.abandon)
        return None
    return tracker


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What the call returns or raises; TimeoutError after so many seconds: its thread ends with the process."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    if not wait([outcome], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return outcome.result()
