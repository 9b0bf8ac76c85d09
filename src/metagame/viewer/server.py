"""The server of the page that explains what is typed into it: for this machine alone, one question at a time."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from metagame.errors import UserError

log = logging.getLogger(__name__)
HOST, NAMES = "127.0.0.1", ("127.0.0.1", "localhost")
LARGEST = 12 << 20
"""Bytes of a question, in which a picture takes four thirds of its file."""
TYPES = {".html": "text/html", ".js": "text/javascript"}
"""What a page of results consists of."""
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # the pages have stricter ones, which cannot say this
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip
Tell = Callable[..., None]
"""Called with what is being done, and where it is counted how much is done of how much."""


class Answers(Protocol):
    """What the server asks; see :class:`metagame.viewer.questions.Questions`."""

    def read(self, body: bytes) -> Any:
        """The question that a page has sent; a UserError where ``body`` does not hold one."""

    def answer(self, question: Any, tell: Tell) -> Mapping[str, Any]:
        """What the page shows, as it goes into JSON; a UserError where a question cannot be answered."""


@dataclass
class Desk:
    """Answers one question at a time, in a thread of its own.

    Attributes:
        answers: to the questions.
        state: what the page is told: the number of the last question; its ``status``: ``idle`` before the first one,
            ``running``, ``done`` or ``failed``; and what is being done, why it failed, or the answer.
    """

    answers: Answers
    state: Mapping[str, Any] = field(default_factory=lambda: {"number": 0, "status": "idle"})
    _starts: Lock = field(default_factory=Lock)

    def start(self, question: Any) -> int | None:
        """The number of the question, whose answer has begun; None where another one is being answered."""
        with self._starts:
            if self.state["status"] == "running":
                return None
            number = self.state["number"] + 1
            self.state = {"number": number, "status": "running", "message": "Loading", "done": 0, "planned": 0}
        Thread(target=self._run, args=(question, number), daemon=True).start()
        return number

    def _run(self, question: Any, number: int) -> None:
        def tell(message: str, done: int = 0, planned: int = 0) -> None:
            self.state = {**self.state, "message": message, "done": done, "planned": planned}

        try:
            self.state = {"number": number, "status": "done", "answer": self.answers.answer(question, tell)}
        except UserError as error:
            self.state = {"number": number, "status": "failed", "message": str(error)}
        except Exception as error:
            log.exception("The question could not be answered.")
            message = f"This failed ({type(error).__name__}: {error}). The terminal shows where: please report it."
            self.state = {"number": number, "status": "failed", "message": message}


class Server(ThreadingHTTPServer):
    """Serves this machine alone.

    Args:
        port: 0 for any that is free.
        page: as HTML.
        desk: where questions are asked.
        report: the folder of a page of results, or None without one.

    Raises:
        UserError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, port: int, page: str, desk: Desk, report: Path | None = None) -> None:
        self.page, self.desk, self.report = page, desk, report
        if not 0 <= port < 1 << 16:
            raise UserError(f"--port {port} must be between 0 and 65535; 0 chooses any free port.")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UserError(
                f"--port {port} cannot be used ({error.strerror}): choose another one, or 0 for any free port."
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of pages that came from this server; whatever else is refused in a sentence."""

    server: Server  # ty: ignore[incompatible-mutable-override]  # it is what the server is given
    timeout = 20  # seconds that a request may take to arrive

    def parse_request(self) -> bool:
        """Whether to go on: not where another name leads to this machine, by which a foreign page could read it."""
        if not super().parse_request():
            return False
        ours = self._is_ours(self.headers.get("Host", "")) and self.path.startswith("/")  # else it is a proxy's
        if not ours:
            self._send(403, f"Only http://{HOST}:{self.server.server_port}/ is served: open that address.")
        return ours

    def _is_ours(self, host: str) -> bool:
        return (host if ":" in host else f"{host}:80") in [f"{name}:{self.server.server_port}" for name in NAMES]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._send(200, self.server.page, "text/html")
        elif path == "/state":
            self._send(200, json.dumps(self.server.desk.state), "application/json")
        else:
            self._send_report(path)

    def _send_report(self, path: str) -> None:
        """A file of the page of results; links that lead out of its folder are not followed."""
        folder, name = self.server.report, path.removeprefix("/report/") or "index.html"
        if folder is not None and path.startswith("/report/") and ".." not in name.split("/") and "\0" not in name:
            file = (folder / name).resolve()
            if file.is_relative_to(folder.resolve()) and file.suffix in TYPES and file.is_file():
                self._send(200, file.read_bytes(), TYPES[file.suffix])
                return
        self._send(
            404,
            "There is no such page here. Jobs and other results are not served: see the folder of results.",
        )

    def do_POST(self) -> None:
        origin, length = self.headers.get("Origin"), self.headers.get("Content-Length", "")
        if origin is not None and not (origin.startswith("http://") and self._is_ours(origin.removeprefix("http://"))):
            self._send(403, "Questions from the pages of other sites are refused.")
        elif self.path != "/explain":
            self._send(404, "Questions are sent to /explain.")
        elif not length.isdecimal():
            self._send(411, "The request does not say how long it is.")
        elif len(length) > 9 or int(length) > LARGEST:
            self._send(413, f"The question is larger than {LARGEST >> 20} MiB: choose a smaller picture.")
        else:
            self._ask(self.rfile.read(int(length)))

    def _ask(self, body: bytes) -> None:
        desk = self.server.desk
        try:
            number = desk.start(desk.answers.read(body))
        except UserError as error:
            self._send(400, str(error))
            return
        if number is None:
            self._send(409, "Another question is being answered: wait until its result is there, then try again.")
        else:
            self._send(200, str(number))

    def _send(self, status: int, content: str | bytes, kind: str = "text/plain") -> None:
        body = content if isinstance(content, bytes) else content.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug(format, *args)
