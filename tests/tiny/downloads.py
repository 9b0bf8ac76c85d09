"""A server of files on this machine that cuts, lies and refuses as told, and a hub of models on top of it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import stat
import sys
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants, file_download
from huggingface_hub.utils import reset_sessions


@dataclass
class Served:
    """A file, and how the server misbehaves with it.

    ``cuts``: bytes after which the connection of each further request is cut, None: not at all. ``announces``: what is
    added to the length. ``hold``: the request stops half-way until this is set.
    """

    content: bytes
    etag: str | None = '"first"'
    cuts: list[int | None] = field(default_factory=list)
    always_cut: int | None = None
    takes_ranges: bool = True
    announces: int = 0
    tells_length: bool = True
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    range: str | None


class FileServer:
    """The files by path, and what was asked and sent."""

    def __init__(self):
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        self.address = ""

    def put(self, name, content, **behaviour):
        """Serve a file; its address."""
        self.files[f"/{name}"] = Served(content, **behaviour)
        return f"{self.address}/{name}"

    def gets(self, name):
        return [each.range for each in self.asked if each.method == "GET" and each.path == f"/{name}"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, *, body):
        path = unquote(urlsplit(self.path).path)
        self.files.asked.append(Asked(self.command, path, self.headers.get("Range")))
        absent = {"X-Error-Code": "RepoNotFound"} if path.startswith("/api/models/") else {}
        served = self.files.files.get(path) or Served(b"", None, status=404, headers=absent)
        start, n = self.start_of(served), len(served.content)
        status, rest, headers = served.status, served.content[start:], dict(served.headers)
        if start > n:
            status, headers["Content-Range"] = 416, f"bytes */{n}"
        elif start:
            status = 206 if status == 200 else status
            headers["Content-Range"] = f"bytes {start}-{n - 1}/{n}"
        if served.etag is not None:
            headers["ETag"] = served.etag
        if served.tells_length:
            headers["Content-Length"] = str(len(rest) + served.announces)
        else:
            self.close_connection = True
            headers["Connection"] = "close"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.send(served, rest)

    def start_of(self, served):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", served.etag) == served.etag
        return int(asked[1]) if asked and same and served.takes_ranges else 0

    def send(self, served, rest):
        cut = served.cuts.pop(0) if served.cuts else served.always_cut
        sent = rest if cut is None else rest[:cut]
        first = sent if served.hold is None else sent[: len(sent) // 2]
        try:
            self.wfile.write(first)
            if served.hold is not None:
                served.hold.wait(60)
                self.wfile.write(sent[len(first) :])
        except ConnectionError:
            self.close_connection = True
            return
        if cut is not None or served.announces > 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave
            super().handle_error(request, client_address)


@contextmanager
def serving(files):
    """Within: the files are served at ``files.address``."""
    handler = type("BoundHandler", (Handler,), {"files": files})
    with Server(("127.0.0.1", 0), handler) as server:
        files.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield files
        finally:
            server.shutdown()
            thread.join()


def checksum(content, algorithm="md5"):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def tar_of(files, *, compressed=False, link=None):
    """The bytes of a tar archive; ``link``: where ``kit/l`` in it leads."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo("kit/l")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return buffer.getvalue()


