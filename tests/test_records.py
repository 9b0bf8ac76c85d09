from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from metagame.records import VERSION, Record, RecordError, RecordStore, replace_atomically, sample_key

DONE = Record("k1", "φ = 1", "done", {"hit": 1.0, "players": ["a", "b"]}, arrays=["first_order", "matrix"])
FAILED = Record("k2", "φ = 2", "failed", error="no memory")
ARRAYS = {"first_order": np.array([0.1, -2.0]), "matrix": np.eye(2, dtype=np.float32)}


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path / "job")


def lines(store):
    return [json.loads(line) for line in store.path.read_text(encoding="utf-8").splitlines()]


def test_a_record_is_read_as_it_was_written(store):
    store.append(DONE, ARRAYS)
    store.append(FAILED, {})
    assert store.read() == {"k1": DONE, "k2": FAILED}


def test_arrays_are_read_as_they_were_written(store):
    store.append(DONE, ARRAYS)
    loaded = store.load_arrays(store.read()["k1"])
    assert {name: value.dtype for name, value in loaded.items()} == {k: v.dtype for k, v in ARRAYS.items()}
    assert all(np.array_equal(loaded[name], ARRAYS[name]) for name in ARRAYS)


def test_a_record_without_arrays_has_no_array_file(store):
    store.append(FAILED, {})
    assert store.load_arrays(FAILED) == {}
    assert list((store.folder / "arrays").iterdir()) == []


def test_array_files_hold_no_pickle(store):
    store.append(DONE, ARRAYS)
    with np.load(store.folder / "arrays" / "k1.npz", allow_pickle=False) as stored:
        assert {name: stored[name].tolist() for name in stored} == {k: v.tolist() for k, v in ARRAYS.items()}


def test_an_array_that_needs_pickle_is_refused(store):
    with pytest.raises(ValueError, match=r"pickle|object"):
        store.append(Record("k", "s", "done", arrays=["bad"]), {"bad": np.array([{}], dtype=object)})
    assert store.read() == {}


def test_a_store_without_records_is_empty(store):
    assert store.read() == {}


def test_a_line_cut_at_any_byte_is_ignored_then_replaced(store):
    last = Record("k3", "ψ = 3", "done", {"hit": 0.5})
    store.append(DONE, {})
    store.append(FAILED, {})
    whole = store.path.read_bytes()
    store.append(last, {})
    for end in range(len(whole), store.path.stat().st_size):
        store.path.write_bytes(store.path.read_bytes()[:end])
        restarted = RecordStore(store.folder)
        assert restarted.read() == {"k1": DONE, "k2": FAILED}
        restarted.append(last, {})
        assert [line["key"] for line in lines(store)] == ["k1", "k2", "k3"]
        assert restarted.read() == {"k1": DONE, "k2": FAILED, "k3": last}


def test_a_first_line_that_was_cut_leaves_nothing_behind(store):
    store.path.write_bytes(b'{"key": "k')
    assert store.read() == {}
    store.append(DONE, {})
    assert store.read() == {"k1": DONE}


@pytest.mark.parametrize(
    "line", ["{broken", "[]", "{}", "17", '{"key": "k", "sample": "s", "status": "done", "x": 1}', ""]
)
def test_a_complete_line_that_is_no_record_is_an_error_with_its_place(store, line):
    store.append(DONE, {})
    with store.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match="line 2 is no record") as error:
        store.read()
    assert str(store.path) in str(error.value)


def test_a_record_of_another_version_is_an_error(store):
    store.append(replace(DONE, version=VERSION + 1), {})
    with pytest.raises(RecordError, match=f"line 1 has version {VERSION + 1}, this is version {VERSION}"):
        store.read()


@pytest.mark.parametrize(
    ("written", "status", "hit"),
    [
        (("failed", "done"), "done", 1),
        (("failed", "failed"), "failed", 1),
        (("done", "failed"), "done", 0),
        (("done", "done"), "done", 0),
        (("failed", "done", "failed"), "done", 1),
    ],
)
def test_the_last_record_counts_but_done_stays_done(store, written, status, hit):
    for number, each in enumerate(written):
        store.append(Record("k", "s", each, {"hit": number}), {})
    record = store.read()["k"]
    assert (record.status, record.scores["hit"]) == (status, hit)


def test_the_sample_key_depends_on_config_model_revision_and_sample_id():
    identity = {"seed": 0, "model": {"name": "adder"}}
    keys = {
        sample_key(identity, "r1", "s1"),
        sample_key(identity | {"seed": 1}, "r1", "s1"),
        sample_key({"seed": 0, "model": {"name": "other"}}, "r1", "s1"),
        sample_key(identity, "r2", "s1"),
        sample_key(identity, "r1", "s2"),
    }
    assert len(keys) == 5


def test_the_sample_key_does_not_depend_on_the_order_of_the_config():
    assert sample_key({"a": 1, "b": 2}, "r", "s") == sample_key({"b": 2, "a": 1}, "r", "s")


def test_a_sample_is_claimed_again_once_it_is_released(store):
    with store.claim("k", wait=False) as first:
        pass
    with store.claim("k", wait=False) as second:
        assert first
        assert second


def test_samples_are_claimed_independently(store):
    with store.claim("k1", wait=False) as first, store.claim("k2", wait=False) as second:
        assert first
        assert second


HOLD = """
import sys, time
from pathlib import Path
from metagame.records import RecordStore
with RecordStore(Path(sys.argv[1])).claim("k", wait=False) as claimed:
    print(claimed, flush=True)
    time.sleep(120)
"""


def test_a_claim_is_exclusive_and_dies_with_a_killed_process(store):
    with subprocess.Popen([sys.executable, "-c", HOLD, store.folder], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "True\n"
            with store.claim("k", wait=False) as while_held:
                assert not while_held
        finally:
            holder.send_signal(signal.SIGKILL)
    with store.claim("k", wait=False) as after_the_kill:
        assert after_the_kill


def write_half(path):
    with replace_atomically(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError


def test_an_error_while_replacing_a_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    assert path.read_text() == "old"
