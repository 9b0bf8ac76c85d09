"""The command that shows a page in a browser, which explains what is typed into it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from metagame.errors import UserError
from metagame.viewer.server import HOST, Desk, Server


def report_folder(results: Path | None) -> Path | None:
    """The folder of the page of these results; None where no results are given.

    Raises:
        UserError: they have no page.
    """
    if results is None:
        return None
    if not (results / "report" / "index.html").is_file():
        raise UserError(
            f"{results} has no page, report/index.html: write it with 'metagame report', give the folder of a scale,"
            " such as outputs/tiny, or leave it out."
        )
    return results / "report"


def main(arguments: Sequence[str]) -> None:
    """Explain a prompt or a picture with its caption on a page in your browser, by a small model."""
    parser = argparse.ArgumentParser("metagame serve", description=main.__doc__)
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="also show the page of results in this folder, as outputs/tiny",
    )
    parser.add_argument("--port", type=int, default=8765, help="0 chooses any free port; default: %(default)s")
    parser.add_argument(
        "--text-model", metavar="MODEL", help="a language model, as a folder or Hub id; default: data/tiny/gemma3"
    )
    parser.add_argument(
        "--image-model", metavar="MODEL", help="a CLIP or SigLIP, as a folder or Hub id; default: data/tiny/clip"
    )
    asked = parser.parse_args(list(arguments))
    logging.basicConfig(format="%(message)s")
    try:
        report = report_folder(asked.results)
        from metagame.viewer.questions import Questions, render  # here, since they take a second to import

        questions = Questions.of(asked.text_model, asked.image_model)
        server = Server(asked.port, render(questions, report is not None), Desk(questions), report)
    except UserError as error:
        sys.exit(str(error))
    print(f"Open http://{HOST}:{server.server_port}/ in a browser. Ctrl-C stops the server.", flush=True)  # noqa: T201
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        os._exit(0)  # at once: the thread of an answer may be within torch, which does not outlive the interpreter
