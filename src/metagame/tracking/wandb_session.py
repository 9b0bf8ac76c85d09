"""W&B's module and its process: runs are started online or offline, and left without waiting for long."""

from __future__ import annotations

import logging
import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from metagame.games import GameError

log = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 5.0
"""How long a server may take to say that it is there."""


@dataclass(frozen=True)
class RunSpec:
    """What a run is called; as the arguments of ``wandb.init``."""

    id: str
    name: str
    group: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Account:
    """Where runs are kept, and how long to wait for it."""

    project: str
    entity: str | None
    mode: str | None
    timeout: float


def load_wandb() -> ModuleType:
    """The module, imported with its reports of errors off unless ``WANDB_ERROR_REPORTING`` is set.

    With them every process, also an offline one, ends twelve seconds later where the network drops packets.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def leave_service(run: Any, seconds: float) -> None:
    """Leave W&B's own process, which may be dead or wait for a server; a later run starts another.

    In a thread, since it may wait for minutes, or raise SystemExit.
    """

    def leave() -> None:
        for end in ([] if run is None else [run.finish]) + [lambda: load_wandb().teardown()]:
            try:
                end()
            except Exception as error:
                log.debug("W&B's process: %s", error)

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    thread.join(seconds)


def open_run(spec: RunSpec, folder: Path, account: Account) -> Any:
    """Start the run, or resume it; its files are in the folder ``wandb`` of ``folder``, or of ``WANDB_DIR``.

    Raises:
        GameError: online is wanted without an API key.
    """
    wandb = load_wandb()
    root = Path(os.environ.get("WANDB_DIR", folder))
    mode, decided_here = _choose_mode(wandb, account.mode, root / "wandb")
    try:
        return _init(wandb, spec, root, account, mode)
    except wandb.errors.CommError as error:
        if not decided_here:
            raise
        _say_offline(root / "wandb", " ".join(str(error).split()))
        leave_service(None, account.timeout)
        return _init(wandb, spec, root, account, "offline")


def _init(wandb: ModuleType, spec: RunSpec, root: Path, account: Account, mode: str) -> Any:
    interval = "x_transaction_log_flush_interval"  # 15 seconds otherwise, which a kill takes away
    private = {interval: 1.0} if interval in wandb.Settings.model_fields else {}
    settings = wandb.Settings(
        silent=True, console="off", save_code=False, disable_git=True, disable_job_creation=True, **private,
        init_timeout=account.timeout, finish_timeout=account.timeout, finish_timeout_raises=True,
    )  # fmt: skip
    wandb.setup(wandb.Settings(silent=True))  # again: the service may have been left in between
    own_tags = filter(None, os.environ.get("WANDB_TAGS", "").split(","))
    run = wandb.init(
        project=account.project, entity=account.entity, id=spec.id, name=spec.name, job_type=spec.job_type,
        group=os.environ.get("WANDB_RUN_GROUP", spec.group), tags=[*spec.tags, *own_tags], config=spec.config,
        mode=mode, dir=root, resume="allow", reinit="create_new", settings=settings,
    )  # fmt: skip
    if mode == "online":
        log.info("Tracked at %s", run.url)
    return run


def _choose_mode(wandb: ModuleType, wanted: str | None, folder: Path) -> tuple[str, bool]:
    """The mode of W&B, and whether it was chosen here: neither by the config nor by W&B's own settings.

    Raises:
        GameError: online is wanted without an API key, which W&B would ask for.
    """
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if wanted is None and "mode" in settings.model_fields_set:
        wanted = settings.mode
    if wanted in ("offline", "dryrun"):
        _say_offline(folder, f"mode={wanted}")
    if wanted in ("offline", "dryrun", "disabled"):
        return wanted, False
    has_key = wandb.login(prompt=False, verify=False)
    if wanted is not None:
        if not has_key:
            raise GameError(f"W&B's mode={wanted} needs an API key: wandb login, or WANDB_API_KEY")
        return wanted, False
    if has_key and _answers(settings.base_url):
        return "online", True
    _say_offline(folder, f"{settings.base_url} does not answer" if has_key else "no API key")
    return "offline", True


@cache
def _say_offline(folder: Path, reason: str) -> None:
    """Once in a process, whatever the number of jobs."""
    log.info("Tracked offline (%s); to upload: wandb sync %s", reason, shlex.quote(str(folder)))


@cache
def _answers(url: str) -> bool:
    """Whether a server is there, asked once in a process; in a thread, since looking up its name may take long."""
    import requests

    answers = []

    def ask() -> None:
        try:
            answers.append(requests.head(url, timeout=SECONDS_TO_ANSWER).status_code < 500)
        except requests.RequestException as error:
            log.debug("%s", error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    return answers == [True]


@contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Within: W&B stages artifacts in this folder, not in the home directory, unless its own setting says where."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute() / "staging")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
