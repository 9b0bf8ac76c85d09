"""The page of a scale: what its folder of results holds, rendered into one file, and more samples beside it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from metagame.errors import UserError
from metagame.jobs.records import replace_atomically
from metagame.report.results import (
    RUNS,
    JobResult,
    read_asked,
    read_command,
    read_experiment,
    read_jobs,
    read_table_jobs,
)
from metagame.viewer.browser import Browser, Run
from metagame.viewer.errors import UNREADABLE, error_text
from metagame.viewer.tables import Section, read_section

N_SAMPLES = 64
PARTS = "samples"
"""The folder beside the page of the scripts that it loads when their samples are chosen."""
PART = re.compile("[0-9a-f]{16}")
"""Their names, by which they are told from files of others."""
TITLE = b"<title>metagame: "
"""How every page's title begins."""
SCRIPTS = (
    "base.js", "pairs.js", "tokens.js", "maps.js", "arrays.js", "take_out.js", "picker.js", "sight.js", "browser.js",
)  # fmt: skip
"""In this order they are one module."""


@dataclass(frozen=True)
class Experiment:
    """An experiment of a scale.

    Attributes:
        section: its table and figure.
        run: its jobs.
        errors: what could not be read of them.
    """

    section: Section
    run: Run
    errors: list[str]


def write_page(folder: Path, known: Sequence[str] = (), n_samples: int = N_SAMPLES) -> Path:
    """Write ``report/index.html`` from the results of a scale; return its path. Equal results give equal bytes.

    What all but the first few samples show is in ``report/samples``.

    Args:
        folder: of the scale's results, such as ``outputs/tiny``.
        known: names of the experiments that have values for the scale; those without results are listed as not run.
        n_samples: how many samples of each job the browser has.

    Raises:
        UserError: there are no results, ``n_samples`` is not positive, or another page is there.
        RecordError: the page cannot be written.
    """
    if n_samples < 1:
        raise UserError(f"--samples {n_samples} must be a positive integer.")
    found = experiments_in(folder)
    if not found:
        raise UserError(
            f"{folder} has no results: run an experiment first, for example with '{_example(folder, known)}'."
        )
    experiments = [read_run(path) for path in sorted(found, key=lambda path: _order(path.name, known))]
    missing = sorted(set(known) - {path.name for path in found}, key=lambda name: _order(name, known))
    path = folder / "report" / "index.html"
    save_page(path, *render(path.parent, experiments, missing, n_samples))
    return path


def _example(folder: Path, known: Sequence[str]) -> str:
    """A command for results of the scale that the folder is called after."""
    name = "table1" if "table1" in known or not known else known[0]
    return f"make {name}" if folder.name == "tiny" else f"make {name} SCALE={folder.name}"


def is_experiment(folder: Path) -> bool:
    """Whether the folder has an experiment's table, or jobs that it asked for."""
    return (folder / "table.json").exists() or bool(_asked(folder))


def experiments_in(folder: Path) -> list[Path]:
    """The folders of the experiments of a scale, by name."""
    return [path for path in sorted(folder.glob("*")) if is_experiment(path)]


def save_page(path: Path, page: str, parts: Mapping[str, str]) -> None:
    """Write a page and the scripts beside it, and remove those of an earlier one.

    Raises:
        UserError: another page is there.
        RecordError: the page cannot be written.
    """
    if path.is_file() and TITLE not in path.read_bytes():
        raise UserError(f"{path} is no page of metagame, and would be lost: choose another folder.")
    folder = path.parent / PARTS
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in parts.items():
        _write(folder / f"{name}.js", script)
    _write(path, page)
    for old in folder.glob("*.js"):
        if PART.fullmatch(old.stem) and old.stem not in parts:
            old.unlink()


def _write(path: Path, text: str) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(
    folder: Path, experiments: Sequence[Experiment], missing: Sequence[str], n_samples: int
) -> tuple[str, dict[str, str]]:
    """The page of this folder as text, and by name the scripts that it loads.

    Style and script are inside; their hashes, and what that script loads, are all that it lets run.
    """
    browser = Browser(n_samples, folder)
    browsed = {each.section.name for each in experiments if browser.add(each.section.name, each.run)}
    return render_template(
        "template.html", browser, scale=folder.parent.name, experiments=experiments, browsed=browsed, missing=missing
    )  # fmt: skip


def render_template(name: str, browser: Browser, **values: Any) -> tuple[str, dict[str, str]]:
    """A page of :data:`assets` around a browser of samples, and by name the scripts that it loads."""
    data, parts = browser.content()
    return render_page(name, SCRIPTS, data, n_samples=browser.n_samples, parts=PARTS, **values), parts


def render_page(name: str, scripts: Sequence[str], data: Mapping[str, Any], **values: Any) -> str:
    """A page of :data:`assets` with its style, its scripts as one module, and their data."""
    assets = files("metagame.viewer") / "assets"
    style = (assets / "page.css").read_text(encoding="utf-8")
    script = "\n".join((assets / each).read_text(encoding="utf-8") for each in scripts)
    environment = Environment(
        loader=PackageLoader("metagame.viewer", "assets"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    return environment.get_template(name).render(
        **values, data=data,
        style=Markup(style), style_hash=_hash(style), script=Markup(script), script_hash=_hash(script),  # noqa: S704
    )  # fmt: skip


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asked(folder: Path) -> list[Path]:
    """The files that say what an experiment asked of its jobs."""
    return sorted((folder / "samples").glob("*.json"))


def read_run(folder: Path, *, of_table: bool = False) -> Experiment:
    """What an experiment's folder holds, as far as it can be read; of its jobs those of the table alone if asked."""
    try:
        results = read_table_jobs(folder) if of_table else read_experiment(folder)
        errors: list[str] = []
    except UNREADABLE as error:
        results, errors = _readable_jobs(folder, of_table=of_table)
        errors = errors or [error_text(error, folder.parent)]
    try:
        command = read_command(folder)
    except UNREADABLE as error:
        command, errors = None, [*errors, f"{RUNS} cannot be read, so no command is shown: {error}"]
    return Experiment(read_section(folder), Run(results, command), [*errors, *dict.fromkeys(_missing(results))])


def _missing(results: Sequence[JobResult]) -> Iterator[str]:
    """Of each job how many of its samples are not computed, or have lost their arrays."""
    for result in results:
        missing = len(result.sample_ids) - len(result.records)
        if missing:
            yield (
                f"{result.job_label} of {result.model}: {missing} of {len(result.sample_ids)} samples are missing: run"
                " the experiment again."
            )


def _readable_jobs(folder: Path, *, of_table: bool) -> tuple[list[JobResult], list[str]]:
    """The jobs of an experiment one by one, and in a sentence each why some cannot be read."""
    results: list[JobResult] = []
    errors: list[str] = []
    try:
        names = read_jobs(folder) if of_table else {}
    except UNREADABLE as error:
        names, errors = {}, [f"All jobs are taken, also those of no table: {error_text(error, folder.parent)}"]
    for path in (path for path in _asked(folder) if not names or path.stem in names):
        try:
            results += read_asked(path)
        except UNREADABLE as error:
            errors.append(f"The job {path.stem} cannot be read and is not shown: {error_text(error, folder.parent)}")
    return results, errors


def _order(name: str, known: Sequence[str]) -> tuple:
    """Tables, other experiments, figures, each by number; then one's own."""
    kind = 0 if name.startswith("table") else 2 if name.startswith("figure") else 1
    digits = re.search(r"\d+$", name)
    return bool(known) and name not in known, kind, int(digits[0]) if digits else 0, name
