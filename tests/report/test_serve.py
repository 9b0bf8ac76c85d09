"""The server of the page that explains what is typed: whom it answers, and what."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image

from metagame import UserError, explain
from metagame.meta import MetaAttributions
from metagame.viewer.questions import LONGEST, Questions, note_of_absent, reading, render
from metagame.viewer.serve import main
from metagame.viewer.server import LARGEST, Desk, Server
from tests.tiny.jobs import ROOT
from tests.tiny.vision_language import refused

HOSTILE = "<img src=x onerror=alert(1)>"


class Echo:
    """Answers with the question, once it may; ``no`` and ``broken`` fail."""

    def __init__(self):
        self.may = threading.Event()

    def read(self, body):
        if not body:
            raise UserError("the question is empty: ask something.")
        return body.decode()

    def answer(self, question, tell):
        tell("counting", 3, 8)
        assert self.may.wait(20)
        if question == "no":
            raise UserError(f"no {HOSTILE}: ask otherwise.")
        if question == "broken":
            raise IndexError(question)
        return {"text": question}


@pytest.fixture
def server(tmp_path):
    """It serves a page, and the results in a folder."""
    report = tmp_path / "tiny" / "report"
    (report / "samples").mkdir(parents=True)
    (report / "index.html").write_text("the page of results")
    (report / "samples" / "a.js").write_text("a part")
    (report / "notes.json").write_text("{}")
    (tmp_path / "tiny" / "secret.html").write_text("secret")
    (report / "link.html").symlink_to(tmp_path / "tiny" / "secret.html")
    server = Server(0, "the page", Desk(Echo()), report)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.desk.answers.may.set()
    server.shutdown()
    server.server_close()


def ask(server, method="GET", path="/", body=None, **headers):
    """Status, headers and text of the answer."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    headers = {name: value.replace("PORT", str(server.server_port)) for name, value in headers.items()}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, response.headers, text


def wait(server):
    """The state when the question is answered."""
    for _ in range(400):
        state = json.loads(ask(server, path="/state")[2])
        if state["status"] != "running":
            return state
        time.sleep(0.01)
    raise AssertionError(state)


@pytest.mark.parametrize(
    ("path", "text"),
    [("/", "the page"), ("/?a=b", "the page"), ("/report/", "the page of results"), ("/report/samples/a.js", "a part")],
)
def test_pages_are_served_to_this_machine_alone(server, path, text):
    assert server.server_address[0] == "127.0.0.1"
    for name in ("127.0.0.1", "localhost"):
        status, headers, shown = ask(server, path=path, Host=f"{name}:PORT")
        assert (status, shown) == (200, text)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "said"),
    [
        ("GET", "/", {"Host": "metagame.example:PORT"}, 403, "127.0.0.1:PORT/"),
        ("GET", "/", {"Host": "127.0.0.1.example:PORT"}, 403, "127.0.0.1:PORT/"),
        ("GET", "/state", {"Host": "127.0.0.1"}, 403, "127.0.0.1:PORT/"),
        ("GET", "/state", {"Host": ""}, 403, "127.0.0.1:PORT/"),
        ("POST", "/explain", {"Host": "127.0.0.1:1"}, 403, "127.0.0.1:PORT/"),
        ("POST", "/explain", {"Host": "[::1]:PORT"}, 403, "127.0.0.1:PORT/"),
        ("GET", "http://metagame.example/", {}, 403, "127.0.0.1:PORT/"),
        ("POST", "/explain", {"Origin": "https://127.0.0.1:PORT"}, 403, "other sites"),
        ("POST", "/explain", {"Origin": "http://metagame.example"}, 403, "other sites"),
        ("POST", "/explain", {"Origin": "null"}, 403, "other sites"),
        ("POST", "/explain", {"Origin": "http://127.0.0.1:1"}, 403, "other sites"),
        ("POST", "/explain", {"Content-Length": str(LARGEST + 1)}, 413, "larger"),
        ("POST", "/explain", {"Content-Length": "9" * 5000}, 413, "larger"),
        ("POST", "/explain", {"Content-Length": ""}, 411, "how long"),
        ("POST", "/explain", {"Content-Length": "-1"}, 411, "how long"),
        ("POST", "/explain", {"Content-Length": "1e3"}, 411, "how long"),
    ],
)
def test_foreign_names_proxies_pages_of_other_sites_and_bodies_of_no_good_size_are_refused(
    server, method, path, headers, status, said
):
    found, _, text = ask(server, method, path, None if "Content-Length" in headers else "hello", **headers)
    assert (found, said.replace("PORT", str(server.server_port)) in text) == (status, True)
    assert server.desk.state["status"] == "idle"


