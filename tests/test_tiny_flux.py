"""The embedded FLUX is what the real one is, and knows where digits are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hydra import compose
from safetensors import safe_open

from metagame.attributions.concept_attention import ConceptAttention, ConceptExplanation, ConceptMaps
from metagame.benchmarks.segmentation import Segmentation
from metagame.jobs import build
from metagame.models.flux import Flux
from metagame.models.pretrained import folder_revision
from metagame.report.pooled import Pooled
from tests.jobs_fixtures import ROOT, shipped_configs

FOLDER = ROOT / "data/tiny/flux"
N_IMAGES = 24


@pytest.fixture(scope="module")
def parts() -> tuple[Flux, Segmentation]:
    with shipped_configs():
        cfg = compose("config", overrides=["model=flux_schnell", "benchmark=voc"])
        return build(cfg.model), build(cfg.benchmark)


def miou(scores: list[dict]) -> float:
    """Over the classes that occur, pooled over images."""
    names = [str(label) for label in range(10)]
    counts = [
        np.array([[each["multi"][part].get(name, 0) for name in names] for each in scores])
        for part in ("intersection", "union")
    ]
    return Pooled.of_ratios(*counts).value


def test_concept_attention_finds_digits_twice_as_well_as_chance(parts):
    flux, benchmark = parts
    method, rng = ConceptAttention(["concept_attention", "meta_concept_attention"]), np.random.default_rng(0)
    found = []
    for sample in benchmark.samples()[:N_IMAGES]:
        explicand = flux.prepare(sample)
        explanation = method.explain(explicand["n10"])
        noise = ConceptMaps(rng.random((10, 144)), rng.random((4, 144)))
        explained = {"n10": ConceptExplanation(explanation.maps | {"chance": noise})}
        found.append(benchmark.score(sample, explicand, explained)["n10"])
    chance, first, meta = (
        miou([scores[name] for scores in found]) for name in ("chance", "concept_attention", "meta_concept_attention")
    )
    assert first > 2 * chance
    assert meta > 2 * chance


def test_the_folder_is_small_and_in_half_precision():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 10 * 2**20
    for path in FOLDER.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            types = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        assert types == {"F16"}, path


def test_digits_that_just_these_weights_paint_were_read_when_they_were_trained():
    """Reading takes minutes (scripts.read_digits); the card says of which weights it tells."""
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["weights"] == folder_revision(FOLDER, ("**/*.safetensors",))
    assert card["digits_read"]["colour"]["painted, guidance 3"]["named_digits_read"] >= 0.8
