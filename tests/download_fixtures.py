"""A server of files on this machine that cuts, lies and refuses as told, and a hub of models on top of it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import sys
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

NO_WAITS = (0.0, 0.0, 0.0)


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


@dataclass
class Asked:
    """A request, and how many bytes of the file it was answered with."""

    method: str
    path: str
    range: str | None
    n_sent: int = 0


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
        asked = Asked(self.command, path, self.headers.get("Range"))
        self.files.asked.append(asked)
        served = self.files.files.get(path)
        if served is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            if path.startswith("/api/models/"):
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        start = self.start_of(served)
        if start > len(served.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(served.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = served.content[start:]
        self.send_response(206 if start and served.status == 200 else served.status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
        if served.etag is not None:
            self.send_header("ETag", served.etag)
        if served.tells_length:
            self.send_header("Content-Length", str(len(rest) + served.announces))
        else:
            self.close_connection = True
            self.send_header("Connection", "close")
        for name, value in served.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.send(served, rest, asked)

    def start_of(self, served):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", served.etag) == served.etag
        return int(asked[1]) if asked and same and served.takes_ranges else 0

    def send(self, served, rest, asked):
        cut = served.cuts.pop(0) if served.cuts else served.always_cut
        sent = rest if cut is None else rest[:cut]
        asked.n_sent = len(sent)
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


def tar_of(files, *, compressed=False, extra=()):
    """The bytes of a tar archive; ``extra``: TarInfos without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return buffer.getvalue()


def tar_entry(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_of(files):
    """The bytes of a zip archive; keys may be names or ZipInfos."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


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
        files.put(
            f"{name}/resolve/{commit}/{path}",
            content if denied is None else b"",
            etag=f'"{sha256 if path in large else blob}"',
            headers=headers,
            status=denied or 200,
        )
    listing = {"id": name, "sha": commit, "gated": denied is not None and "manual", "siblings": siblings}
    for revision in ("main", commit):
        files.put(f"api/models/{name}/revision/{revision}", json.dumps(listing).encode(), etag=None)
