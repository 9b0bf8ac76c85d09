"""Time the pointing game against one image, one text and one backward pass for each coalition, in one run.

    python -m scripts.bench_vision_language [--shape vit_b16] [--images 10] [--reference-images 1] [--device cpu]

Writes outputs/bench/vision_language.json: the meta-attributions of Attention, MaskCLIP and Grad-ECLIP for 10 images
with four scenarios each, on a CLIP with random weights of the real shape. The reference is timed on as many of them as
--reference-images says and multiplied (it is linear in images).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from metagame.attributions.generic_attention import GenericAttention
from metagame.attributions.grad_eclip import GradECLIP
from metagame.attributions.mask_clip import MaskCLIP
from metagame.attributions.method import FirstOrder
from metagame.benchmarks.pointing_game import SCENARIOS
from metagame.contracts import Failure
from metagame.games import all_coalitions
from metagame.indices import shapley
from metagame.models.clip import CLIP
from metagame.models.pretrained import PretrainedTokenizer
from metagame.models.vision_language import TEXT_BATCH, ImageText, Sample, Tokenizer, WordPlayers
from scripts.measure import matrix_rate, operations, peak_memory, report, timed
from scripts.train_vision_language import RECIPES, VOCABULARY, build_tokenizer

METHODS = {"Attention": GenericAttention(), "MaskCLIP": MaskCLIP(), "Grad-ECLIP": GradECLIP()}
WORDS = ("zero", "one", "two", "three")
SHAPES = {
    "vit_b16": {
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                          "num_attention_heads": 12, "patch_size": 16, "image_size": 224},
        "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
                        "num_attention_heads": 8},
        "projection_dim": 512,
    },
    "vit_h14": {
        "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                          "num_attention_heads": 16, "patch_size": 14, "image_size": 224},
        "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                        "num_attention_heads": 16},
        "projection_dim": 1024,
    },
}  # fmt: skip
CONTEXT = 77
BATCH = 50
"""Images encoded together, as in the configs."""


@dataclass(frozen=True)
class Noise(Sample):
    """A picture of noise with four words; scenario m asks about the first m."""

    id: str
    seed: int

    def image(self) -> Image.Image:
        pixels = np.random.default_rng(self.seed).integers(0, 256, (448, 448, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def texts(self, tokenizer: Tokenizer) -> dict[str, WordPlayers]:
        return {str(m): WordPlayers(tokenizer, WORDS[:m]) for m in SCENARIOS}


def random_clip(shape: dict, device: str, batch_size: int) -> CLIP:
    """A CLIP with random weights of a real shape and context; its tokenizer knows words of digits."""
    text = shape["text_config"] | {
        "vocab_size": 49408, "max_position_embeddings": CONTEXT, "eos_token_id": VOCABULARY["<|endoftext|>"],
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CLIPModel(CLIPConfig(**(shape | {"text_config": text})))
    size = net.config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    tokenizer = PretrainedTokenizer(build_tokenizer(RECIPES["clip"]), CONTEXT)
    return CLIP(net.to(device), processor, tokenizer, "random", batch_size)


def bind(model: CLIP, samples: list[Noise]) -> list[Mapping[str, ImageText]]:
    """The questions of each sample, their images in one batch."""
    found = model.prepare(samples)
    for each in found:
        if isinstance(each, Failure):
            raise each.error
    return found


def ours(model: CLIP, method: FirstOrder, samples: list[Noise]) -> list[np.ndarray]:
    """Meta-attributions of all scenarios of all images, nothing known beforehand."""
    model.forget_texts()
    metagame = method.metagame()
    batches = [samples[start : start + model.batch_size] for start in range(0, len(samples), model.batch_size)]
    matrices = []
    for batch, upcoming in zip(batches, [*batches[1:], []], strict=True):
        bound = bind(model, batch)
        model.read_ahead(upcoming)
        matrices += [metagame.explain(each).meta.values for questions in bound for each in questions.values()]
    return matrices


def passes(model: CLIP, samples: list[Noise]) -> int:
    """The reference's passes: for each coalition an image forward, a text forward and a backward of their cosine."""
    count = 0
    for sample in samples:
        for players in sample.texts(model.tokenizer).values():
            for row in all_coalitions(len(players.labels)):
                pixels = model.process(sample.image())[None].to(model.device).requires_grad_()
                with torch.no_grad():
                    text = model.encode_texts([players.dropped(row.tolist())])
                torch.cosine_similarity(model.encode_images(pixels), text).sum().backward()
                count += 1
    return count


