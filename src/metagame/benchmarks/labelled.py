"""Texts and images with a label: reviews of a small grammar, SST-2, IMDb, AG News, and handwritten digits."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from metagame.benchmarks.digits import Digits
from metagame.benchmarks.reviews import reviews
from metagame.contracts import Sample
from metagame.errors import UserError
from metagame.models.language_model import Prompt
from metagame.models.pretrained import load_tokenizer

DRAWS_PER_REVIEW = 100
"""Reviews to look at for each that is asked for, at most."""
TOPICS = ("World", "Sports", "Business", "Sci/Tech")
"""Labels 1 to 4 of AG News."""


@dataclass(frozen=True)
class LabelledText(Prompt):
    """A text and the number of its label, as a classifier of it counts them.

    Attributes:
        id: of the sample.
        text: that is classified.
        label: from 0.
        source: the file that it is from; None where it is made here.
    """

    id: str
    text: str
    label: int
    source: Path | None = None

    def files(self) -> Sequence[Path]:
        return () if self.source is None else (self.source,)


@dataclass(frozen=True)
class LabelledDigit(Sample):
    """Image ``number`` of a handwritten digit, whose label is the digit."""

    id: str
    label: int
    number: int

    def image(self) -> Image.Image:
        return Digits().image(self.label, self.number)


def labelled_digits(per_class: int) -> list[LabelledDigit]:
    """The first held-out images of each digit.

    Raises:
        UserError: there are none of each.
    """
    if per_class < 1:
        raise UserError(f"benchmark.labelled.per_class={per_class} must be a positive integer.")
    return [LabelledDigit(f"{digit}_{k}", digit, k) for digit in range(10) for k in range(per_class)]


def labelled_reviews(count: int, least: int, most: int, seed: int = 0) -> list[LabelledText]:
    """Reviews that training never saw and that are not neutral; label 1 is positive.

    Args:
        count: of the reviews.
        least: fewest words.
        most: most words.
        seed: of the reviews.

    Raises:
        UserError: the grammar hardly makes reviews of so many words.
    """
    if count < 1:
        raise UserError(f"benchmark.labelled.count={count} must be a positive integer.")
    found: dict[str, int] = {}
    for review in islice(reviews(seed, held_out=True), DRAWS_PER_REVIEW * count):
        score = review.score([True] * len(review.words))
        if score != 0 and least <= len(review.words) <= most:
            found[review.text] = int(score > 0)
        if len(found) == count:
            break
    if len(found) < count:
        raise UserError(
            f"only {len(found)} of benchmark.labelled.count={count} reviews of {least} to {most} words were found: ask"
            " for fewer, or for other lengths (least, most)."
        )
    return [LabelledText(f"review_{number}", text, label) for number, (text, label) in enumerate(found.items())]


def sst2(path: str) -> list[LabelledText]:
    """SST-2 of GLUE, ``dev.tsv`` with the columns ``sentence`` and ``label`` (1 is positive), 872 sentences.

    Raises:
        UserError: there is no such file, or it is of another format.
    """
    file = _existing(path, "dev.tsv of GLUE's SST-2.zip")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if next(rows, None) != ["sentence", "label"]:
            raise UserError(f"{file} does not begin with the columns sentence and label: give GLUE's dev.tsv of SST-2.")
        return [
            LabelledText(f"sst2_{number}", row[0].strip(), _label(row[-1], ("0", "1"), file, number), file)
            for number, row in enumerate(rows)
        ]


def imdb(root: str) -> list[LabelledText]:
    """The test reviews of IMDb, ``neg/*.txt`` (label 0) and ``pos/*.txt`` (1) in turn, 25,000; line breaks are spaces.

    Raises:
        UserError: there is no such folder, it has no reviews, or not as many of one label as of the other.
    """
    folder = _existing(root, "the folder aclImdb/test of aclImdb_v1.tar.gz")
    negative, positive = (sorted((folder / name).glob("*.txt"), key=_number) for name in ("neg", "pos"))
    if not negative or len(negative) != len(positive):
        raise UserError(
            f"{folder} has {len(negative)} texts in neg and {len(positive)} in pos, but these numbers should be"
            " equal: unpack aclImdb_v1.tar.gz again."
        )
    paths = [(path, label) for pair in zip(negative, positive, strict=True) for label, path in enumerate(pair)]
    return [
        LabelledText(
            f"{path.parent.name}_{path.stem}", path.read_text(encoding="utf-8").replace("<br />", " "), label, path
        )
        for path, label in paths
    ]


def ag_news(path: str) -> list[LabelledText]:
    """The test set of AG News, ``test.csv``: label (1 to 4), title and description, 7,600; the text is both.

    Raises:
        UserError: there is no such file, or it is of another format.
    """
    file = _existing(path, "test.csv of AG News (ag_news_csv)")
    numbers = tuple(str(number) for number in range(1, len(TOPICS) + 1))
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [
            (_label(row[0], numbers, file, number), " ".join(row[1:])) for number, row in enumerate(csv.reader(lines))
        ]
    texts = [(label, text.replace("\\", " ").strip()) for label, text in rows]
    return [LabelledText(f"ag_news_{number}", text, label, file) for number, (label, text) in enumerate(texts)]


def short_texts(
    texts: Sequence[LabelledText], tokenizer: str, most: int, revision: str | None = "main"
) -> list[Sample]:
    """Those of up to so many tokens, special ones not counted.

    Args:
        texts: to choose from.
        tokenizer: a folder or an id on the Hugging Face hub.
        most: tokens.
        revision: of the tokenizer.

    Raises:
        UserError: the tokenizer cannot be loaded, or no text is as short.
    """
    split = load_tokenizer(tokenizer, revision)
    found = [text for text in texts if len(split(text.text, add_special_tokens=False)["input_ids"]) <= most]
    if not found:
        raise UserError(f"no text has {most} tokens or fewer: raise benchmark.labelled.most.")
    return list(found)


def _existing(path: str, what: str) -> Path:
    found = Path(path)
    if not found.exists():
        raise UserError(f"{path} does not exist: run 'make data EXPERIMENT=faithfulness', or put {what} there.")
    return found


def _label(text: str, labels: Sequence[str], file: Path, number: int) -> int:
    if text not in labels:
        raise UserError(
            f"{file} has label {text!r} in row {number}, which is not one of {', '.join(labels)}: fetch it again."
        )
    return labels.index(text)


def _number(path: Path) -> int:
    return int(path.stem.split("_")[0])
