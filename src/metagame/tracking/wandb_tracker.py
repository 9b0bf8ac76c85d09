"""Tracking by Weights & Biases: a run for each job, and one more for the table of several."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metagame.games import GameError
from metagame.jobs import job_folder, job_identity
from metagame.records import digest
from metagame.tracking.wandb_run import WandbRun, results_id
from metagame.tracking.wandb_session import Account, RunSpec, load_wandb
from metagame.tracking.wandb_tables import mean_scores, metrics_table, samples_table

PARTS = ("model", "attribution", "benchmark")
FILES = ("records.jsonl", "config.yaml", "samples.json", "environment.json")
"""What of a job's folder is in its artifact; the arrays if wanted."""


class WandbTracker:
    """A :class:`metagame.tracking.Tracker` that logs to W&B.

    A run's id comes from the job's identity and the folder of results, so a job that goes on resumes its run, and one
    that has nothing to do logs nothing. Every record is one step of the run's history.

    Args:
        project: of W&B.
        entity: user or team; None for the account's own.
        mode: ``online``, ``offline``, or None for what W&B's own settings say, or else online where there is an API key
            and the server answers.
        arrays: whether the artifact has the records' arrays, too.
        timeout: seconds that the start, and the end, of a run may wait for the server.

    Raises:
        GameError: a setting has no such value.
    """

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        mode: str | None = None,
        arrays: bool = False,
        timeout: float = 20.0,
    ) -> None:
        if mode not in (None, "online", "offline"):
            raise GameError(f"tracker.mode={mode}: give online, offline, or null to find out.")
        if not isinstance(timeout, int | float) or timeout <= 0:
            raise GameError(f"tracker.timeout={timeout}: give a positive number of seconds.")
        if not isinstance(arrays, bool):
            raise GameError(f"tracker.arrays={arrays}: give true or false.")
        self._account = Account(project, entity, mode, float(timeout))
        self._with_arrays = arrays
        self._run: WandbRun | None = None

    def start(self, cfg: DictConfig, folder: Path, keys: Collection[str]) -> None:
        self._folder = folder
        self._keys = frozenset(keys)
        self._lines = _Lines(folder / "records.jsonl")
        self._latest: dict[str, dict[str, Any]] = {}
        self._failed: set[str] = set()
        self._run = self._take(_spec_of_job(cfg))
        self.update()
        if not self._run.bookmark.closed or self._counts()["done"] < len(self._keys):
            self._run.open()

    def update(self) -> None:
        run = self._run
        for number, record in self._lines.new():
            key = record["key"]
            if key not in self._keys or (key in self._latest and key not in self._failed):
                continue
            self._latest[key] = record
            (self._failed.discard if record["status"] == "done" else self._failed.add)(key)
            if number > run.bookmark.lines:
                run.log({"record": number, **self._counts(), **_row(record)})
                run.bookmark.lines, run.bookmark.closed = number, False
                run.keep()

    def _counts(self) -> dict[str, int]:
        return {"done": len(self._latest) - len(self._failed), "failed": len(self._failed)}

    def close(self, *, stopped: bool) -> None:
        self.update()
        run, counts = self._run, self._counts()
        if stopped or run.bookmark.closed:
            run.close(exit_code=int(stopped))
            return
        columns, rows = samples_table(list(self._latest.values()))
        run.log({"samples": _table(columns, rows)})
        means = {f"mean/{name}": mean for name, mean in mean_scores(list(self._latest.values())).items()}
        run.open().summary.update({"n_samples": len(self._keys), **counts, **means})
        files = [self._folder / name for name in FILES if (self._folder / name).exists()]
        folders = [self._folder / "arrays"] if self._with_arrays else []
        run.log_files(re.sub(r"[^\w.-]", "_", f"records-{self._folder.name}"), "records", files, folders)
        run.bookmark.closed = True
        run.close(exit_code=0 if counts["done"] else 1)

    def report(self, configs: Sequence[DictConfig]) -> None:
        folder = Path(configs[0].output_dir)
        table, figure = (folder / "table.json").read_bytes(), _figure(configs[0])
        content = sha256(table + (figure.read_bytes() if figure else b"")).hexdigest()
        of_one = len(configs) == 1 and configs[0].shards == 1
        self._run = run = self._take(_spec_of_job(configs[0]) if of_one else _spec_of_table(configs))
        if run.bookmark.reported != content:
            run.log(_report(json.loads(table), figure))
            run.bookmark.reported = content
        run.close(exit_code=0)

    def abandon(self) -> None:
        if self._run is not None:
            self._run.abandon()

    def _take(self, spec: RunSpec) -> WandbRun:
        return WandbRun(spec, Path(spec.config["output_dir"]), self._account)


