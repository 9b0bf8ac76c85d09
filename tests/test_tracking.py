from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metagame.games import GameError
from metagame.jobs import job_folder, run_job
from metagame.sweep import finish
from metagame.tracking import wandb_session
from metagame.tracking.wandb_tables import metrics_table
from tests.jobs_fixtures import ROOT, Plain, Share, job_config, terminal_free_environment

pytestmark = pytest.mark.slow

SETTINGS = {
    "name": "wandb",
    "_target_": "metagame.tracking.wandb_tracker.WandbTracker",
    "project": "metagame",
    "mode": "offline",
    "timeout": 5,
}


@pytest.fixture(autouse=True, scope="module")
def leave_no_service(tmp_path_factory):
    """No setting of this machine's user counts, and W&B's process ends with this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("NETRC", str(tmp_path_factory.mktemp("home") / "netrc"))
        yield
        end_service()


def end_service():
    import wandb

    wandb.teardown()


def tracked(folder, **changes):
    """The config of a stub job that is tracked; ``mode`` and the like are the tracker's."""
    settings = {key: changes.pop(key) for key in ("mode", "arrays", "timeout") if key in changes}
    return job_config(folder, tracker=SETTINGS | settings, **changes)


class Fragment:
    """What one process wrote of a run, read back from its ``.wandb`` file."""

    def __init__(self, path):
        self.files = path.parent / "files"
        self.run, self.exit_code = None, None
        self.config, self.summary, self.history, self.artifacts = {}, {}, [], {}
        for record in read_log(path):
            match record.WhichOneof("record_type"):
                case "run":
                    self.run = record.run
                    self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                case "history":
                    self.history.append(items(record.history.item))
                case "summary":
                    self.summary |= items(record.summary.update)
                case "artifact":
                    self.artifacts[record.artifact.name] = record.artifact
                case "exit":
                    self.exit_code = record.exit.exit_code

    @property
    def scores(self):
        """The steps of the history that are records."""
        return [row for row in self.history if "record" in row]

    def table(self, name):
        (path,) = [row[f"{name}/path"] for row in self.history if f"{name}/path" in row]
        content = json.loads((self.files / path).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def items(updates):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def read_log(path):
    """The records of a file in LevelDB's log format, up to where it breaks off."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if left_in_block < 7 or kind == 0:
            position += left_in_block
            continue
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def fragments(folder):
    """Those of all runs, once they are written to the end."""
    end_service()
    return fragments_so_far(folder)


def fragments_so_far(folder):
    """In the order in which they were begun; without those that broke off before the first byte."""
    found = [Fragment(path) for path in folder.glob("wandb/offline-run-*/*.wandb")]
    return sorted((each for each in found if each.run), key=lambda each: each.run.start_time.ToNanoseconds())


def lines(cfg):
    return [json.loads(line) for line in (job_folder(cfg) / "records.jsonl").read_text().splitlines()]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_every_record_is_one_step_of_the_jobs_run(tmp_path):
    cfg = tracked(tmp_path)
    run_job(cfg)
    (run,) = fragments(tmp_path)
    shown = ("_step", "record", "done", "failed", "sample", "score/value")
    assert [tuple(row[name] for name in shown) for row in run.scores] == [
        (number, number, number, 0, line["sample"], line["scores"]["value"])
        for number, line in enumerate(lines(cfg), start=1)
    ]
    assert run.exit_code == 0


def test_a_run_has_the_jobs_config_environment_and_parts(tmp_path):
    cfg = tracked(tmp_path, seed=3)
    folder = run_job(cfg).folder
    (run,) = fragments(tmp_path)
    assert (run.run.project, run.run.job_type, run.run.display_name) == ("metagame", "job", folder.name)
    assert list(run.run.tags) == ["plain", "share", "numbers", "tiny"]
    assert run.run.run_group.startswith("numbers-tiny-")
    assert run.config["seed"] == 3
    assert run.config["benchmark"]["values"] == [1, 2, 3]
    assert run.config["environment"] == json.loads((folder / "environment.json").read_text())


def test_a_failed_sample_is_shown_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Share, "broken", {"2"})
    run_job(tracked(tmp_path))
    (run,) = fragments(tmp_path)
    assert [row["failed"] for row in run.scores] == [0, 1, 1]
    assert run.scores[1]["error"] == "RuntimeError: no memory for 2"
    assert [row["error"] for row in run.table("samples")] == [None, "RuntimeError: no memory for 2", None]
    assert {name: run.summary[name] for name in ("n_samples", "done", "failed", "mean/value")} == {
        "n_samples": 3, "done": 2, "failed": 1, "mean/value": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("arrays", [False, True])
def test_the_records_are_an_artifact(tmp_path, arrays):
    folder = run_job(tracked(tmp_path, arrays=arrays)).folder
    (run,) = fragments(tmp_path)
    artifact = run.artifacts[f"records-{folder.name}"]
    names = {"records.jsonl", "config.yaml", "samples.json", "environment.json"}
    names |= {f"arrays/{path.name}" for path in folder.glob("arrays/*.npz")} if arrays else set()
    digests = {name: base64.b64encode(hashlib.md5((folder / name).read_bytes()).digest()).decode() for name in names}
    assert artifact.type == "records"
    assert {entry.path: entry.digest for entry in artifact.manifest.contents} == digests
    assert all(Path(entry.local_path).is_relative_to(tmp_path) for entry in artifact.manifest.contents)


def test_the_table_of_one_job_is_in_the_jobs_own_run(tmp_path):
    cfg = tracked(tmp_path)
    run_job(cfg)
    assert finish([cfg])
    job, table = fragments(tmp_path)
    assert job.run.run_id == table.run.run_id
    assert table.table("table") == [{"method": "Share", "done": 3}]
    assert [row["_step"] for row in job.history + table.history] == [1, 2, 3, 4, 5]


def test_the_table_of_several_jobs_has_a_run_of_its_own_in_their_group(tmp_path, monkeypatch):
    monkeypatch.setattr(Share, "broken", {"2"})
    configs = [tracked(tmp_path, attribution__method__factor=factor) for factor in (1.0, 2.0)]
    for cfg in configs:
        run_job(cfg)
    assert finish(configs)
    runs = fragments(tmp_path)
    assert [each.run.job_type for each in runs] == ["job", "job", "table"]
    assert len({each.run.run_id for each in runs}) == 3
    assert len({each.run.run_group for each in runs}) == 1
    assert runs[2].config["jobs"] == [job_folder(cfg).name for cfg in configs]
    assert len(runs[2].table("notes")) == 2


def test_each_shard_is_a_run_of_its_own_samples(tmp_path):
    for shard in (0, 1):
        run_job(tracked(tmp_path, shards=2, shard=shard))
    runs = fragments(tmp_path)
    assert len({each.run.run_id for each in runs}) == 2
    assert len({each.run.run_group for each in runs}) == 1
    assert [[row["sample"] for row in each.scores] for each in runs] == [["1", "3"], ["2"]]
    assert runs[1].run.display_name.endswith(", shard 1 of 2")


def test_a_job_that_goes_on_resumes_its_run(tmp_path):
    run_job(tracked(tmp_path, limit=2))
    run_job(tracked(tmp_path))
    first, second = fragments(tmp_path)
    assert first.run.run_id == second.run.run_id
    assert [row["sample"] for row in first.scores + second.scores] == ["1", "2", "3"]
    assert [row["_step"] for row in first.history + second.history] == [1, 2, 3, 4, 5]
    assert len(second.table("samples")) == 3


def test_a_job_that_has_nothing_to_do_logs_nothing(tmp_path):
    cfg = tracked(tmp_path)
    for _ in range(2):
        run_job(cfg)
        assert finish([cfg])
    assert len(fragments(tmp_path)) == 2


def test_what_was_computed_untracked_is_logged_by_the_first_tracked_run(tmp_path):
    run_job(job_config(tmp_path, limit=2))
    run_job(tracked(tmp_path))
    (run,) = fragments(tmp_path)
    assert [row["sample"] for row in run.scores] == ["1", "2", "3"]


class Interrupted(Plain):
    """Ctrl-C comes in sample 2."""

    def prepare(self, sample):
        if sample.id == "2":
            raise KeyboardInterrupt
        return sample


def test_a_run_that_is_interrupted_failed_and_can_be_resumed(tmp_path, monkeypatch):
    cfg = tracked(tmp_path, model___target_="tests.test_tracking.Interrupted")
    with pytest.raises(KeyboardInterrupt):
        run_job(cfg)
    monkeypatch.setattr(Interrupted, "prepare", Plain.prepare)
    run_job(cfg)
    first, second = fragments(tmp_path)
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert [[row["_step"] for row in each.scores] for each in (first, second)] == [[1], [2, 3]]


STUB_RUN = """
import sys
from metagame.jobs import run_job
from tests.test_tracking import tracked
run_job(tracked(sys.argv[1], model__seconds=0.3, benchmark__values=list(range(8))))
"""


def test_after_a_kill_no_record_is_missing(tmp_path):
    cfg = tracked(tmp_path, model__seconds=0.3, benchmark__values=list(range(8)))
    process = subprocess.Popen([sys.executable, "-c", STUB_RUN, tmp_path], cwd=ROOT, env=environment())
    assert wait_for(lambda: any(each.scores for each in fragments_so_far(tmp_path)))
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    run_job(cfg)
    first, second = fragments(tmp_path)
    assert first.run.run_id == second.run.run_id
    assert first.exit_code is None
    assert 0 < len(first.scores) < 8
    rows = {(row["record"], row["_step"], row["sample"]) for row in first.scores + second.scores}
    assert sorted(rows) == [(number + 1, number + 1, str(number)) for number in range(8)]


def environment():
    """For a process that is to have a service of its own."""
    return {key: value for key, value in terminal_free_environment().items() if key != "WANDB_SERVICE"}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


class KillsService(Plain):
    """Kills W&B's own process in sample 2."""

    def prepare(self, sample):
        if sample.id == "2":
            import wandb

            process = wandb.setup().ensure_service()._proc._process
            process.kill()
            process.wait()
        return sample


def test_a_service_that_dies_is_said_once_and_the_job_goes_on(tmp_path, caplog):
    cfg = tracked(tmp_path, model___target_="tests.test_tracking.KillsService")
    outcome = run_job(cfg)
    assert outcome.n_done == 3
    (warning,) = warnings(caplog)
    assert re.fullmatch(r"Tracking stopped \(.+\); the job goes on, its records are in .+\.", warning)
    assert str(outcome.folder) in warning


def test_what_a_service_that_died_took_with_it_is_logged_by_the_next_run(tmp_path):
    cfg = tracked(tmp_path, model___target_="tests.test_tracking.KillsService")
    for _ in range(2):  # in the second run no sample is left to kill it
        run_job(cfg)
    assert [row["sample"] for row in fragments(tmp_path)[-1].scores] == ["1", "2", "3"]


def no_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)


