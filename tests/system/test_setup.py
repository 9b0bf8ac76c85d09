"""`make setup` on a fresh machine, with stand-ins for the disk, `venv`, pip and uv."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import setup_environment

ROOT = Path(__file__).parents[2]
PARTS = ("Makefile", "pyproject.toml", "requirements.lock", "scripts/setup_environment.py")

# `python3`: the set-up on another disk, and under another Python.
PYTHON3 = f"""#!{sys.executable}
import os, runpy, shutil, sys
from pathlib import Path
from types import SimpleNamespace

Path("pid").write_text(str(os.getpid()))
shutil.disk_usage = lambda folder: SimpleNamespace(free=float(os.environ["FREE"]) * 1e9)
exec(os.environ["BEFORE"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Before the library's `venv`, since it lies in the folder that `python3 -m venv` is run in.
VENV = """
import shutil, sys
from pathlib import Path

folder = Path(sys.argv[-1])
shutil.rmtree(folder, ignore_errors=True)
(folder / "bin").mkdir(parents=True)
shutil.copy("python.sh", folder / "bin" / "python")
"""
# `.venv/bin/python`: notes what it is asked to do, and does nothing, or is slow or fails at it.
PYTHON = """#!/bin/sh
echo "$*" >> asked
case "$*" in *"$AT"*)
    if [ -n "$SLEEP" ]; then touch asleep; exec sleep "$SLEEP"; fi
    if [ -n "$FAIL" ]; then echo "error: $FAIL" >&2; exit 2; fi
esac
"""
STEPS = ("pip install --quiet uv", "requirements.lock", "--no-deps -e")
"""In order; after them two halves of what a first run imports are compiled side by side."""


class Machine:
    """A clone, in which `make setup` can be run."""

    def __init__(self, folder):
        self.folder = folder
        self.venv = folder / ".venv"
        self.installed = self.venv / "installed"
        files = {part: (ROOT / part).read_text(encoding="utf-8") for part in PARTS}
        files |= {"venv.py": VENV, "python.sh": PYTHON, "path/python3": PYTHON3}
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)

    def start(self, free=100.0, before="", **told):
        path = f"{self.folder / 'path'}:{os.environ['PATH']}"
        told |= {"PATH": path, "UV_CACHE_DIR": str(self.folder / "cache"), "FREE": str(free), "BEFORE": before}
        return subprocess.Popen(
            # heeding Ctrl-C also where the tests run in the background of a shell, which has its jobs ignore it
            ["env", "--default-signal=INT", "make", "--no-print-directory", "setup"],
            cwd=self.folder, env={**os.environ, **told}, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def set_up(self, **told):
        """The exit code, and what the set-up said without what make adds."""
        process = self.start(**told)
        said, errors = process.communicate(timeout=60)
        return process.returncode, said, re.sub(r"^make(\[\d\])?: .*\n", "", errors, flags=re.MULTILINE)

    def refusal(self, **told):
        """The one sentence with which a set-up ends."""
        code, _, errors = self.set_up(**told)
        assert code != 0
        assert errors.count("\n") == 1
        assert errors.endswith(".\n")
        return errors

    def asleep(self):
        """A set-up that has come to the locked packages."""
        process = self.start(AT="requirements.lock", SLEEP="60")
        while not (self.folder / "asleep").exists():
            assert process.poll() is None
            time.sleep(0.02)
        return process

    def asked(self):
        """What `.venv/bin/python` was asked to do since the last call."""
        file = self.folder / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_it_says_what_it_needs_and_does_nothing_the_second_time(machine):
    code, said, errors = machine.set_up(free=50)
    assert (code, errors) == (0, "")
    assert re.fullmatch(r"make setup downloads up to [\d.]+ GB and fills up to [\d.]+ GB .* 50\.0 GB free; .*\n", said)
    *steps, first, second = machine.asked()
    assert [step in line for step, line in zip(STEPS, steps, strict=True)] == [True] * 3
    assert {first, second} == {f"-c {imports}" for imports in setup_environment.COMPILED}
    assert machine.installed.exists()
    machine.set_up(free=0)
    assert machine.asked() == []


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 11, 3), (3, 14, 0)])
def test_an_unfit_python_is_refused(machine, version):
    name = ".".join(map(str, version))
    told = machine.refusal(before=f"sys.version, sys.version_info = '{name} (main)', {version}")
    assert told.startswith(f"python3 is {name} and must be 3.11 (from 3.11.4 on), 3.12 or 3.13: ")
    assert not machine.venv.exists()


@pytest.mark.parametrize("version", [(3, 11, 4), (3, 13, 5)])
def test_a_fit_python_is_not(machine, version):
    assert machine.set_up(before=f"sys.version_info = {version}")[0] == 0


