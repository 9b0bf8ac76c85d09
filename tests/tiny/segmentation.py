"""Pictures whose pixels have classes, in memory and as each dataset is distributed, and a model that knows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.pre_tokenizers import Metaspace, Punctuation, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as Steps
from transformers import T5TokenizerFast

from metagame import UserError
from metagame.benchmarks.masks import OTHER, UNLABELLED
from metagame.benchmarks.segmentation import Dataset, LabelledImage
from metagame.contracts import Model, prepare_each
from metagame.models.concepts import ConceptLogits, ConceptSample
from tests.reference import segmentation as twin
from tests.tiny.jobs import job_config

NAMES = ("plane", "bike", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog")
"""Classes of one token."""
STRANGE = ("traffic light", "zebra")
"""Classes of two tokens, and of one that the tokenizer does not know."""
BACKGROUND = ("sky", "grass")
CAR, CAT, COW, DOG = (NAMES.index(name) for name in ("car", "cat", "cow", "dog"))


def blank(question):
    """Logits of a question's concepts at one patch, all zero."""
    players, background = (torch.zeros(1, len(names), 1) for names in (question.players, question.background))
    return ConceptLogits(question.players, question.background, players, background)


@cache
def words_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer whose tokens are words."""
    words = ("<pad>", "</s>", "<unk>", "a", ",", "traffic", "light", *NAMES, *BACKGROUND)
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Steps([WhitespaceSplit(), Punctuation()])
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)


@cache
def pieces_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer of pieces of words, as FLUX has it."""
    pieces = ("<pad>", "</s>", "<unk>", "▁car", "▁dog", "▁so", "fa", "▁", "c", "a", "r", "d", "o", "g", "s", "f")
    # the longer a piece, the more likely: a word is cut into as few as can be
    vocabulary = [(piece, -10.0 + len(piece)) for piece in pieces]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)


@dataclass(frozen=True)
class Labelled(LabelledImage):
    """An image in memory; of each pixel the place of its class in ``names``, or OTHER, or UNLABELLED."""

    id: str
    labels: np.ndarray
    names: Sequence[str] = (*NAMES, *STRANGE)
    broken: bool = False

    @cached_property
    def classes(self):
        if self.broken:
            raise UserError(f"mask {self.id} cannot be decoded: get the file again.")
        return frozenset(self.names[place] for place in np.unique(self.labels) if place >= 0)

    def image(self):
        return Image.fromarray(pixels(*self.labels.shape))

    def mask(self, vocabulary):
        named = [vocabulary.index(name) if name in vocabulary else OTHER for name in self.names]
        return np.array([*named, UNLABELLED, OTHER], np.int16)[self.labels]


@dataclass(frozen=True)
class Memory(Dataset):
    """A dataset of such images."""

    labelled: Sequence[Labelled]
    names: Sequence[str] = (*NAMES, *STRANGE)

    def images(self):
        return list(self.labelled)


def pixels(height: int, width: int) -> np.ndarray:
    """A picture that tells left from right and up from down, and that JPEG hardly changes."""
    red, green = np.meshgrid(np.linspace(10, 240, width), np.linspace(30, 200, height))
    return np.round(np.stack([red, green, np.full_like(red, 90)], axis=-1)).astype(np.uint8)


def scene(*classes: int, height: int = 24, width: int = 40, rim: bool = True) -> np.ndarray:
    """Labels: of each class a block with a corner cut off, in a row, on OTHER; with a rim that is not labelled."""
    labels = np.full((height, width), OTHER, np.int16)
    edges = np.linspace(0, width, len(classes) + 1).astype(int)
    for place, (each, left, right) in enumerate(zip(classes, edges, edges[1:], strict=False)):
        labels[2 + place : -2, left + 2 : right - 2] = each
        labels[2 + place : 4 + place, left + 2 : left + 4] = OTHER
    if rim:
        labels[-2:] = UNLABELLED
    return labels


SCENES = (
    scene(CAR), scene(COW, DOG, height=33, width=26), scene(CAT, height=17, width=48), scene(DOG, CAR, CAT),
    scene(COW, height=40, width=16),
)  # fmt: skip
SINGLE_SCENES = tuple(each for each in SCENES if len(np.unique(each[each >= 0])) == 1)


def save_jpeg(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(*size)).save(path, quality=95, subsampling=0)


def voc_id(number: int) -> str:
    return f"2007_{number:06d}"


def write_voc_mask(path: Path, stored: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(stored.astype(np.uint8)).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 256, dtype=np.uint8).tobytes())
    image.save(path)


def write_voc(root: Path, scenes: Sequence[np.ndarray] = SCENES) -> Path:
    """A development kit whose labels 1, 2, ... are NAMES."""
    ids = [voc_id(number) for number in range(len(scenes))]
    for each, labels in zip(ids, scenes, strict=True):
        stored = np.where(labels == UNLABELLED, 255, labels + 1)
        write_voc_mask(root / "SegmentationClass" / f"{each}.png", stored)
        save_jpeg(root / "JPEGImages" / f"{each}.jpg", labels.shape)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{each}\n" for each in ids), encoding="utf-8")
    return root


