"""Time exCLIP by factors against the product of Jacobians, and Meta-Patch IG against FIxLIP, in one run.

    python -m scripts.bench_patch_ig [--shape vit_b16] [--vectors 16] [--models clip metaclip2] [--images 8]

Writes outputs/bench/patch_ig.json. exCLIP is that of an image and four words, before a CLIP with random weights of the
real shape; of the product's two Jacobians as many rows as --vectors says are made and the time multiplied (it is linear
in rows), and the values are compared on a small CLIP. Meta-Patch IG is compared on the small models: how many masked
images FIxLIP needs for the same recognition, in image forwards, vector-Jacobian products and seconds of an image with
its four texts; with it, how the integrated gradients add up and what share of them is that of [CLS].
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from metagame.attributions.exclip import ExCLIP, text_path
from metagame.attributions.fixlip import FIxLIP
from metagame.attributions.fixlip_moments import GeneralizedRegression
from metagame.attributions.gradients import midpoints
from metagame.attributions.patch_ig import PatchIG, path, path_ends
from metagame.benchmarks.digits import Digits
from metagame.benchmarks.pointing_game import SCENARIOS, ComposedScenes, PointingGame, Scene, recognition
from metagame.contracts import Method
from metagame.models.encoder_views import embed_from
from metagame.models.vision_language import ImageText, VisionLanguage
from scripts.bench_vision_language import SHAPES, Noise, bind, random_clip
from scripts.compare_fixlip import GAMES, MODELS, WORDS
from scripts.measure import report, timed

BUDGETS = (34, 64, 130, 256, 512, 1024, 2048)
STEPS = 8
SMALL = {
    "vision_config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "patch_size": 32, "image_size": 224},
    "text_config": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    "projection_dim": 32,
}  # fmt: skip


def jacobian(embedding: Tensor, points: Tensor, rows: int) -> Tensor:
    """Mean Jacobian of an embedding at the midpoints, ``(rows, T, D)``: a vector-Jacobian product for each row."""
    found = [torch.autograd.grad(embedding[row], points, retain_graph=True)[0].sum(0) for row in range(rows)]
    return torch.stack(found)


def product_form(bound: ImageText, rows: int | None = None) -> tuple[float, float, np.ndarray]:
    """Seconds of the Jacobians and of their product, and its matrix ``(T, P)``, with all tokens of the text."""
    model, text = bound.model, bound.pieces.masked([True] * bound.n_players)
    (x, r), (y, s) = (each[0] for each in path(bound, -1)), text_path(model, bound.pieces, -1)
    alphas = midpoints(STEPS, x)[:, None, None]
    with torch.enable_grad():
        of_image, of_text = ((a + alphas * (b - a)).requires_grad_() for a, b in ((r, x), (s, y)))
        image = embed_from(model.encoder_view, of_image, -1).mean(0)
        words = model.embed_text_from(text, of_text, -1).mean(0)
    n = len(image) if rows is None else rows
    seconds, (j_h, j_g) = timed(lambda: (jacobian(words, of_text, n), jacobian(image, of_image, n)))
    j_h = j_h[:, : len(text.ids)]

    def product() -> Tensor:
        whole = j_h.flatten(1).T @ j_g.flatten(1)
        whole = whole.view(*j_h.shape[1:], *j_g.shape[1:])
        return torch.einsum("td,tdpc,pc->tp", (y - s)[: len(text.ids)], whole, x - r)

    of_product, matrix = timed(product)
    scale = path_ends(bound, -1)[0].norm() * model.embed_text_from(text, y[None], -1).norm()
    return seconds * len(image) / n, of_product, (matrix / scale)[:, 1:].detach().numpy()


def bench_exclip(shape: str, rows: int) -> dict[str, float]:
    """Factors against the product."""
    found = {}
    for name, config in (("small", SMALL), ("real", SHAPES[shape])):
        model = random_clip(config, "cpu", batch_size=1)
        bound = bind(model, [Noise("0", 0)])[0]["4"]
        bound.image.block_input(-1)
        ExCLIP(STEPS).explain(bound)
        model.forget_texts()
        path_ends(bound, -1)  # the ends of the paths are the same in both forms, and are not timed
        text_path(model, bound.pieces, -1)
        seconds, of_factors = timed(lambda bound=bound: ExCLIP(STEPS).explain(bound).meta.values)
        jacobians, product, matrix = product_form(bound, None if name == "small" else rows)
        if name == "small":
            expected = matrix[1:-1].T  # each word is one token, between the start and the end
            found["error"] = float(np.abs(of_factors - expected).max() / np.abs(expected).max())
        else:
            found |= {"factors": seconds, "jacobians": jacobians, "product": product}
    return found


@dataclass(frozen=True)
class Measured:
    """A method before a model: means over images with four texts each.

    Attributes:
        recognition: mean over texts.
        forwards: images encoded.
        products: vector-Jacobian products through the last block.
        seconds: of an image, its texts known.
    """

    model: str
    method: str
    recognition: float
    forwards: float
    products: float
    seconds: float


def measure(model: VisionLanguage, name: str, label: str, method: Method, scenes: Sequence[Scene]) -> Measured:
    """One method on images that nothing is known of, one after the other; the texts are known."""
    images = [bind(model, [scene])[0] for scene in scenes]
    watch = partial(patch.object, side_effect=torch.autograd.grad)
    encode = patch.object(model, "encode_images", side_effect=model.encode_images)
    with watch(torch.autograd, "grad") as products, encode as forwards:
        seconds, scores = timed(
            lambda: [
                recognition(method.explain(questions[str(m)]).meta.values) for questions in images for m in SCENARIOS
            ]
        )
    n, encoded = len(images), sum(len(call.args[0]) for call in forwards.call_args_list)
    return Measured(name, label, float(np.mean(scores)), encoded / n, products.call_count / n, seconds / n)


def bench_model(name: str, n_images: int) -> tuple[list[Measured], dict[str, float]]:
    """Meta-Patch IG, exCLIP, and FIxLIP with fewer and more masks; completeness of the former two."""
    model = MODELS[name].load(f"data/tiny/{name}", device="cpu")
    game = PointingGame(
        ComposedScenes(Digits(), 32), dict(zip(WORDS, range(10), strict=True)), GAMES, -(-n_images // 4)
    )
    scenes = game.samples()[:n_images]
    patch_ig, exclip = PatchIG(STEPS), ExCLIP(STEPS)
    methods: dict[str, Method] = {"Meta-Patch IG": patch_ig.metagame(), "exCLIP": exclip}
    least = 2 + 4 * (model.n_patches(bind(model, scenes[:1])[0]["1"].image.pixels) // 2)
    methods |= {f"FIxLIP, {budget}": FIxLIP(GeneralizedRegression(budget)) for budget in BUDGETS if budget >= least}
    for method in methods.values():  # so that texts are known
        measure(model, name, "", method, scenes[:1])
    measured = [measure(model, name, label, method, scenes) for label, method in methods.items()]
    found = {}
    for label, method in (("Patch IG", patch_ig), ("exCLIP", exclip)):
        each = [method.completeness(bind(model, [scene])[0]["4"]) for scene in scenes]
        found[f"{name}: {label}, error"] = float(np.median([one.error for one in each]))
        found[f"{name}: {label}, left out"] = float(np.median([one.left_out for one in each]))
    return measured, found


def equal_recognition(measured: Sequence[Measured]) -> dict[str, float]:
    """The cheapest FIxLIP that recognises as well as Meta-Patch IG, in its forwards and times its seconds."""
    own, *others = (each for each in measured if each.method != "exCLIP")
    enough = [each for each in others if each.recognition >= own.recognition]
    found = {
        f"{own.model}: recognition": own.recognition,
        f"{own.model}: recognition of FIxLIP": others[-1].recognition,
        f"{own.model}: seconds": own.seconds,
    }
    if enough:
        best = min(enough, key=lambda each: each.forwards)
        found[f"{own.model}: forwards of FIxLIP for it"] = best.forwards
        found[f"{own.model}: seconds of FIxLIP for it / ours"] = best.seconds / own.seconds
    return found


UNITS = {
    "recognition": "Meta-Patch IG, mean over images and texts",
    "recognition of FIxLIP": f"with {BUDGETS[-1]} image forwards",
    "seconds": "of Meta-Patch IG for an image with its four texts",
    "forwards of FIxLIP for it": "image forwards of the cheapest FIxLIP that recognises as well, where one does",
    "seconds of FIxLIP for it / ours": "of an image with its four texts",
    "error": "median error of the sum of all parts, 8 midpoints, relative",
    "left out": "median share of absolute values: [CLS], and special tokens and padding of exCLIP",
}


def bench(shape: str, rows: int, models: Sequence[str], n_images: int) -> dict:
    """All measurements of one run."""
    exclip = bench_exclip(shape, rows)
    measured, found = [], {}
    for name in models:
        of_model, completeness = bench_model(name, n_images)
        measured += of_model
        found |= equal_recognition(of_model) | completeness
    reference = exclip["jacobians"] + exclip["product"]
    return {
        "what": f"exCLIP by factors, random CLIP of shape {shape}; Meta-Patch IG on {n_images} images with 4 texts",
        "ratio": reference / exclip["factors"],
        "error": exclip["error"],
        **found,
        "measured": [asdict(each) for each in measured],
        "units": {
            "ratio": f"time of the product of Jacobians, {rows} rows of them timed / ours",
            "error": "largest difference of the values on a small CLIP, relative to the largest",
        }
        | {name: UNITS[name.split(": ")[1].removeprefix("Patch IG, ").removeprefix("exCLIP, ")] for name in found},
        "seconds": {
            "exCLIP by factors": exclip["factors"],
            "Jacobians of image and text": exclip["jacobians"],
            "their product": exclip["product"],
        },
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="vit_b16")
    parser.add_argument("--vectors", type=int, default=16)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report(bench(arguments.shape, arguments.vectors, arguments.models, arguments.images), "patch_ig")


if __name__ == "__main__":
    main()
