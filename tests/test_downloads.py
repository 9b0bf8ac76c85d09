from __future__ import annotations

import logging
import multiprocessing
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import requests
import yaml

from metagame.downloads.archives import BrokenArchiveError, unpack
from metagame.downloads.attempts import RemoteFile
from metagame.downloads.checksums import check_form
from metagame.downloads.datasets import get, parse_dataset, plan, read_manifest
from metagame.downloads.disk import Need, check_room
from metagame.downloads.transfer import fetch
from metagame.games import GameError
from metagame.records import RecordError
from scripts import download
from tests.download_fixtures import NO_WAITS, FileServer, checksum, serving, tar_entry, tar_of, zip_of
from tests.jobs_fixtures import ROOT, terminal_free_environment

CONTENT = bytes(range(256)) * 4096  # 1 MiB
K = 1 << 16
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def server():
    with serving(FileServer()) as files:
        yield files


@pytest.fixture
def served(server):
    """The server, without what earlier tests put and asked."""
    server.files.clear()
    server.asked.clear()
    return server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "there" / "file.bin"


def remote(url, content=CONTENT):
    return RemoteFile(url, len(content), checksum(content))


def refused(reason):
    return pytest.raises(GameError, match=reason)


def names(folder):
    """What a user sees in a folder: no hidden locks."""
    return sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))


# One file


def test_a_file_is_put_in_its_place_and_nothing_stays_beside_it(served, path):
    fetch(remote(served.put("file.bin", CONTENT)), path)
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.bin"]


def test_a_finished_file_is_not_fetched_again(served, path):
    file = remote(served.put("file.bin", CONTENT))
    fetch(file, path)
    fetch(file, path)
    assert len(served.asked) == 1


def test_a_finished_file_that_was_damaged_is_fetched_again(served, path):
    file = remote(served.put("file.bin", CONTENT))
    path.parent.mkdir()
    path.write_bytes(CONTENT[::-1])
    fetch(file, path)
    assert path.read_bytes() == CONTENT


def test_a_cut_connection_is_taken_up_where_it_ended(served, path):
    fetch(remote(served.put("file.bin", CONTENT, cuts=[3 * K, 5 * K])), path, waits=NO_WAITS)
    assert path.read_bytes() == CONTENT
    assert served.gets("file.bin") == [None, f"bytes={3 * K}-", f"bytes={8 * K}-"]
    assert sum(each.n_sent for each in served.asked) == len(CONTENT)


def test_a_connection_that_is_cut_more_often_than_there_are_attempts_gets_on_as_long_as_it_brings_something(
    served, path
):
    fetch(remote(served.put("file.bin", CONTENT, always_cut=K + 10)), path, waits=(0.0,))
    assert path.read_bytes() == CONTENT
    assert len(served.asked) == 16


def test_a_server_that_ignores_ranges_starts_again(served, path):
    url = served.put("file.bin", CONTENT, cuts=[3 * K], takes_ranges=False)
    fetch(remote(url), path, waits=NO_WAITS)
    assert path.read_bytes() == CONTENT
    assert served.gets("file.bin") == [None, f"bytes={3 * K}-"]


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(served, path):
    url = served.put("file.bin", CONTENT, always_cut=3 * K, takes_ranges=False)
    with refused(f"{url} cannot be fetched .*: run the same command again"):
        fetch(remote(url), path, waits=NO_WAITS)
    assert len(served.asked) == 1 + len(NO_WAITS)
    assert not path.exists()


@pytest.mark.parametrize("known", [True, False], ids=["with checksum", "without"])
def test_a_file_that_changed_meanwhile_starts_again(served, path, known):
    old, new = CONTENT, CONTENT[::-1]
    url = served.put("file.bin", old, cuts=[4 * K], etag='"old"')
    with refused("cannot be fetched"):
        fetch(RemoteFile(url), path, waits=())
    served.put("file.bin", new, etag='"new"')
    fetch(RemoteFile(url, checksum=checksum(new) if known else None), path)
    assert path.read_bytes() == new