def coco_id(number: int) -> str:
    return f"{139 + number:012d}"


THINGS = {name: 3 * place + 1 for place, name in enumerate((*NAMES, *STRANGE))}
"""Category ids of things; as in COCO some numbers are missing."""
STUFF = {"grass-merged": 193, "sky-other-merged": 187, "banner": 92, "wall-brick": 171, "floor-stuff": 190}


def coco_categories(*, stuff: bool, things: Mapping[str, int] = THINGS) -> list[dict]:
    named = [{"id": key, "name": name, "isthing": 1} for name, key in things.items()]
    others = [{"id": key, "name": name, "isthing": 0} for name, key in STUFF.items()]
    # the instance annotations know no stuff, and no word for it
    return named + others if stuff else [{"id": each["id"], "name": each["name"]} for each in named]


def coco_images(scenes: Sequence[np.ndarray]) -> list[dict]:
    sizes = [dict(zip(("height", "width"), labels.shape, strict=True)) for labels in scenes]
    return [{"file_name": f"{coco_id(k)}.jpg", "id": 139 + k, **size} for k, size in enumerate(sizes)]


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_segments(path: Path, segments: np.ndarray) -> None:
    """Segment ids as COCO's panoptic PNGs have them: red + 256 green + 65536 blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = [segments >> 8 * place & 255 for place in range(3)]
    Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(path)


SEGMENT_IDS = (7, 300, 70_000, 3_226_956, 16_777_215, 65_536, 256, 255)


def write_panoptic(
    root: Path,
    scenes: Sequence[np.ndarray] = SCENES,
    split: str = "val2017",
    things: Mapping[str, int] = THINGS,
) -> Path:
    """A class has a segment in the upper and one in the lower half; OTHER is stuff, UNLABELLED void.

    Labels are places among the ``things``, which have their ids.
    """
    annotations = []
    for number, labels in enumerate(scenes):
        upper = np.arange(labels.shape[0])[:, None] < labels.shape[0] // 2
        present = np.unique(labels[labels >= 0])
        parts = [(list(things.values())[each], (labels == each) & half) for each in present for half in (upper, ~upper)]
        parts.append((list(STUFF.values())[number % len(STUFF)], labels == OTHER))
        segments, info = np.zeros(labels.shape, int), []
        for key, (category, part) in zip(SEGMENT_IDS, parts, strict=False):
            segments[part] = key
            info.append({"id": key, "category_id": category, "iscrowd": len(info) % 2})
        annotations.append({"segments_info": info, "file_name": f"{coco_id(number)}.png", "image_id": 139 + number})
        write_segments(root / "annotations" / f"panoptic_{split}" / f"{coco_id(number)}.png", segments)
        save_jpeg(root / split / f"{coco_id(number)}.jpg", labels.shape)
    categories = coco_categories(stuff=True, things=things)
    content = {"images": coco_images(scenes), "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / f"panoptic_{split}.json", content)
    return root


def uncompressed(part: np.ndarray) -> dict:
    """Lengths of runs in columns from left to right, the first one outside."""
    column = part.T.ravel()
    edges = np.flatnonzero(np.diff(column, prepend=False))
    return {"counts": np.diff([0, *edges, len(column)]).tolist(), "size": list(part.shape)}


def compressed(part: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(part.astype(np.uint8)))
    return {"counts": code["counts"].decode("ascii"), "size": [int(length) for length in code["size"]]}


def instance(number: int, name: str, segmentation, area: float, *, iscrowd: int = 0, key: int = 1) -> dict:
    about = {"area": float(area), "iscrowd": iscrowd, "image_id": 139 + number, "category_id": THINGS[name], "id": key}
    return {"segmentation": segmentation, **about}


def write_instances(
    root: Path,
    scenes: Sequence[np.ndarray] = SCENES,
    annotations: Iterable[dict] | None = None,
    split: str = "val2017",
) -> Path:
    """An instance of each class, by runs; ``annotations`` in their place."""
    if annotations is None:
        parts = [(number, each, labels == each) for number, labels in enumerate(scenes) for each in np.unique(labels)]
        annotations = [
            instance(number, NAMES[each], (compressed, uncompressed)[each % 2](part), int(part.sum()), key=key)
            for key, (number, each, part) in enumerate(parts, start=900)
            if each >= 0
        ]
    for number, labels in enumerate(scenes):
        save_jpeg(root / split / f"{coco_id(number)}.jpg", labels.shape)
    categories = coco_categories(stuff=False)
    content = {"images": coco_images(scenes), "annotations": list(annotations), "categories": categories}
    write_json(root / "annotations" / f"instances_{split}.json", content)
    return root


def wordnet(names: Sequence[str]) -> dict[str, str]:
    """Ids for names."""
    return {f"n{2_084_071 + place:08d}": name for place, name in enumerate(names)}


WORDNET = wordnet((*NAMES, *STRANGE))


def imagenet_seg_id(number: int, name: str, labels: Mapping[str, str] = WORDNET) -> str:
    key = next(key for key, each in labels.items() if each == name)
    return f"{key}_{1005 + number}"


def write_matlab(path: Path, fields: dict[str, list]) -> None:
    """A struct of columns of cells as MATLAB's ``save -v7.3`` writes it: axes in the other order, cells by reference.

    A list in place of an array is a cell in the cell.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        references, value = file.create_group("#refs#"), file.create_group("value")
        value.attrs["MATLAB_class"] = np.bytes_("struct")

        def stored(content):
            if isinstance(content, list):
                cells = references.create_dataset(f"c{len(references)}", (1, len(content)), h5py.ref_dtype)
                cells[0] = [stored(each).ref for each in content]
                cells.attrs["MATLAB_class"] = np.bytes_("cell")
                return cells
            text = isinstance(content, str)
            array = np.array([[ord(each) for each in content]], np.uint16) if text else np.asarray(content)
            kind = "char" if text else "logical" if array.dtype == bool else "uint8"
            array = array.astype(np.uint8) if kind == "logical" else array
            found = references.create_dataset(f"r{len(references)}", data=array.transpose())
            found.attrs["MATLAB_class"] = np.bytes_(kind)
            return found

        for name, column in fields.items():
            cells = [stored(content).ref for content in column]
            value.create_dataset(name, (len(cells), 1), h5py.ref_dtype)[:, 0] = cells
            value[name].attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(512))


