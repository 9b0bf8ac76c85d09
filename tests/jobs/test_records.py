from __future__ import annotations

import json
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
from metagame.meta import MetaAttributions

LABELS = {"": {"players": ["a", "b"], "targets": ["a", "b"], "grid": None, "meta": None}}
DONE = Record("k1", "φ = 1", "done", scores={"hit": 1.0}, labels=LABELS, arrays=["attribution", "values"])
FAILED = Record("k2", "φ = 2", "failed", error="no memory")
ARRAYS = {"attribution": np.array([0.1, -2.0]), "values": np.eye(2, dtype=np.float32)}


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
    last = Record("k3", "ψ = 3", "done", scores={"hit": 0.5})
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


OLD = '{"key": "k", "sample": "s", "status": "done", "scores": {}, "error": null, "arrays": [], "commit": "c", '
OLD += '"version": 1}'


@pytest.mark.parametrize(("line", "version"), [(OLD, 1), (OLD.replace("1}", "3}"), 3)])
def test_a_record_of_another_version_is_refused_in_a_sentence(store, line, version):
    store.path.write_text(line + "\n")
    with pytest.raises(
        RecordError, match=rf"line 1 has version {version}, this is version {VERSION}: move the file away\.$"
    ):
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
        store.append(Record("k", "s", each, scores={"hit": number}), {})
    record = store.read()["k"]
    assert (record.status, record.scores["hit"]) == (status, hit)


FROM = Provenance(code="c1", weights="w1", files="f1")


def test_the_sample_key_depends_on_config_code_weights_files_and_sample_id():
    identity = {"seed": 0, "model": {"name": "adder"}}
    keys = {
        sample_key(identity, FROM, "s1"),
        sample_key(identity | {"seed": 1}, FROM, "s1"),
        sample_key({"seed": 0, "model": {"name": "other"}}, FROM, "s1"),
        sample_key(identity, replace(FROM, code="c2"), "s1"),
        sample_key(identity, replace(FROM, weights="w2"), "s1"),
        sample_key(identity, replace(FROM, files="f2"), "s1"),
        sample_key(identity, FROM, "s2"),
    }
    assert len(keys) == 7


def test_the_sample_key_does_not_depend_on_the_order_of_the_config():
    assert sample_key({"a": 1, "b": 2}, FROM, "s") == sample_key({"b": 2, "a": 1}, FROM, "s")


def test_each_variant_of_a_sample_has_a_record_of_its_own():
    assert len({record_key("k", variant) for variant in ("", "mean_first", "per_layer")}) == 3


TOKENS = ("a", "b")
PATCHES = {"players": TOKENS, "targets": ("image",), "grid": (1, 3)}
MAP = np.array([0.5, -1.0, 2.0], dtype=np.float32)
DIRECTED = MetaAttributions(
    np.array([[1.0, 2.0], [3.0, 4.0]]), first_order=np.array([3.0, 7.0]), empty=np.array([0.0, 0.0]),
    standard_error=np.full((2, 2), 0.1), n_evaluations=4, players=TOKENS, targets=TOKENS,
)  # fmt: skip
PAIRS = MetaAttributions(
    np.arange(12.0).reshape(3, 2, 2), first_order=np.arange(3.0), empty=np.ones(3), endogenous=False, order=2,
    index="sii", directed=False, **PATCHES,
)  # fmt: skip
INDEX = MetaAttributions(np.eye(2), index="stii", directed=False, players=TOKENS, targets=TOKENS)
INFLUENCES = MetaAttributions(np.ones((6, 2), np.float32), players=TOKENS, targets=TOKENS, grid=(1, 3))
EXPLAINED = {
    "a map": Explanation(**PATCHES, attribution=MAP),
    "a metagame": Explanation(TOKENS, TOKENS, attribution=DIRECTED.first_order, meta=DIRECTED),
    "pairs on patches": Explanation(**PATCHES, attribution=PAIRS.first_order, meta=PAIRS),
    "an index without attributions": Explanation(TOKENS, TOKENS, meta=INDEX),
    "an attribution beside that of its metagame": Explanation(
        TOKENS, TOKENS, attribution=np.array([1.0, 1.0]), meta=DIRECTED
    ),
    "influences on some of the maps": Explanation(
        TOKENS, (*TOKENS, "c"), (1, 3), attribution=np.tile(MAP, 3), meta=INFLUENCES
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


@pytest.mark.parametrize("case", EXPLAINED)
@pytest.mark.parametrize("question", [WHOLE, "two zero"])
def test_an_explanation_is_read_as_it_was_written(store, case, question):
    explanation = EXPLAINED[case] if case == "pairs on patches" else replace(EXPLAINED[case], variant="v")
    labels, arrays = pack({question: explanation}, {})
    store.append(Record("k", "s", "done", variant=explanation.variant, labels=labels, arrays=list(arrays)), arrays)
    record = RecordStore(store.folder).read()["k"]
    found = unpack(record, store.load_arrays(record))
    assert list(found) == [question]
    kept = explanation
    if explanation.meta is not None and explanation.meta.endogenous:
        kept = replace(explanation, meta=replace(explanation.meta, empty=None))  # all zero by definition
    assert_same(found[question], kept)


def test_questions_about_a_sample_and_its_pictures_are_kept_apart(store):
    pictures = {"first": np.full((2, 2, 3), 7, np.uint8), "second": np.full((1, 2, 3), 9, np.uint8)}
    asked = {"first": EXPLAINED["a map"], "second": EXPLAINED["a metagame"], "third": EXPLAINED["pairs on patches"]}
    labels, arrays = pack(asked, pictures)
    store.append(Record("k", "s", "done", labels=labels, arrays=list(arrays)), arrays)
    record = store.read()["k"]
    loaded = store.load_arrays(record)
    assert list(unpack(record, loaded)) == list(asked)
    found = pictures_of(record, loaded)
    assert {name: picture.tolist() for name, picture in found.items()} == {k: v.tolist() for k, v in pictures.items()}


def test_an_attribution_that_is_that_of_its_metagame_is_kept_once():
    _, arrays = pack({WHOLE: EXPLAINED["a metagame"]}, {})
    assert sorted(arrays) == ["attribution", "standard_error", "values"]


def test_symbolic_values_are_no_arrays():
    values = np.array([["x1", "0"], ["x1*x2", "x2"]], dtype=object)
    phi = MetaAttributions(values, first_order=values[0], players=TOKENS, targets=TOKENS)
    labels, arrays = pack({WHOLE: Explanation(TOKENS, TOKENS, attribution=values[0], meta=phi)}, {})
    assert arrays == {}
    assert labels[WHOLE]["players"] == TOKENS
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
    with pytest.raises(
        RecordError, match=r"arrays/k1\.npz cannot be read: remove it, and run the same command again\.$"
    ):
        store.load_arrays(DONE)


def test_a_record_without_arrays_misses_none(store):
    assert store.has_arrays(FAILED)


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
from metagame.jobs.records import RecordStore
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