def test_a_part_that_does_not_fit_the_rest_is_thrown_away_once(served, path, caplog):
    url = served.put("file.bin", CONTENT, etag=None)
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(b"x" * K)
    with caplog.at_level(logging.WARNING):
        fetch(remote(url), path)
    assert path.read_bytes() == CONTENT
    assert "does not fit the rest" in caplog.text
    assert served.gets("file.bin") == [f"bytes={K}-", None]


def test_a_part_that_is_longer_than_the_file_is_no_part_of_it(served, path):
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(CONTENT + b"x")
    fetch(remote(served.put("file.bin", CONTENT)), path)
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_complete_is_only_checked(served, path):
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(CONTENT)
    fetch(remote(served.put("file.bin", CONTENT)), path)
    assert path.read_bytes() == CONTENT
    assert served.asked == []


def test_a_length_other_than_expected_is_refused_before_anything_is_transferred(served, path):
    url = served.put("file.bin", CONTENT + b"more")
    with refused(f"{url} announces {len(CONTENT) + 4} bytes in place of {len(CONTENT)}"):
        fetch(remote(url), path)
    assert not path.exists()


def test_a_length_that_is_more_than_what_comes_is_a_cut(served, path):
    url = served.put("file.bin", CONTENT, announces=10, etag=None)
    with refused(f"{url} cannot be fetched"):
        fetch(RemoteFile(url), path, waits=NO_WAITS)
    assert not path.exists()


def test_a_length_that_is_less_than_what_comes_is_found_by_the_checksum(served, path):
    url = served.put("file.bin", CONTENT, announces=-10)
    with refused(f"{url} has not the checksum md5:"):
        fetch(RemoteFile(url, checksum=checksum(CONTENT)), path)
    assert names(path.parent) == []


def test_other_content_of_the_right_length_is_refused_and_removed(served, path):
    url = served.put("file.bin", CONTENT[::-1])
    with refused(f"{url} has not the checksum md5:.*, what came was removed"):
        fetch(remote(url), path)
    assert names(path.parent) == []


def test_more_than_is_expected_of_a_server_that_tells_no_length_is_refused(served, path):
    url = served.put("file.bin", CONTENT * 2, tells_length=False)
    with refused(f"sends more than the {len(CONTENT)} bytes expected"):
        fetch(remote(url), path)


def test_a_server_that_tells_no_length_of_an_unknown_file_is_refused(served, path):
    url = served.put("file.bin", CONTENT, tells_length=False)
    with refused("announces no size"):
        fetch(RemoteFile(url), path)


def test_a_gzipped_file_is_kept_as_it_is_sent(served, path):
    content = tar_of({"a": b"a"}, compressed=True)
    url = served.put("file.tar.gz", content, headers={"Content-Encoding": "x-gzip"})
    fetch(remote(url, content), path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"status": 404}, r"does not exist \(status 404\): get the file elsewhere and put it at .*file\.bin\.$"),
        ({"status": 403}, r"is refused \(status 403\)"),
        ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, "answers with a web page"),
        ({"status": 503}, r"cannot be fetched \(status 503\)"),
    ],
)
def test_an_answer_without_the_file_is_told_with_its_address(served, path, behaviour, reason):
    url = served.put("file.bin", CONTENT, **behaviour)
    with refused(f"{url} {reason}"):
        fetch(remote(url), path, waits=NO_WAITS)
    assert not path.exists()


def test_a_server_that_cannot_be_reached_is_told_with_its_address(path):
    with serving(FileServer()) as gone:
        url = f"{gone.address}/file.bin"
    with refused(rf"{url} cannot be fetched \(no connection\): run the same command again"):
        fetch(remote(url), path, waits=NO_WAITS)


