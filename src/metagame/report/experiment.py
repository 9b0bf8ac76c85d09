"""An experiment's table and figure, from the jobs that it consists of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig

from metagame.games import GameError
from metagame.jobs import is_left_out, job_folder, job_label, read_refusal
from metagame.records import replace_atomically
from metagame.report.results import JobResult, read_job, tell_apart
from metagame.report.table import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


def write_report(configs: Sequence[DictConfig]) -> list[JobResult]:
    """Write the table (and figure) of the jobs with these configs into their experiment's folder; return the jobs.

    Jobs that never ran are left out and named in a footnote.

    Raises:
        GameError: no sample of any job is done; nothing is written.
    """
    settings = configs[0]
    found = [read_job(cfg) for cfg in configs]
    results = tell_apart([result for result in found if result is not None])
    if not any(result.done for result in results):
        errors = dict.fromkeys(record.error for result in results for record in result.failed)
        raise GameError(f"{settings.name}: no sample was computed, no table is written. {' '.join(errors)}".rstrip())
    folder = Path(settings.output_dir)
    table = instantiate(settings.report.table, _partial_=True)(results, scale=settings.scale.name)
    refused = {job_label(cfg, configs): reason for cfg in configs if (reason := read_refusal(cfg)) is not None}
    never_run = [job_label(cfg, configs) for cfg, result in zip(configs, found, strict=True) if result is None]
    never_run = [label for label in never_run if label not in refused]
    if settings.limit is not None:
        table.notes.append(f"Only the first {settings.limit} samples (limit={settings.limit}).")
    table.notes.extend(f"{label} could not start: {reason}" for label, reason in refused.items())
    if never_run:
        table.notes.append(f"Not run yet: {', '.join(never_run)}.")
    write_table(table, folder)
    if settings.report.get("figure") is not None:
        figure = instantiate(settings.report.figure, _partial_=True)(results)
        if figure is not None:
            save_figure(figure, folder)
    log.info("wrote %s", folder / "table.md")
    return results


def save_figure(figure: Figure, folder: Path) -> None:
    """``figure.png`` and ``figure.pdf``, with no date in them, so that equal runs give equal bytes."""
    import matplotlib  # here, since not every experiment draws

    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for name, metadata in (("figure.png", {"Software": None}), ("figure.pdf", {"CreationDate": None})):
            drawn = BytesIO()  # not the file: on a full disk matplotlib's PDF writer hides the system's error
            figure.savefig(drawn, dpi=200, metadata=metadata, format=name.rsplit(".")[-1])
            with replace_atomically(folder / name) as path:
                path.write_bytes(drawn.getvalue())


def sweep_configs(grid: Sequence[str], overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of an experiment's jobs, in order: its own grid, then what the command line sweeps beyond it.

    Args:
        grid: overrides that the experiment file sweeps, such as ``attribution=a,b``.
        overrides: of the command line. One whose key is swept adds cells; the others hold for every cell.
    """
    parser = _parser()
    swept = {override.key_or_group for override in parser.parse_overrides(list(grid))}
    fixed = [line for line in overrides if parser.parse_override(line).key_or_group not in swept]
    return _compose([*_cells(parser, [*fixed, *grid]), *_cells(parser, [*grid, *overrides])])


def asked_configs(grid: Sequence[str], overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of the jobs that a command line starts; arguments as of :func:`sweep_configs`."""
    return _compose(_cells(_parser(), [*grid, *overrides]))


def _parser() -> OverridesParser:
    return OverridesParser.create(GlobalHydra.instance().config_loader())


def _compose(cells: list[list[str]]) -> list[DictConfig]:
    """The configs of distinct jobs."""
    distinct: dict[frozenset[str], list[str]] = {}
    for cell in cells:
        distinct.setdefault(frozenset(cell), cell)
    configs = [compose("config", overrides=cell) for cell in distinct.values()]
    configs = [cfg for cfg in configs if not is_left_out(cfg)]
    return list({job_folder(cfg): cfg for cfg in configs}.values())


def _cells(parser: OverridesParser, lines: list[str]) -> list[list[str]]:
    """Every combination of the swept values; where a key stands twice, the last one counts."""
    last = {override.key_or_group: override for override in parser.parse_overrides(lines)}
    return [list(cell) for cell in product(*map(_choices, last.values()))]


def _choices(override: Override) -> list[str]:
    """The overrides ``key=value`` that one swept or plain override stands for."""
    if not override.is_sweep_override():
        return [override.input_line]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
