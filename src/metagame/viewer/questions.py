"""What the served page asks: prompts, and pictures with captions; and how it shows the answers."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metagame.contracts import Explanation, Model
from metagame.errors import UserError
from metagame.extras import needed_by
from metagame.handles.pairs import player_names
from metagame.images import read_image
from metagame.meta import MetaAttributions
from metagame.viewer.browser import palette
from metagame.viewer.pack import picture_uri, square_picture
from metagame.viewer.server import LARGEST, Tell
from metagame.viewer.views import view
from metagame.viewer.write import render_page

TEXT, IMAGE = "text", "image"
TINY = {TEXT: Path("data/tiny/gemma3"), IMAGE: Path("data/tiny/clip")}
PICTURES = Path("data/tiny/images")
SETTINGS: Mapping[str, Mapping[str, Any]] = {TEXT: {"max_new_tokens": 8}, IMAGE: {}}
"""Of the models: an answer of a few words is explained within seconds."""
METHODS = {
    TEXT: {
        "attnlrp": "AttnLRP", "ig": "Integrated gradients", "gradient_input": "Gradient × input",
        "leave_one_out": "Leave one out",
    },
    IMAGE: {
        "grad_eclip": "Grad-ECLIP", "mask_clip": "MaskCLIP", "generic_attention": "Attention",
    },
}  # fmt: skip
METHODS_OF_SIGLIP = {"grad_esiglip": "Grad-ESigLIP", "mask_siglip": "MaskSigLIP", "generic_attention": "Attention"}
"""In place of those of a CLIP, which need a [CLS] token."""
OWN = "own"
"""The choice of a picture that comes with the question."""
LONGEST = 500
"""Characters of a text."""
SCRIPTS = ("base.js", "pairs.js", "tokens.js", "maps.js", "sight.js", "serve.js")


@dataclass(frozen=True)
class Question:
    """A prompt, or a caption with its picture.

    Attributes:
        kind: ``text`` or ``image``.
        text: the prompt or caption.
        method: a choice of ``configs/attribution``; empty for the model's default.
        picture: the name of a shipped one, or ``own``; empty without one.
        content: of its file.
    """

    kind: str
    text: str
    method: str
    picture: str = ""
    content: bytes = b""


@dataclass
class Questions:
    """Questions that can be asked, and their answers; each model is loaded for its first question.

    Attributes:
        sources: of the models, by the kind of question: folders or Hub ids.
        pictures: files by name.
    """

    sources: Mapping[str, str]
    pictures: Mapping[str, bytes]
    _models: dict[str, Model] = field(default_factory=dict)

    @classmethod
    def of(cls, text_model: str | None, image_model: str | None) -> Questions:
        """To these models; None: the one in ``data/tiny``, where it is there.

        Raises:
            UserError: there is no model at all.
        """
        given = {TEXT: text_model, IMAGE: image_model}
        found = {kind: str(path) if path.is_dir() else None for kind, path in TINY.items()}
        sources = {kind: source for kind in given if (source := given[kind] or found[kind]) is not None}
        if not sources:
            raise UserError(
                "the small models are in data/tiny of the repository, which is not here: start the server in the"
                " repository's folder, or give --text-model or --image-model, a folder or Hub id."
            )
        return cls(sources, {path.name: path.read_bytes() for path in sorted(PICTURES.glob("*.png"))})

    @cached_property
    def methods(self) -> Mapping[str, Mapping[str, str]]:
        """By the kind of question the methods that its model takes, with their labels."""
        return {
            kind: METHODS_OF_SIGLIP if kind == IMAGE and is_siglip(source) else METHODS[kind]
            for kind, source in self.sources.items()
        }

    def read(self, body: bytes) -> Question:
        """The question in what the page has sent.

        Raises:
            UserError: it is none of those that can be asked.
        """
        try:
            sent = json.loads(body)
            kind, text, method, picture = (_text(sent[key]) for key in ("kind", "text", "method", "picture"))
            content = base64.b64decode(sent["file"], validate=True)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise UserError("the question is not in the form that the page sends: load the page again.") from error
        if kind not in self.sources or method not in ("", *self.methods[kind]):
            raise UserError("the page asks for a model or method that is not here: load the page again.")
        if len(text) > LONGEST:
            raise UserError(f"the text is longer than {LONGEST} characters: shorten it, or call metagame.explain.")
        if kind == TEXT:
            return Question(kind, text, method)
        file = content if picture == OWN else self.pictures.get(picture)
        if not file:
            raise UserError("there is no picture: choose one of those shown, or a file of your own.")
        return Question(kind, text, method, picture, file)

    def answer(self, question: Question, tell: Tell) -> dict[str, Any]:
        """What the page shows of a question.

        Raises:
            UserError: the model cannot be loaded, or the question does not suit it.
        """
        if question.kind not in self._models:
            tell("Loading the model, which takes longer the first time")
            self._models[question.kind] = self._load(question.kind)
        image = read_image(question.content, "of your own") if question.kind == IMAGE else None
        tell("Asking the model")
        from metagame.explainer import explain  # here, since it takes seconds to import

        phi = explain(
            self._models[question.kind], question.text, image, question.method or None,
            progress=lambda done, planned: tell("Evaluating coalitions", done, planned),
        )  # fmt: skip
        return {
            "text": question.text, "method": phi.method, "output": phi.output, "reading": reading(phi),
            "note": note_of_absent(question.text, phi), "code": self._code(question),
            "view": view(Explanation(phi.players or (), phi.targets or (), phi.grid, phi.first_order, phi)),
            "picture": None if phi.picture is None else picture_uri(square_picture(Image.fromarray(phi.picture))),
        }  # fmt: skip

    def _load(self, kind: str) -> Model:
        with needed_by("metagame serve"):
            from metagame.models.auto import load_model  # here, as above

        try:
            return load_model(self.sources[kind], **SETTINGS[kind])
        except UserError as error:
            raise UserError(f"--{kind}-model {self.sources[kind]} cannot be used: {error}") from error

    def _code(self, question: Question) -> str:
        """The call that gives the same result."""
        path = "FILE" if question.picture == OWN else str(PICTURES / question.picture)
        given = {"text": question.text, "image": path if question.kind == IMAGE else "", "method": question.method}
        settings = {key: value for key, value in given.items() if value} | dict(SETTINGS[question.kind])
        arguments = [repr(self.sources[question.kind]), *(f"{key}={value!r}" for key, value in settings.items())]
        return f"metagame.explain({', '.join(arguments)})"


def is_siglip(source: str) -> bool:
    """Whether a model's config calls it a SigLIP; not where it has no config, of which the first question tells."""
    try:
        from huggingface_hub import hf_hub_download  # here, since only models of images need it

        path = Path(source) / "config.json" if Path(source).is_dir() else Path(hf_hub_download(source, "config.json"))
        return json.loads(path.read_text(encoding="utf-8"))["model_type"] == "siglip"
    except (ImportError, OSError, ValueError, LookupError, TypeError):
        return False


