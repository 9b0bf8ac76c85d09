"""Time an image of Table 3: ours against two forward passes and the paper's streaming enumeration.

    python -m scripts.bench_diffusion [--device cpu] [--dtype float32] [--blocks 1]

Writes outputs/bench/diffusion.json. The transformer has FLUX's shape (4,096 patches, 256 text tokens), random weights;
--blocks of its 19 double-stream blocks are timed, and their time is multiplied. On a GPU: --device cuda --dtype
bfloat16 --blocks 19. The enumeration is timed on a sixteenth of the patches on the CPU and its time multiplied (it is
linear in patches). On the small FLUX all cells of Figure 13 are timed, against a forward pass for each cell and method.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from metagame.attributions.concept_attention import ConceptAttention, concept_maps, metagame_maps
from metagame.benchmarks.digit_scenes import BACKGROUNDS, WORDS
from metagame.benchmarks.segmentation import ABLATIONS, Segmentation, SegmentedImage
from metagame.benchmarks.voc import VOC
from metagame.models.concept_stream import ConceptSet, concept_logits
from metagame.models.concepts import ConceptLogits, ConceptQuestion, ConceptSample, load_t5_tokenizer
from metagame.models.flux import Denoising, Flux
from scripts.measure import matrix_rate, operations, peak_memory, report, timed
from tests.reference.concept import paper_procedure

SHAPE = {
    "in_channels": 64, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
BLOCKS, SINGLE_BLOCKS, LAYERS = 19, 38, 10
SIDE, TEXT = 64, 256
PLAYERS, BACKGROUND = 20, 5
SHARE = 16
SPREAD = 70.0
"""Largest difference of a patch's logits, as of the small FLUX, trained; of random weights it would be 3."""
TINY = "data/tiny/flux"
UNITS = {
    "ratio": "time of the enumeration / of the concept metagame, n = 20, 4,096 patches, both on the CPU",
    "ratio_image": "time of two forward passes and the enumeration / of ours, an image",
    "metagame_share": "time of the concept metagame / of the forward pass through the double-stream blocks",
    "metagame_share_whole": "the same / of the whole forward pass",
    "concepts_share": "time that the concepts add / of the forward pass",
    "images_per_second": "ours, forward pass, ConceptAttention and its metagame",
    "matrix_rate": "10^12 operations a second of a product of large matrices",
    "share_of_matrix_rate": "operations a second of the forward pass / that rate",
    "error": "largest absolute difference of the maps",
    "memory": "GB, peak (of the GPU's tensors, or of the process)",
    "ratio_cells": "small FLUX, all cells of Figure 13 of an image: each on its own / ours",
    "passes_cells": "small FLUX: forward passes of each on its own / ours",
}