class _Lines:
    """The complete lines of a file of records that may grow, and not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes_read = 0
        self._n_read = 0

    def new(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What came since the last call: number of the line, from 1, and its content."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._bytes_read)
            content = file.read()
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            self._bytes_read += len(line)
            self._n_read += 1
            yield self._n_read, json.loads(line)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """A record in the run's history: the scores that are numbers, or the error."""
    numbers = {name: value for name, value in record["scores"].items() if isinstance(value, int | float)}
    error = {} if record["error"] is None else {"error": record["error"]}
    return {"sample": record["sample"], **error, **{f"score/{name}": value for name, value in numbers.items()}}


def _report(table: dict[str, Any], figure: Path | None) -> dict[str, Any]:
    row = {"table": _table(*metrics_table(table))}
    if table["claims"]:
        row["claims"] = _table(["claim", "holds"], [[claim["claim"], claim["holds"]] for claim in table["claims"]])
    if table["notes"]:
        row["notes"] = _table(["note"], [[note] for note in table["notes"]])
    if figure is not None:
        row["figure"] = load_wandb().Image(str(figure), caption=table["title"])
    return row


def _figure(cfg: DictConfig) -> Path | None:
    path = Path(cfg.output_dir) / "figure.png"
    return path if cfg.report.get("figure") is not None and path.exists() else None


def _table(columns: list[str], rows: list[list[Any]]) -> Any:
    return load_wandb().Table(columns=columns, data=rows, allow_mixed_types=True)


def _spec_of_job(cfg: DictConfig) -> RunSpec:
    """The run of a job, or of one of its shards: each is a process of its own."""
    folder = job_folder(cfg)
    shard = f"shard {cfg.shard} of {cfg.shards}" if cfg.shards > 1 else None
    environment = folder / "environment.json"
    config = OmegaConf.to_container(cfg, resolve=True)
    if environment.exists():
        config["environment"] = json.loads(environment.read_text(encoding="utf-8"))
    return RunSpec(
        id=digest([_results_id(cfg), job_identity(cfg), shard]),
        name=folder.name if shard is None else f"{folder.name}, {shard}",
        group=_group(cfg),
        job_type="job",
        tags=[*(cfg[part].name[:64] for part in PARTS), cfg.scale.name],
        config=config,
    )


def _spec_of_table(configs: Sequence[DictConfig]) -> RunSpec:
    cfg = configs[0]
    config = {key: cfg[key] for key in ("name", "seed", "limit", "output_dir")}
    return RunSpec(
        id=digest([_results_id(cfg), "table"]),
        name=f"table of {cfg.name}",
        group=_group(cfg),
        job_type="table",
        tags=[cfg.scale.name],
        config=config | {"scale": cfg.scale.name, "jobs": [job_folder(each).name for each in configs]},
    )


def _results_id(cfg: DictConfig) -> str:
    return results_id(Path(cfg.output_dir) / "wandb")


def _group(cfg: DictConfig) -> str:
    """The same for all jobs of an experiment and sweep, also when it is resumed: those that share a folder."""
    return f"{cfg.name}-{cfg.scale.name}-{_results_id(cfg)}"