def failing_init(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **settings: 1 / 0)


def a_file_in_place_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "wandb").write_text("")


def a_broken_bookmark(tmp_path, monkeypatch):
    run_job(tracked(tmp_path, limit=1))
    (path,) = tmp_path.glob("wandb/*.json")
    path.write_text("{")


@pytest.mark.parametrize("harm", [no_wandb, failing_init, a_file_in_place_of_the_folder, a_broken_bookmark])
def test_a_tracker_that_fails_changes_no_result(tmp_path, monkeypatch, caplog, harm):
    harm(tmp_path, monkeypatch)
    cfg = tracked(tmp_path)
    assert run_job(cfg).n_done == 3
    (warning,) = warnings(caplog)
    assert warning.startswith("Tracking stopped (")
    assert finish([cfg])
    assert (tmp_path / "table.json").exists()
    assert len(warnings(caplog)) == 2


def test_a_second_process_on_the_same_job_is_not_tracked(tmp_path, caplog):
    from metagame.tracking.wandb_tracker import WandbTracker

    cfg = tracked(tmp_path)
    first = WandbTracker("metagame", mode="offline")
    first.start(cfg, run_job(job_config(tmp_path)).folder, [])
    assert run_job(cfg).n_done == 3
    first.close(stopped=True)
    assert "Tracking stopped (another process tracks this job); the job goes on" in caplog.text


