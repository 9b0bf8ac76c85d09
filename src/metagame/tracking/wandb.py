"""Tracking by Weights & Biases: a run for each job, or shard of it, and one more for the table of several."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from uuid import uuid4

import pandas as pd
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from metagame.digests import digest, file_digest
from metagame.errors import UserError
from metagame.extras import needed_by
from metagame.jobs.records import RecordStore, replace_atomically
from metagame.jobs.spec import job_folder, job_name
from metagame.report.drawing import pictures_in
from metagame.report.table import read_table
from metagame.tracking import within

log = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 5.0  # for a server to accept the API key
SECONDS_TO_DISK = 30.0  # for W&B's process, which collects for 15 seconds, to write what was logged


@dataclass
class WandbTracker:
    """A :class:`metagame.tracking.Tracker`: a record is a row of its run's history, a table with its figure another.

    A bookmark, ``<output_dir>/wandb/<job>.json``, has the id by which the run is resumed, and the names of its rows.
    The settings are described in ``configs/tracker/wandb.yaml``; UserError is raised where one has no such value.
    """

    project: str
    entity: str | None = None
    mode: str | None = None
    arrays: bool = False
    timeout: float = 20.0

    def __post_init__(self) -> None:
        if self.mode not in (None, "online", "offline"):
            raise UserError(f"tracker.mode={self.mode} is unknown: choose online, offline, or null to find out.")
        if not isinstance(self.timeout, int | float) or self.timeout <= 0:
            raise UserError(f"tracker.timeout={self.timeout} must be a positive number of seconds.")
        if not isinstance(self.arrays, bool):
            raise UserError(f"tracker.arrays={self.arrays} must be true or false.")
        self._lock: FileLock | None = None
        self._run: Any = None

    def sync(self, cfg: DictConfig, folder: Path, keys: Collection[str], last: bool) -> None:
        if self._lock is None:
            self._store = RecordStore(folder)
            self._take([cfg], of_job=True)
        records = [record for key, record in self._store.read().items() if key in keys]
        n_done, complete = sum(record.status == "done" for record in records), len(records) == len(keys)
        rows = {}
        for record in records:
            about = {"sample": record.sample, "variant": record.variant, "error": record.error}
            scores = {f"score/{name}": value for name, value in record.scores.items() if isinstance(value, int | float)}
            rows[record.key + (record.error or "")] = {key: value for key, value in about.items() if value} | scores
        if n_done < len(keys) or rows.keys() - self._logged.keys():
            self._open().summary.update({"done": n_done, "failed": len(records) - n_done})
        if last and complete and self._run is not None:
            artifact = self._wandb.Artifact(f"records-{self._about['id']}", "records")
            for path in folder.glob("[!.]*.*"):
                artifact.add_file(str(path), skip_cache=True)
            if self.arrays:
                artifact.add_dir(str(folder / "arrays"), name="arrays", skip_cache=True, policy="immutable")
            self._run.log_artifact(artifact)
        self._log(rows, exit_code=int(not (complete and n_done)) if last else None)

    def report(self, configs: Sequence[DictConfig]) -> None:
        self._take(configs, of_job=len(configs) == 1 and configs[0].shards == 1)
        folder = Path(configs[0].output_dir)
        figures = pictures_in(folder) if configs[0].report.get("figure") is not None else []
        content = digest([file_digest(path) for path in (folder / "table.json", *figures)])
        if content not in self._logged:
            self._open()
        table = read_table(folder)
        claims, notes = pd.DataFrame(table.claims), pd.DataFrame({"note": table.notes})
        frames = {"table": pd.read_csv(folder / "table.csv"), "claims": claims, "notes": notes}
        frames = {name: frame.astype(object).where(frame.notna(), None) for name, frame in frames.items() if len(frame)}
        row = {f"result/{name}": self._wandb.Table(dataframe=frame) for name, frame in frames.items()}
        row |= {f"result/{path.stem}": self._wandb.Image(str(path), caption=table.title) for path in figures}
        self._log({content: row}, exit_code=0)

    def abandon(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._wandb.teardown(exit_code=1)  # a later run starts another process

    def _take(self, configs: Sequence[DictConfig], of_job: bool) -> None:
        """Take the bookmark of a job, or of the table of several; one process can have it, until the run is ended."""
        cfg, kind, name, config = configs[0], "table", "table", {"jobs": [job_name(each) for each in configs]}
        tags, notes = [cfg.name, f"scale={cfg.scale.name}"], "The table is in the section `result`, with its figures."
        if of_job:
            kind, name = "job", job_name(cfg) + (f"-shard-{cfg.shard}-of-{cfg.shards}" if cfg.shards > 1 else "")
            config = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
            tags += [f"{group}={cfg[group].name}" for group in ("model", "attribution", "benchmark")]
            notes = "The scores of each sample are in the section `score`, one sample a step."
            config["environment"] = json.loads((job_folder(cfg) / "environment.json").read_text(encoding="utf-8"))
        folder = (Path(cfg.output_dir) / "wandb").absolute()
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "staging"))  # not in the home directory
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # ends 12 seconds later where a network drops packets
        if os.environ.get("WANDB_MODE") == "":  # which W&B takes for a mode of that name
            del os.environ["WANDB_MODE"]
        with needed_by("tracker=wandb"):
            import wandb  # only where something is tracked, and where its absence stops no job

        self._wandb: Any = wandb
        self._bookmark = folder / f"{name}.json"
        self._lock = FileLock(folder / f"{name}.lock", timeout=0, thread_local=False)
        self._lock.acquire()
        text = self._bookmark.read_text(encoding="utf-8") if self._bookmark.exists() else "{}"
        known = {"id": uuid4().hex, "rows": [], "unsure": []} | json.loads(text)
        self._steps = {name: step for step, name in enumerate(known["rows"], start=1)}
        self._logged = dict.fromkeys(self._steps.keys() - set(known["unsure"]), -math.inf)
        self._about: dict[str, Any] = {
            "project": self.project, "entity": self.entity, "id": known["id"], "job_type": kind,
            "name": name if of_job else f"{cfg.name}: {name}", "tags": [tag[:64] for tag in tags], "notes": notes,
            "group": f"{cfg.name}-{cfg.scale.name}-{digest(str(folder))[:8]}", "config": config, "dir": folder.parent,
        }  # fmt: skip

    def _open(self) -> Any:
        """The run, started or resumed if it is not yet."""
        if self._run is None:
            given = self._wandb.setup(self._wandb.Settings(silent=True)).settings
            wanted = self.mode or (given.mode if "mode" in given.model_fields_set else None)
            mode = _choose_mode(self._wandb, wanted, self._bookmark.parent)
            seconds = {"init_timeout": self.timeout, "finish_timeout": self.timeout}
            settings = self._wandb.Settings(silent=True, console="off", disable_git=True, **seconds)
            self._run = self._wandb.init(
                **self._about, mode=mode, resume="allow", reinit="create_new", settings=settings
            )
            self._run.define_metric("score/*", summary="none")
            if mode == "online":
                log.info("Tracked at %s", self._run.url)
        return self._run

    def _log(self, rows: Mapping[str, dict[str, Any]], exit_code: int | None) -> None:
        """Append what the run lacks, a step each, the old one where a kill may have taken it; an exit code ends it."""
        new = [name for name in rows if name not in self._logged]
        for name in sorted(new, key=lambda name: self._steps.get(name, math.inf)):
            step = self._steps.setdefault(name, len(self._steps) + 1)
            if step >= self._run.starting_step:  # or else the server has it
                self._run.log(rows[name], step=step, commit=True)
            self._logged[name] = time.monotonic()
        if self._run is not None and exit_code is not None:
            self._run.finish(exit_code=exit_code)
        if self._run is not None and not self._run.disabled:
            settled = time.monotonic() - (SECONDS_TO_DISK if exit_code is None else 0)
            unsure = [name for name in self._steps if self._logged.get(name, math.inf) > settled]
            with replace_atomically(self._bookmark) as path:
                content = {"id": self._about["id"], "rows": list(self._steps), "unsure": unsure}
                path.write_text(json.dumps(content), encoding="utf-8")
        if exit_code is not None and self._lock is not None:
            self._lock.release()


@cache
def _choose_mode(wandb: ModuleType, wanted: str | None, folder: Path) -> str:
    """Online, or offline, which is said; once in a process."""
    reason = f"mode={wanted}"
    if wanted not in ("offline", "dryrun", "disabled"):
        try:
            reason = "" if within(SECONDS_TO_ANSWER, lambda: wandb.login(prompt=False, verify=True)) else "no API key"
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split())
    if wanted == "disabled" or not reason:
        return wanted or "online"
    if wanted == "online":
        raise UserError(f"W&B's mode=online: {reason}")
    log.info("Tracked offline (%s); to upload: wandb sync %s", reason, shlex.quote(str(folder)))
    return "offline"
