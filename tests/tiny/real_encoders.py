"""Checkpoint folders as the real encoders have them: their configs, layouts and kinds of tokenizers, little width.

Weights are random; layers, heads, patches, image sides and vocabularies are those of the real models. CLIP's tokenizer
is the real one, those of MetaCLIP-2 (XLM-V) and SigLIP-2 (Gemma) are of their classes with a few pieces.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.decoders import Replace as ReplaceDecoder
from tokenizers.models import Unigram
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import CLIPConfig, CLIPModel, MetaClip2Config, MetaClip2Model, SiglipConfig, SiglipModel

from tests.tiny.vision_language import randomise

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
OF_CLIP = {"do_resize": True, "do_normalize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3}
OF_SIGLIP = {
    "do_resize": True, "do_normalize": True, "do_rescale": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "image_processor_type": "SiglipImageProcessor", "resample": 2, "rescale_factor": 1 / 255,
    "size": {"height": 256, "width": 256},
}  # fmt: skip
CLASSES = ("fish", "koala", "plane", "balloon", "church", "jeep", "laptop", "lemon", "pizza", "acorn")
WORDS = (*CLASSES, "black", "dog", "next", "to", "a", "yellow", "green", "red", "person", "eating", "hot")


@dataclass(frozen=True)
class Layout:
    """A real checkpoint with little width.

    Attributes:
        net, config: classes of transformers.
        text, vision: settings of the real config; widths are those of its heads.
        preprocessor: the content of ``preprocessor_config.json``.
        write_tokenizer: into a folder.
        dtype: on disk.
        sharded: in several files with an index.
        processor_only: ``processor_config.json`` in place of ``preprocessor_config.json``.
        position_ids: are among the weights, as transformers wrote them until version 4.31.
    """

    net: type[nn.Module]
    config: type
    text: dict[str, Any]
    vision: dict[str, Any]
    preprocessor: dict[str, Any]
    write_tokenizer: Callable[[Path], None]
    dtype: torch.dtype = torch.float32
    sharded: bool = False
    processor_only: bool = False
    position_ids: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Patches of a row."""
        return self.vision["image_size"] // self.vision["patch_size"]

    def build(self) -> nn.Module:
        """The model, as precise as on disk."""
        net = self.net(self.config(text_config=self.text, vision_config=self.vision, **self.extra))
        return randomise(net, seed=0).to(self.dtype).eval()

    def save(self, folder: Path) -> nn.Module:
        """Write the folder; the model in it."""
        net = self.build()
        net.save_pretrained(folder, max_shard_size="1MB" if self.sharded else "5GB")
        if self.position_ids:
            path = folder / "model.safetensors"
            ids = {f"{part}_model.embeddings.position_ids": n for part, n in (("text", 77), ("vision", 197))}
            held = {name: torch.arange(n)[None] for name, n in ids.items()}
            save_file(load_file(path) | held, path, metadata={"format": "pt"})
        if self.processor_only:
            processor = {"image_processor": self.preprocessor, "processor_class": "SiglipProcessor"}
            write_json(folder / "processor_config.json", processor)
        else:
            write_json(folder / "preprocessor_config.json", self.preprocessor)
        self.write_tokenizer(folder)
        return net


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's own, from the file that open_clip carries."""
    source = Path(open_clip.tokenizer.default_bpe())
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    vocabulary = open_clip.SimpleTokenizer(str(source)).encoder
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    write_json(folder / "vocab.json", {special.get(token, token): number for token, number in vocabulary.items()})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    end = "<|endoftext|>"
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end}
        | {"pad_token": end, "model_max_length": 77, "do_lower_case": True, "add_prefix_space": False},
    )


def unigram(specials: Sequence[str], pieces: Sequence[str], unknown: str) -> Tokenizer:
    scored = [(token, 0.0) for token in specials] + [(piece, -(len(piece) ** -1.0)) for piece in dict.fromkeys(pieces)]
    return Tokenizer(Unigram(scored, unk_id=list(specials).index(unknown)))