@pytest.mark.parametrize(
    "path",
    [
        "/report", "/report/../secret.html", "/report/%2e%2e/secret.html", "/report/samples/../../secret.html",
        "/report/link.html", "/report/notes.json", "/report/samples", "/report/%00.html", "/report//etc/passwd",
        "/secret.html", "//etc/passwd", "/etc/passwd", "/explain", "/serve.py",
    ],
)  # fmt: skip
def test_other_paths_are_not_there(server, path):
    status, _, text = ask(server, path=path)
    assert (status, "no such page" in text) == (404, True)
    server.report = None
    assert ask(server, path="/report/")[0] == 404


def test_questions_are_answered_one_at_a_time_and_their_progress_is_told(server):
    assert ask(server, "POST", "/explain", HOSTILE)[::2] == (200, "1")
    while not server.desk.state.get("planned"):
        time.sleep(0.01)
    state = {"number": 1, "status": "running", "message": "counting", "done": 3, "planned": 8}
    assert json.loads(ask(server, path="/state")[2]) == state
    status, _, text = ask(server, "POST", "/explain", "another")
    assert (status, "wait" in text) == (409, True)
    server.desk.answers.may.set()
    assert wait(server) == {"number": 1, "status": "done", "answer": {"text": HOSTILE}}
    assert ask(server, path="/state")[1]["Content-Type"].startswith("application/json")


def test_what_goes_wrong_is_told_and_the_next_question_is_answered(server):
    server.desk.answers.may.set()
    status, headers, text = ask(server, "POST", "/explain", "")
    assert (status, text) == (400, "the question is empty: ask something.")
    assert headers["Content-Type"].startswith("text/plain")
    ask(server, "POST", "/explain", "no", Origin="http://localhost:PORT")
    assert wait(server)["message"] == f"no {HOSTILE}: ask otherwise."
    ask(server, "POST", "/explain", "broken", Origin="http://127.0.0.1:PORT")
    assert "IndexError: broken" in wait(server)["message"]
    ask(server, "POST", "/explain", "hello")
    assert wait(server) == {"number": 3, "status": "done", "answer": {"text": "hello"}}


@pytest.fixture
def questions(monkeypatch):
    monkeypatch.chdir(ROOT)
    return Questions.of(None, None)


def sent(**changed):
    question = {"kind": "text", "text": "the service was never rude .", "method": "attnlrp", "picture": "", "file": ""}
    return json.dumps(question | changed).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff", "form"), (b"[" * 100_000, "form"), (b"[]", "form"), (b"{}", "form"), (sent(text=None), "form"),
        (sent(kind=[]), "form"), (sent(file="*"), "form"), (sent(kind="audio"), "model"), (sent(method="sv"), "method"),
        (sent(text="a" * (LONGEST + 1)), "longer"), (sent(kind="image", method=""), "no picture"),
        (sent(kind="image", method="", picture="../gemma3/config.json"), "no picture"),
        (sent(kind="image", method="", picture="own"), "no picture"),
    ],
)  # fmt: skip
def test_what_the_page_cannot_have_sent_is_refused(questions, body, reason):
    with refused(reason):
        questions.read(body)


def numbers(packed):
    return np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(packed["shape"])


def test_a_prompt_is_explained_as_by_the_library(questions):
    told = []
    text = "the service was never splendid rude ."
    answer = questions.answer(questions.read(sent(text=text)), lambda *some: told.append(some))
    phi = explain("data/tiny/gemma3", text, method="attnlrp", max_new_tokens=8)
    np.testing.assert_allclose(numbers(answer["view"]["matrix"]), phi.values, rtol=1e-4, atol=1e-6)
    assert answer["view"]["tokens"] == list(phi.players)
    assert (answer["output"], answer["method"], answer["picture"]) == ("positive", "AttnLRP", None)
    assert "“rude” raises the attribution of “never” to the model’s answer “positive” by " in answer["reading"]
    assert "“splendid”" in answer["note"]
    assert told[-1] == ("Evaluating coalitions", 64, 64)
    assert eval(answer["code"], {"metagame": sys.modules["metagame"]}).values.shape == phi.values.shape


