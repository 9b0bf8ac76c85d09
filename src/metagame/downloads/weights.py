"""The weights that jobs need: which repositories of the hub, which of their files, and how they are fetched."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import requests
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import tqdm
from omegaconf import DictConfig, OmegaConf
from rich.filesize import decimal

from metagame.downloads.attempts import WAITS
from metagame.downloads.checksums import file_checksum
from metagame.downloads.disk import Need
from metagame.games import GameError
from metagame.models.pretrained import explain_gate, without_retry_warnings
from metagame.records import RecordError, writing

log = logging.getLogger(__name__)

SAFE = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
PICKLED = re.compile(r"(diffusion_)?pytorch_model(-\d+-of-\d+)?\.bin")
BESIDE = (".json", ".txt", ".model", ".jinja")
"""Suffixes of configs and tokenizers."""

PASSING = (
    requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, LocalEntryNotFoundError,
)  # fmt: skip
"""What another attempt may mend."""


@dataclass(frozen=True, order=True)
class Repository:
    """A repository of the hub.

    Attributes:
        name: such as ``openai/clip-vit-base-patch16``.
        revision: branch, tag or commit.
        folder: of the repository that alone is needed; empty: all of it.
    """

    name: str
    revision: str = "main"
    folder: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of a repository that are needed.

    Attributes:
        repository: that has them.
        commit: of its revision.
        gated: whether the hub asks for a licence to be accepted.
        files: that are needed.
        missing: those that are not in the cache.
    """

    repository: Repository
    commit: str
    gated: bool
    files: tuple[RepoSibling, ...]
    missing: tuple[RepoSibling, ...]

    def need(self) -> Need:
        """Room that the missing files take."""
        waiting = sum(each.size or 0 for each in self.missing)
        return Need(waiting, waiting)

    def line(self) -> str:
        """The repository in one line."""
        size = sum(each.size or 0 for each in self.files)
        gate = " (gated)" if self.gated else ""
        to_go = f"{decimal(self.need().download)} to be fetched" if self.missing else "in the cache"
        return f"{self.repository.name}{gate}: {len(self.files)} files, {decimal(size)}, {to_go}."


def repositories(configs: Iterable[DictConfig]) -> list[Repository]:
    """The distinct repositories that jobs load models and tokenizers from; folders on this disk are none."""
    found = set()
    for cfg in configs:
        whole = OmegaConf.select(cfg, "model.checkpoint")
        if whole is not None:
            found.add(Repository(whole, cfg.model.get("revision") or "main"))
        tokenizer = OmegaConf.select(cfg, "benchmark.tokenizer")
        if tokenizer is not None:
            found.add(Repository(tokenizer.checkpoint, tokenizer.get("revision") or "main", "tokenizer_2"))
    wholes = {Repository(each.name, each.revision) for each in found if not each.folder}
    kept = {each for each in found if not each.folder or Repository(each.name, each.revision) not in wholes}
    return sorted(each for each in kept if not Path(each.name).is_dir())


def wanted(names: Iterable[str], folder: str = "") -> set[str]:
    """Of a repository's files those that are loaded: weights once, as safetensors where there are such.

    Args:
        names: of all files.
        folder: see :class:`Repository`.
    """
    paths = [PurePosixPath(name) for name in names]
    if folder:
        return {str(path) for path in paths if str(path.parent) == folder}
    pipeline = PurePosixPath("model_index.json") in paths
    places = {path.parent for path in paths if len(path.parts) == 2} if pipeline else {PurePosixPath()}
    kept = {path for place in places for path in _loaded(path for path in paths if path.parent == place)}
    return {str(path) for path in kept} | ({"model_index.json"} if pipeline else set())