def reading(phi: MetaAttributions) -> str:
    """The strongest influence, in a sentence."""
    others = phi.values.copy()
    if phi.grid is None:
        np.fill_diagonal(others, 0)
    target, player = np.unravel_index(np.abs(others).argmax(), others.shape)
    value = float(others[target, player])
    if value == 0:
        return "No token changes the attribution of another target."
    names = player_names(phi)
    does = f"“{names[player]}” {'raises' if value > 0 else 'lowers'} the attribution of"
    if phi.grid is None:
        whose = f"“{names[target]}” to the model’s answer “{phi.output}”"
    else:
        row, column = divmod(int(target), phi.grid[1])
        whose = f"the patch in row {row}, column {column} to the match of picture and caption"
    return f"The strongest influence: {does} {whose} by {abs(value):.3g}, averaged over which other tokens are present."


def note_of_absent(text: str, phi: MetaAttributions) -> str:
    """Which words of a text are no players, in a sentence; empty where all are."""
    pieces = [letters for player in phi.players or () if (letters := _letters(player))]
    absent: dict[str, None] = {}
    at = 0
    for unit in text.split():  # as "don't", which one token may be, or several
        whole = _end_of(unit, pieces, at) is not None
        for word in [unit] if whole else re.findall(r"[^\W_]+", unit):
            end = _end_of(word, pieces, at)
            if end is None:
                absent[word] = None
            else:
                at = end
    names = ", ".join(f"“{word}”" for word in absent)
    return f"Not known to the model, or beyond what it reads: {names}." if absent else ""


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text).casefold()


def _end_of(word: str, pieces: Sequence[str], start: int) -> int | None:
    """Behind which of the pieces from ``start`` on the first ones end that make the word together; None without any."""
    letters = _letters(word)
    for first in range(start, len(pieces)):
        ends = itertools.accumulate(map(len, pieces[first:]))
        n_pieces = next((number for number, end in enumerate(ends, 1) if end >= len(letters)), 0)
        if "".join(pieces[first : first + n_pieces]) == letters:
            return first + n_pieces
    return None if letters else start


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise TypeError
    return given


def known_words(folder: Path) -> list[str]:
    """The words that a small model's tokenizer knows."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted(filter(str.isalpha, vocabulary))


def render(questions: Questions, has_report: bool) -> str:
    """The page, as HTML."""
    pictures = {name: picture_uri(read_image(content, name)) for name, content in questions.pictures.items()}
    words = {kind: known_words(TINY[kind]) for kind, source in questions.sources.items() if source == str(TINY[kind])}
    return render_page(
        "serve.html", SCRIPTS, {"palette": palette(), "pictures": {}, "largest": LARGEST * 3 // 4 - (1 << 16)},
        sources=questions.sources, words=words, methods=questions.methods, pictures=pictures, own=OWN, longest=LONGEST,
        has_report=has_report,
    )  # fmt: skip
