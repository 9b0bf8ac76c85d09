"""Stub jobs whose arrays are known, and a headless Chromium, driven through its DevTools protocol over two pipes."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest

from metagame.contracts import WHOLE, Annotation, Benchmark, Explanation, Method, Model, Sample
from metagame.errors import UserError
from metagame.jobs.run import run_job
from metagame.meta import MetaAttributions
from metagame.report.table import Column, Table, write_table
from metagame.viewer.write import write_page
from tests.tiny.jobs import job_config
from tests.tiny.texts import texts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands from file descriptor 3 and writes answers to 4
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
SECONDS = 60
LOADED = "new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))"
SETTLED = """new Promise((done) => {
  const look = () => {
    const maps = [...document.querySelectorAll("#panels .map canvas, #panels .large canvas, #panels .truth canvas")];
    const drawn = maps.every((canvas) => canvas.dataset.painted);
    drawn && document.getElementById("panels").ariaBusy !== "true" ? done(true) : setTimeout(look, 10);
  };
  look();
})"""
TYPED = ("pairs", "search", "from", "to")
"""Controls that tell of every change."""


@dataclass(frozen=True)
class Sentence(Sample):
    """A sample, and its own input: its words are the players and the targets."""

    id: str
    text: str
    pairs: tuple = ()
    grid = None
    picture = None

    def description(self):
        return self.text

    def annotation(self):
        return Annotation(pairs=self.pairs)

    @property
    def players(self):
        return tuple(self.text.split())

    targets = players


class Sentences(Benchmark):
    """A benchmark of texts; sample k has id ``s{k}``, and the score ``length`` where lengths are given."""

    def __init__(self, texts, answer="yes", lengths=None, pairs=()):
        self.texts = texts
        self.answer = answer
        self.lengths = lengths
        self.pairs = tuple(map(tuple, pairs))

    def samples(self):
        return [Sentence(f"s{place}", text, self.pairs) for place, text in enumerate(self.texts)]

    def score(self, sample, inputs, explanations):
        scores = {"text": sample.text, "answer": self.answer}
        return scores if self.lengths is None else {**scores, "length": self.lengths[int(sample.id[1:])]}

    def sample_scores(self, scores):
        assert "text" in scores  # samples that failed have no scores, and are not asked about
        return super().sample_scores(scores)


class Drawn(Sentences):
    """Sentences of :func:`tests.tiny.texts.texts`: no config holds them."""

    def __init__(self, count, seed=0):
        super().__init__(texts(count, seed), answer=None)

    def score(self, sample, inputs, explanations):
        return {"text": sample.text, "answer": sample.text}


class Reader(Model):
    """A model that makes nothing of a text."""

    sample_type = Sentence
    revision = "first"
    device = "cpu"

    def prepare(self, samples):
        return [{WHOLE: sample} for sample in samples]


class Given(Method):
    """A method that has its answer from the config: an explanation, or an ``error``.

    That is ``values`` of the first words on ``targets`` which are none, with a ``grid`` of patches; or else an
    ``attribution`` of the first words; or else the metagame of the ``entries`` ``[target, player, value]``.
    """

    input_type = Sentence

    def __init__(
        self, entries=(), attribution=None, values=None, targets=None, grid=None, error=None, directed=True,
        standard_error=None,
    ):  # fmt: skip
        self.entries = entries
        self.attribution, self.values, self.standard_error = (
            None if given is None else np.array(given) for given in (attribution, values, standard_error)
        )
        self.targets, self.grid = (None if given is None else tuple(given) for given in (targets, grid))
        self.error = error
        self.directed = directed

    def explain(self, bound, progress=None):
        if self.error is not None:
            raise UserError(self.error)
        players, n, errors = bound.players, len(bound.players), {"standard_error": self.standard_error}
        if self.values is not None:
            players = players[: self.values.shape[1]]
            names = {"players": players, "targets": self.targets, "grid": self.grid}
            meta = MetaAttributions(self.values, endogenous=False, **names, **errors)
            return Explanation(players, self.targets, self.grid, self.attribution, meta)
        if self.attribution is not None:
            return Explanation(players, players, attribution=self.attribution[:n])
        matrix = np.zeros((n, n))
        for target, player, value in self.entries:
            matrix[target, player] = value
        first = matrix.sum(1) if self.directed else None
        names = {"players": players, "targets": players}
        meta = MetaAttributions(matrix, first_order=first, directed=self.directed, **names, **errors)
        return Explanation(players, players, attribution=first, meta=meta)


def sentence_config(output_dir, name, texts=("a b c d", "so it is"), label=None, **method):
    """The config of a stub job of an experiment's folder."""
    return job_config(
        output_dir,
        name="sentences",
        model={"name": "reader", "label": "Reader", "_target_": f"{__name__}.Reader"},
        benchmark={"name": "sentences", "_target_": f"{__name__}.Sentences", "texts": list(texts)},
        attribution={
            "name": name, "label": label or name, "family": "stub", "meta": False,
            "method": {"_target_": f"{__name__}.Given", **method},
        },
    )  # fmt: skip