def imagenet_seg_columns(
    scenes: Sequence[np.ndarray] = SINGLE_SCENES, known: Sequence[str] = (*NAMES, *STRANGE)
) -> dict[str, list]:
    """Images of one class of the ``known``; every pixel is labelled."""
    return {
        "img": [pixels(*labels.shape) for labels in scenes],
        "gt": [[labels >= 0] for labels in scenes],
        "id": [imagenet_seg_id(number, known[each.max()], wordnet(known)) for number, each in enumerate(scenes)],
    }


def write_imagenet_seg(
    root: Path, scenes: Sequence[np.ndarray] = SINGLE_SCENES, known: Sequence[str] = (*NAMES, *STRANGE)
) -> Path:
    write_matlab(root / "gtsegs_ijcv.mat", imagenet_seg_columns(scenes, known))
    write_json(root / "names.json", wordnet(known))
    return root


@dataclass
class Knowing(Model[ConceptSample, ConceptLogits]):
    """A model that knows the masks: a concept's logit is high on its pixels, the first background's on all others."""

    side: int = 8
    sample_type = ConceptSample
    revision = "first"
    device = "cpu"

    def prepare(self, samples):
        return prepare_each(self.bind, samples)

    def bind(self, sample):
        questions = sample.questions()
        sample.image()
        return {name: self.logits(question, sample) for name, question in questions.items()}

    def logits(self, question, sample):
        truth, vocabulary = twin.resized(sample.truth(), self.side), sample.benchmark.vocabulary
        players = np.stack([truth == vocabulary.index(name) for name in question.players])
        background = np.stack([truth < 0, *[np.zeros_like(truth, bool)] * (len(question.background) - 1)])
        player_logits, background_logits = (
            torch.from_numpy(part.reshape(1, len(part), -1).repeat(2, axis=0)).float() * 20
            for part in (players, background)
        )
        return ConceptLogits(question.players, question.background, player_logits, background_logits)


VARIANTS = {
    "concept_attention": (False, False),
    "mean_first": (False, True),
    "meta_concept_attention": (True, True),
    "meta_per_layer": (True, False),
}
"""Of ConceptAttention: whether it is a metagame, and whether layers are averaged first."""


def segmentation_config(output_dir, data, **changes):
    """The config of a job of the knowing model on ``data``, by all variants."""
    method = {"_target_": "metagame.attributions.concept_attention.ConceptAttention"}
    parts = {
        "model": {"name": "knowing", "_target_": f"{__name__}.Knowing", "side": 8},
        "attribution": {
            "name": "concept_maps", "label": "ConceptAttention and its metagame", "family": "attention", "meta": False,
            "variants": {
                name: {"name": name, "label": name, "meta": meta, "method": method | {"mean_first": mean_first}}
                for name, (meta, mean_first) in VARIANTS.items()
            },
        },
        "benchmark": {
            "name": "masks", "_target_": "metagame.benchmarks.segmentation.Segmentation", "data": data,
            "tokenizer": {"_target_": f"{__name__}.words_tokenizer"}, "background": list(BACKGROUND),
            "players": ["n0", "n5"], "side": 8,
        },
    }  # fmt: skip
    return job_config(output_dir, **parts, **changes)
