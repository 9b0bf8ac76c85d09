"""The command line: ``metagame run`` computes jobs and writes tables, ``metagame report`` renders records again."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError

from metagame.errors import UserError
from metagame.extras import needed_by
from metagame.jobs.grid import check_keys, list_choices, results_name
from metagame.jobs.spec import configs_folder, register

log = logging.getLogger("metagame.cli")

USAGE = """usage: metagame run [OVERRIDES]        compute a job or an experiment (the same as python run.py)
       metagame report [EXPERIMENTS]   render tables, figures and the page from the records, without a model
       metagame diff FIRST SECOND [--page FOLDER]    show what changed from one run of an experiment to another
       metagame serve [FOLDER] [--port N]    explain what you type on a page in your browser, and show a page of results
       metagame plan OVERRIDES         estimate the cost of jobs and list what is missing, without loading weights
       metagame fetch data|weights|all [EXPERIMENTS] [--dry-run]    download what experiments need at paper scale"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point ``metagame``; it ends quietly where the reader of its output does, such as ``head``."""
    try:
        _main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it ends
        sys.exit(1)


def _output_is_closed() -> bool:
    """Whether nobody reads what is printed: what was not written yet cannot be."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _main(arguments: Sequence[str] | None) -> None:
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command == "run":
        run(rest)
    elif command == "report":
        from metagame.experiments import report  # here and below, since each takes seconds to import

        sys.path.insert(0, str(Path.cwd()))  # where classes of one's own are found
        report(rest)
    elif command == "fetch":
        from metagame.fetch.command import main as fetch

        fetch(rest)
    elif command == "plan":
        from metagame.plan.command import main as plan

        sys.path.insert(0, str(Path.cwd()))
        plan(rest)
    elif command == "diff":
        from metagame.report.diff import main as diff

        diff(rest)
    elif command == "serve":
        from metagame.viewer.serve import main as serve

        serve(rest)
    elif command in ("-h", "--help"):
        print(USAGE)  # noqa: T201
    else:
        print(f"{USAGE}\n\nmetagame: the command {command!r} is unknown: choose one of those above.", file=sys.stderr)  # noqa: T201
        sys.exit(2)


# metagame run


def run(arguments: Sequence[str]) -> None:
    """Compute what the overrides ask for, and write the table; see ``configs/config.yaml``."""
    lines = [each for each in arguments if "=" in each and not each.startswith("-")]
    explain_parse_errors(lines)
    try:
        folders = [configs_folder(), *_own_configs(arguments)]
        if not {"-sc", "--shell-completion"} & {*arguments}:  # with arguments of its own, such as install=bash
            check_keys(lines, folders)
        if any(line.startswith("hydra/launcher=slurm") for line in lines):
            with needed_by("hydra/launcher=slurm"):
                import_module("submitit")
        name = results_name(lines, _swept_by_experiment(lines, folders))
    except UserError as error:
        sys.exit(str(error))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, stop)
    register()
    OmegaConf.register_new_resolver("choices", list_choices, replace=True)  # for --help
    sys.path.insert(0, str(Path.cwd()))  # where classes of one's own are found
    named = list(arguments)
    if name is not None:  # beside the other overrides, where Hydra's options may follow
        named.insert(named.index(lines[0]), f"name='{name}'")
    sys.argv = ["run.py", *named]
    hydra.main(version_base="1.3", config_path=str(configs_folder()), config_name="config")(run_one)()


def run_one(cfg: DictConfig) -> str | None:
    """Run a job, see :func:`metagame.experiments.run_one`."""
    from metagame import experiments  # here, so that what Hydra refuses is refused before torch is loaded

    return experiments.run_one(cfg)


def _swept_by_experiment(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The keys of which the chosen experiment sweeps several values, from its files in the folders of configs."""
    given = dict(line.split("=", 1) for line in overrides)
    name, scale = given.get("experiment", ""), given.get("scale", "tiny")
    paths = [folder / "experiment" / file for file in (name, f"by_scale/{scale}/{name}") for folder in folders]
    params: dict[str, Any] = {}
    for path in (path.with_name(f"{path.name}.yaml") for path in paths):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if name and path.is_file() else None
        params |= (content or {}).get("hydra", {}).get("sweeper", {}).get("params", {})
    lines = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [key for key, line in zip(params, lines, strict=True) if line.is_sweep_override()]


def _own_configs(arguments: Sequence[str]) -> list[Path]:
    """The folder that Hydra's ``--config-dir`` names; a UserError where it is not there."""
    parser = argparse.ArgumentParser("metagame run", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    folder = parser.parse_known_args(list(arguments))[0].config_dir
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"--config-dir {folder} is not a folder: give the folder that holds your choices, for example"
            " model/NAME.yaml."
        )
    return [] if folder is None else [folder]


def explain_parse_errors(overrides: Sequence[str]) -> None:
    """Answer an override that Hydra cannot read with how to quote it."""
    if not __debug__:
        sys.exit(
            "python -O removes assertions that the parser of Hydra needs: run without -O and with PYTHONOPTIMIZE unset."
        )
    broken = [override for override in overrides if not _is_utf8(override)]
    if broken:
        sys.exit(f"the argument {broken[0]!r} is not valid UTF-8: give it in UTF-8, or rename the file that it names.")
    parser = OverridesParser.create()
    for override in overrides:
        try:
            read = parser.parse_override(override)
        except HydraException as error:
            key, value = override.split("=", 1)
            reason = str(error).splitlines()[0].split(" expecting ")[0]
            advice = f'quote the value inside the quotes, "{key}={quoted(value)}".'
            sys.exit(f"Hydra cannot read {override!r} ({reason}): {advice}")
        if not _is_whole(read.value()):
            sys.exit(
                f"{override!r} contains '${{', which starts a reference to another value, as in ${{name}}: to"
                " write it in a text, separate the two characters, for example with a space."
            )


def _is_whole(value: object) -> bool:
    """Whether OmegaConf keeps a text: of what begins as the name of a value it must end as one, and none is escaped."""
    text = value.text if isinstance(value, QuotedString) else value
    if not isinstance(text, str) or "${" not in text:
        return True
    try:
        OmegaConf.create([text])
    except GrammarParseError:
        return False
    return "\\${" not in text


def quoted(text: str) -> str:
    """The text as Hydra reads it whole, whatever is in it: backslashes count before a quote alone."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that Python could not decode are surrogates
        return False
    return True


def stop(number: int, frame: FrameType | None) -> None:
    """Leave at once where the process is told to, by a user or by a cluster whose time is over."""
    log.error("Stopped by %s: rerun the same command to resume.", signal.Signals(number).name)
    terminal = sys.__stderr__  # since progress bars put another in the place of sys.stderr, and hide the cursor
    if terminal is not None and terminal.isatty():
        terminal.write("\x1b[?25h")
        terminal.flush()
    os._exit(128 + number)  # an exception may be swallowed on its way out; what is on the disk is whole at any moment


if __name__ == "__main__":
    main()
