"""An experiment's table and figure, from the records of the jobs that it consists of."""

from __future__ import annotations

import json
import logging
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from itertools import chain
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate
from matplotlib import font_manager, get_cachedir, rc_context, rcParams
from matplotlib.figure import Figure
from omegaconf import DictConfig

from metagame.errors import RecordError, UserError
from metagame.jobs.grid import read_refusal
from metagame.jobs.labels import job_label
from metagame.jobs.records import replace_atomically
from metagame.jobs.spec import job_name, merged, plain
from metagame.report.drawing import CAPTION, Drawing
from metagame.report.mixture import mixture_notes
from metagame.report.results import EXPERIMENT, EXPERIMENT_VERSION, JobResult, read_job, read_jobs, tell_apart
from metagame.report.table import write_table

log = logging.getLogger(__name__)

FIGURES = {"figure.png": {"Software": None}, "figure.pdf": {"CreationDate": None}}
"""Files of a figure, with metadata that have no date in them, so that equal runs give equal bytes."""
DPI = 200
DRAWN = re.compile(r"figure(_\w+)?\.(png|pdf)|caption\.txt")
"""Names of the files of a drawing."""

FALLBACK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans CJK HK",
    "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAGothic", "IPAPGothic",
    "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS", "Unifont",
)  # fmt: skip
"""Fonts with Chinese, Japanese and Korean characters, which matplotlib's own lacks: used where they are installed."""
MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from font")


def write_report(configs: Sequence[DictConfig], names: Sequence[str] | None = None) -> list[JobResult]:
    """Write the table (and figure) of the jobs with these configs into their experiment's folder; return the results.

    Jobs that never ran are left out and named in a footnote. A table of other jobs that this one replaces is announced.

    Args:
        configs: of the jobs.
        names: of the jobs' folders, where they are known: then no class that a config names is looked at.

    Raises:
        UserError: no sample of any job is done, and nothing is written; or the figure cannot be drawn, which is said
            when the table is written.
    """
    settings = configs[0]
    jobs = dict(zip(names or map(job_name, configs), configs, strict=True))
    found = [read_job(cfg, name) for name, cfg in jobs.items()]
    results = tell_apart(list(chain.from_iterable(found)))
    if not any(result.done for result in results):
        errors = [record.error for result in results for record in result.failed]
        refusals = [read_refusal(cfg, name) for name, cfg in jobs.items()]
        reasons = " ".join(dict.fromkeys(filter(None, (*errors, *refusals))))
        raise UserError(f"{settings.name}: no sample was computed, so no table is written. {reasons}".rstrip())
    folder = Path(settings.output_dir)
    table = instantiate(settings.report.table, _partial_=True)(results, scale=settings.scale.name)
    refused = {job_label(cfg, configs): reason for name, cfg in jobs.items() if (reason := read_refusal(cfg, name))}
    never_run = [job_label(cfg, configs) for cfg, result in zip(jobs.values(), found, strict=True) if not result]
    never_run = [label for label in never_run if label not in refused]
    table.notes.extend(mixture_notes(results))
    table.notes.extend(f"{label} could not start: {reason}" for label, reason in refused.items())
    if never_run:
        table.notes.append(f"Not run yet: {', '.join(never_run)}.")
    if settings.scale.name == "paper" and settings.report.get("reproduction") is not None:
        try:
            table.notes.append(_write_reproduction(settings, results, folder))
        except Exception as error:  # whatever a check meets costs no more than itself
            table.notes.append(f"The reproduction check could not be made ({type(error).__name__}: {error}).")
            log.exception("the reproduction check of %s could not be made", settings.name)
    _announce_replacement(folder, jobs)
    write_table(table, folder)
    _keep_jobs(folder, jobs)
    if settings.report.get("figure") is not None:
        _write_figure(settings, results, folder)
    log.info("wrote %s", folder / "table.md")
    return results


def _write_figure(settings: DictConfig, results: list[JobResult], folder: Path) -> None:
    try:
        with free_text():
            drawing = instantiate(settings.report.figure, _partial_=True)(results)
            drawing = Drawing.single(drawing) if isinstance(drawing, Figure) else drawing
            save_drawing(drawing, folder)
    except UserError:
        raise
    except Exception as error:  # whatever a drawing meets costs no more than itself
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"the figure of {settings.name} could not be drawn ({reason}); its table is written."
        ) from error