def test_a_picture_of_ones_own_is_explained_and_one_that_is_none_is_refused(questions):
    file = io.BytesIO()
    Image.open("data/tiny/images/two_six.png").save(file, "BMP")
    own = {"kind": "image", "text": "two six", "method": "grad_eclip", "picture": "own"}
    answer, shipped = (
        questions.answer(questions.read(sent(**own | changed)), lambda *_: None)
        for changed in ({"file": base64.b64encode(file.getvalue()).decode()}, {"picture": "two_six.png"})
    )
    assert answer["view"] == shipped["view"]
    assert answer["picture"].startswith("data:image/png")
    phi = explain("data/tiny/clip", "two six", "data/tiny/images/two_six.png", method="grad_eclip")
    words = answer["view"]["layers"][0]
    np.testing.assert_allclose(numbers(words["values"]), phi.values.T, rtol=1e-5, atol=1e-7)
    row, column = divmod(np.abs(phi.values).max(1).argmax(), 4)
    assert f"row {row}, column {column}" in answer["reading"]
    with refused("cannot be decoded"):
        questions.answer(questions.read(sent(**own, file=base64.b64encode(b"GIF89a").decode())), lambda *_: None)


@pytest.mark.parametrize(
    ("model", "method"),
    [("data/tiny/clip", "grad_eclip"), ("data/tiny/siglip2_p8", "grad_esiglip"), ("data/tiny/open_clip", "grad_eclip")],
)
def test_methods_are_offered_that_the_model_takes(model, method, monkeypatch):
    monkeypatch.chdir(ROOT)
    questions = Questions.of(None, model)
    assert next(iter(questions.methods["image"])) == method
    assert f'<option value="{method}">' in render(questions, has_report=False)
    asked = sent(kind="image", method="grad_esiglip", picture="two_six.png")
    with nullcontext() if method == "grad_esiglip" else refused("method"):
        assert questions.read(asked).method == method


def test_a_model_that_does_not_fit_is_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    questions = Questions.of("data/tiny/bert", None)
    with refused("--text-model data/tiny/bert cannot be used"):
        questions.answer(questions.read(sent(method="")), lambda *_: None)


def test_the_sentence_about_a_result_names_whom_it_means():
    phi = MetaAttributions(np.array([[9.0, 0, 0], [0, 9, -1], [0, 0, 9]]), players=("so", "good", "so"), output="yes")
    assert "“so (3)” lowers the attribution of “good” to the model’s answer “yes” by 1," in reading(phi)
    assert reading(MetaAttributions(np.eye(2), players=("a", "b"))).startswith("No token changes")


@pytest.mark.parametrize(
    ("text", "players", "absent"),
    [
        ("service with ice", "ser vice", ["with", "ice"]), ("ice service", "service", ["ice"]),
        ("do n't don't (well-known)", "do n't don 't well known", []), ("So good, so_ -", "so good so", []),
        ("bad-good end", "good", ["bad", "end"]), ("Straße", "straß e", []),
        ("so Bad good bad", "so good so", ["Bad", "bad"]),
    ],
)  # fmt: skip
def test_words_within_others_are_told_where_they_are_no_players(text, players, absent):
    phi = MetaAttributions(np.eye(len(players.split())), players=tuple(players.split()))
    note = note_of_absent(text, phi)
    assert bool(note) == bool(absent)
    assert note.partition("reads: ")[2] == (", ".join(f"“{word}”" for word in absent) + "." if absent else "")


def test_the_page_says_what_can_be_asked_and_escapes_names(questions, tmp_path, monkeypatch):
    page = render(questions, has_report=True)
    assert "data:image/png" in page
    assert "rude" in page
    assert 'href="/report/"' in page
    monkeypatch.chdir(tmp_path)
    page = render(Questions.of(HOSTILE, None), has_report=False)
    assert HOSTILE not in page
    assert "&lt;img" in page
    assert "--image-model" in page
    assert 'href="/report/"' not in page
    with refused("data/tiny"):
        Questions.of(None, None)


def test_the_command_says_what_it_cannot_do(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, reason in (
            ([str(tmp_path)], "metagame report"), (["--port", port], f"--port {port}"), (["--port", "65536"], "65535"),
        ):  # fmt: skip
            with pytest.raises(SystemExit, match=reason):
                main(arguments)


def test_help_needs_nothing_heavy():
    code = """
import sys
from metagame.cli import main
try:
    main(["serve", "--help"])
except SystemExit:
    pass
sys.exit(any(name in sys.modules for name in ("torch", "matplotlib", "jinja2")))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, "--port" in process.stdout) == (0, True)