def one_by_one(model: CLIP, method: FirstOrder, samples: list[Noise]) -> list[np.ndarray]:
    """The meta-attributions with an image, a text, and a backward pass as far as the method needs, each coalition."""
    matrices = []
    model.text_batch = 1  # one text, not a batch filled with copies
    for sample in samples:
        for name in sample.texts(model.tokenizer):
            values = []
            for row in all_coalitions(int(name)):
                model.forget_texts()
                values.append(method.game(bind(model, [sample])[0][name])(row[None])[0])
            matrices.append(shapley(np.array(values), int(name)).T)
    model.text_batch = TEXT_BATCH
    return matrices


def bench(shape: str, n_images: int, n_reference: int, device: str) -> dict:
    """All measurements of one run."""
    model = random_clip(SHAPES[shape], device, min(n_images, BATCH))
    samples = [Noise(str(seed), seed) for seed in range(n_images)]
    ours(model, METHODS["Grad-ECLIP"], samples[:1])
    batches = torch.stack([model.process(sample.image()) for sample in samples]).to(device).split(model.batch_size)

    def encode() -> float:
        with torch.no_grad():
            return sum(model.encode_images(pixels).sum() for pixels in batches).item()

    bare = min(timed(encode)[0] for _ in range(3))
    times = {name: timed(lambda method=method: ours(model, method, samples)) for name, method in METHODS.items()}
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else peak_memory()
    few = samples[:n_reference]
    slow = {name: timed(lambda method=method: one_by_one(model, method, few)) for name, method in METHODS.items()}
    reference, _ = timed(lambda: passes(model, few))
    error = max(
        np.abs(a - b).max() / np.abs(b).max()
        for name in METHODS
        for a, b in zip(times[name][1], slow[name][1], strict=False)
    )
    rate = matrix_rate(device, model.dtype)
    share = operations(encode) / bare / rate
    scale, total = n_images / n_reference, sum(seconds for seconds, _ in times.values())
    return {
        "what": f"{n_images} images x 4 scenarios x {len(METHODS)} methods, random CLIP of shape {shape}, {device}",
        "ratio": len(METHODS) * reference * scale / total,
        "ratio_short_backward": sum(seconds for seconds, _ in slow.values()) * scale / total,
        "ratio_to_bare_encoder": total / len(METHODS) / bare,
        "images_per_second": n_images * len(METHODS) / total,
        "matrix_rate": rate / 1e12,
        "share_of_matrix_rate": share,
        "error": float(error),
        "memory": memory,
        "seconds": {f"ours, {name}": seconds for name, (seconds, _) in times.items()}
        | {f"one by one, {name}": seconds * scale for name, (seconds, _) in slow.items()}
        | {"reference passes of a method": reference * scale, "bare image encoder": bare},
        "reference_images": n_reference,
        "units": {
            "ratio": "time of an image, a text and a backward pass for each coalition / ours, all methods",
            "ratio_short_backward": "the same with the backward pass ended where the method needs no more",
            "ratio_to_bare_encoder": "time of a method with texts and image files / the batched image encoder alone",
            "images_per_second": "images with all four scenarios, one method",
            "matrix_rate": "10^12 operations a second of a product of large matrices, float32",
            "share_of_matrix_rate": "operations a second of the bare encoder / that rate",
            "error": "largest difference to the maps one by one, relative to the largest value of the map",
            "memory": "GiB, peak of the device" if device.startswith("cuda") else "GiB, peak of the whole process",
        },
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="vit_b16")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--reference-images", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    result = bench(arguments.shape, arguments.images, arguments.reference_images, arguments.device)
    suffix = "" if arguments.device == "cpu" else f"_{arguments.shape}_{arguments.device.split(':')[0]}"
    report(result, f"vision_language{suffix}")


if __name__ == "__main__":
    main()