def random_transformer(blocks: int, device: str, dtype: torch.dtype) -> FluxTransformer2DModel:
    """FLUX's double-stream blocks with random weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.random.fork_rng():
            torch.manual_seed(0)
            # the whole model, of 12 billion weights, where all double-stream blocks are timed
            n_single = SINGLE_BLOCKS if blocks == BLOCKS else 0
            return FluxTransformer2DModel(num_layers=blocks, num_single_layers=n_single, **SHAPE).eval()
    finally:
        torch.set_default_dtype(before)


def random_inputs(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Arguments of the transformer's forward pass of one image."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(SIDE), torch.arange(SIDE))
    inputs = {
        "hidden_states": torch.randn(1, SIDE * SIDE, SHAPE["in_channels"], generator=generator),
        "encoder_hidden_states": torch.randn(1, TEXT, SHAPE["joint_attention_dim"], generator=generator),
        "pooled_projections": torch.zeros(1, SHAPE["pooled_projection_dim"]),
        "timestep": torch.tensor([0.5]),
        "img_ids": ids.float(),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    return {name: value.to(device, dtype) for name, value in inputs.items()}


def timed_on(device: str, function: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Seconds, the median of some calls after a first one, and the result."""

    def finished() -> Any:
        result = function()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        return result

    finished()
    found = sorted((timed(finished) for _ in range(repeats)), key=lambda each: each[0])
    return found[repeats // 2]


def bench_image(blocks: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """One image with 20 players and 5 background concepts."""
    transformer, inputs = random_transformer(blocks, device, dtype), random_inputs(device, dtype)
    generator = torch.Generator().manual_seed(1)
    encodings = torch.randn(PLAYERS + BACKGROUND, SHAPE["joint_attention_dim"], generator=generator)
    concepts = [ConceptSet(encodings.to(device, dtype))]
    repeats = 1 if device == "cpu" else 3  # a block takes half a minute

    def forward() -> object:
        return concept_logits(transformer, inputs, [], 1)

    bare, _ = timed_on(device, forward, repeats)
    rate = matrix_rate(device, dtype)
    share = operations(forward) / bare / rate
    asked, (logits,) = timed_on(
        device, lambda: concept_logits(transformer, inputs, concepts, min(blocks, LAYERS)), repeats
    )
    bare, asked = bare * BLOCKS / blocks, asked * BLOCKS / blocks
    layers = logits[-1:].expand(LAYERS, -1, -1)  # as many as the real model is asked for
    layers = layers * (SPREAD / (layers.amax(1) - layers.amin(1)).max())  # as wide as those of a trained model
    names = tuple(map(str, range(len(encodings))))
    bound = ConceptLogits(names[:PLAYERS], names[PLAYERS:], layers[:, :PLAYERS].clone(), layers[:, PLAYERS:].clone())
    first, _ = timed_on(device, lambda: concept_maps(bound))
    meta, (maps, _) = timed_on(device, lambda: metagame_maps(bound, mean_first=True))
    on_cpu = replace(bound, player_logits=bound.player_logits.cpu(), background_logits=bound.background_logits.cpu())
    meta_cpu, _ = timed_on("cpu", lambda: metagame_maps(on_cpu, mean_first=True))
    patches = SIDE * SIDE // SHARE
    mean = [part.double().mean(0)[:, :patches].cpu() for part in (bound.player_logits, bound.background_logits)]
    enumeration, diag = timed(lambda: paper_procedure(*mean))
    enumeration *= SHARE
    whole = None
    if blocks == BLOCKS:
        with torch.no_grad():
            whole, _ = timed_on(device, lambda: transformer(**inputs), repeats)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.device(device).type == "cuda" else peak_memory()
    return {
        "ratio": enumeration / meta_cpu,
        "ratio_image": (2 * asked + first + enumeration) / (asked + first + meta),
        "metagame_share": meta / bare,
        **({"metagame_share_whole": meta / whole} if whole else {}),
        "concepts_share": (asked - bare) / bare,
        "images_per_second": 1 / (asked + first + meta),
        "matrix_rate": rate / 1e12,
        "share_of_matrix_rate": share,
        "error": float(np.abs(maps[:PLAYERS, :patches] - diag.numpy()).max()),
        "memory": memory,
        "seconds": {
            f"forward pass, {BLOCKS} double-stream blocks": bare,
            **({"forward pass, all blocks": whole} if whole else {}),
            "with 25 concepts": asked,
            "ConceptAttention": first,
            "its metagame": meta,
            "its metagame, on the CPU": meta_cpu,
            "enumeration": enumeration,
        },
    }


def bench_cells(n_images: int = 4) -> dict[str, Any]:
    """Every cell of Figure 13 on images of the small VOC, ours and each on its own."""
    flux = Flux.load(TINY, None, Denoising(48), text_length=16, device="cpu")
    sizes = ("n0", "d4", "n10")
    background = tuple(BACKGROUNDS)
    benchmark = Segmentation(
        VOC("data/tiny/voc", WORDS), load_t5_tokenizer(TINY, None), background, sizes, ABLATIONS, 2, 1, 48
    )
    method, metagame = ConceptAttention(), ConceptAttention(mean_first=True).metagame()
    samples = benchmark.samples()[:n_images]
    passes = []
    handle = flux.pipeline.transformer.register_forward_pre_hook(lambda *_: passes.append(1))

    def ours() -> list[np.ndarray]:
        maps = []
        for cell in (cell for sample in samples for cell in flux.bind(sample).values()):
            method.explain(cell)
            found = metagame.explain(cell).attribution.reshape(len(cell.targets), -1)
            maps.append(found[: len(cell.players)])
        return maps

    def alone() -> list[np.ndarray]:
        return [_each_on_its_own(flux, OneCell(sample, cell)) for sample in samples for cell in sample.questions()]

    ours()
    passes.clear()
    fast, maps = timed(ours)
    n_ours = len(passes)
    slow, reference = timed(alone)
    handle.remove()
    return {
        "ratio_cells": slow / fast,
        "passes_cells": (len(passes) - n_ours) / n_ours,
        "error_cells": max(float(np.abs(a - b).max()) for a, b in zip(maps, reference, strict=True)),
        "seconds": {f"small FLUX, {n_images} images x 12 cells": fast, "each cell and method on its own": slow},
    }


@dataclass(frozen=True)
class OneCell(ConceptSample):
    """An image with the question of one cell."""

    sample: SegmentedImage
    cell: str

    @property
    def id(self) -> str:
        return self.sample.id

    def image(self) -> Image.Image:
        return self.sample.image()

    def questions(self) -> dict[str, ConceptQuestion]:
        return {self.cell: self.sample.questions()[self.cell]}


def _each_on_its_own(flux: Flux, sample: OneCell) -> np.ndarray:
    """A forward pass for ConceptAttention, one for its metagame, and the enumeration of coalitions."""
    concept_maps(flux.bind(sample)[sample.cell])
    logits = flux.bind(sample)[sample.cell]
    return paper_procedure(logits.player_logits.double().mean(0), logits.background_logits.double().mean(0)).numpy()


def bench(blocks: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """All measurements of one run."""
    image, cells = bench_image(blocks, device, dtype), bench_cells()
    where = f"{device}, {str(dtype).removeprefix('torch.')}"
    result = {
        "what": f"an image on a FLUX of random weights ({blocks} of {BLOCKS} blocks timed, {where})",
        **image,
        **cells,
        "error": max(image["error"], cells["error_cells"]),
        "seconds": image["seconds"] | cells["seconds"],
        "blocks": blocks,
        "cores": os.cpu_count(),
    }
    return result | {"units": {name: unit for name, unit in UNITS.items() if name in result}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--blocks", type=int, default=1, help="double-stream blocks that are timed")
    arguments = parser.parse_args()
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device.split(':')[0]}"
    report(bench(arguments.blocks, arguments.device, getattr(torch, arguments.dtype)), f"diffusion{suffix}")


if __name__ == "__main__":
    main()
