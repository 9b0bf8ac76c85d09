"""The store of a job: what is written is read again, whatever was cut, broken or held by another process."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from metagame.contracts import WHOLE, Explanation
from metagame.errors import RecordError
from metagame.jobs.fingerprint import Provenance
from metagame.jobs.records import (
    VERSION,
    Record,
    RecordStore,
    pack,
    pictures_of,
    record_key,
    replace_atomically,
    sample_key,
    unpack,
)
from metagame.kept_values import KeptValues
from metagame.meta import MetaAttributions

LABELS = {"": {"players": ["a", "b"], "targets": ["a", "b"], "grid": None, "meta": None}}
DONE = Record("k1", "φ = 1", "done", scores={"hit": 1.0}, labels=LABELS, arrays=["attribution", "values"])
FAILED = Record("k2", "φ = 2", "failed", error="no memory")
ARRAYS = {"attribution": np.array([0.1, -2.0]), "values": np.eye(2, dtype=np.float32)}


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path / "job")


def test_records_and_arrays_are_read_as_they_were_written_without_pickle(store):
    assert store.read() == {}
    store.append(DONE, ARRAYS)
    store.append(FAILED, {})
    assert store.read() == RecordStore(store.folder).read() == {"k1": DONE, "k2": FAILED}
    with np.load(store.folder / "arrays" / "k1.npz", allow_pickle=False) as stored:
        for found in (dict(stored), store.load_arrays(DONE)):
            assert {name: value.dtype for name, value in found.items()} == {k: v.dtype for k, v in ARRAYS.items()}
            assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)
    assert (store.has_arrays(FAILED), store.load_arrays(FAILED)) == (True, {})
    assert [path.name for path in (store.folder / "arrays").iterdir()] == ["k1.npz"]


def test_an_array_that_needs_pickle_is_refused(store):
    with pytest.raises(ValueError, match=r"pickle|object"):
        store.append(replace(DONE, arrays=["bad"]), {"bad": np.array([{}], dtype=object)})
    assert store.read() == {}


@pytest.mark.parametrize("before", [(), (DONE, FAILED)], ids=["first", "third"])
def test_a_line_cut_anywhere_is_ignored_then_replaced(store, before):
    last = Record("k3", "ψ = 3", "done", scores={"hit": 0.5})
    for record in before:
        store.append(record, {})
    whole = store.path.read_bytes() if before else b""
    expected = {record.key: record for record in before}
    store.append(last, {})
    line = store.path.read_bytes()[len(whole) :]
    for end in (0, 1, line.index("ψ".encode()) + 1, len(line) - 1):
        store.path.write_bytes(whole + line[:end])
        restarted = RecordStore(store.folder)
        assert restarted.read() == expected
        restarted.append(last, {})
        assert store.path.read_bytes() == whole + line
        assert restarted.read() == expected | {"k3": last}


OF_VERSION = '{"key": "k", "sample": "s", "status": "done", "version": %d}'
NO_RECORDS = {
    **dict.fromkeys(["{broken", "[]", "{}", "", OF_VERSION.replace("}", ', "x": 1}') % VERSION], "not a record"),
    OF_VERSION % 1: rf"has version 1, but this release reads version {VERSION}: move",
    OF_VERSION % 3: "has version 3, but this",
}


@pytest.mark.parametrize("line", NO_RECORDS)
def test_a_complete_line_that_is_no_record_of_this_version_is_an_error_with_its_place(store, line):
    store.append(DONE, {})
    with store.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match=rf"records\.jsonl, line 2 .*{NO_RECORDS[line]}") as error:
        store.read()
    assert str(store.path) in str(error.value)


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
        store.append(Record("k", "s", each, scores={"hit": number}), {})
    record = store.read()["k"]
    assert (record.status, record.scores["hit"]) == (status, hit)


def test_keys_depend_on_config_code_weights_files_sample_and_variant_but_on_no_order():
    identity, source = {"seed": 0, "model": {"name": "adder"}}, Provenance(code="c1", weights="w1", files="f1")
    key = sample_key(identity, source, "s1")
    keys = [key, sample_key(identity, source, "s2"), record_key(key, "mean_first"), record_key(key, "per_layer")]
    keys += [sample_key(identity | other, source, "s1") for other in ({"seed": 1}, {"model": {"name": "other"}})]
    keys += [sample_key(identity, replace(source, **{name: "other"}), "s1") for name in vars(source)]
    assert len(set(keys)) == 9
    assert record_key(key, "") == key
    assert sample_key({"model": {"name": "adder"}, "seed": 0}, source, "s1") == key


TOKENS = ("a", "b")
PATCHES = {"players": TOKENS, "targets": ("image",), "grid": (1, 3), "variant": "v"}
MAP = np.array([0.5, -1.0, 2.0], dtype=np.float32)
DIRECTED = MetaAttributions(
    np.array([[1.0, 2.0], [3.0, 4.0]]), first_order=np.array([3.0, 7.0]), standard_error=np.full((2, 2), 0.1),
    n_evaluations=4, players=TOKENS, targets=TOKENS,
)  # fmt: skip
PAIRS = MetaAttributions(
    np.arange(12.0).reshape(3, 2, 2), first_order=np.arange(3.0), empty=np.ones(3), endogenous=False, order=2,
    index="sii", directed=False, players=TOKENS, targets=("image",), grid=(1, 3),
)  # fmt: skip
INDEX = MetaAttributions(np.eye(2), index="stii", directed=False, players=TOKENS, targets=TOKENS)
INFLUENCES = MetaAttributions(np.ones((6, 2), np.float32), players=TOKENS, targets=TOKENS, grid=(1, 3))
EXPLAINED = {
    WHOLE: Explanation(**PATCHES, attribution=MAP),
    "metagame": Explanation(TOKENS, TOKENS, attribution=DIRECTED.first_order, meta=DIRECTED, variant="v"),
    "pairs on patches": Explanation(**PATCHES, attribution=PAIRS.first_order, meta=PAIRS),
    "index without attributions": Explanation(TOKENS, TOKENS, meta=INDEX, variant="v"),
    "beside its metagame": Explanation(TOKENS, TOKENS, attribution=np.ones(2), meta=DIRECTED, variant="v"),
    "influences on some of the maps": Explanation(
        TOKENS, (*TOKENS, "c"), (1, 3), attribution=np.tile(MAP, 3), meta=INFLUENCES, variant="v"
    ),
}


def assert_same(found, expected):
    """Equal fields: arrays with their bytes and types, and metagames field by field."""
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, MetaAttributions):
            assert_same(other, value)
        elif isinstance(value, np.ndarray):
            assert (other.dtype, other.shape, other.tobytes()) == (value.dtype, value.shape, value.tobytes()), name
        else:
            assert other == value, name


def test_explanations_and_pictures_of_a_sample_are_read_as_they_were_written(store):
    pictures = {WHOLE: np.full((2, 2, 3), 7, np.uint8), "metagame": np.full((1, 2, 3), 9, np.uint8)}
    labels, arrays = pack(EXPLAINED, pictures)
    store.append(Record("k", "s", "done", variant="v", labels=labels, arrays=list(arrays)), arrays)
    record = RecordStore(store.folder).read()["k"]
    found = unpack(record, store.load_arrays(record))
    assert list(found) == list(EXPLAINED)
    for question, expected in EXPLAINED.items():
        assert_same(found[question], expected)
    shown = pictures_of(record, store.load_arrays(record))
    assert {name: picture.tolist() for name, picture in shown.items()} == {k: v.tolist() for k, v in pictures.items()}


def test_what_is_zero_kept_elsewhere_or_symbolic_is_no_array():
    """Values of the empty coalition are zero by definition where the players are the targets."""
    endogenous = replace(DIRECTED, empty=np.zeros(2))
    asked = {WHOLE: Explanation(TOKENS, TOKENS, attribution=endogenous.first_order, meta=endogenous)}
    assert sorted(pack(asked, {})[1]) == ["attribution", "standard_error", "values"]
    values = np.array([["x1", "0"], ["x1*x2", "x2"]], dtype=object)
    phi = MetaAttributions(values, first_order=values[0], players=TOKENS, targets=TOKENS)
    labels, arrays = pack({WHOLE: Explanation(TOKENS, TOKENS, attribution=values[0], meta=phi)}, {})
    assert (arrays, labels[WHOLE]["players"]) == ({}, TOKENS)
    assert unpack(Record("k", "s", "done", labels=labels), {}) == {}


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "of other arrays": lambda path: np.savez(path, attribution=np.zeros(2)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_arrays_that_are_gone_or_broken_are_seen(store, damage):
    store.append(DONE, ARRAYS)
    assert store.has_arrays(DONE)
    DAMAGES[damage](store.folder / "arrays" / "k1.npz")
    assert not store.has_arrays(DONE)
    with pytest.raises(RecordError, match=r"arrays/k1\.npz cannot be read: remove it, and run the same command again"):
        store.load_arrays(DONE)


HOLD = """
import sys, time
from pathlib import Path
from metagame.jobs.records import RecordStore
with RecordStore(Path(sys.argv[1])).claim("k", wait=False) as claimed:
    print(claimed, flush=True)
    time.sleep(120)
