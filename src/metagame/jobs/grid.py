"""Which jobs an experiment, or a command line, consists of, and why one of them could not start."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Self

from hydra import compose
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, Sweep
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from metagame.digests import digest
from metagame.errors import UserError
from metagame.jobs.records import replace_atomically
from metagame.jobs.spec import JobKeys, declared, is_combination, is_left_out, job_folder, job_name, jobs_folder, listed

REFUSALS = "refused-*.txt"
"""Files in a job's folder that say why the job, or a shard of it, could not start."""

PARTS = ("model", "attribution", "benchmark")
OF_THE_RUN = (
    "scale", "tracker", "name", "limit", "shards", "shard", "fail_fast", "reuse", "output_dir", "jobs_dir", "hydra",
    "model.device", "model.batch_size", "model.tokens_per_batch", "model.offload", "attribution.method.batch_size",
    "estimator.batch_size", "estimator.n_threads", "report.figure",
)  # fmt: skip
"""Keys that change neither what a table is about, nor where it lies but for ``output_dir`` and ``name``."""


def sweep_configs(grid: Sequence[str], overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of an experiment's jobs, in order: its own grid, then what the command line sweeps beyond it.

    Args:
        grid: overrides that the experiment file sweeps, such as ``attribution=a,b``; a single value is a default.
        overrides: of the command line. One whose key is swept adds cells; the others hold for every cell.
    """
    parser = _parser()
    own = {each.key_or_group: each.is_sweep_override() for each in parser.parse_overrides(list(grid))}
    fixed = [line for line in overrides if not own.get(parser.parse_override(line).key_or_group)]
    given = {each.key_or_group for each in parser.parse_overrides(fixed)}
    kept = [line for line in grid if parser.parse_override(line).key_or_group not in given]
    return _compose([*_cells(parser, [*fixed, *kept]), *_cells(parser, [*grid, *overrides])])


def asked_configs(grid: Sequence[str], overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of the jobs that a command line starts; arguments as of :func:`sweep_configs`."""
    return _compose(_cells(_parser(), [*grid, *overrides]))


def read_configs_once() -> None:
    """Have Hydra read each file of configs once for all that is composed from now on, while it is at work.

    The jobs of a sweep and its table are then composed from the same files, though one is edited in the meantime. This
    also takes a third less time.
    """
    loader: Any = GlobalHydra.instance().config_loader()
    if not isinstance(loader.repository, _ReadOnce):
        loader.repository = _ReadOnce(loader.repository)


class _ReadOnce(CachingConfigRepository):
    """Hydra's cache of a single composition, kept for the next ones: copies share what was read."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copy = type(self)(self.delegate)
        copy.cache = self.cache
        return copy

    def load_config(self, config_path: str) -> ConfigResult | None:
        return deepcopy(super().load_config(config_path))


def _parser() -> OverridesParser:
    return OverridesParser.create(GlobalHydra.instance().config_loader())


def _compose(cells: list[list[str]]) -> list[DictConfig]:
    """The configs of distinct jobs."""
    read_configs_once()
    distinct: dict[frozenset[str], list[str]] = {}
    for cell in cells:
        distinct.setdefault(frozenset(cell), cell)
    configs = [compose("config", overrides=cell) for cell in distinct.values()]
    configs = [cfg for cfg in configs if not is_left_out(cfg)]
    return list({(cfg.output_dir, job_folder(cfg)): cfg for cfg in configs}.values())


def _cells(parser: OverridesParser, lines: list[str]) -> list[list[str]]:
    """Every combination of the swept values; where a key stands twice, the last one counts."""
    last = {(override.key_or_group, override.package): override for override in parser.parse_overrides(lines)}
    return [list(cell) for cell in product(*map(_choices, last.values()))]


def _line(override: Override) -> str:
    """As it stands on the command line."""
    return override.input_line or ""


def _choices(override: Override) -> list[str]:
    """The overrides ``key=value`` that one swept or plain override stands for."""
    if not override.is_sweep_override():
        return [_line(override)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def list_choices() -> str:
    """What can be chosen, a line for each group, while Hydra is at work.

    Names that begin with ``_`` are bases of choices, and ``by_scale`` has the values of choices at other scales.
    """
    loader = GlobalHydra.instance().config_loader()
    return "\n".join(_choices_below(loader, ""))


def _choices_below(loader: ConfigLoader, group: str) -> Iterator[str]:
    options = sorted(name for name in loader.get_group_options(group) if not name.startswith("_")) if group else []
    if options:
        yield f"{group}: {', '.join(options)}"
    for name in sorted(loader.get_group_options(group, ObjectType.GROUP)):
        if name not in ("hydra", "by_scale"):
            yield from _choices_below(loader, f"{group}/{name}".lstrip("/"))


def check_commas(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a text that would be swept at its commas, unless it says ``choice(...)``.

    Args:
        cfg: of the sweep, with the benchmark whose class declares its ``text_arguments``.
        overrides: of the command line.

    Raises:
        UserError: there is such a text; says how to quote it.
    """
    texts = {f"benchmark.{name}" for name in declared(cfg.benchmark["_target_"], "text_arguments")}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        value = override.value()
        if override.key_or_group in texts and isinstance(value, ChoiceSweep) and value.simple_form:
            key, text = _line(override).split("=", 1)
            raise UserError(
                f"{key}={text} would be split at its commas into a sweep: for one text, put quotes inside the"
                f" quotes, \"{key}='{text}'\"; for a sweep, write {key}=choice(...)."
            )


def check_keys(overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuse overrides of a key that is neither a job's nor a group in the folders of configs, and ``scale.name``.

    Raises:
        UserError: there is one; says which key is meant, if one is alike.
    """
    groups = (path.name for folder in folders for path in folder.iterdir() if path.is_dir())
    known = sorted({*groups, *(each.name for each in fields(JobKeys))})
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = re.split(r"[./]", override.key_or_group)[0]
        if override.type == OverrideType.CHANGE and key not in known:
            alike = get_close_matches(key, known, 1)
            advice = f"did you mean {alike[0]}?" if alike else f"choose one of {', '.join(known)}."
            raise UserError(f"the setting {key!r} is unknown: {advice}")
        if override.key_or_group == "scale.name":
            raise UserError(
                f"{override.input_line} has no effect on the values of the scale: choose scale=NAME, or add a file"
                " scale/NAME.yaml to configs of your own."
            )


def check_left_out(entries: Sequence[Any], grid: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse a name in ``leave_out`` that neither a choice nor a job has: nothing would be left out by it.

    Args:
        entries: of ``leave_out``; those that are no combination of parts are passed over.
        grid: as of :func:`sweep_configs`.
        overrides: as of :func:`sweep_configs`.

    Raises:
        UserError: there is such a name.
    """
    parts = [each for entry in filter(is_combination, entries) for each in entry.items()]
    named = [(part, str(name)) for part, names in parts for name in listed(names)]
    known = {part: set(_names_of_choices(part)) for part in dict.fromkeys(part for part, _ in named)}
    if all(name in known[part] for part, name in named):
        return
    for cfg in [compose("config", overrides=cell) for cell in _cells(_parser(), [*grid, *overrides])]:
        for part in known:  # such as that of a sweep over model.name
            known[part].add(str(cfg[part].name))
    for part, name in (each for each in named if each[1] not in known[each[0]]):
        alike = get_close_matches(name, known[part], 1)
        advice = f"did you mean {alike[0]}?" if alike else f"choose one of {', '.join(sorted(known[part]))}."
        raise UserError(f"leave_out has {part}={name}, which is unknown: {advice}")


def _names_of_choices(group: str) -> Iterator[str]:
    """The ``name`` of each choice in a group of configs, and in groups within it."""
    loader: Any = GlobalHydra.instance().config_loader()
    for option in loader.get_group_options(group):
        file = None if option.startswith("_") else loader.repository.load_config(f"{group}/{option}")
        if file is not None and "name" in file.config:
            yield str(file.config["name"])
    for within in loader.get_group_options(group, ObjectType.GROUP):
        yield from _names_of_choices(f"{group}/{within}")


def results_name(overrides: Sequence[str], swept: Collection[str] = ()) -> str | None:
    """The name under which a command line's results lie, where it is not the experiment's own.

    Overrides that change what a table is about enter it, so that two tables do not lie in one folder: of a job of one's
    own its parts, of an experiment the names of the keys with a hash of their values.

    Args:
        overrides: of the command line.
        swept: keys that the experiment sweeps, of which other values add rows to its table.

    Returns:
        None where ``name`` or ``output_dir`` is given, or nothing is changed.

    Raises:
        UserError: several experiments are asked for.
    """
    given = {each.key_or_group: each for each in OverridesParser.create().parse_overrides(list(overrides))}
    experiment = given["experiment"].value() if "experiment" in given else None
    if isinstance(experiment, Sweep):
        raise UserError(f"{given['experiment'].input_line}: run one experiment at a time.")
    if "name" in given or "output_dir" in given:
        return None
    changed = {key: each for key, each in given.items() if key != "experiment" and not _is_of_the_run(key)}
    if experiment is not None:
        return _named(str(experiment), {key: each for key, each in changed.items() if key not in swept})
    parts = [_readable(changed[part]) for part in PARTS if part in changed]
    rest = {key: each for key, each in changed.items() if key not in PARTS}
    return _named("-".join(["adhoc", *parts]), rest) if changed else None


def _is_of_the_run(key: str) -> bool:
    return key in OF_THE_RUN or key.split(".")[0].split("/")[0] in OF_THE_RUN


def _readable(override: Override) -> str:
    """The value of a group's override as part of a file's name."""
    text = _line(override).split("=", 1)[1]
    kept = "".join(letter if letter.isalnum() or letter in "._+-" else "+" if letter == "," else "_" for letter in text)
    return kept if len(kept) <= 40 else f"{kept[:31]}-{digest(text)[:8]}"


def _named(name: str, changed: Mapping[str, Override]) -> str | None:
    if not changed:
        return name if name.startswith("adhoc") else None
    keys = "-".join(sorted(key.rpartition(".")[2] for key in changed))[:40]
    return f"{name}-{keys}-{digest(sorted(map(_line, changed.values())))[:6]}"


def refuse(cfg: DictConfig, reason: str) -> None:
    """Leave in the job's folder why it, or its shard, could not start or go on; ``run_job`` removes it.

    The sweep's own process, which writes the table, may be on another machine.
    """
    folder = job_folder(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    with replace_atomically(folder / refusal_name(cfg)) as path:
        path.write_text(reason + "\n", encoding="utf-8")


def read_refusal(cfg: DictConfig, name: str | None = None) -> str | None:
    """Why the job, or shards of it, could not start when last tried; None where they could.

    Args:
        cfg: of the job.
        name: of its folder, where it is known.
    """
    files = sorted((jobs_folder(cfg) / (name or job_name(cfg))).glob(REFUSALS))
    return " ".join(dict.fromkeys(path.read_text(encoding="utf-8").strip() for path in files)) or None


def refusal_name(cfg: DictConfig) -> str:
    """The file of a shard's refusal."""
    return REFUSALS.replace("*", str(cfg.shard or 0))