@pytest.mark.parametrize("change", [{"mode": "foo"}, {"timeout": 0}, {"timeout": "soon"}, {"arrays": "some"}])
def test_a_setting_of_the_tracker_is_refused_before_the_work(tmp_path, change):
    (name,) = change
    with pytest.raises(GameError, match=rf"^tracker\.{name}={change[name]}: give"):
        run_job(tracked(tmp_path, **change))
    assert not job_folder(tracked(tmp_path)).exists()


class Unauthorized(BaseHTTPRequestHandler):
    """A server that is there, and takes no key."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(401)
        self.end_headers()

    do_HEAD = do_POST

    def log_message(self, *arguments):
        pass


@contextmanager
def refusing_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unauthorized)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@contextmanager
def silent_server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def own_service():
    """W&B's process reads the environment when it starts."""
    end_service()
    yield
    end_service()


def offline_lines(caplog):
    return [record.getMessage() for record in caplog.records if "Tracked offline" in record.getMessage()]


def test_without_an_api_key_jobs_are_offline_and_how_to_upload_is_said_once(tmp_path, caplog, own_service):
    with caplog.at_level("INFO"):
        for seed in (0, 1):
            run_job(tracked(tmp_path, mode=None, seed=seed))
    assert len(fragments(tmp_path)) == 2
    assert offline_lines(caplog) == [f"Tracked offline (no API key); to upload: wandb sync {tmp_path / 'wandb'}"]