def zip_of(files):
    """The bytes of a zip archive; keys may be names or ZipInfos."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {info: target}


GOOD = {"kit/a.txt": b"a", "kit/deep/b.txt": b"b" * 1000, "other.txt": b"o"}
INNER = zip_of({"panoptic/1.png": b"png", "__MACOSX/x": b""})


BAD = {
    "tar: ..": (tar_of(GOOD | {"../evil": b"e"}), "'../evil' is outside of its folder"),
    "tar: .. inside": (tar_of(GOOD | {"kit/../a": b"e"}), "'kit/../a' is outside of its folder"),
    "tar: absolute": (tar_of(GOOD | {"/tmp/evil": b"e"}), "'/tmp/evil' is outside of its folder"),
    "tar: link outwards": (tar_of(GOOD, link="../../x"), "'kit/l' would link to"),
    "zip: ..": (zip_of(GOOD | {"kit/../../evil": b"e"}), "'kit/../../evil' is outside of its folder"),
    "zip: absolute": (zip_of(GOOD | {"/tmp/evil": b"e"}), "'/tmp/evil' is outside of its folder"),
    "a cut tar": (tar_of(GOOD)[:600], "unexpected end"),
    "a cut gzip": (tar_of(GOOD | {"kit/r": bytes(range(256)) * 999}, compressed=True)[:-30], "ended before"),
    "a cut zip": (zip_of(GOOD)[:-10], "not a zip file"),
    "a wrong sum": (zip_of(GOOD).replace(b"b" * 1000, b"b" * 999 + b"c"), "Bad CRC-32"),
    "a text": (b"no archive", "not a zip file"),
    "without the piece": (tar_of({"ki/a": b"a"}), "No such file.*'data/kit'"),
}
"""Archives of ``kit`` that are broken or unsafe, and how that is told."""


FLUX = """model_index.json scheduler/scheduler_config.json text_encoder/model.safetensors tokenizer_2/tokenizer.json
    text_encoder_2/model-00001-of-00002.safetensors text_encoder_2/model-00002-of-00002.safetensors
    text_encoder_2/model.safetensors.index.json tokenizer/merges.txt vae/diffusion_pytorch_model.safetensors"""
BESIDE_FLUX = """flux1-schnell.safetensors ae.safetensors README.md schnell_grid.jpeg vae/diffusion_pytorch_model.bin
    transformer/diffusion_pytorch_model.fp16.safetensors"""
PLAIN = "config.json merges.txt tokenizer.model chat_template.jinja"
BESIDE_PLAIN = """tf_model.h5 flax_model.msgpack onnx/model.onnx onnx/config.json open_clip_model.safetensors logo.png
    consolidated.safetensors model.fp16.safetensors"""
WANTED = {
    "a pipeline": (FLUX, BESIDE_FLUX, ""),
    "a folder": ("tokenizer_2/spiece.model tokenizer_2/tokenizer.json", "tokenizer/vocab.json", "tokenizer_2/*"),
    "safetensors": (f"{PLAIN} model.safetensors", f"{BESIDE_PLAIN} pytorch_model.bin", ""),
    "pickled": (f"{PLAIN} pytorch_model.bin", BESIDE_PLAIN, ""),
    "open_clip": ("open_clip_model.safetensors", f"{PLAIN} open_clip_pytorch_model.bin", "open_clip_*model.*"),
}
"""Of the files of repositories those that are needed, those beside them, and the pattern that is asked for."""


def put_repository(files, name, contents, *, large=(), denied=None, commit="c" * 40):
    """Serve a repository of the hub's: its listing, and each file with the headers that the hub's library reads.

    ``large``: files that git keeps by their sha256. ``denied``: the status by which a gated repository denies files.
    """
    siblings = []
    for path, content in contents.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sha256 = hashlib.sha256(content).hexdigest()
        entry = {"rfilename": path, "size": len(content), "blobId": blob}
        if path in large:
            entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 130}
        siblings.append(entry)
        headers = {"X-Repo-Commit": commit}
        if denied is not None:
            headers |= {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
        etag = f'"{sha256 if path in large else blob}"'
        given = content if denied is None else b""
        files.put(f"{name}/resolve/{commit}/{path}", given, etag=etag, headers=headers, status=denied or 200)
    listing = {"id": name, "sha": commit, "gated": denied is not None and "manual", "siblings": siblings}
    listing["cardData"] = {"license": "other", "license_name": "small-print"}
    for revision in ("main", commit):
        files.put(f"api/models/{name}/revision/{revision}", json.dumps(listing).encode(), etag=None)


def point_at(server, cache, monkeypatch):
    """Let the hub's libraries, which have read their environment, ask this server and keep files in ``cache``."""
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(cache))
    go_offline(monkeypatch, offline=False)


def go_offline(monkeypatch, *, offline=True):
    """Let them ask nobody any more."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", offline)
    reset_sessions()  # one that is kept from another test may be of the other kind
