"""A run of W&B that is resumed by its id, and how far it has got."""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metagame.games import GameError
from metagame.records import replace_atomically
from metagame.tracking.wandb_session import Account, RunSpec, leave_service, load_wandb, open_run, staged_in

SECONDS_TO_DISK = 5.0
"""After them W&B's process, which collects what it writes for a second, is sure to have written it."""


@dataclass
class Bookmark:
    """How far a run has got.

    Attributes:
        lines: of ``records.jsonl``, looked at and logged.
        step: last one of the run's history.
        closed: whether the job's end is logged, and nothing came after it.
        reported: digest of the table and figure that are logged.
    """

    lines: int = 0
    step: int = 0
    closed: bool = False
    reported: str | None = None


def results_id(folder: Path) -> str:
    """A random name of a folder of results, made once: the same for all tasks and runs that share the folder.

    No digest of the path: a folder may be moved, or removed and made again, or be seen under another path by a node.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "id"
    with FileLock(folder / "id.lock"):
        if not path.exists():
            with replace_atomically(path) as temporary:
                temporary.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return path.read_text(encoding="utf-8")


class WandbRun:
    """A run of W&B with its bookmark; opened only when there is something to log. One process has it at a time.

    Args:
        spec: what it is called.
        folder: of results; the files of the run are in its folder ``wandb``.
        account: where it is kept.

    Raises:
        GameError: another process has the run.
    """

    def __init__(self, spec: RunSpec, folder: Path, account: Account) -> None:
        self.spec = spec
        self.folder = folder
        self._account = account
        self._path = folder / "wandb" / f"{spec.id}.json"
        self._lock = FileLock(self._path.with_suffix(".lock"), timeout=0)
        self._run: Any = None
        self._pending: deque[tuple[float, Bookmark]] = deque()
        try:
            self._lock.acquire()
        except Timeout:
            raise GameError("another process tracks this job") from None
        self.bookmark = Bookmark(**json.loads(self._path.read_text())) if self._path.exists() else Bookmark()

    def open(self) -> Any:
        """The run, started or resumed if it is not yet."""
        if self._run is None:
            self._run = open_run(self.spec, self.folder, self._account)
            self._run.define_metric("record")
            self._run.define_metric("score/*", step_metric="record", summary="none")
        return self._run

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to the run's history, one step after its last, unless the server has that step already."""
        run = self.open()
        self.bookmark.step += 1
        if self.bookmark.step >= run.starting_step:
            with staged_in(self.folder / "wandb"):
                run.log(row, step=self.bookmark.step, commit=True)

    def keep(self) -> None:
        """Remember how far the run has got; on the disk only when W&B has that on the disk, too.

        So after a kill nothing is missing, and what was logged in the last seconds may be there twice, in equal steps.
        """
        now = time.monotonic()
        self._pending.append((now, replace(self.bookmark)))
        written = None
        while self._pending and self._pending[0][0] < now - SECONDS_TO_DISK:
            _, written = self._pending.popleft()
        if written is not None:
            self._write(written)

    def _write(self, bookmark: Bookmark) -> None:
        if self._run.disabled:
            return
        with replace_atomically(self._path) as path:
            path.write_text(json.dumps(asdict(bookmark)), encoding="utf-8")

    def log_files(self, name: str, kind: str, files: list[Path], folders: list[Path]) -> None:
        """Log an artifact: a snapshot of the files, since they may go on to change, and folders as they are."""
        artifact = load_wandb().Artifact(name, kind)
        with staged_in(self.folder / "wandb"):
            for path in files:
                artifact.add_file(str(path), skip_cache=True)
            for folder in folders:
                artifact.add_dir(str(folder), name=folder.name, skip_cache=True, policy="immutable")
            self.open().log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        """End the run if it is open, and let other processes have it.

        Raises:
            TimeoutError: the server did not take all of it in time; the rest is on the disk.
        """
        try:
            if self._run is not None:
                self._run.finish(exit_code=exit_code)
                self._write(self.bookmark)
        finally:
            self.release()

    def abandon(self) -> None:
        """End what does not work, without waiting for long."""
        run = self._run
        self.release()
        leave_service(run, self._account.timeout)

    def release(self) -> None:
        """Let other processes have the run."""
        self._run = None
        self._lock.release()
