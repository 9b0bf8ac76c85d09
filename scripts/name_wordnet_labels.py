"""Name the WordNet ids of ImageNet-Segmentation by words of one T5 token, for the benchmark imagenet_seg.

    python -m scripts.name_wordnet_labels --wordnet dict/data.noun [--root data/imagenet_seg] [--levels 2]

Needs data.noun of WordNet 3.0 and gtsegs_ijcv.mat in the root; writes names.json beside it. An id gets the first of its
synset's lemmas that is one token; where there is none, its hypernyms' are tried, up to --levels above. The paper does
not say how it names the ids (3,535 images, 53 names); edit names.json where you know better.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from metagame.benchmarks.imagenet_seg import image_ids, wordnet_id
from metagame.errors import UserError
from metagame.models.concepts import concept_token, load_t5_tokenizer

BACKGROUND = ("background", "floor", "grass", "tree", "sky")
"""Concepts of the benchmark that are never classes."""


@dataclass(frozen=True)
class Synset:
    """A line of ``data.noun``.

    Attributes:
        lemmas: words, in WordNet's order.
        hypernyms: ids of the synsets above.
    """

    lemmas: tuple[str, ...]
    hypernyms: tuple[str, ...]


def read_synsets(path: Path) -> dict[str, Synset]:
    """The nouns of WordNet by id, such as ``n02084071``.

    Raises:
        UserError: the file is missing or not of WordNet's format.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]
        return dict(map(_synset, lines))
    except OSError as error:
        raise UserError(f"{path} is no file that can be read: give data.noun of WordNet 3.0.") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is not of the format of WordNet's data.noun: give that of WordNet 3.0.") from error


def _synset(line: str) -> tuple[str, Synset]:
    """``offset file type n_words word id ... n_pointers symbol offset type source ... | gloss``; n_words in hex."""
    fields = line.split(" | ")[0].split()
    n_words = int(fields[3], 16)
    words = fields[4 : 4 + 2 * n_words : 2]
    start = 5 + 2 * n_words
    pointers = [fields[place : place + 2] for place in range(start, start + 4 * int(fields[start - 1]), 4)]
    above = tuple(f"n{offset}" for symbol, offset in pointers if symbol in ("@", "@i"))
    return f"n{int(fields[0]):08d}", Synset(tuple(word.replace("_", " ") for word in words), above)


def find_name(key: str, synsets: Mapping[str, Synset], tokenizer: PreTrainedTokenizerBase, levels: int) -> str | None:
    """The first lemma of one token, of the synset or of those up to ``levels`` above; None where there is none."""
    here = [key]
    for _ in range(levels + 1):
        known = [synsets[each] for each in here if each in synsets]
        for lemma in (lemma for synset in known for lemma in synset.lemmas):
            if lemma not in BACKGROUND and _is_one_token(lemma, tokenizer):
                return lemma
        here = [above for synset in known for above in synset.hypernyms]
    return None


def _is_one_token(lemma: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        concept_token(tokenizer, lemma)
    except UserError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True, help="data.noun of WordNet 3.0")
    parser.add_argument("--root", type=Path, default=Path("data/imagenet_seg"))
    parser.add_argument("--levels", type=int, default=2)
    parser.add_argument("--tokenizer", default="black-forest-labs/FLUX.1-schnell", help="a FLUX pipeline")
    arguments = parser.parse_args()
    try:
        ids = [wordnet_id(each) for each in image_ids(arguments.root / "gtsegs_ijcv.mat")]
        synsets = read_synsets(arguments.wordnet)
        tokenizer = load_t5_tokenizer(arguments.tokenizer, None)
    except UserError as error:
        sys.exit(str(error))
    found = {key: find_name(key, synsets, tokenizer, arguments.levels) for key in sorted(set(ids))}
    names = {key: name for key, name in found.items() if name is not None}
    path = arguments.root / "names.json"
    path.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    n_images = sum(key in names for key in ids)
    print(f"{path}: {n_images} of {len(ids)} images have one of {len(set(names.values()))} names.")


if __name__ == "__main__":
    main()
