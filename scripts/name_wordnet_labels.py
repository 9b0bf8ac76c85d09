"""Name the WordNet ids of ImageNet-Segmentation by words of one T5 token, for the benchmark imagenet_seg.

    python -m scripts.name_wordnet_labels --wordnet dict/data.noun [--root data/imagenet_seg] [--levels 2]

Needs data.noun of WordNet 3.0 and gtsegs_ijcv.mat in the root; writes names.json beside it. The published numbers use
the names in imagenet_class_map.json (3,535 images, 53 names of one token), which the folder
experiments/imagenet_segmentation/data of https://github.com/helblazer811/ConceptAttention has. If it lies in the root,
an id gets the name that it gives the first lemma of the id's synset. Without it, an id gets the first of its synset's
lemmas that is one token, or else one of its hypernyms', up to --levels above.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from metagame.benchmarks.imagenet_seg import image_ids, wordnet_id
from metagame.benchmarks.masks import read_annotations
from metagame.errors import UserError
from metagame.models.concepts import concept_token, load_t5_tokenizer

CLASS_MAP = "imagenet_class_map.json"
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
        raise UserError(f"{path} cannot be read: give data.noun of WordNet 3.0.") from error
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{path} is not in the format of WordNet's data.noun: give data.noun of WordNet 3.0."
        ) from error


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
    """The first one-token lemma of the synset, or of those up to ``levels`` above it; None without one."""
    here = [key]
    for _ in range(levels + 1):
        known = [synsets[each] for each in here if each in synsets]
        for lemma in (lemma for synset in known for lemma in synset.lemmas):
            if lemma not in BACKGROUND and _is_one_token(lemma, tokenizer):
                return lemma
        here = [above for synset in known for above in synset.hypernyms]
    return None


def read_class_map(path: Path) -> dict[str, str]:
    """The names of lemmas such as ``tabby``, in ``categories`` of the file or alone.

    Raises:
        UserError: the file is broken or maps other things.
    """
    content = read_annotations(path, ())
    names = content.get("categories", content) if isinstance(content, dict) else content
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path} does not map lemmas of WordNet to names: get it again.")
    return names


def mapped_name(key: str, synsets: Mapping[str, Synset], class_map: Mapping[str, str]) -> str:
    """The name that the class map has for the first lemma of a synset.

    Raises:
        UserError: it has none, or WordNet does not have the synset.
    """
    if key not in synsets:
        raise UserError(f"{key} of gtsegs_ijcv.mat is not a noun in this data.noun: give data.noun of WordNet 3.0.")
    lemma = synsets[key].lemmas[0]
    if lemma not in class_map:
        raise UserError(
            f"{CLASS_MAP} has no {lemma!r}, the class {key} of gtsegs_ijcv.mat: get it again, or remove it to take"
            " names from WordNet."
        )
    return class_map[lemma]


def _is_one_token(lemma: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        concept_token(tokenizer, lemma)
    except UserError:
        return False
    return True


def choose_names(keys: Sequence[str], arguments: argparse.Namespace) -> dict[str, str]:
    """Names by id, those of the class map where there is one; says where they are from.

    Raises:
        UserError: a file is missing or broken, or the class map lacks a class.
    """
    synsets, path = read_synsets(arguments.wordnet), arguments.root / CLASS_MAP
    if path.exists():
        class_map = read_class_map(path)
        print(f"Names are those of {path}, as in the published numbers.")
        return {key: mapped_name(key, synsets, class_map) for key in keys if key}
    tokenizer = load_t5_tokenizer(arguments.tokenizer, None)
    print(f"{path} is not there: names are from WordNet, other than those of the published numbers (see --help).")
    found = {key: find_name(key, synsets, tokenizer, arguments.levels) for key in keys}
    return {key: name for key, name in found.items() if name is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True, help="data.noun of WordNet 3.0")
    parser.add_argument("--root", type=Path, default=Path("data/imagenet_seg"))
    parser.add_argument("--levels", type=int, default=2)
    parser.add_argument("--tokenizer", default="black-forest-labs/FLUX.1-schnell", help="a FLUX pipeline")
    arguments = parser.parse_args()
    try:
        ids = [wordnet_id(each) for each in image_ids(arguments.root / "gtsegs_ijcv.mat")]
        names = choose_names(sorted(set(ids)), arguments)
    except UserError as error:
        sys.exit(str(error))
    path = arguments.root / "names.json"
    path.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    n_images = sum(key in names for key in ids)
    print(f"{path}: {n_images} of {len(ids)} images have one of {len(set(names.values()))} names.")


if __name__ == "__main__":
    main()
