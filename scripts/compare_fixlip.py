"""Compare the designs of FIxLIP by how many image forwards they take for which error, on the small models.

    python -m scripts.compare_fixlip [--models clip metaclip2] [--images 2] [--seeds 2] [--pool 65536]

Images of the pointing game are encoded under a pool of masks: all of them where these suffice. What is true is what
GeneralizedRegression makes of the whole pool. Each design chooses sizes, repeats and complements as it always does, and
is given masks of the pool in place of its own. Its forwards are the distinct image masks for all four texts about an
image.

Pools are kept in outputs/bench/fixlip/, for as long as the model's files are the same, so that a run that was stopped
goes on. Writes outputs/bench/fixlip.json and fixlip.png. Ten minutes on a core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch.nn.functional import normalize

from metagame.attributions.fixlip import Solver
from metagame.attributions.fixlip_least_squares import (
    Coalitions,
    CrossedCoalitions,
    LeastSquares,
    SampledCoalitions,
)
from metagame.attributions.fixlip_masks import paired_masks
from metagame.attributions.fixlip_moments import GeneralizedRegression, Moments
from metagame.benchmarks.digits import Digits
from metagame.benchmarks.pointing_game import SCENARIOS, ComposedScenes, PointingGame, recognition
from metagame.games import all_coalitions
from metagame.models.clip import CLIP
from metagame.models.siglip2 import SigLIP2
from metagame.models.vision_language import VisionLanguage, masked_pixels
from metagame.report.maps import COLORS
from scripts.measure import report, timed

TITLES = {
    "clip": "CLIP", "metaclip2": "MetaCLIP-2", "siglip2_p8": "SigLIP-2, 8 × 8 patches",
    "siglip2_p16": "SigLIP-2, 4 × 4 patches",
}  # fmt: skip
MODELS = {"clip": CLIP, "metaclip2": CLIP, "siglip2_p8": SigLIP2, "siglip2_p16": SigLIP2}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GAMES = ("zero-one-three-six", "one-two-four-seven", "two-three-five-eight", "three-four-six-nine")
FOLDER = Path("outputs/bench/fixlip")
BATCH = 64


@dataclass(frozen=True)
class Pool:
    """An image under masks that stand for all masks.

    Attributes:
        masks: see :func:`paired_masks`.
        logits: of each text, by its number of pieces, ``(a, 2**m)``.
    """

    masks: np.ndarray
    logits: dict[int, np.ndarray]

    @property
    def n_patches(self) -> int:
        return self.masks.shape[1]

    def rows(self, masks: np.ndarray, seed: int) -> np.ndarray:
        """Rows of the pool for distinct masks: of the same sizes, complements for complements, chosen at random."""
        n, rng = self.n_patches, np.random.default_rng(seed)
        size = masks.sum(1)
        turned = (2 * size > n) | ((2 * size == n) & ~masks[:, 0])
        smaller = masks ^ turned[:, None]
        pairs, which = np.unique(smaller, axis=0, return_inverse=True)
        place = np.zeros(len(pairs), int)
        sizes, pool_sizes = pairs.sum(1), self.masks[1:-1:2].sum(1)
        for each in np.unique(sizes[sizes > 0]):
            wanted, there = np.flatnonzero(sizes == each), np.flatnonzero(pool_sizes == each)
            place[wanted] = rng.choice(there, len(wanted), replace=False)
        rows = 1 + 2 * place[which] + turned
        return np.where(size == 0, 0, np.where(size == n, len(self.masks) - 1, rows))


def load_pool(name: str, image: int, n_masks: int) -> Pool:
    """The pool of an image before a model, computed where it is not kept."""
    model = MODELS[name].load(f"data/tiny/{name}", device="cpu")
    path = FOLDER / f"{name}_{image}_{n_masks}_{model.revision[:12]}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **encoded(model, image, n_masks))
        part.replace(path)
    with np.load(path) as kept:
        images = kept["images"].astype(float)
        logits = {m: images @ kept[f"texts_{m}"].astype(float).T * float(kept["scale"]) for m in SCENARIOS}
        return Pool(kept["masks"], logits)


@torch.no_grad()
def encoded(model: VisionLanguage, image: int, n_masks: int) -> dict[str, np.ndarray]:
    """Embeddings of an image under a pool of masks, and of its texts."""
    game = PointingGame(ComposedScenes(Digits(), 32), dict(zip(WORDS, range(10), strict=True)), GAMES, n_images=1)
    (questions,) = model.prepare([game.samples()[image]])
    pixels = questions["1"].image.pixels
    masks = paired_masks(model.n_patches(pixels), n_masks, seed=12345)
    parts = track(np.array_split(masks, -(-len(masks) // BATCH)), f"{model.revision[:6]}, image {image}")
    side = model.patch_size
    images = torch.cat([model.encode_images(masked_pixels(pixels, torch.as_tensor(part), side)) for part in parts])
    texts = {f"texts_{m}": questions[str(m)].masked_texts(all_coalitions(m)).numpy() for m in SCENARIOS}
    return {"masks": masks, "images": normalize(images, dim=-1).numpy(), "scale": model.logit_scale.numpy()} | texts


@dataclass(frozen=True)
class Measured:
    """What a design gave for one image before one model; means over texts.

    Attributes:
        model, image, design, budget, seed: what was measured.
        forwards: distinct image masks for all texts.
        error: of the interactions, in the Euclidean norm relative to the true ones.
        bias: of the recognition score.
        covered: share of the true interactions within two standard errors; None without standard errors.
    """

    model: str
    image: int
    design: str
    budget: int
    seed: int
    forwards: int
    error: float
    bias: float
    covered: float | None


def paper(pool: Pool, n_pieces: int, budget: int, seed: int, sampled_mass: str = "one") -> tuple[np.ndarray, Solver]:
    """Rows of the pool and what solves for the interactions; the budget is shared by the texts."""
    design = SampledCoalitions(budget // len(SCENARIOS), seed, sampled_mass)
    return of_coalitions(pool, design.coalitions(pool.n_patches, n_pieces), seed + 1000 * n_pieces)


def corrected(pool: Pool, n_pieces: int, budget: int, seed: int) -> tuple[np.ndarray, Solver]:
    return paper(pool, n_pieces, budget, seed, "remaining")


def crossed(pool: Pool, n_pieces: int, budget: int, seed: int) -> tuple[np.ndarray, Solver]:
    return of_coalitions(pool, CrossedCoalitions(budget, seed).coalitions(pool.n_patches, n_pieces), seed)


def of_coalitions(pool: Pool, coalitions: Coalitions, seed: int) -> tuple[np.ndarray, Solver]:
    rows = pool.rows(coalitions.image_masks, seed)
    return rows, LeastSquares(replace(coalitions, image_masks=pool.masks[rows]), "cross")


def regression(pool: Pool, n_pieces: int, budget: int, seed: int) -> tuple[np.ndarray, Solver]:
    rows = pool.rows(paired_masks(pool.n_patches, budget, seed), seed)
    return rows, Moments(pool.masks[rows], n_pieces, "cross", GeneralizedRegression(budget).ridge)


DESIGNS = {
    "paper": (paper, (8192, 16384, 32768)),
    "paper, mass corrected": (corrected, (8192, 16384, 32768)),
    "crossed": (crossed, (512, 1024, 2048, 4096, 8192)),
    "generalised regression": (regression, (256, 512, 1024, 2048, 4096, 8192)),
}
"""What chooses masks for each text, and the budgets for all texts about an image."""
REFERENCE, DEFAULT, TINY_BUDGET = "paper", "generalised regression", 2048
ASPECTS = ("budget", "forwards", "error", "bias", "covered")
RATIO = "forwards of the paper's sampler at its largest budget / those that the default needs for the same error"
BIAS = f"of recognition, by the default at {TINY_BUDGET} forwards"
COVERED = f"share of true interactions within two standard errors of the default at {TINY_BUDGET} forwards"


def true_interactions(pool: Pool) -> dict[int, np.ndarray]:
    """Of each text, by its number of pieces."""
    ridge = GeneralizedRegression(len(pool.masks)).ridge
    return {m: Moments(pool.masks, m, "cross", ridge).interactions(pool.logits[m])[0] for m in SCENARIOS}


def measure(name: str, image: int, pool: Pool, seeds: Sequence[int]) -> list[Measured]:
    """Every design with every budget."""
    truth, found = true_interactions(pool), []
    for (design, (choose, budgets)), seed in product(DESIGNS.items(), seeds):
        for budget in budgets:
            masks, errors, biases, covered = set(), [], [], []
            for m, expected in truth.items():
                rows, solver = choose(pool, m, budget, seed)
                columns = solver.text_masks @ (1 << np.arange(m))
                values, standard_error = solver.interactions(pool.logits[m][rows][:, columns])
                masks |= set(rows.tolist())
                errors.append(np.linalg.norm(values - expected) / np.linalg.norm(expected))
                biases.append(recognition(values) - recognition(expected))
                if standard_error is not None:
                    covered.append(np.mean(np.abs(values - expected) <= 2 * standard_error))
            error, bias = float(np.mean(errors)), float(np.mean(biases))
            covers = float(np.mean(covered)) if covered else None
            found.append(Measured(name, image, design, budget, seed, len(masks), error, bias, covers))
    return found


@dataclass(frozen=True)
class Curve:
    """Means over images and seeds, for each budget of a design before a model."""

    budgets: np.ndarray
    forwards: np.ndarray
    error: np.ndarray
    bias: np.ndarray
    covered: np.ndarray

    def needed(self, error: float) -> float:
        """Forwards for an error, interpolated between budgets; the smallest that was measured where it is below."""
        return float(np.exp(np.interp(-np.log(error), -np.log(self.error), np.log(self.forwards))))


def curve(measured: Sequence[Measured], model: str, design: str) -> Curve:
    own = [each for each in measured if (each.model, each.design) == (model, design)]
    by_budget = [[each for each in own if each.budget == budget] for budget in DESIGNS[design][1]]
    means = [[np.mean([getattr(each, name) or 0.0 for each in of]) for of in by_budget] for name in ASPECTS]
    return Curve(*map(np.array, means))


def summary(measured: Sequence[Measured], models: Sequence[str]) -> dict:
    """How many times fewer forwards the default needs than the paper's sampler, and its bias, for each model."""
    found: dict[str, float] = {}
    for model in models:
        reference, own = (curve(measured, model, design) for design in (REFERENCE, DEFAULT))
        found[f"{model}: ratio"] = float(reference.forwards[-1] / own.needed(reference.error[-1]))
        found[f"{model}: bias"] = float(own.bias[list(own.budgets).index(TINY_BUDGET)])
        found[f"{model}: covered"] = float(own.covered[list(own.budgets).index(TINY_BUDGET)])
    return found


