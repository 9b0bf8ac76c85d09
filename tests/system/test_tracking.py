from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb
from filelock import FileLock
from wandb.proto.wandb_internal_pb2 import Record

from metagame import tracking
from metagame.errors import UserError
from metagame.experiments import finish, run_tracked
from metagame.jobs.run import run_job
from metagame.jobs.spec import job_folder
from metagame.tracking.wandb import _choose_mode
from tests.conftest import unchecked
from tests.tiny.jobs import ROOT, Plain, Share, job_config, terminal_free_environment
from tests.tiny.runs import FORKS

pytestmark = pytest.mark.slow

SLOW = {"model__seconds": 0.3, "benchmark__values": list(range(8))}
TRACKER = {"name": "wandb", "_target_": "metagame.tracking.wandb.WandbTracker", "project": "metagame", "timeout": 60}


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """No setting of this machine's user counts, every record is looked at, and W&B's process ends with the test."""
    for name in {name for name in os.environ if name.startswith("WANDB_")} | {"WANDB_DATA_DIR", "WANDB_CACHE_DIR"}:
        monkeypatch.setenv(name, "")  # so that it is as before in the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN", 0.0)
    _choose_mode.cache_clear()
    yield
    wandb.teardown()


def tracked(folder, **changes):
    """The config of a stub job that is tracked; ``mode`` and the like are the tracker's."""
    settings = {key: changes.pop(key) for key in ("mode", "arrays", "timeout") if key in changes}
    return job_config(folder, **{"tracker": TRACKER | {"mode": "offline"} | settings} | changes)


def sessions(folder):
    """What each process wrote of a run, in the order in which they began, without those that lost the beginning."""
    wandb.teardown()
    found = [session(path) for path in folder.glob("wandb/offline-run-*/*.wandb")]
    return sorted((each for each in found if each.run), key=lambda each: each.run.start_time.ToNanoseconds())