def write_xlm_tokenizer(folder: Path) -> None:
    """As XLM-V's: "yorkshire" is york, shire, "hydrant" is hydr, ant, and "dogant" a piece of its own."""
    pieces = [f"▁{word}" for word in WORDS] + ["▁york", "shire", "▁hydr", "ant", "▁ant", "▁dogant", "▁shire", "▁"]
    tokenizer = unigram(["<s>", "<pad>", "</s>", "<unk>"], pieces, "<unk>")
    tokenizer.pre_tokenizer, tokenizer.decoder = Metaspace(), MetaspaceDecoder()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>"}
    names |= {"sep_token": "</s>", "mask_token": "<unk>", "model_max_length": 512}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"} | names)


def write_gemma_tokenizer(folder: Path) -> None:
    """As Gemma's with SigLIP-2's settings: no token in front, <eos> behind, <pad> is 0; case is kept."""
    pieces = [f"{front}{word}" for word in WORDS for front in ("", "▁")]
    pieces += ["y", "▁y", "orkshire", "▁hyd", "rant", "hydr", "ant", "▁"]
    tokenizer = unigram(["<pad>", "<eos>", "<bos>", "<unk>"], pieces, "<unk>")
    tokenizer.normalizer, tokenizer.decoder = Replace(" ", "▁"), ReplaceDecoder("▁", " ")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    adds = {"add_bos_token": False, "add_eos_token": True, "model_max_length": 10**30}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer"} | names | adds)


def tower(width: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers} | {
        "num_attention_heads": heads, **others
    }  # fmt: skip


def clip(patch: int, **layout: Any) -> Layout:
    act = {"hidden_act": "quick_gelu"}
    text = tower(16, 12, 8, vocab_size=49408, max_position_embeddings=77, **act)
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as its config has them: the largest id counts
    vision = tower(24, 12, 12, patch_size=patch, image_size=224, **act)
    extra = {"projection_dim": 16}
    return Layout(CLIPModel, CLIPConfig, text, vision, write_tokenizer=write_clip_tokenizer, extra=extra, **layout)


def metaclip2(act: str, side: int, **layout: Any) -> Layout:
    text = tower(16, 24, 16, vocab_size=901629, max_position_embeddings=77, eos_token_id=2, hidden_act=act)
    vision = tower(32, 32, 16, patch_size=14, image_size=side, hidden_act=act)
    size = {"height": side, "width": side}
    preprocessor = OF_CLIP | {"do_center_crop": True, "image_processor_type": "CLIPImageProcessor"}
    preprocessor |= {"size": size, "crop_size": size}
    return Layout(
        MetaClip2Model, MetaClip2Config, text, vision, preprocessor, write_xlm_tokenizer,
        extra={"projection_dim": 16}, **layout,
    )  # fmt: skip


def siglip2(layers: int, heads: int, patch: int, **layout: Any) -> Layout:
    text = tower(heads, layers, heads, vocab_size=256000, max_position_embeddings=64, projection_size=2 * heads)
    vision = tower(2 * heads, layers, heads, patch_size=patch, image_size=256)
    return Layout(SiglipModel, SiglipConfig, text, vision, OF_SIGLIP, write_gemma_tokenizer, **layout)


OLD = OF_CLIP | {"do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"}
LAYOUTS: dict[str, Callable[[], Layout]] = {
    "clip_vitb16": partial(clip, 16, preprocessor=OLD | {"size": 224, "crop_size": 224}, position_ids=True),
    "clip_vitb32": partial(
        clip, 32, dtype=torch.bfloat16, sharded=True,
        preprocessor=OLD | {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
    ),
    "metaclip2_vith14": partial(metaclip2, "quick_gelu", 224, dtype=torch.bfloat16, sharded=True),
    "metaclip2_vith14_378": partial(metaclip2, "gelu", 378, dtype=torch.bfloat16),
    "siglip2_vitl16": partial(siglip2, 24, 16, 16, sharded=True, processor_only=True),
    "siglip2_vitb32": partial(siglip2, 12, 12, 32, dtype=torch.bfloat16),
}  # fmt: skip
"""By the names of the models' configs, but for CLIP ViT-B/32, which none is for."""