"""


def test_a_claim_is_exclusive_apart_from_others_and_dies_with_a_killed_process(store):
    with subprocess.Popen([sys.executable, "-c", HOLD, store.folder], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "True\n"
            with store.claim("k", wait=False) as while_held, store.claim("other", wait=False) as other:
                assert not while_held
                assert other
        finally:
            holder.send_signal(signal.SIGKILL)
    for _ in range(2):
        with store.claim("k", wait=False) as after_the_kill:
            assert after_the_kill


def test_an_error_while_replacing_a_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")

    def write_half():
        with replace_atomically(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    assert path.read_text() == "old"


# Values of coalitions that are kept until their sample is done; runs that are killed meanwhile are in tests/system


def test_values_are_read_as_they_were_kept_but_for_an_unfinished_line(tmp_path):
    kept = KeptValues(tmp_path / "folder/values.txt")
    assert kept.read(2) == {}
    coalitions, values = np.array([[True, False], [True, True]]), np.array([[0.1, -0.0, 1e-300], [1, 2, 3]])
    kept.append(coalitions[:1], values[:1])
    kept.append(coalitions[1:], values[1:])
    whole = kept.path.read_bytes()
    kept.path.write_bytes(whole[:-1])
    assert list(kept.read(2)) == [coalitions[0].tobytes()]
    kept.append(coalitions[1:], values[1:])
    assert kept.path.read_bytes() == whole
    assert [each.tobytes() for each in kept.read(2).values()] == [each.tobytes() for each in values]
    kept.remove()
    assert not kept.path.exists()
