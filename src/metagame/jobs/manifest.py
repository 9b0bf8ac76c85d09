"""The code that a job's records are computed with, of which its folder keeps a list, so that a change can be named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metagame.digests import digest
from metagame.jobs.fingerprint import code_manifest
from metagame.jobs.records import replace_atomically
from metagame.jobs.spec import plain, targets, variants


def job_manifest(cfg: DictConfig) -> dict[str, str]:
    """The hash of each module that computes the job's records, as it is now; no class is imported for it."""
    return code_manifest(_computing_targets(cfg))


def current_code(cfg: DictConfig) -> str | None:
    """The digest of the job's code as it is now; None where a module of it cannot be found or read here."""
    try:
        manifest = job_manifest(cfg)
    except (OSError, SyntaxError, ValueError):
        return None
    for target in _computing_targets(cfg):
        if not any(f"{target}.".startswith(f"{module}.") for module in manifest):
            return None
    return digest(manifest)


def _computing_targets(cfg: DictConfig) -> list[str]:
    """What computes a record, by its ``_target_``."""
    methods = [variant.node.method for variant in variants(cfg)]
    estimator = [cfg.estimator] if any(variant.meta for variant in variants(cfg)) else []
    parts: list[Any] = [cfg.model, cfg.benchmark, *estimator, *methods]
    return list(targets([plain(part) for part in parts if part is not None]))


def keep_manifest(folder: Path, manifest: Mapping[str, str]) -> None:
    """``code-<digest>.json``: the hash of each module that computes, so that a change can be named."""
    path = _path(folder, digest(manifest))
    if not path.exists():
        with replace_atomically(path) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def changed_modules(folder: Path, codes: Iterable[str], manifest: Mapping[str, str]) -> list[str]:
    """The modules that differ from those of any manifest in the folder with one of these digests."""
    differing: set[str] = set()
    for path in (path for code in codes if (path := _path(folder, code)).exists()):
        before = json.loads(path.read_text(encoding="utf-8"))
        differing |= {name for name in {*before, *manifest} if before.get(name) != manifest.get(name)}
    return sorted(differing)


def _path(folder: Path, code: str) -> Path:
    return folder / f"code-{code}.json"