def session(path):
    found = SimpleNamespace(files=path.parent / "files", run=None, config={}, summary={}, history=[])
    for record in read_log(path.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run" | "exit" | "artifact" as kind:
                setattr(found, kind, getattr(record, kind))
                found.config |= values(record.run.config.update)
            case "history":
                found.history.append(values(record.history.item))
            case "summary":
                found.summary |= values(record.summary.update)
    return found


def values(updates):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def read_log(content):
    """The records of a file in LevelDB's log format, up to where it breaks off."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if left_in_block < 7 or kind == 0:
            position += left_in_block
            continue
        position += 7 + length
        parts += content[position - length : position]
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def rows(run, *names):
    """Of the rows that are of a record."""
    return [tuple(row.get(name) for name in names) for row in run.history if "sample" in row]


def said(caplog, start="Tracking stopped"):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(start)]


@pytest.mark.parametrize("arrays", [False, True])
def test_a_run_has_what_the_files_of_a_job_have(tmp_path, monkeypatch, arrays):
    monkeypatch.setattr(Share, "broken", {"2"})
    folder = run_tracked(tracked(tmp_path, arrays=arrays, seed=3)).folder
    (run,) = sessions(tmp_path)
    about = (run.run.project, run.run.job_type, run.run.display_name, run.run.run_group[:13])
    assert about == ("metagame", "job", folder.name, "numbers-tiny-")
    assert {"numbers", "scale=tiny"} < {*run.run.tags}
    assert "section `score`" in run.run.notes
    assert (run.config["seed"], run.config["benchmark"]["values"]) == (3, [1, 2, 3])
    assert run.config["environment"] == json.loads((folder / "environment.json").read_text())
    expected = [(1, "1", 1.0, None), (2, "2", None, "RuntimeError: no memory for 2"), (3, "3", 3.0, None)]
    assert rows(run, "_step", "sample", "score/value", "error") == expected
    assert (run.summary["done"], run.summary["failed"]) == (2, 1)
    files = [path for path in folder.rglob("*.*") if path.suffix != ".lock" and (arrays or path.suffix != ".npz")]
    md5 = {path: base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode() for path in files}
    entries = {folder / entry.path: entry for entry in run.artifact.manifest.contents}
    assert {path: entry.digest for path, entry in entries.items()} == md5
    assert all(Path(entry.local_path).is_relative_to(tmp_path) for entry in entries.values())


@pytest.mark.parametrize(("factors", "kinds"), [([1.0], ["job", "job"]), ([1.0, 2.0], ["job", "job", "table"])])
def test_the_table_is_in_the_run_of_its_job_or_several_have_one_for_it(tmp_path, monkeypatch, factors, kinds):
    monkeypatch.setattr(Share, "broken", {"2"})
    configs = [tracked(tmp_path, attribution__method__factor=factor) for factor in factors]
    for cfg in configs:
        run_tracked(cfg)
    for _ in range(2):  # it is logged once
        assert finish(configs)
    found = sessions(tmp_path)
    assert [each.run.job_type for each in found] == kinds
    assert len({each.run.run_id for each in found}) == (1 if len(configs) == 1 else 3)
    row, written = found[-1].history[-1], pd.read_csv(tmp_path / "table.csv")
    table, notes = (
        json.loads((found[-1].files / row[f"result/{name}/path"]).read_text()) for name in ("table", "notes")
    )
    assert (table["columns"], table["data"]) == (list(written), written.to_numpy().tolist())
    assert len(notes["data"]) == len(configs)
    assert found[-1].run.display_name.startswith("numbers: table") == (len(configs) > 1)


class Eventful(Plain):
    """Something happens in sample 2."""

    happens = None

    def bind(self, sample):
        if sample.id == "2" and self.happens == "interrupt":
            raise KeyboardInterrupt
        if sample.id == "2" and self.happens == "dead service":
            process = wandb.setup().ensure_service()._proc._process
            process.kill()
            process.wait()
        return super().bind(sample)


UNTRACKED = {"tracker": {"name": "none"}}
VARIANTS = {name: dict(job_config("").attribution, name=name) for name in ("a", "b")}
CASES = {
    "goes on": ([{"limit": 2}, {}], [["1", "2"], ["3"]]),
    "nothing to do": ([{}, {}], [["1", "2", "3"]]),
    "interrupted": ([{"happens": "interrupt"}, {}], [["1"], ["2", "3"]]),
    "dead service": ([{"happens": "dead service"}, {}], [["1", "2", "3"]]),
    "mended": ([{"broken": {"2"}}, {}], [["1", "2", "3"], ["2"]]),
    "untracked before": ([UNTRACKED | {"limit": 2}, {}], [["1", "2", "3"]]),
    "an old line": ([UNTRACKED | {"shards": 3, "shard": 2}, {"limit": 2}, {}], [["1", "2"], ["3"]]),
    "variants": ([{"attribution__method": None, "attribution__variants": VARIANTS, "limit": 1}], [["1a", "1b"]]),
    "shards": ([{"shards": 2, "shard": 0}, {"shards": 2, "shard": 1}], [["1", "3"], ["2"]]),
}


@pytest.mark.parametrize(("jobs", "logged"), CASES.values(), ids=CASES)
def test_a_record_is_one_row_of_the_run_of_its_job_or_shard(tmp_path, monkeypatch, caplog, jobs, logged):
    for job in jobs:
        changes = {"model___target_": "tests.system.test_tracking.Eventful"} | job
        monkeypatch.setattr(Share, "broken", changes.pop("broken", set()))
        monkeypatch.setattr(Eventful, "happens", changes.pop("happens", None))
        with suppress(KeyboardInterrupt):
            run_tracked(tracked(tmp_path, **changes))
    found = sessions(tmp_path)
    assert [[sample + (variant or "") for sample, variant in rows(run, "sample", "variant")] for run in found] == logged
    assert len({run.run.run_group for run in found}) == 1
    assert len({run.run.run_id for run in found}) == (n_runs := jobs[-1].get("shards", 1))
    steps = [step for run in found for (step,) in rows(run, "_step")]
    assert steps == ([1, 2, 1] if n_runs == 2 else list(range(1, len(steps) + 1)))
    assert [run.exit.exit_code for run in found] == [int(samples == ["1"]) for samples in logged]
    assert len(said(caplog)) == (jobs[0].get("happens") == "dead service")


def run_slow(folder):
    tracking.SECONDS_BETWEEN = 0.0
    run_tracked(tracked(folder, **SLOW))


def test_after_a_kill_no_record_is_missing_and_none_that_is_on_the_disk_is_logged_again(tmp_path):
    killed = tmp_path / "killed"
    bookmark = Path("wandb", f"{job_folder(tracked(killed, **SLOW)).name}.json")
    process = FORKS.Process(target=run_slow, args=(killed,))
    process.start()
    while process.is_alive() and not ((killed / bookmark).exists() and (killed / bookmark).stat().st_size > 130):
        time.sleep(0.05)
    process.kill()
    process.join()
    known = json.loads((killed / bookmark).read_text())
    assert 0 < len(known["unsure"]) == len(known["rows"]) < 8
    for n_sure in (0, len(known["rows"])):  # the second as when half a minute had passed
        folder = Path(shutil.copytree(killed, tmp_path / str(n_sure)))
        (folder / bookmark).write_text(json.dumps(known | {"unsure": known["rows"][n_sure:]}))
        run_tracked(tracked(folder, **SLOW))
        run = sessions(folder)[-1]
        assert run.run.run_id == known["id"]
        assert rows(run, "_step", "sample") == [(number + 1, str(number)) for number in range(n_sure, 8)]


@pytest.mark.parametrize(
    ("failure", "seconds", "ends"),
    [
        (lambda: 1 / 0, 0.0, [0]),
        (lambda: time.sleep(30), 0.0, [0, 0, 0]),
        (lambda: sys.exit(1), 0.0, [0, 0, 0, 0, 1]),
        (lambda: 1 / 0, 60.0, [0, 1]),
    ],
)
def test_a_tracker_that_fails_is_called_no_more(tmp_path, monkeypatch, caplog, failure, seconds, ends):
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN", seconds)
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) >= len(ends):
            failure()

    tracker = SimpleNamespace(timeout=0.3, sync=fail, report=fail, abandon=fail)
    assert run_job(job_config(tmp_path), lambda *arguments: tracking.track_job(tracker, *arguments)).n_done == 3
    *calls_of_job, abandon = calls
    assert ([call[-1] for call in calls_of_job], abandon) == (ends, ())
    tracking.track_report(tracker, [job_config(tmp_path)])
    sentence = r"Tracking stopped \(.+: .+\); the (job continues|table is).+"
    assert [bool(re.fullmatch(sentence, line)) for line in said(caplog)] == [True, True]


HARMS = {
    "tracker=wandb needs wandb, which": lambda bookmark, patch: patch.setitem(sys.modules, "wandb", None),
    "JSONDecodeError: ": lambda bookmark, patch: bookmark.write_text("{"),
    "Timeout: ": lambda bookmark, patch: patch.setitem(HARMS, "", FileLock(bookmark.with_suffix(".lock")).acquire()),
}


@pytest.mark.parametrize("error", HARMS)
def test_a_tracker_that_cannot_begin_changes_no_result(tmp_path, monkeypatch, caplog, error):
    run_tracked(tracked(tmp_path, limit=1))
    HARMS[error](tmp_path / "wandb" / f"{job_folder(tracked(tmp_path)).name}.json", monkeypatch)
    assert run_tracked(tracked(tmp_path)).n_done == 3
    assert finish([tracked(tmp_path)])
    assert [line.startswith(f"Tracking stopped ({error}") for line in said(caplog)] == [True, True]


@pytest.mark.parametrize(("name", "value"), [("mode", "foo"), ("timeout", 0), ("timeout", "soon"), ("arrays", "some")])
def test_a_setting_of_the_tracker_is_refused_before_the_work(tmp_path, name, value):
    with unchecked(), pytest.raises(UserError, match=rf"^tracker\.{name}='?{value}'? "):
        run_tracked(tracked(tmp_path, **{name: value}))
    assert not job_folder(tracked(tmp_path)).exists()


MODES = [
    (None, "WANDB_API_KEY", "", "no API key"),
    (None, "WANDB_API_KEY", "0" * 40, "no answer within 1 seconds"),
    (None, "WANDB_MODE", "offline", "mode=offline"),
    (None, "WANDB_MODE", "disabled", None),
    ("online", "WANDB_API_KEY", "", None),
]


@pytest.mark.parametrize(("mode", "name", "value", "reason"), MODES)
def test_why_runs_are_not_online_is_said_once(tmp_path, monkeypatch, caplog, mode, name, value, reason):
    monkeypatch.setattr("metagame.tracking.wandb.SECONDS_TO_ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, caplog.at_level("INFO"):
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv(name, value)
        for seed in (0, 1):
            assert run_tracked(tracked(tmp_path, mode=mode, seed=seed)).n_done == 3
    line = f"Tracked offline ({reason}); to upload: wandb sync {tmp_path / 'wandb'}"
    assert said(caplog, "Tracked") == ([line] if reason else [])
    assert len(sessions(tmp_path)) == (2 if reason else 0)
    assert ["mode=online: no API key); the job" in each for each in said(caplog)] == [True] * (2 if mode else 0)


def test_a_sweep_is_a_group_of_its_jobs_and_its_table_and_leaves_no_other_trace(tmp_path):
    sweep = ("run.py", "-m", "model=adder", "benchmark=addition", "attribution=sv,ig", "limit=2")
    where = {"cwd": ROOT, "env": terminal_free_environment(HOME=str(tmp_path / "home"))}
    for name, unsaid in {"wandb": "wandb: |Traceback", "none": r"\| +(wandb|metagame\.tracking\.)"}.items():
        command = [sys.executable, "-X", "importtime", *sweep, f"tracker={name}", f"output_dir={tmp_path / name}"]
        process = subprocess.run(command, **where, capture_output=True, text=True, timeout=300, check=True)
        assert not re.search(unsaid, process.stderr)
    assert not [path for name in ("none", "home") for path in (tmp_path / name).rglob("*wandb*")]
    runs = sessions(tmp_path / "wandb")
    assert [run.run.job_type for run in runs] == ["job", "job", "table"]
    assert len({run.run.run_group for run in runs}) == 1
    assert runs[2].config["jobs"] == [run.run.display_name for run in runs[:2]]
    figure = runs[2].files / runs[2].history[-1]["result/figure/path"]
    assert figure.read_bytes() == (tmp_path / "wandb" / "figure.png").read_bytes()
    results = [path for path in (tmp_path / "none").rglob("*.*") if path.suffix not in (".lock", ".pdf")]
    names = [path.relative_to(tmp_path / "none") for path in results if path.stem in ("records", "table", "figure")]
    assert len(names) == 7
    assert all((tmp_path / "wandb" / name).read_bytes() == (tmp_path / "none" / name).read_bytes() for name in names)