@pytest.mark.parametrize(
    ("server", "reason"), [(silent_server, "does not answer"), (refusing_server, "returned error 401")]
)
def test_with_a_server_that_does_not_serve_jobs_are_offline(tmp_path, monkeypatch, caplog, own_service, server, reason):
    monkeypatch.setattr(wandb_session, "SECONDS_TO_ANSWER", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with server() as port, caplog.at_level("INFO"):
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        run_job(tracked(tmp_path, mode=None))
    (line,) = offline_lines(caplog)
    assert reason in line
    assert len(fragments(tmp_path)[-1].scores) == 3
    assert warnings(caplog) == []


@pytest.mark.parametrize(("mode", "n_runs"), [("offline", 1), ("disabled", 0)])
def test_the_mode_of_the_environment_counts(tmp_path, monkeypatch, caplog, own_service, mode, n_runs):
    monkeypatch.setenv("WANDB_MODE", mode)
    cfg = tracked(tmp_path, mode=None)
    run_job(cfg)
    assert finish([cfg])
    assert len({each.run.run_id for each in fragments(tmp_path)}) == n_runs
    assert warnings(caplog) == []


def test_online_without_a_key_is_said_instead_of_asking_for_one(tmp_path, caplog, own_service):
    assert run_job(tracked(tmp_path, mode="online")).n_done == 3
    assert "needs an API key" in warnings(caplog)[0]


def test_a_published_value_stands_beside_ours():
    table = {
        "columns": [
            {"key": "method", "label": "method", "type": "text"},
            {"key": "recall", "label": "recall", "type": "mean"},
            {"key": "holds", "label": "holds", "type": "flag"},
        ],
        "rows": [{"method": "SV", "recall": {"mean": 0.5, "two_se": 0.1, "n": 4}, "holds": True}, {"method": "IG"}],
        "published": [{"method": "SV", "recall": 0.6}, {}],
    }
    assert metrics_table(table) == (
        ["method", "recall", "recall, 2 SE", "recall, published", "holds"],
        [["SV", 0.5, 0.1, 0.6, True], ["IG", None, None, None, None]],
    )


def run(*arguments, output_dir, options=()):
    command = [sys.executable, *options, "run.py", *arguments, f"output_dir={output_dir}"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


SWEEP = ("-m", "model=adder", "benchmark=addition", "attribution=sv,ig", "limit=2")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of two jobs with W&B, and the same without."""
    folders = {tracker: tmp_path_factory.mktemp(tracker) for tracker in ("wandb", "none")}
    with_wandb = run(*SWEEP, "tracker=wandb", output_dir=folders["wandb"])
    without = run(*SWEEP, output_dir=folders["none"], options=("-X", "importtime"))
    return folders, with_wandb, without


def test_a_sweep_is_a_group_of_its_jobs_and_its_table(sweep):
    folders, process, _ = sweep
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    assert "wandb: " not in process.stderr
    assert "Traceback" not in process.stderr
    runs = fragments(folders["wandb"])
    assert [each.run.job_type for each in runs] == ["job", "job", "table"]
    assert len({each.run.run_group for each in runs}) == 1
    for each in runs[:2]:
        (path,) = folders["wandb"].glob(f"jobs/{each.run.display_name}/records.jsonl")
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["score/output"] for row in each.scores] == [record["scores"]["output"] for record in records]


def test_the_table_and_the_figure_of_a_sweep_are_those_of_its_folder(sweep):
    folders, _, _ = sweep
    written = json.loads((folders["wandb"] / "table.json").read_text())
    report = fragments(folders["wandb"])[2]
    assert [row["method"] for row in report.table("table")] == [row["method"] for row in written["rows"]]
    assert [row["note"] for row in report.table("notes")] == written["notes"]
    (image,) = [row["figure/path"] for row in report.history]
    assert (report.files / image).read_bytes() == (folders["wandb"] / "figure.png").read_bytes()


def test_results_are_the_same_bytes_with_and_without_a_tracker(sweep):
    folders, _, _ = sweep
    names = sorted(path.relative_to(folders["none"]) for path in folders["none"].glob("jobs/*/records.jsonl"))
    names += [Path(name) for name in ("table.json", "table.csv", "table.md", "table.tex", "figure.png")]
    assert len(names) == 7
    assert all((folders["wandb"] / name).read_bytes() == (folders["none"] / name).read_bytes() for name in names)


def test_without_a_tracker_nothing_of_wandb_is_imported(sweep):
    folders, _, process = sweep
    assert process.returncode == 0
    assert re.search(r"\| +metagame\.tracking$", process.stderr, re.MULTILINE)
    assert not re.search(r"\| +(wandb|metagame\.tracking\.)", process.stderr)
    assert not (folders["none"] / "wandb").exists()