def test_a_folder_that_cannot_be_made_is_told(served, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        fetch(remote(served.put("file.bin", CONTENT)), tmp_path / "file" / "file.bin")


def test_without_a_published_checksum_the_first_download_is_noted_and_told(served, path, caplog):
    with caplog.at_level(logging.INFO):
        fetch(RemoteFile(served.put("file.bin", CONTENT)), path)
    assert names(path.parent) == ["file.bin", "file.bin.sha256"]
    assert f"no checksum is published; {checksum(CONTENT, 'sha256')} is noted" in caplog.text
    command = ["sha256sum", "--check", "file.bin.sha256"]
    assert subprocess.run(command, cwd=path.parent, capture_output=True, check=False).returncode == 0


def test_a_later_download_is_compared_with_the_first(served, path):
    url = served.put("file.bin", CONTENT)
    fetch(RemoteFile(url), path)
    path.unlink()
    served.put("file.bin", CONTENT[::-1])
    with refused(r"that is of the first download; remove .*file\.bin\.sha256 if you trust the new file"):
        fetch(RemoteFile(url), path)
    assert not path.exists()


@pytest.mark.parametrize("checksum", ["abc", "md5:12", "crc32:12345678", ""])
def test_a_checksum_of_another_form_is_refused(checksum):
    with refused("give algorithm:hex"):
        check_form(checksum)


FETCH = """
import sys
from pathlib import Path
from metagame.downloads.attempts import RemoteFile
from metagame.downloads.transfer import fetch
url, size, checksum, path = sys.argv[1:]
fetch(RemoteFile(url, int(size), checksum), Path(path))
"""


def wait_for(condition):
    deadline = time.monotonic() + 100
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.mark.slow
def test_a_killed_download_is_taken_up_where_it_ended(served, path):
    released = threading.Event()
    url = served.put("file.bin", CONTENT, hold=released)
    part = path.with_name("file.bin.part")
    arguments = [url, str(len(CONTENT)), checksum(CONTENT), str(path)]
    process = subprocess.Popen([sys.executable, "-c", FETCH, *arguments], env=terminal_free_environment())
    try:
        wait_for(lambda: part.exists() and part.stat().st_size >= len(CONTENT) // 2 - K)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        released.set()
    assert not path.exists()
    left = part.stat().st_size
    served.put("file.bin", CONTENT)
    fetch(remote(url), path)
    assert path.read_bytes() == CONTENT
    assert served.asked[-1].n_sent == len(CONTENT) - left


def fetch_together(url, path, barrier):
    barrier.wait(60)
    fetch(remote(url), path)


@pytest.mark.slow
def test_two_processes_fetch_a_file_once(served, path):
    url = served.put("file.bin", CONTENT)
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    both = [spawn.Process(target=fetch_together, args=(url, path, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert path.read_bytes() == CONTENT
    assert served.gets("file.bin") == [None]


# Archives


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {info: target}


GOOD = {"kit/a.txt": b"a", "kit/deep/b.txt": b"b" * 1000, "other.txt": b"o"}


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "archive"


@pytest.fixture
def place(tmp_path):
    return tmp_path / "data" / "kit"


def contents(folder):
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize(
    "content",
    [tar_of(GOOD), tar_of(GOOD, compressed=True), tar_of({f"./{k}": v for k, v in GOOD.items()}), zip_of(GOOD)],
)
def test_a_piece_of_an_archive_is_put_in_its_place(archive, place, content):
    archive.write_bytes(content)
    unpack(archive, {"kit": place, "other.txt": place.with_name("o.txt")})
    assert contents(place) == {"a.txt": b"a", "deep/b.txt": b"b" * 1000}
    assert sorted(each.name for each in place.parent.iterdir()) == ["kit", "o.txt"]


UNSAFE = {
    "tar: ..": (tar_of(GOOD | {"../evil": b"e"}), "'../evil' would be written outside"),
    "tar: .. inside": (tar_of(GOOD | {"kit/../a": b"e"}), "'kit/../a' would be written outside"),
    "tar: absolute": (tar_of(GOOD | {"/tmp/evil": b"e"}), "'/tmp/evil' would be written outside"),
    "tar: link outwards": (tar_of(GOOD, extra=[tar_entry("l", tarfile.SYMTYPE, "../x")]), "'l' is a link out of"),
    "tar: absolute link": (tar_of(GOOD, extra=[tar_entry("l", tarfile.SYMTYPE, "/etc")]), "'l' is a link out of"),
    "tar: hard link outwards": (tar_of(GOOD, extra=[tar_entry("l", tarfile.LNKTYPE, "../x")]), "'l' is a link out of"),
    "tar: device": (tar_of(GOOD, extra=[tar_entry("d", tarfile.CHRTYPE)]), "'d' is a device or a pipe"),
    "tar: pipe": (tar_of(GOOD, extra=[tar_entry("p", tarfile.FIFOTYPE)]), "'p' is a device or a pipe"),
    "zip: ..": (zip_of(GOOD | {"../evil": b"e"}), "'../evil' would be written outside"),
    "zip: .. inside": (zip_of(GOOD | {"kit/../../evil": b"e"}), "'kit/../../evil' would be written outside"),
    "zip: absolute": (zip_of(GOOD | {"/tmp/evil": b"e"}), "'/tmp/evil' would be written outside"),
    "zip: backslashes": (zip_of(GOOD | {"..\\evil": b"e"}), ".* would be written outside"),
    "zip: link": (zip_of(GOOD | link("kit/l", "/etc")), "'kit/l' is a link"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_an_archive_that_would_leave_its_folder_is_refused_with_the_member(archive, place, case):
    content, reason = UNSAFE[case]
    archive.write_bytes(content)
    with refused(f"{archive} is not to be trusted, nothing was unpacked: its member {reason}"):
        unpack(archive, {"kit": place})
    assert list(archive.parent.iterdir()) == [archive]


def test_a_link_within_a_piece_is_refused(archive, place):
    archive.write_bytes(tar_of(GOOD, extra=[tar_entry("kit/l", tarfile.SYMTYPE, "a.txt")]))
    with refused(r"'kit/l' is a link, where a file is expected"):
        unpack(archive, {"kit": place})
    assert not place.exists()


def with_wrong_crc(content):
    return content.replace(b"b" * 1000, b"b" * 999 + b"c")


BROKEN = {
    "a cut tar": tar_of(GOOD)[:600],
    "a cut gzip": tar_of(GOOD | {"kit/r": CONTENT[::3]}, compressed=True)[:-30],
    "a cut zip": zip_of(GOOD)[:-10],
    "a zip with a wrong CRC": with_wrong_crc(zip_of(GOOD)),
    "a text": b"no archive",
    "nothing": b"",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_archive_leaves_nothing_behind(archive, place, case):
    archive.write_bytes(BROKEN[case])
    with pytest.raises(BrokenArchiveError, match="is broken or no archive"):
        unpack(archive, {"kit": place})
    assert not place.exists()
    assert not place.parent.exists() or list(place.parent.iterdir()) == []


def test_an_archive_without_the_piece_is_refused(archive, place):
    archive.write_bytes(zip_of(GOOD))
    with refused("has no member 'ki'"):
        unpack(archive, {"ki": place})


def free(monkeypatch, n_bytes):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**15, 0, n_bytes))


def test_an_archive_that_declares_more_than_the_disk_has_is_refused(archive, place, monkeypatch):
    archive.write_bytes(zip_of({"kit/bomb": bytes(10**6)}))
    free(monkeypatch, 10**6 - 1)
    with refused("needs 1.0 MB for 'kit', 1,000.0 kB are free"):
        unpack(archive, {"kit": place})
    assert not place.exists()


def test_what_a_killed_process_left_is_no_finished_piece(archive, place):
    aside = place.with_name(".kit.unpacking")
    (aside / "kit").mkdir(parents=True)
    (aside / "kit" / "half").write_text("")
    archive.write_bytes(zip_of(GOOD))
    unpack(archive, {"kit": place})
    assert sorted(contents(place)) == ["a.txt", "deep/b.txt"]
    assert not aside.exists()


# Datasets

PNGS = zip_of({"panoptic/1.png": b"png", "__MACOSX/x": b""})


def sources(server):
    """A manifest of three kinds of sources, as the real one has them."""
    kit, outer = tar_of(GOOD), zip_of({"annotations/p.json": b"{}", "annotations/p.zip": PNGS, "rest/r": b"r"})
    entry = {
        "sources": [
            {"url": server.put("kit.tar", kit), "size": len(kit), "checksum": checksum(kit), "unpacked": 1001,
             "pieces": {"kit": "VOC/kit"}},
            {"url": server.put("outer.zip", outer), "size": len(outer), "checksum": None, "unpacked": 5,
             "pieces": {"annotations/p.json": "coco/p.json"},
             "nested": {"annotations/p.zip": {"panoptic": "coco/panoptic"}}},
            {"url": server.put("masks.mat", CONTENT), "size": None, "checksum": None, "file": "seg/masks.mat"},
        ],
        "unless_there": ["seg/names.json"],
        "yours": "name them in {data}/seg.",
    }  # fmt: skip
    return {"voc": parse_dataset(entry)}


@pytest.fixture
def manifest(served):
    return sources(served)


def get_all(manifest, data, **settings):
    for source in manifest["voc"].sources:
        get(source, data, waits=NO_WAITS, **settings)


WHOLE = {
    "VOC/kit/a.txt", "VOC/kit/deep/b.txt", "coco/p.json", "coco/panoptic/1.png", "seg/masks.mat",
    "seg/masks.mat.sha256", "downloads/outer.zip.sha256",
}  # fmt: skip


def found(data):
    return {name for name in contents(data) if not Path(name).name.startswith(".")}


def test_a_dataset_is_unpacked_and_its_archives_are_removed(manifest, tmp_path):
    get_all(manifest, tmp_path)
    assert found(tmp_path) == WHOLE
    assert manifest["voc"].left_to_you(tmp_path) == f"name them in {tmp_path}/seg."


def test_archives_can_be_kept(manifest, tmp_path):
    get_all(manifest, tmp_path, keep_archive=True)
    assert found(tmp_path) == WHOLE | {"downloads/kit.tar", "downloads/outer.zip"}


def test_what_is_there_is_not_fetched_again(manifest, tmp_path, served):
    get_all(manifest, tmp_path)
    served.asked.clear()
    get_all(manifest, tmp_path)
    assert served.asked == []


def test_only_the_piece_that_is_missing_is_unpacked_again(manifest, tmp_path):
    get_all(manifest, tmp_path)
    (tmp_path / "coco/p.json").write_text("mine")
    shutil.rmtree(tmp_path / "coco/panoptic")
    get_all(manifest, tmp_path)
    assert found(tmp_path) == WHOLE
    assert (tmp_path / "coco/p.json").read_text() == "mine"


def test_an_archive_that_the_user_put_there_is_not_fetched(manifest, tmp_path, served):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/kit.tar").write_bytes(tar_of(GOOD))
    get(manifest["voc"].sources[0], tmp_path)
    assert served.asked == []
    assert (tmp_path / "VOC/kit/a.txt").exists()


def test_a_broken_archive_without_a_checksum_is_not_trusted_from_then_on(served, tmp_path):
    entry = {"url": served.put("x.zip", b"no archive"), "size": None, "checksum": None, "pieces": {"x": "x"}}
    source = parse_dataset({"sources": [entry]}).sources[0]
    with refused("is broken or no archive .* It was removed"):
        get(source, tmp_path)
    assert found(tmp_path) == set()


def test_the_plan_tells_sizes_and_what_is_there_and_asks_servers_only_for_the_unknown(manifest, tmp_path, served):
    get(manifest["voc"].sources[0], tmp_path)
    served.asked.clear()
    (tmp_path / "seg").mkdir()
    (tmp_path / "seg/masks.mat.part").write_bytes(bytes(len(CONTENT) - 1000))
    lines = [step.line() for step in plan(manifest, tmp_path)]
    assert lines[0] == "voc: VOC/kit is there."
    assert re.fullmatch(r"voc: http\S+/outer\.zip, \d+ bytes, 5 bytes unpacked\.", lines[1])
    assert re.fullmatch(r"voc: http\S+/masks\.mat, 1\.0 MB, 1\.0 kB of them to go\.", lines[2])
    assert [each.method for each in served.asked] == ["HEAD"]


def test_a_disk_that_is_large_enough_at_each_moment_suffices(monkeypatch, tmp_path):
    archives = [Need(download=10, stays=5, extra=5), Need(download=3, stays=2, extra=2)]
    free(monkeypatch, 15)
    assert check_room(archives, tmp_path, "") == f"15 bytes needed, 15 bytes free in {tmp_path}."
    free(monkeypatch, 14)
    with refused("14 bytes free, 15 bytes are needed, nothing was fetched"):
        check_room(archives, tmp_path, "choose another")


# The script


@pytest.fixture
def script(manifest, monkeypatch, tmp_path):
    """``python -m scripts.download`` with the manifest of this server; where the data goes."""
    monkeypatch.setattr(download, "read_manifest", lambda: manifest)
    monkeypatch.chdir(ROOT)
    return tmp_path / "data"


def test_the_data_of_an_experiment_is_told_then_fetched(script, capsys):
    download.main(["data", "table3", "--data", str(script)])
    told = capsys.readouterr().out
    assert "Nothing to fetch for coco.\nvoc: http" in told
    assert re.search(r"needed, .* free in ", told)
    assert told.endswith(f"voc, left to you: name them in {script}/seg.\n")
    assert found(script) == WHOLE


def test_a_dry_run_only_tells(script, capsys, served):
    download.main(["data", "table3", "--data", str(script), "--dry-run"])
    assert "kit.tar" in capsys.readouterr().out
    assert not script.exists()
    assert {each.method for each in served.asked} == {"HEAD"}


def test_a_disk_that_is_too_small_is_refused_before_anything_starts(script, served, monkeypatch):
    free(monkeypatch, 1000)
    with pytest.raises(SystemExit, match=r"1\.0 kB free, .* are needed, nothing was fetched"):
        download.main(["data", "table3", "--data", str(script)])
    assert served.gets("kit.tar") == []


def test_a_source_that_fails_does_not_stop_the_others(script, served, caplog):
    served.files["/kit.tar"].status = 404
    with pytest.raises(SystemExit) as end:
        download.main(["data", "table3", "--data", str(script)])
    assert end.value.code == 1
    assert f"voc: {served.address}/kit.tar does not exist" in caplog.text
    assert found(script) == {name for name in WHOLE if not name.startswith("VOC")}


def test_an_experiment_without_downloads_needs_nothing(script, capsys):
    download.main(["data", "table1", "--data", str(script)])
    assert capsys.readouterr().out == "Nothing to fetch for separation.\n"


def test_an_unknown_experiment_is_answered_with_the_known_ones(script):
    with pytest.raises(SystemExit, match="there is no experiment 'tabel3': give some of figure1, "):
        download.main(["data", "tabel3"])


# The real manifest


def test_every_source_has_an_address_and_its_places_below_the_data():
    for dataset in read_manifest().values():
        for source in dataset.sources:
            assert requests.Request("GET", source.remote.url).prepare().url == source.remote.url
            assert source.places
            assert all(not Path(place).is_absolute() and ".." not in Path(place).parts for place in source.places)
            assert source.remote.size is None or source.remote.size > 10**6
            assert bool(source.pieces or source.nested) != (source.file is not None)


def scale_paths(node):
    """Every text in a YAML tree that is a path below data/."""
    if isinstance(node, dict):
        yield from (path for value in node.values() for path in scale_paths(value))
    elif isinstance(node, list):
        yield from (path for value in node for path in scale_paths(value))
    elif isinstance(node, str) and node.startswith("data/"):
        yield node


@pytest.mark.parametrize("benchmark", sorted(path.stem for path in (ROOT / "configs/benchmark").glob("*.yaml")))
def test_every_path_that_a_benchmark_reads_at_paper_scale_is_provided_or_explained(benchmark):
    content = yaml.safe_load((ROOT / "configs/benchmark" / f"{benchmark}.yaml").read_text())
    paths = set(scale_paths(content.get("scales", {}).get("paper")))
    dataset = read_manifest().get(benchmark)
    assert (dataset is not None) == bool(paths)
    if dataset is not None and dataset.yours is None:
        places = [f"data/{place}" for source in dataset.sources for place in source.places]
        assert all(any(f"{place}/".startswith(f"{path}/") for place in places) for path in paths)
