from __future__ import annotations

import errno
import logging
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
import requests
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import reset_sessions
from omegaconf import OmegaConf
from open_clip.pretrained import download_pretrained

from metagame.errors import UserError
from metagame.fetch import command, datasets, transfer
from metagame.fetch.datasets import Source, places, sources
from metagame.fetch.weights import Repository, repositories, wanted
from metagame.models.clip import CLIP
from tests.tiny import downloads
from tests.tiny.downloads import GOOD, INNER, checksum, go_offline, put_repository, tar_of, zip_of
from tests.tiny.jobs import ROOT, terminal_free_environment

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SIZE, K = len(CONTENT), 1 << 16
COMMIT = "c" * 40
CUT = (ConnectionError, *transfer.NETWORK)


@pytest.fixture(scope="module")
def server():
    with downloads.serving(downloads.FileServer()) as files:
        yield files


@pytest.fixture
def served(server, monkeypatch, tmp_path, caplog):
    """The server, without what earlier tests put and asked; an empty folder to work in; no waits."""
    server.files.clear()
    server.asked.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "WAITS", (0, 0, 0))
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    return server


def refused(reason):
    return pytest.raises(UserError, match=reason)


def contents(folder):
    """What a user sees in a folder: no hidden locks."""
    found = (each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in found}