def _loaded(paths: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    """Of the files of one folder those that are loaded."""
    here = list(paths)
    safe = [path for path in here if SAFE.fullmatch(path.name)]
    pickled = [path for path in here if PICKLED.fullmatch(path.name)]
    return [*(safe or pickled), *(path for path in here if path.suffix in BESIDE)]


def list_files(repository: Repository) -> Listing:
    """What is needed of a repository, with sizes, as the hub says now.

    Raises:
        GameError: the hub cannot be reached, or has no such repository.
    """
    try:
        with without_retry_warnings():
            info = HfApi().model_info(repository.name, revision=repository.revision, files_metadata=True)
    except Exception as error:
        raise GameError(_why(repository, error)) from error
    names = wanted((each.rfilename for each in info.siblings), repository.folder)
    needed = tuple(each for each in info.siblings if each.rfilename in names)
    if not needed:
        raise GameError(f"{repository.name} has no file that is needed: look at {_page(repository.name)}.")
    missing = tuple(each for each in needed if not _is_in_cache(repository.name, each.rfilename, info.sha))
    return Listing(repository, info.sha, bool(info.gated), needed, missing)


def _is_in_cache(name: str, file: str, commit: str) -> bool:
    return isinstance(try_to_load_from_cache(name, file, revision=commit), str)


def is_cached(repository: Repository) -> bool:
    """Whether the cache has the repository with weights, as far as that can be seen without the hub."""
    try:
        found = snapshot_download(repository.name, revision=repository.revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return False
    folder = Path(found)
    names = wanted((path.relative_to(folder).as_posix() for path in folder.rglob("*")), repository.folder)
    return (
        bool(names)
        if repository.folder
        else any(PurePosixPath(each).suffix in (".safetensors", ".bin") for each in names)
    )


def get_weights(listing: Listing, waits: Sequence[float] = WAITS) -> None:
    """Bring the missing files into the cache of the hub's library, each resumed, checked and put in place as a whole.

    Args:
        listing: of the repository.
        waits: seconds before each further attempt at a file; they begin anew whenever one got further.

    Raises:
        GameError: the repository is gated, or a file cannot be had or is not what the hub says.
        RecordError: the disk is full, or the cache read-only.
    """
    repository = listing.repository
    names = [re.sub(r"([\[*?])", r"[\1]", each.rfilename) for each in listing.files]  # as patterns of themselves
    try:
        with writing(Path(constants.HF_HUB_CACHE)), without_retry_warnings():
            for file in listing.missing:
                _get_file(listing, file, waits)
            # transfers nothing any more: notes which commit the revision is
            snapshot_download(repository.name, revision=repository.revision, allow_patterns=names, tqdm_class=_NoBar)
    except (GameError, RecordError):
        raise
    except Exception as error:
        raise GameError(_why(repository, error)) from error


class _NoBar(tqdm):
    """Stays silent."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings | {"disable": True})


class _DamagedError(Exception):
    """A file is not what the hub says."""


def _get_file(listing: Listing, file: RepoSibling, waits: Sequence[float]) -> None:
    """Make attempts until the file is in the cache; one that came damaged is fetched from its beginning."""
    name = listing.repository.name
    log.info("%s: %s, %s", name, file.rfilename, decimal(file.size or 0))
    furthest, left, damaged = _there(name, file), iter(waits), False
    while True:
        try:
            path = hf_hub_download(name, file.rfilename, revision=listing.commit, force_download=damaged)
            _check_content(Path(path), file)
        except (*PASSING, OSError, _DamagedError) as error:
            damaged = isinstance(error, _DamagedError) or "Consistency check failed" in str(error)
            if not damaged and not isinstance(error, PASSING):
                raise
            if _there(name, file) > furthest:
                furthest, left = _there(name, file), iter(waits)
            wait = next(left, None)
            if wait is None:
                raise
            log.info(
                "%s: %s was %s; next attempt in %g s.", name, file.rfilename, "damaged" if damaged else "cut", wait
            )
            time.sleep(wait)
        else:
            return


def _there(name: str, file: RepoSibling) -> int:
    """Bytes of the file that earlier attempts left in the cache."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    part = folder / "blobs" / f"{_digest(file)}.incomplete"
    return part.stat().st_size if part.exists() else 0


def _digest(file: RepoSibling) -> str | None:
    return file.blob_id if file.lfs is None else file.lfs.sha256


def _check_content(path: Path, file: RepoSibling) -> None:
    """Compare a file with its digest, of git or of its large files; the hub's library compares sizes only."""
    if file.lfs is not None:
        found = file_checksum(path).removeprefix("sha256:")
    else:
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if _digest(file) is not None and found != _digest(file):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise _DamagedError(f"{file.rfilename} is not what the hub says")


def _why(repository: Repository, error: Exception) -> str:
    name = repository.name
    gate = explain_gate(name, error)
    if gate is not None:
        return gate
    if isinstance(error, HFValidationError):
        return f"{name} is no folder here, and no name on the hub: give model.checkpoint as one of them."
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {repository.revision!r}: look at {_page(name)}."
    if isinstance(error, RepositoryNotFoundError):
        return f"{name} is not on the hub, or private: look at {_page(name)}, or log in with 'hf auth login'."
    return (
        f"{name} cannot be fetched from {constants.ENDPOINT} ({_reason(error)}): run the same command again where there"
        " is a network, it goes on where it stopped."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.Timeout):
        return "no answer"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "cut again and again"
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip().rstrip(".")


def _page(name: str) -> str:
    return f"{constants.ENDPOINT}/{name}"
