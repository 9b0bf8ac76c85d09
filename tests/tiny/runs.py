"""``run.py`` and others in processes that are forked where their imports are done already, so that many can run."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import runpy
import sys
import time
from pathlib import Path

from tests.tiny.jobs import ROOT, terminal_free_environment

TABLES = ("table.json", "table.csv", "table.md", "table.tex")
PAGE = os.sysconf("SC_PAGESIZE")

FORKS = multiprocessing.get_context("forkserver")
IMPORTED = (
    "tests.tiny.jobs", "metagame.cli", "metagame.experiments", "metagame.attributions.attention",
    "metagame.attributions.attnlrp", "metagame.attributions.gradients", "metagame.attributions.shapley",
    "metagame.benchmarks.addition", "metagame.estimators.auto", "metagame.models.clip",
    "metagame.models.language_model", "metagame.report.addition", "pandas", "jinja2", "tabulate", "matplotlib.pyplot",
    "matplotlib.backends.backend_pdf",
)  # fmt: skip
FORKS.set_forkserver_preload(list(IMPORTED))


def run_py(arguments, path):
    """``python run.py`` with these arguments, modules in the folders ``path`` beside it."""
    sys.path[:0] = path
    sys.argv = ["run.py", *arguments]
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")


def work_in(cwd, errors, work, arguments):
    gc.freeze()
    os.chdir(cwd)
    os.dup2(errors.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(terminal_free_environment())
    work(*arguments)


class Forked:
    """A function at work in another process."""

    def __init__(self, work, *arguments, cwd=ROOT):
        self.errors, written = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=work_in, args=(str(cwd), written, work, arguments))
        self.process.start()
        written.close()

    def end(self):
        """The exit status, and what was written to standard error, once the process is over."""
        written = b"".join(iter(lambda: os.read(self.errors.fileno(), PAGE), b""))
        self.process.join()
        return self.process.exitcode, written.decode()


class Run(Forked):
    """``run.py`` at work in another process."""

    def __init__(self, *arguments, output_dir=None, cwd=ROOT, path=()):
        self.folder = output_dir
        all_arguments = [*arguments, *([] if output_dir is None else [f"output_dir={output_dir}"])]
        super().__init__(run_py, all_arguments, list(map(str, path)), cwd=cwd)

    def until(self, condition):
        """Wait until the condition holds, which must be before the end of the process."""
        while not condition():
            assert self.process.is_alive(), self.end()
            time.sleep(0.005)

    def recorded(self, n_samples):
        self.until(lambda: n_recorded(self.folder) >= n_samples)

    def stop(self, number):
        """Send a signal; the exit status, and what was written to standard error."""
        os.kill(self.process.pid, number)
        return self.end()


def run(*arguments, **where):
    return Run(*arguments, **where).end()


def n_recorded(folder):
    return sum(file.read_bytes().count(b"\n") for file in Path(folder).glob("jobs/*/records.jsonl"))


def n_by_an_earlier_run(errors):
    return sum(map(int, re.findall(r"(\d+) by an earlier run", errors)))


def contents(folder, names=TABLES):
    return {name: (folder / name).read_bytes() for name in names}


def table(folder):
    return json.loads((folder / "table.json").read_text(encoding="utf-8"))


def records(folder):
    """The lines of every job's records, by job."""
    files = sorted(folder.glob("jobs/*/records.jsonl"))
    return {file.parent.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
