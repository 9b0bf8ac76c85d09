"""Make `.venv` with the locked packages, as `make setup` does.

A set-up that was cut is run again: `.venv` is made anew, and what was downloaded is still in uv's cache.
An older Python can read this file too, and so is refused in one sentence.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
INSTALLED = VENV / "installed"  # written last, and what the Makefile looks for
LOCK = ROOT / "requirements.lock"
CACHE = Path(os.environ.get("UV_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "uv")
# GB, most of it CUDA: PyPI's torch for Linux is built for it, and there is no other for machines without a GPU.
# Downloaded: .venv/bin/python -m pip download --no-deps -d /tmp/wheels -r requirements.lock && du -s --si /tmp/wheels
# Filled: du -s --si .venv, whose files are also those of uv's cache where both are on one disk; and some room to work
DOWNLOADED, FILLED = (3.4, 8) if sys.platform == "linux" else (0.5, 2.5)
FULL = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")
# What a first run imports, in halves for two cores: compiled here, also where Python keeps no bytecode by itself
COMPILED = (
    "import metagame.models.clip, metagame.models.flux, metagame.models.language_model, metagame.models.siglip2",
    "import matplotlib.backends.backend_pdf, matplotlib.pyplot, pandas, shapiq, sklearn.linear_model, wandb",
)
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
REMEDY = "or go to a larger disk: `git clone . /DISK/metagame && cd /DISK/metagame && UV_CACHE_DIR=/DISK/uv make setup`"


def check_python() -> None:
    if not (3, 11, 4) <= sys.version_info < (3, 14):
        sys.exit(
            f"python3 is {sys.version.split()[0]} and must be 3.11 (from 3.11.4 on), 3.12 or 3.13: install one and "
            "name it, as in `python3.13 scripts/setup_environment.py`."
        )
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit("python3 has no ensurepip to make .venv with: install it, on Debian by `apt install python3-venv`.")


def wait_for(lock: TextIO) -> None:
    """Lock the file, which what a killed set-up had started still holds until it has ended."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another set-up is running in this folder: waiting for it to finish.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a network disk may have no locks
        pass


def on_disk(folder: Path) -> Path:
    """The folder, or the nearest one above it that there is."""
    return next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())


def free(folder: Path) -> float:
    return shutil.disk_usage(on_disk(folder)).free / 1e9


def cached() -> list:
    """Folders of uv's cache that hold locked packages: none, should a later uv name them otherwise."""
    pins = (line.split(" ")[0].partition("==") for line in LOCK.read_text(encoding="utf-8").splitlines())
    links = (link for name, _, version in pins for link in CACHE.glob(f"wheels-*/*/{name}/{version}-*"))
    return [link.resolve() for link in links if link.is_dir()]


def held(folder: Path) -> float:
    """GB that earlier set-ups already fill on the disk of the folder; a file of two names counts once."""
    sizes = {}
    for top in (VENV, *cached()):
        for parent, _, names in os.walk(top):
            for name in names:
                file = Path(parent, name).lstat()
                sizes[file.st_dev, file.st_ino] = 512 * file.st_blocks
    disk = on_disk(folder).stat().st_dev
    return sum(size for (device, _), size in sizes.items() if device == disk) / 1e9


def check_disk() -> None:
    print(f"make setup downloads up to {DOWNLOADED} GB and fills up to {FILLED} GB of the disk, which has", end=" ")
    print(f"{free(VENV):.1f} GB free; it takes some minutes.", flush=True)
    for folder in (VENV, CACHE):
        if free(folder) < FILLED and free(folder) + held(folder) < FILLED:
            sys.exit(f"{folder} needs {FILLED} GB of disk and has {free(folder):.1f} GB: make room, {REMEDY}.")


def run(lock: TextIO, *command: object) -> None:
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, pass_fds=[lock.fileno()], check=False, **output)
    if done.returncode == 0:
        return
    folder = min(VENV, CACHE, key=free)
    if free(folder) < 0.05 or any(phrase in done.stdout for phrase in FULL):
        sys.exit(f"The disk of {folder} is full: make room and run `make setup` again, {REMEDY}.")
    line = " ".join(map(str, command))
    sys.exit(f"{done.stdout}`{line}` failed: fix the error above and run `make setup` again.")


def ready() -> bool:
    """Whether a whole `.venv` is there, to be brought up to date; one that was cut may look whole to uv."""
    if not (INSTALLED.exists() and PYTHON.exists()):
        return False
    return subprocess.run([PYTHON, "-m", "uv", "--version"], capture_output=True, check=False).returncode == 0


def main() -> None:
    check_python()
    with Path(__file__).open(encoding="utf-8") as lock:
        wait_for(lock)
        check_disk()
        whole = ready()
        INSTALLED.unlink(missing_ok=True)
        if not whole:
            run(lock, sys.executable, "-m", "venv", "--clear", VENV)
            run(lock, PYTHON, "-m", "pip", "install", "--quiet", "uv")
        install = (PYTHON, "-m", "uv", "pip", "install", "--quiet", "--python", PYTHON)  # whichever one is activated
        run(lock, *install, "-r", LOCK)
        run(lock, *install, "--no-deps", "-e", ROOT)
        with ThreadPoolExecutor() as executor:
            list(executor.map(lambda imports: run(lock, PYTHON, "-c", imports), COMPILED))  # raises what they do
        run(lock, "touch", INSTALLED)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nThe set-up was interrupted: rerun `make setup` to resume.")