def run(*arguments):
    """The exit status, or the sentence, with which ``metagame fetch`` ends."""
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    return end.value.code


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def little_room(monkeypatch):
    usage = namedtuple("Usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**15, 0, 1000))


# One file

WHOLE = {
    "at once": ({}, [None]),
    "after two cuts": ({"cuts": [3 * K, 5 * K]}, [None, f"bytes={3 * K}-", f"bytes={8 * K}-"]),
    "of a server that ignores ranges": ({"cuts": [3 * K], "takes_ranges": False}, [None, f"bytes={3 * K}-"]),
    "of a server that does not tell versions apart": ({"cuts": [3 * K], "etag": None}, [None, None]),
    "whose length is not told": ({"tells_length": False}, [None]),
    "that is called gzipped": ({"headers": {"Content-Encoding": "x-gzip"}}, [None]),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_file_comes_whole(served, tmp_path, case):
    behaviour, ranges = WHOLE[case]
    url = served.put("file.bin", CONTENT, **behaviour | {"cuts": [*behaviour.get("cuts", [])]})
    transfer.transfer(url, tmp_path / "file.bin", SIZE, checksum(CONTENT))
    assert contents(tmp_path) == {"file.bin": CONTENT}
    assert served.gets("file.bin") == ranges


REFUSED = {
    "absent": ({"status": 404}, SIZE, r"did not return the file \(status 404\): .* put it at .*file\.bin\.$"),
    "a web page": ({"headers": {"Content-Type": "text/html"}}, SIZE, r"did not return the file \(status 200\)"),
    "longer": ({"content": CONTENT + b"more"}, SIZE, f"announces {SIZE + 4} bytes instead of {SIZE}: get it"),
    "shorter": ({"content": CONTENT[1:]}, SIZE, f"announces {SIZE - 1} bytes instead of {SIZE}: get it"),
    "other content": ({"content": CONTENT[::-1]}, SIZE, "has a wrong checksum and was discarded"),
    "longer than told": ({"announces": -10}, None, "has a wrong checksum and was discarded"),
    "of no known length": ({"tells_length": False}, None, "announces no bytes instead of some: get it elsewhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_file_is_refused_in_one_sentence(served, tmp_path, case):
    behaviour, size, reason = REFUSED[case]
    url = served.put("file.bin", **{"content": CONTENT} | behaviour)
    with refused(f"^{url}:? {reason}"):
        transfer.transfer(url, tmp_path / "file.bin", size, checksum(CONTENT))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("behaviour", "size"),
    [
        ({"status": 503}, SIZE),
        ({"always_cut": 3 * K, "takes_ranges": False}, SIZE),
        ({"announces": 10, "etag": None}, None),
    ],
    ids=["overloaded", "always cut", "shorter than told"],
)
def test_a_file_that_is_cut_again_and_again_is_given_up_and_taken_up_later(served, tmp_path, behaviour, size):
    with pytest.raises(CUT):
        transfer.transfer(served.put("file.bin", CONTENT, **behaviour), tmp_path / "file.bin", size, None)
    assert len(served.asked) == 4
    assert "file.bin" not in contents(tmp_path)
    transfer.transfer(served.put("file.bin", CONTENT), tmp_path / "file.bin", size, None)
    assert contents(tmp_path) == {"file.bin": CONTENT}


def test_a_file_that_changed_meanwhile_starts_again(served, monkeypatch, tmp_path):
    old, new, path = CONTENT, CONTENT[::-1], tmp_path / "file.bin"
    monkeypatch.setattr(transfer, "WAITS", ())
    with pytest.raises(CUT):
        transfer.transfer(served.put("file.bin", old, cuts=[4 * K], etag='"old"'), path, None, None)
    transfer.transfer(served.put("file.bin", new, etag='"new"'), path, None, None)
    assert contents(tmp_path) == {"file.bin": new}
    assert served.gets("file.bin") == [None, f"bytes={4 * K}-"]


@pytest.mark.parametrize(("part", "is_of_it"), [(CONTENT[:K], True), (CONTENT, True), (b"x" * (SIZE + 1), False)])
def test_a_part_is_gone_on_with_and_thrown_away_where_it_does_not_fit(served, tmp_path, part, is_of_it):
    (tmp_path / "file.bin.part").write_bytes(part)
    (tmp_path / ".file.bin.version").write_text('"first"')
    arguments = served.put("file.bin", CONTENT), tmp_path / "file.bin", SIZE, checksum(CONTENT)
    if not is_of_it:
        with refused("has a wrong checksum and was discarded"):
            transfer.transfer(*arguments)
    transfer.transfer(*arguments)
    assert contents(tmp_path) == {"file.bin": CONTENT}
    assert served.gets("file.bin") == [f"bytes={len(part)}-", *([] if is_of_it else [None])]


def source(served, name="file.bin", content=CONTENT, put="seg/file.bin", **behaviour):
    return Source(put, served.put(name, content, **behaviour), "", "free", len(content), checksum(content))


def get(thing):
    """Fetch it; what is told before, and the room that it takes."""
    told, room, fetch = thing.plan()
    fetch()
    return told, room


@pytest.mark.slow
def test_a_killed_download_is_taken_up_where_it_ended_by_a_process_that_waits(served, tmp_path):
    released = threading.Event()
    code = "import sys; from metagame.fetch.datasets import Source; Source('seg/file.bin', sys.argv[1]).plan()[2]()"
    arguments = [sys.executable, "-c", code, source(served, hold=released).name]
    part = tmp_path / "data/downloads/file.bin.part"

    def start_and_wait_for(condition):
        process = subprocess.Popen(arguments, env=terminal_free_environment())
        deadline = time.monotonic() + 100
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    killed = start_and_wait_for(lambda: part.exists() and part.stat().st_size >= SIZE // 2 - K)
    waiting = start_and_wait_for(lambda: [each.method for each in served.asked].count("HEAD") == 2)
    time.sleep(0.3)
    assert served.gets("file.bin") == [None]
    left = part.stat().st_size
    killed.kill()
    killed.wait()
    assert contents(tmp_path / "data").keys() == {"downloads/file.bin.part"}
    released.set()
    assert waiting.wait() == 0
    assert contents(tmp_path / "data") == {"seg/file.bin": CONTENT}
    assert served.gets("file.bin") == [None, f"bytes={left}-"]


# Archives

NESTED = {"x/p.json": "p.json", "x/p.zip": {"panoptic": "masks"}}
UNPACKED = {
    "tar": (tar_of(GOOD), {"kit": "kit"}, {"kit/a.txt": b"a", "kit/deep/b.txt": b"b" * 1000}),
    "compressed": (tar_of(GOOD, compressed=True), {"kit/a.txt": "a", "other.txt": "o"}, {"a": b"a", "o": b"o"}),
    "names that start with a dot": (tar_of({"./kit/a": b"a"}), {"kit": "kit"}, {"kit/a": b"a"}),
    "zip": (zip_of(GOOD), {"other.txt": "deep/o.txt"}, {"deep/o.txt": b"o"}),
    "a link in a zip": (zip_of(GOOD | downloads.zip_link("l", "/etc")), {"l": "l"}, {"l": b"/etc"}),
    "nested": (zip_of({"x/p.json": b"", "x/p.zip": INNER}), NESTED, {"p.json": b"", "masks/1.png": b"png"}),
}


@pytest.mark.parametrize("case", UNPACKED)
def test_pieces_of_an_archive_are_put_in_their_places_and_the_rest_is_removed(served, tmp_path, case):
    content, put, expected = UNPACKED[case]
    get(source(served, "archive", content, put))
    assert contents(tmp_path / "data") == expected
    assert not list((tmp_path / "data").rglob("*.unpacking"))


def test_an_archive_that_was_put_there_is_unpacked_and_pieces_that_are_there_stay(served, tmp_path):
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/kit.tar").write_bytes(tar_of(GOOD))
    (tmp_path / "data/o.txt").write_text("mine")
    (tmp_path / "data/.kit.tar.unpacking/kit").mkdir(parents=True)  # of a process that was killed
    (tmp_path / "data/.kit.tar.unpacking/kit/half").write_text("")
    get(source(served, "kit.tar", tar_of(GOOD), {"kit": "kit", "other.txt": "o.txt"}))
    assert contents(tmp_path / "data") == {"kit/a.txt": b"a", "kit/deep/b.txt": b"b" * 1000, "o.txt": b"mine"}
    assert served.asked == []


@pytest.mark.parametrize(("content", "wrong"), [(CONTENT[1:], "size"), (CONTENT[::-1], "checksum")])
def test_another_file_that_was_put_there_is_refused(served, tmp_path, content, wrong):
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/file.bin").write_bytes(content)
    with refused(f"^data/downloads/file.bin has a wrong {wrong}.*: delete it, and run the same command again"):
        get(source(served))
    assert contents(tmp_path / "data") == {"downloads/file.bin": content}


@pytest.mark.parametrize("case", ["tar", "nested"])
def test_pieces_are_put_on_another_disk(served, tmp_path, monkeypatch, case):
    rename = Path.rename

    def across_disks(path, target):
        if not path.name.endswith(".copying"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", across_disks)
    content, put, expected = UNPACKED[case]
    get(source(served, "archive", content, put))
    assert contents(tmp_path / "data") == expected


@pytest.mark.parametrize("case", downloads.BAD)
def test_an_archive_that_is_broken_or_unsafe_leaves_nothing_and_is_told(served, tmp_path, case):
    content, reason = downloads.BAD[case]
    with refused(rf"^data/downloads/archive cannot be unpacked \(.*{reason}.*\): remove it, and fetch it again"):
        get(source(served, "archive", content, {"kit": "kit"}))
    assert contents(tmp_path).keys() == {"data/downloads/archive"}
    assert not list(tmp_path.rglob("*.unpacking"))


# The data of an experiment


@pytest.fixture
def manifest(served, monkeypatch):
    """Sources of Table 3 on this server, of each kind that the real ones are."""
    outer = served.put("outer.zip", zip_of({"x/p.json": b"", "x/p.zip": INNER}))
    there = [
        source(served, "kit.tar", tar_of(GOOD), {"kit": "VOC/kit"})._replace(unpacked=1001),
        Source(NESTED, outer, licence="free"),
        Source("seg/masks.mat", served.put("masks.mat", CONTENT), licence="free"),
        Source("seg/names.json", yours="name them."),
    ]
    monkeypatch.setattr(command, "sources", lambda benchmarks: there if "voc" in benchmarks else [])


def test_the_data_of_an_experiment_is_told_then_fetched_then_there(manifest, served, tmp_path, caplog):
    assert run("data", "table3") == 0
    assert "kit.tar: 10.2 kB, 10.2 kB of it to be fetched, 1.0 kB unpacked; free.\n" in caplog.text
    assert "masks.mat: 1.0 MB, 1.0 MB of it to be fetched" in caplog.text
    assert re.search(r"Left to you: name them\.\n1\.1 MB needed, .* free in data\.", caplog.text)
    put = {"VOC/kit/a.txt", "VOC/kit/deep/b.txt", "p.json", "masks/1.png", "seg/masks.mat"}
    assert contents(tmp_path / "data").keys() == put
    served.asked.clear()
    caplog.clear()
    assert run("data", "table3") == 0
    assert "data/VOC/kit: there.\ndata/p.json: there.\n" in caplog.text
    assert served.asked == []


def test_a_dry_run_only_tells_what_is_still_to_go(manifest, served, tmp_path, caplog):
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads/masks.mat.part").write_bytes(bytes(SIZE - 1000))
    assert run("data", "table3", "--dry-run") == 0
    assert "masks.mat: 1.0 MB, 1.0 kB of it to be fetched" in caplog.text
    assert contents(tmp_path / "data").keys() == {"downloads/masks.mat.part"}
    assert {each.method for each in served.asked} == {"HEAD"}


def test_what_fails_is_told_and_does_not_stop_the_others(manifest, served, tmp_path, caplog):
    served.files["/kit.tar"].status = 404
    served.files["/outer.zip"].always_cut = 10
    assert run("data", "table3") == 1
    again = "rerun the same command to resume."
    absent, cut = errors(caplog)
    assert absent.startswith(f"{served.address}/kit.tar did not return the file (status 404)")
    assert cut == f"{served.address}/outer.zip cannot be fetched (no connection): {again}"
    assert "seg/masks.mat" in contents(tmp_path / "data")


def test_a_disk_that_is_too_small_and_a_wrong_folder_or_word_are_told(manifest, served, monkeypatch, tmp_path, caplog):
    assert run("data", "tabel3").startswith("no experiment is called tabel3: choose some of both_ways, distant_pairs, ")
    assert re.search("Could not find 'model/nothing' Available options .* adder ", run("weights", "model=nothing"))
    assert re.search("'nope' not found", run("weights", "figure3", "model.checkpoint=${nope}"))
    (tmp_path / "data").write_text("")
    assert run("data", "table3") == 1
    assert all("data cannot be written" in each for each in errors(caplog))
    (tmp_path / "data").unlink()
    little_room(monkeypatch)
    assert re.search("^data does not have enough room; .*: free some space, or put a link", run("data", "table3"))
    assert "needed, 1.0 kB free in data." in caplog.text
    assert served.gets("kit.tar") == []


def test_every_source_has_an_address_a_licence_and_places_below_the_data():
    for each in sources(yaml.safe_load((Path(datasets.__file__).parent / "datasets.yaml").read_text())):
        assert each.yours or each.licence
        assert each.yours or requests.Request("GET", each.name).prepare().url == each.name
        assert each.checksum is None or re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", each.checksum)
        assert all(path.is_relative_to("data") and ".." not in path.parts for path in places(each.put))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/benchmark").glob("[!_]*.yaml")))
def test_every_path_that_a_benchmark_reads_at_paper_scale_is_provided_or_left_to_you(name):
    (cfg,) = command.asked_configs([f"benchmark={name}"])
    read = OmegaConf.to_container(cfg, resolve=True)["benchmark"]
    given = [f"{path}/" for each in sources([name]) for path in places(each.put)]
    for path in re.findall("'(data/[^']+)'", str(read)):
        assert any(place.startswith(f"{path}/") or f"{path}/".startswith(place) for place in given)


# Weights

WEIGHTS = {"config.json": b"{}", "model.safetensors": CONTENT, "pytorch_model.bin": CONTENT, "README.md": b"read me"}
FIRST, SECOND = "google/siglip2-base-patch32-256", "google/siglip2-large-patch16-256"
BOTH = ("weights", "figure7", "model=siglip2_vitb32,siglip2_vitl16")


@pytest.fixture
def hub(served, monkeypatch, tmp_path):
    """A hub on this machine, and an empty cache."""
    downloads.point_at(served, tmp_path / "hub", monkeypatch)
    yield served
    reset_sessions()


def cached(name):
    return contents(Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots", COMMIT))


META_CLIP, CLIP_B = "facebook/metaclip-2-worldwide-huge-quickgelu", "openai/clip-vit-base-patch16"
SCHNELL, DEV = "black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev"
OPEN_CLIP = "timm/vit_base_patch16_clip_224.openai"
SMOL_LM = "HuggingFaceTB/SmolLM2-135M-Instruct"
BERT, VIT = "textattack/bert-base-uncased-SST-2", "google/vit-base-patch16-224"
META_CLIP_378 = "facebook/metaclip-2-worldwide-huge-378"
GEMMAS = [f"google/gemma-3-{size}-{kind}" for size in ("1b", "4b", "12b", "27b") for kind in ("it", "pt")]
NEEDED = {
    ("table4", "table2"): [Repository(name) for name in (META_CLIP, FIRST, SECOND, CLIP_B)],
    ("table3",): [Repository(SCHNELL)],
    ("model=flux_dev", "benchmark=coco"): [Repository(DEV)],
    ("model=flux_dev", "benchmark=coco", f"benchmark.tokenizer.checkpoint={SCHNELL}"): [
        Repository(DEV),
        Repository(SCHNELL, files="tokenizer_2/*"),
    ],
    ("table1", "figure1"): [],
    (): [Repository(name) for name in sorted([META_CLIP, CLIP_B, FIRST, SECOND, SCHNELL, BERT, VIT, *GEMMAS])],
    ("faithfulness",): [Repository(BERT)],
    ("figure3", "model=gemma3_4b_it", "model.revision=v1"): [Repository("google/gemma-3-4b-it", "v1")],
    ("figure3", "scale=small"): [Repository(SMOL_LM)],
    ("scale=small",): [Repository(name) for name in (SMOL_LM, FIRST, CLIP_B, "openai/clip-vit-base-patch32")],
    ("figure3", "model.checkpoint=a/b", "model.gguf=b.gguf"): [Repository("a/b", files="b.gguf")],
    ("figure2", "model=metaclip2_vith14_378"): [Repository(META_CLIP_378)],
    ("model=open_clip",): [Repository(OPEN_CLIP, files="open_clip_*model.*")],
}


@pytest.mark.parametrize("asked", NEEDED)
def test_an_experiment_needs_each_of_its_models_once(asked):
    assert repositories(command.asked_configs(asked)) == NEEDED[asked]


def test_a_scale_that_an_experiment_has_no_values_for_is_refused():
    with refused("flux_schnell has no values for scale=small"):
        list(command.asked_configs(["figure4", "scale=small"]))


@pytest.mark.parametrize("case", downloads.WANTED)
def test_weights_are_wanted_once(case):
    needed, beside, files = downloads.WANTED[case]
    assert wanted(f"{needed} {beside}".split(), files) == set(needed.split())


def test_a_repository_is_told_with_size_and_licence_then_fetched_then_in_the_cache(hub):
    put_repository(hub, "a/plain", WEIGHTS, large=["model.safetensors"])
    size, licence = "a/plain: 2 files, 1.0 MB", "of it to be fetched; licence small-print."
    assert get(Repository("a/plain")) == (f"{size}, 1.0 MB {licence}", SIZE + 2)
    assert cached("a/plain") == {name: WEIGHTS[name] for name in ("config.json", "model.safetensors")}
    assert Repository("a/plain").is_here()
    assert not Repository("a/plain", "v1").is_here()
    assert not Repository("a/plain", files="*.gguf").is_here()
    hub.asked.clear()
    assert get(Repository("a/plain")) == (f"{size}, 0 bytes {licence}", 0)
    assert all(each.path.startswith("/api/") for each in hub.asked)


@pytest.mark.parametrize("files", ["typo.gguf", ""])
def test_a_repository_without_the_weights_is_told(hub, files):
    put_repository(hub, "a/plain", {"config.json": b"{}", "right.gguf": CONTENT})
    with refused(r"^a/plain has no weights .*: it holds config\.json, right\.gguf"):
        Repository("a/plain", files=files).plan()


def test_cut_weights_are_taken_up_where_they_ended(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", K)
    put_repository(hub, "a/plain", WEIGHTS, large=["model.safetensors"])
    path = f"a/plain/resolve/{COMMIT}/model.safetensors"
    hub.files[f"/{path}"].cuts = [5 * K - 10]
    get(Repository("a/plain"))
    assert cached("a/plain")["model.safetensors"] == CONTENT
    assert hub.gets(path) == [None, f"bytes={4 * K}-"]


def test_fetched_weights_are_loaded_without_a_network(hub, monkeypatch):
    put_repository(hub, "a/clip", {path.name: path.read_bytes() for path in (ROOT / "data/tiny/clip").iterdir()})
    put_repository(hub, "a/open", {"open_clip_model.safetensors": CONTENT, "open_clip_pytorch_model.bin": CONTENT})
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *names: {"hf_hub": "a/open/"})
    for each in [Repository("a/clip"), *repositories(command.asked_configs(["model=open_clip"]))]:
        get(each)
    hub.files.clear()
    go_offline(monkeypatch)
    assert CLIP.load("a/clip", revision="main", device="cpu").revision == COMMIT
    assert Path(download_pretrained({"hf_hub": "a/open/"})).name == "open_clip_model.safetensors"


GATE = "is gated: accept its licence at https://huggingface.co/{}, then log in with 'hf auth login'"
UNAVAILABLE = {
    "cut": ({"always_cut": 10}, r"cannot be fetched \(no connection\): rerun the same command to resume"),
    "damaged": (
        {"content": CONTENT[::-1]},
        r"cannot be fetched \(model\.safetensors is not what the hub says\): rerun",
    ),
    "gated": ({"denied": 401}, GATE),
    "gated, logged in": ({"denied": 403}, GATE),
    "absent": (None, "is not on the hub, or private: correct its name or revision, or run 'hf auth login'"),
}


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_a_model_that_cannot_be_had_is_told_in_one_sentence_and_does_not_stop_the_others(hub, caplog, case):
    behaviour, reason = UNAVAILABLE[case]
    put_repository(hub, SECOND, WEIGHTS)
    if behaviour is not None:
        put_repository(hub, FIRST, WEIGHTS, large=["model.safetensors"], denied=behaviour.get("denied"))
        vars(hub.files[f"/{FIRST}/resolve/{COMMIT}/model.safetensors"]).update(behaviour)
    assert run(*BOTH) == 1
    (error,) = errors(caplog)
    assert re.search(f"^{FIRST} {reason.format(FIRST)}.*[.]$", error)
    assert ("gated: accept its licence at" in caplog.text.partition("needed, ")[0]) == ("gated" in case)
    assert "model.safetensors" in cached(SECOND)
    assert "model.safetensors" not in cached(FIRST)


def test_no_room_and_no_hub_are_told(hub, monkeypatch, caplog):
    put_repository(hub, FIRST, WEIGHTS)
    little_room(monkeypatch)
    assert "enough room; nothing was fetched: free some space, or set HF_HOME" in run(*BOTH)
    go_offline(monkeypatch)
    caplog.clear()
    assert run(*BOTH) == 1
    assert caplog.text.count("offline mode is enabled") == 2
    assert not Path(constants.HF_HUB_CACHE).exists()
