"""The embedded FLUX is what the real one is, and knows where digits are."""

from __future__ import annotations

import json
import logging

import numpy as np
from hydra import compose
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import T5Tokenizer, T5TokenizerFast

from metagame.attributions.concept_attention import ConceptAttention
from metagame.contracts import Explanation
from metagame.jobs.build import build_part
from metagame.models.concepts import load_t5_tokenizer
from metagame.models.flux import Denoising, Flux
from metagame.models.pretrained import T5_TOKENIZER
from metagame.report.jackknife import JackknifeRatio
from scripts.train_diffusion import T5_VOCABULARY, TEXT_WORDS, build_tokenizers, digest_of_weights
from tests.tiny.jobs import ROOT, shipped_configs
from tests.tiny.vision_language import refused

FOLDER = ROOT / "data/tiny/flux"
N_IMAGES = 8


def miou(scores):
    """Over the classes that occur, pooled over images."""
    counts = [
        [[each["multi"][part].get(str(label), 0) for label in range(10)] for each in scores]
        for part in ("intersection", "union")
    ]
    return JackknifeRatio.of_ratios(*counts).value


def test_concept_attention_finds_digits_twice_as_well_as_chance():
    with shipped_configs():
        cfg = compose("config", overrides=["model=flux_schnell", "benchmark=voc"])
        flux, benchmark = build_part(cfg.model), build_part(cfg.benchmark)
    first, rng, found = ConceptAttention(), np.random.default_rng(0), []
    meta = ConceptAttention(mean_first=True).metagame()
    for sample in benchmark.samples()[:N_IMAGES]:
        inputs = flux.bind(sample)
        bound = inputs["n10"]
        noise = rng.random(14 * 144).astype(np.float32)
        chance = Explanation(bound.players, bound.targets, bound.grid, attribution=noise)
        explained = (chance, first.explain(bound), meta.explain(bound))
        found.append([benchmark.score(sample, inputs, {"n10": each})["n10"] for each in explained])
    chance, *ours = (miou(scores) for scores in zip(*found, strict=True))
    assert min(ours) > 2 * chance


def test_the_folder_is_small_and_in_half_precision():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 10 * 2**20
    for path in FOLDER.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            types = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        assert types == {"F16"}, path


def test_digits_that_just_these_weights_paint_were_read_when_they_were_trained():
    """Reading takes minutes (scripts.read_digits); the card says of which weights it tells."""
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["weights"] == digest_of_weights(FOLDER)
    assert card["digits_read"]["colour"]["painted, guidance 3"]["named_digits_read"] >= 0.8


TOKENIZER = FOLDER / "tokenizer_2"
PROMPTS = ("", "a three, a seven on sea", "One  TWO,three", "a bike on\nnight.", *TEXT_WORDS)


def test_the_t5_tokenizer_is_made_of_its_pieces_as_that_of_flux():
    """Its config has what makes transformers read spiece.model, and tokenizer.json no more; ids are as trained with."""
    assert json.loads((TOKENIZER / "tokenizer_config.json").read_text())["add_prefix_space"] is True
    found, slow = load_t5_tokenizer(str(FOLDER), None), T5Tokenizer.from_pretrained(TOKENIZER)
    alone = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    for prompt in PROMPTS:
        ids = found(prompt)["input_ids"]
        assert ids == alone.encode(prompt).ids
        assert ids == slow(prompt)["input_ids"]
    assert [found(word)["input_ids"] for word in TEXT_WORDS] == [[place + 3, 1] for place in range(len(TEXT_WORDS))]
    assert found("a three, a seven on sea")["input_ids"] == [3, 9, 5, 3, 13, 4, 17, 1]
    assert (found.get_vocab(), found.pad_token_id, found.unk_token_id) == (T5_VOCABULARY, 0, 2)


def test_nothing_is_said_of_how_the_tokenizer_is_made(caplog):
    logger = logging.getLogger(T5_TOKENIZER)
    type(logger).warning_once.cache_clear()  # transformers says it once in a process
    load_t5_tokenizer(str(FOLDER), None)
    Flux.load(str(FOLDER), None, Denoising(48), text_length=16, device="cpu")
    assert "add_prefix_space" not in caplog.text
    type(logger).warning_once.cache_clear()
    T5TokenizerFast.from_pretrained(TOKENIZER)
    assert "add_prefix_space" in caplog.text


def test_a_model_that_is_trained_again_has_the_same_files_of_the_t5_tokenizer(tmp_path):
    build_tokenizers(tmp_path / "files")["tokenizer_2"].save_pretrained(tmp_path / "saved")
    assert {path.name for path in TOKENIZER.iterdir()} == {path.name for path in (tmp_path / "saved").iterdir()}
    for path in TOKENIZER.iterdir():
        assert path.read_bytes() == (tmp_path / "saved" / path.name).read_bytes(), path.name


ADVICE = (
    "has a tokenizer that needs sentencepiece and a compatible protobuf: install them with"
    " 'pip install -U sentencepiece protobuf'."
)


def test_a_pipeline_whose_tokenizers_packages_are_not_installed_names_them(monkeypatch):
    monkeypatch.setattr(T5TokenizerFast, "slow_tokenizer_class", None)  # as transformers has it without sentencepiece
    with refused(rf"^model\.checkpoint='{FOLDER}' {ADVICE}$"):
        Flux.load(str(FOLDER), None, Denoising(48), 16, "cpu")