def test_an_old_python_can_read_the_script_that_refuses_it():
    ast.parse((ROOT / "scripts" / "setup_environment.py").read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("told", "sentences"),
    [
        ({"before": "sys.modules['ensurepip'] = None"}, ["apt install python3-venv"]),
        ({"free": 1.5}, ["has 1.5 GB: make room", "`git clone . /DISK/metagame && "]),
    ],
    ids=["Debian's Python without venv", "a small disk"],
)
def test_what_is_missing_is_said_in_a_sentence(machine, told, sentences):
    refusal = machine.refusal(**told)
    assert all(sentence in refusal for sentence in sentences)
    assert not machine.venv.exists()


def test_what_earlier_set_ups_fill_counts(tmp_path, monkeypatch):
    venv, cache, lock = tmp_path / ".venv", tmp_path / "cache", tmp_path / "requirements.lock"
    for name, value in {"VENV": venv, "CACHE": cache, "LOCK": lock}.items():
        monkeypatch.setattr(setup_environment, name, value)
    lock.write_text("torch==2.15.0\ntriton==3.9.0 ; sys_platform == 'linux'\n")
    (cache / "wheels-v8" / "pypi" / "torch").mkdir(parents=True)
    for archive, version in (("locked", "2.15.0"), ("other", "2.14.0")):
        (cache / archive).mkdir()
        (cache / archive / "library.so").write_bytes(bytes(1_000_000))
        (cache / "wheels-v8" / "pypi" / "torch" / f"{version}-cp313-cp313-manylinux").symlink_to(cache / archive)
    assert setup_environment.held(venv) == pytest.approx(1e-3, rel=0.01)
    venv.mkdir()
    (venv / "library.so").hardlink_to(cache / "locked" / "library.so")
    assert setup_environment.held(venv) == pytest.approx(1e-3, rel=0.01)
    monkeypatch.setattr(setup_environment, "free", lambda folder: setup_environment.FILLED - 0.0005)
    setup_environment.check_disk()
    monkeypatch.setattr(setup_environment, "free", lambda folder: setup_environment.FILLED - 0.0015)
    with pytest.raises(SystemExit, match="make room"):
        setup_environment.check_disk()


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (STEPS[0], "No space left on device (os error 28)"),
        (STEPS[1], "[Errno 122] Disk quota exceeded: 'x'"),
        (STEPS[2], "os error 28"),
    ],
)
def test_a_disk_that_fills_is_told_and_the_next_set_up_finishes(machine, step, reason):
    assert re.match(
        "The disk of .* is full: make room and run `make setup` again", machine.refusal(AT=step, FAIL=reason)
    )
    assert not machine.installed.exists()
    assert machine.set_up()[0] == 0
    assert machine.installed.exists()


def test_a_package_that_cannot_be_imported_is_told_with_the_command_that_shows_it(machine):
    broken = setup_environment.COMPILED[0]
    code, _, errors = machine.set_up(AT=broken, FAIL="metagame.models.clip is broken")
    assert code != 0
    assert errors.startswith("error: metagame.models.clip is broken\n")
    assert f"-c {broken}` failed: fix the error above and run `make setup` again.\n" in errors
    assert not machine.installed.exists()


def test_a_killed_set_up_is_run_again_from_its_beginning(machine):
    process = machine.asleep()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (machine.venv / "half").touch()
    machine.asked()
    assert machine.set_up()[0] == 0
    assert [step in line for step, line in zip(STEPS, machine.asked()[:3], strict=True)] == [True] * 3
    assert not (machine.venv / "half").exists()


def test_what_a_killed_set_up_left_running_is_waited_for(machine):
    first = machine.asleep()
    pid = int((machine.folder / "pid").read_text())
    first.kill()
    os.kill(pid, signal.SIGKILL)  # and not what it has started
    second = machine.start()
    assert second.stdout.readline().startswith("Another set-up is running in this folder")
    assert second.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert machine.installed.exists()


def test_a_stopped_set_up_has_no_traceback(machine):
    process = machine.asleep()
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert "The set-up was interrupted: rerun `make setup` to resume." in errors
    assert "Traceback" not in errors
    assert not machine.installed.exists()


def test_another_lock_brings_a_whole_environment_up_to_date_and_one_whose_update_was_cut_is_made_anew(machine):
    machine.set_up()
    machine.asked()
    (machine.venv / "kept").touch()
    time.sleep(0.01)
    (machine.folder / "requirements.lock").touch()
    assert machine.set_up()[0] == 0
    assert [line for line in machine.asked() if STEPS[0] in line] == []
    assert (machine.venv / "kept").exists()
    assert subprocess.run(["make", "--question", "setup"], cwd=machine.folder).returncode == 0
    time.sleep(0.01)
    (machine.folder / "requirements.lock").touch()
    code, _, errors = machine.set_up(AT="requirements.lock", FAIL="no network")
    assert code != 0
    assert errors.startswith("error: no network\n`")
    assert errors.endswith("requirements.lock` failed: fix the error above and run `make setup` again.\n")
    machine.asked()
    assert machine.set_up()[0] == 0
    assert STEPS[0] in machine.asked()[0]
