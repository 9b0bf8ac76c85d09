"""What the file of distant pairs promises: how many there are, of which kinds, how far apart, and each in one place."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import yaml
from hydra import compose
from hydra.utils import instantiate

from metagame.benchmarks.prompts import DISTANT, Prompts, annotated_prompts, distant_prompts, string_places
from metagame.benchmarks.reviews import vocabulary
from tests.tiny.jobs import shipped_configs

KINDS = ["negation", "particle", "agreement", "alternative", "condition", "quantifier", "contrast", "coreference"]
PROMPTS = distant_prompts()
ENTRIES = yaml.safe_load(DISTANT.read_text(encoding="utf-8"))
HEADER = "".join(line for line in DISTANT.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))


def words_of(prompt):
    return [word.strip('.,;:?!"').casefold() for word in prompt.text.split()]


def distances(prompt):
    words = words_of(prompt)
    return [words.index(b.casefold()) - words.index(a.casefold()) for a, b in prompt.pairs]


def test_there_are_at_least_15_prompts_and_30_pairs_of_each_main_kind():
    prompts = Counter(prompt.kinds[0] for prompt in PROMPTS)
    pairs = Counter(kind for prompt in PROMPTS for kind in prompt.kinds if kind == prompt.kinds[0])
    assert set(prompts) == set(KINDS)
    assert min(prompts.values()) >= 15
    assert min(pairs.values()) >= 30
    assert len(PROMPTS) >= 120
    assert pairs.total() >= 240


def test_no_prompt_or_id_is_there_twice_and_none_is_the_papers():
    together = [*PROMPTS, *annotated_prompts()]
    assert len({prompt.id for prompt in together}) == len({prompt.text for prompt in together}) == len(together)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)+", prompt.id) for prompt in PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.id)
def test_a_prompt_is_short_with_pairs_of_known_kinds_2_to_10_words_apart_in_one_place_each_for_a_reason(prompt):
    words, tokens = words_of(prompt), re.findall(r"\w+|[^\w\s]", prompt.text)
    assert 8 <= len(words) <= 24
    assert 1 <= len(prompt.pairs) == len(prompt.kinds) == len(set(map(frozenset, prompt.pairs))) <= 4
    assert set(prompt.kinds) <= set(KINDS)
    assert all(2 <= distance <= 10 for distance in distances(prompt))
    for word in {word for pair in prompt.pairs for word in pair}:
        assert word in tokens
        assert [each for each in words if each.startswith(word.casefold())] == [word.casefold()]
        assert string_places(word, tokens) == [tokens.index(word)]
    (entry,) = (entry for entry in ENTRIES if entry["id"] == prompt.id)
    assert set(entry) == {"id", "text", "pairs"}
    for pair in entry["pairs"]:
        assert set(pair) == {"words", "kind", "reason"}
        assert re.fullmatch(r'["A-Z][^.]*\.', pair["reason"])
        assert len(pair["reason"].split()) <= 16


def test_the_header_counts_what_is_there():
    prompts = Counter(prompt.kinds[0] for prompt in PROMPTS)
    pairs = Counter(kind for prompt in PROMPTS for kind in prompt.kinds)
    assert HEADER.startswith(f"# {len(PROMPTS)} prompts with {pairs.total()} pairs ")
    kinds = re.findall(r"(\w+) +\( *(\d+), +(\d+)\)", HEADER)
    assert {kind: (int(a), int(b)) for kind, a, b in kinds} == {kind: (prompts[kind], pairs[kind]) for kind in KINDS}
    told = re.findall(r"\b(\d+) \((\d+)\)", HEADER.split("Distances")[1])
    counted = Counter(distance for prompt in PROMPTS for distance in distances(prompt))
    assert {int(distance): int(count) for distance, count in told} == counted


def configured(scale):
    with shipped_configs():
        chosen = ["benchmark=prompts", "benchmark/prompts=distant", f"scale={scale}"]
        return list(instantiate(compose("config", overrides=chosen).benchmark.prompts))


def test_the_file_decides_its_samples_and_a_config_chooses_it():
    assert list(Prompts(PROMPTS).files()) == [DISTANT]
    assert configured("small") == configured("paper") == PROMPTS


def test_at_tiny_scale_distant_pairs_are_those_of_reviews_which_the_small_model_can_read():
    prompts = configured("tiny")
    assert len({prompt.text for prompt in prompts}) == 40
    assert {word for prompt in prompts for word in words_of(prompt) if word} <= set(vocabulary())
    apart = {distance for prompt in prompts for distance in distances(prompt)}
    assert apart >= set(range(3, 9))
    assert min(apart) == 3
