import hashlib
import os
import time

import pytest

from metagame import UserError, digests
from metagame.digests import digest, file_digest, folder_digest

LONG_AGO = time.time_ns() - 10**12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of hashes, and nothing known yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_known", {})
    return tmp_path / "cache" / "metagame" / "hashes"


@pytest.fixture
def read(monkeypatch):
    """The names of files that are read from their beginning to their end, in order."""
    names, own = [], digests._read
    monkeypatch.setattr(digests, "_read", lambda path: names.append(path.name) or own(path))
    return names


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 0)


@pytest.fixture
def forget(monkeypatch):
    """Go on as in another process."""
    return lambda: monkeypatch.setattr(digests, "_known", {})


def write(path, content=b"content", changed=LONG_AGO):
    """A file that was last changed then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(changed, changed))
    return path


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1}) == "c8caf5ad035ad1d6"
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.parametrize("content", [b"", b"content", bytes(10**6)])
def test_a_file_is_known_by_its_content_and_read_once(content, tmp_path, read, cache):
    path = write(tmp_path / "a", content)
    (tmp_path / "link").symlink_to(path)
    expected = hashlib.sha256(content).hexdigest()[:16]
    assert file_digest(path) == file_digest(path) == file_digest(tmp_path / "link") == expected
    assert read == ["a"]
    assert not cache.exists()


@pytest.mark.parametrize(
    ("content", "changed"),
    [(b"CONTENT", LONG_AGO + 1), (b"more", LONG_AGO), (b"CONTENT", LONG_AGO)],
    ids=["same size", "same time", "same size and time"],
)
def test_a_file_that_has_changed_is_read_again(content, changed, tmp_path):
    path = write(tmp_path / "a")
    before = file_digest(path)
    time.sleep(0.02)  # as far apart as the system's clock tells
    assert file_digest(write(path, content, changed)) != before


def test_a_file_that_has_just_been_written_may_change_within_its_time(tmp_path):
    now = time.time_ns()
    before = file_digest(write(tmp_path / "a", b"one", now))
    assert file_digest(write(tmp_path / "a", b"two", now)) != before


@pytest.mark.usefixtures("all_are_large")
def test_a_large_file_is_read_once_by_all_processes(tmp_path, read, cache, forget):
    path = write(tmp_path / "a")
    found = file_digest(path)
    assert [each.read_text() for each in cache.iterdir()] == [found]
    forget()
    assert file_digest(path) == found
    assert read == ["a"]
    forget()
    assert file_digest(write(path, b"CONTENT", LONG_AGO + 1)) != found


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("in_place", [True, False])
def test_a_large_file_of_the_same_size_and_time_is_read_again_by_another_process(in_place, tmp_path, forget):
    path = write(tmp_path / "a")
    found = file_digest(path)
    other = write(tmp_path / "b", b"CONTENT")
    time.sleep(0.02)
    if in_place:
        write(path, b"CONTENT")
    else:
        other.replace(path)
    forget()
    assert file_digest(path) != found


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("content", [b"", b"0123", b"\xff" * 16, b"0123456789abcdef0"])
def test_a_cache_that_holds_no_hash_is_mended(content, tmp_path, cache, forget):
    path = write(tmp_path / "a")
    found = file_digest(path)
    (kept,) = cache.iterdir()
    kept.write_bytes(content)
    forget()
    assert file_digest(path) == found == kept.read_text()


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_cache_that_cannot_be_written_is_done_without(place, tmp_path, cache):
    if place == "file":
        write(cache.parent)
    else:
        write(cache / "a").parent.chmod(0o500)
    assert file_digest(write(tmp_path / "a")) == hashlib.sha256(b"content").hexdigest()[:16]


@pytest.mark.usefixtures("all_are_large")
def test_without_a_cache_folder_of_its_own_the_homes_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file_digest(write(tmp_path / "a"))
    assert len(list((tmp_path / "home" / ".cache" / "metagame" / "hashes").iterdir())) == 1


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"a cannot be read \(No such file or directory\): check that it exists"):
        file_digest(tmp_path / "a")


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "b.bin", "unet/b.bin", "unet/deep/c.model"):
        write(tmp_path / "folder" / name, name.encode())
    return tmp_path / "folder"


LOADED = ["config.json", "unet/b.bin", "unet/deep/c.model", "new.txt", "unet/new"]
NOT_LOADED = ["README.md", "readme.MD", "unet/notes.md", "LICENSE", "LICENSE.txt", ".hidden", ".git/config"]


@pytest.mark.parametrize("name", LOADED + NOT_LOADED)
def test_a_folder_changes_with_every_file_that_a_model_may_be_loaded_from(name, folder):
    before = folder_digest(folder)
    assert folder_digest(folder) == before
    write(folder / name, b"else")
    assert (folder_digest(folder) != before) == (name in LOADED)


def test_a_folder_changes_with_the_name_of_a_file_and_not_with_its_own(folder, tmp_path):
    before = folder_digest(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert folder_digest(moved) == before
    (moved / "b.bin").rename(moved / "c.bin")
    assert folder_digest(moved) != before


def test_linked_folders_count_once_for_all(folder, tmp_path):
    (folder / "up").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "nowhere")
    write(tmp_path / "outside" / "weights.bin")
    before = folder_digest(folder)
    (folder / "vae").symlink_to(tmp_path / "outside")
    linked = folder_digest(folder)
    write(tmp_path / "outside" / "weights.bin", b"else")
    assert len({before, linked, folder_digest(folder)}) == 3