class Cells(HTMLParser):
    """Texts of the cells of a page's tables, and what its script is given."""

    def __init__(self):
        super().__init__()
        self.cells, self.data, self.into = [], "", None

    def handle_starttag(self, tag, attributes):
        self.into = "cell" if tag == "td" else "data" if dict(attributes).get("id") == "data" else None
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        self.into = None

    def handle_data(self, data):
        if self.into == "cell":
            self.cells[-1] += data
        elif self.into == "data":
            self.data += data


def read_part(folder, name):
    """What a script of samples beside the page gives it."""
    script = (folder / "report" / "samples" / f"{name}.js").read_text(encoding="utf-8")
    return json.loads(script.partition(" = ")[2].removesuffix(";\n"))


def page_of_texts(folder, count):
    """Write the page of a table and of a job with so many texts, and read them all back; the folder."""
    given = texts(count)
    cfg = sentence_config(folder / "x", "m", entries=[[0, 0, 1.0]])
    cfg.benchmark = {"name": "drawn", "_target_": f"{__name__}.Drawn", "count": count}
    run_job(cfg)
    rows = [{"text": text} for text in given]
    write_table(Table("texts", "tiny", [Column("text", "text", "text")], rows, [{} for _ in rows], 1), folder / "x")
    page = Cells()
    page.feed(write_page(folder, n_samples=count).read_bytes().decode())
    assert page.cells == given
    (group,) = json.loads(page.data)["groups"]
    assert [(sample["text"], sample["answer"]) for sample in group["samples"]] == [(text, text) for text in given]
    views = [[method["views"] for method in sample["methods"]] for sample in group["samples"] if not sample["part"]]
    for name in dict.fromkeys(sample["part"] for sample in group["samples"] if sample["part"]):
        views += read_part(folder, name)["views"]
    assert [each[0][0]["tokens"] for each in views] == [text.split() for text in given]
    return folder


class Chromium:
    """One browser; ``open`` gives a page of it."""

    def __init__(self, profile):
        if CHROMIUM is None:
            pytest.skip("needs Chromium: apt-get install chromium")
        commands, answers = os.pipe(), os.pipe()
        inside = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands[0], answers[1])]
        self.commands, self.answers = commands[1], answers[0]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, inside), CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (commands[0], answers[1], *inside):
            os.close(fd)
        self.number = 0
        self.unread = b""
        self.events = []

    def call(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        limit = time.monotonic() + SECONDS
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.answers], [], [], max(0, limit - time.monotonic()))
            assert ready, f"Chromium did not answer in {SECONDS} s"
            read = os.read(self.answers, 1 << 20)
            assert read, "Chromium ended"
            self.unread += read
        line, self.unread = self.unread.split(b"\0", 1)
        return json.loads(line)

    def open(self, url, width=1280):
        return Page(self, url, width)

    def close(self):
        self.call("Browser.close")
        self.process.wait(timeout=SECONDS)
        os.close(self.commands)
        os.close(self.answers)


class Page:
    """A tab. What it logs, raises and asks for from its first moment on is in ``errors()`` and ``requests()``."""

    def __init__(self, browser, url, width):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")
        self.resize(width)
        self.call("Page.navigate", url=url)
        self.evaluate(LOADED)
        self.settle()

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def resize(self, width):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def settle(self):
        """Wait until the pictures are drawn."""
        self.evaluate(SETTLED)

    def choose(self, control, value):
        """As a user does: set a control and tell it, or press the name of a sample."""
        if control == "sample":
            self.press_on(f"[data-sample='{value}']")
            return
        event = "input" if control in TYPED else "change"
        self.evaluate(
            f"(() => {{ const control = document.getElementById({json.dumps(control)});"
            f" control.value = {json.dumps(value)};"
            f" control.dispatchEvent(new Event('{event}', {{bubbles: true}})); }})()"
        )
        self.settle()

    def press_on(self, selector):
        """Click on the first node."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        self.settle()

    def press(self, key):
        """A key, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def each(self, selector, expression):
        """A JavaScript expression of each ``node`` that the selector finds."""
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => {expression})")

    def texts(self, selector):
        return self.each(selector, "node.textContent")

    def box(self, selector):
        """Left, right, top and bottom of the first node."""
        sides = "[rect.left, rect.right, rect.top, rect.bottom]"
        (box,) = self.each(selector, f"((rect) => {sides})(node.getBoundingClientRect())")[:1]
        return box

    def pixels(self, selector):
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).toDataURL()")

    def errors(self):
        return [
            event["params"]
            for event in self._events()
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"))
            or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"))
        ]

    def requests(self):
        return [e["params"]["request"]["url"] for e in self._events() if e["method"] == "Network.requestWillBeSent"]

    def _events(self):
        self.evaluate("0")  # what happened before is told before the answer
        return [event for event in self.browser.events if event.get("sessionId") == self.session]

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