def _write_reproduction(settings: DictConfig, results: list[JobResult], folder: Path) -> str:
    """Write, beside the experiment's folder, how far its numbers are the published ones; return the verdict."""
    check = instantiate(settings.report.reproduction, _partial_=True)(results)
    folder = folder.with_name(f"{folder.name}-reproduction")
    write_table(check.table(settings.name, settings.scale.name), folder)
    with replace_atomically(folder / "comparisons.csv") as path:
        pd.DataFrame(check.comparisons()).to_csv(path, index=False)
    save_drawing(check.figure(), folder)
    return f"{check.verdict} See {folder.name}."


def _announce_replacement(folder: Path, jobs: Mapping[str, DictConfig]) -> None:
    """Say which jobs the table in this folder was made of that are not part of the new one."""
    try:
        before = read_jobs(folder)
    except RecordError as error:
        log.warning("%s is replaced: %s", folder / "table.md", error)
        return
    gone = [cfg for name, cfg in before.items() if name not in jobs]
    if gone:
        labels = ", ".join(dict.fromkeys(job_label(cfg, [*gone, *jobs.values()]) for cfg in gone))
        log.warning(
            "%s is replaced, and %d of its jobs (%s) are not part of this run: give name=NAME to keep both.",
            folder / "table.md", len(gone), labels,
        )  # fmt: skip


def _keep_jobs(folder: Path, jobs: Mapping[str, DictConfig]) -> None:
    """What the table is made of, so that it can be made again from the records alone."""
    content = {
        "version": EXPERIMENT_VERSION,
        "jobs": [{"name": name, "config": plain(merged(cfg, {"shard": None}))} for name, cfg in jobs.items()],
    }
    with replace_atomically(folder / EXPERIMENT) as path:
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def free_text() -> AbstractContextManager[None]:
    """Within: a figure's texts may be those of prompts and captions, in any script, dollars included."""
    installed = set(font_manager.get_font_names())
    families = [*rcParams["font.family"], *(name for name in FALLBACK_FONTS if name in installed)]
    return rc_context({"text.parse_math": False, "font.family": families})


def save_drawing(drawing: Drawing | None, folder: Path) -> None:
    """Write the figures and their caption; remove those of an earlier drawing that this one does not have."""
    figures = {} if drawing is None else drawing.figures
    kept = {_file(name, file) for name in figures for file in FIGURES}
    for name, figure in figures.items():
        save_figure(figure, folder, name)
    if drawing is not None and drawing.caption:
        kept.add(CAPTION)
        with replace_atomically(folder / CAPTION) as path:
            path.write_text(textwrap.fill(drawing.caption, 100) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        if DRAWN.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def save_figure(figure: Figure, folder: Path, name: str = "") -> None:
    """Write :data:`FIGURES`, ``figure_NAME.png`` of a named figure; one line says which characters no font has."""
    with rc_context({"pdf.fonttype": 42}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.set_dpi(DPI)
        if figure.axes and (layout := figure.get_layout_engine()) is not None:  # once for all formats
            layout.execute(figure)
        figure.set_layout_engine("none")
        for file, metadata in FIGURES.items():
            drawn = BytesIO()  # not the file: on a full disk matplotlib's PDF writer hides the system's error
            figure.savefig(drawn, dpi=DPI, metadata=metadata, format=file.rsplit(".")[-1])
            with replace_atomically(folder / _file(name, file)) as path:
                path.write_bytes(drawn.getvalue())
    found = [(each, MISSING_GLYPH.match(str(each.message))) for each in caught]
    lacking = dict.fromkeys(chr(int(glyph[1])) for _, glyph in found if glyph)
    if lacking:
        log.warning(
            "%s has boxes in place of %s, which no font in use has: install one that does, such as Noto Sans CJK"
            " (fonts-noto-cjk) for Chinese, Japanese and Korean, delete %s/fontlist*.json, and make the figure again.",
            folder / _file(name, "figure.png"), "".join(lacking), get_cachedir(),
        )  # fmt: skip
    for each in (each for each, glyph in found if not glyph):
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _file(name: str, file: str) -> str:
    """``figure.png`` of a figure without a name, ``figure_acc.png`` of the figure ``acc``."""
    return file.replace("figure", f"figure_{name}") if name else file
