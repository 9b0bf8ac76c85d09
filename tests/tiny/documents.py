"""What the README and the documentation show."""

from __future__ import annotations

import re
import shlex

from tests.tiny.jobs import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {page.relative_to(ROOT / "docs").as_posix(): page.read_text() for page in (ROOT / "docs").rglob("*.md")}
TEXT = "\n".join([README, *PAGES.values()])


def blocks(language, text=TEXT):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def lines_starting(start):
    found = [line for block in blocks("bash") for line in block.splitlines() if line.startswith(start)]
    return list(dict.fromkeys(found))


def run_commands():
    """The arguments of every ``python run.py``: on this machine, and on a cluster."""
    found = [shlex.split(line, comments=True)[2:] for line in lines_starting("python run.py")]
    cluster = [arguments for arguments in found if any(each.startswith("hydra/launcher") for each in arguments)]
    return [arguments for arguments in found if arguments not in cluster], cluster