def draw(measured: Sequence[Measured], models: Sequence[str]) -> Figure:
    """Error and bias over forwards, a column for each model."""
    figure = Figure(figsize=(2.9 * len(models), 5), layout="constrained")
    panels = figure.subplots(2, len(models), sharex="col", sharey="row", squeeze=False)
    for model, (above, below) in zip(models, panels.T, strict=True):
        for design, color, marker in zip(DESIGNS, COLORS, "oxsD", strict=False):
            found, style = curve(measured, model, design), {"color": color, "marker": marker, "markersize": 4}
            above.loglog(found.forwards, found.error, label=design, **style)
            below.semilogx(found.forwards, found.bias, **style)
        below.axhline(0, color="0.3", linewidth=0.8)
        above.set_title(TITLES[model])
        below.set_xlabel("image forward passes")
        for axes in (above, below):
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("relative error of the values")
    panels[1, 0].set_ylabel("bias of the recognition score")
    panels[0, 0].legend(frameon=False, fontsize=7)
    return figure


def compare(models: Sequence[str], n_images: int, n_seeds: int, n_masks: int) -> dict:
    """All measurements."""
    measured = [
        each
        for name, image in product(models, range(n_images))
        for each in measure(name, image, load_pool(name, image, n_masks), range(n_seeds))
    ]
    found = summary(measured, models)
    meaning = {"ratio": RATIO, "bias": BIAS, "covered": COVERED}
    return {
        "what": f"{n_images} images with 4 texts, {n_seeds} seeds, small models",
        **found,
        "measured": [asdict(each) for each in measured],
        "units": {name: meaning[name.split(": ")[1]] for name in found},
        "seconds": {},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=2, help=f"{len(GAMES)} at most")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pool", type=int, default=65536, help="masks of an image")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds, result = timed(lambda: compare(arguments.models, arguments.images, arguments.seeds, arguments.pool))
    result["seconds"]["all"] = seconds
    report(result, "fixlip")
    measured = [Measured(**each) for each in result["measured"]]
    draw(measured, arguments.models).savefig(Path("outputs/bench/fixlip.png"), dpi=200)


if __name__ == "__main__":
    main()
