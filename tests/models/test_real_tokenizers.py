"""The tokenizers of FLUX.1's T5, Gemma 3 and SigLIP-2 as their makers distribute them, where you have them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from metagame.benchmarks.prompts import annotated_prompts, pair_ranks
from metagame.benchmarks.segmentation import one_token_names
from metagame.models.concepts import load_t5_tokenizer
from metagame.models.pretrained import PretrainedTokenizer
from metagame.models.prompt_tokens import absent_token_id, special_ids, tokenize_prompt
from metagame.models.siglip2 import SigLIP2
from metagame.models.vision_language import TokenPlayers
from tests.tiny.real_checkpoints import BACKGROUND, COCO, COCO_OF_ONE_TOKEN, VOC
from tests.tiny.real_encoders import CLASSES

FOLDER = os.environ.get("METAGAME_REAL_TOKENIZERS")
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="METAGAME_REAL_TOKENIZERS names no folder with flux/tokenizer_2, gemma3 and siglip2"
)


@pytest.fixture(scope="module")
def gemma():
    return AutoTokenizer.from_pretrained(Path(FOLDER, "gemma3"))


def test_53_of_80_things_of_coco_and_all_names_of_voc_background_and_figure_4_are_one_token_of_t5():
    t5 = load_t5_tokenizer(str(Path(FOLDER, "flux")), None)
    assert (len(COCO), len(COCO_OF_ONE_TOKEN)) == (80, 53)
    assert one_token_names(COCO, t5) == COCO_OF_ONE_TOKEN
    names = (*VOC, *BACKGROUND, "street")  # car is of VOC
    assert (len(VOC), len(BACKGROUND)) == (20, 5)
    assert one_token_names(names, t5) == names
    for name in names:
        (token, end) = t5(name)["input_ids"]
        assert (token != t5.unk_token_id, end) == (True, t5.eos_token_id)


def test_gemma_has_no_mask_token_so_that_the_unknown_one_is_absent(gemma):
    assert gemma.mask_token is None
    assert absent_token_id(gemma) == gemma.convert_tokens_to_ids("<unk>") == 3
    assert {gemma.convert_tokens_to_ids(name) for name in ("<bos>", "<eos>", "<end_of_turn>")} <= special_ids(gemma)


@pytest.mark.parametrize("chat", [False, True], ids=["alone", "in the chat template"])
def test_tokens_of_the_papers_prompts_match_their_pairs_but_for_one_within_a_token(gemma, chat):
    unmatched = {}
    for prompt in annotated_prompts():
        tokens = tokenize_prompt(gemma, prompt.text, chat)
        assert tokens == tokenize_prompt(gemma, prompt.text, chat, whole_characters=False)
        _, lost = pair_ranks(prompt.pairs, tokens.labels, np.zeros((len(tokens.labels),) * 2))
        unmatched |= {prompt.id: lost} if lost else {}
        assert tokens.turn_end == (gemma.convert_tokens_to_ids("<end_of_turn>") if chat else None)
    assert unmatched == {"broken_promise": [("water", "proof")]}


def test_siglip_2s_vocabulary_has_a_token_for_each_class_of_the_pointing_game():
    """Its tokenizer is Gemma's with settings of its own, of which the texts' case is the adapter's."""
    tokenizer = PretrainedTokenizer.load(str(Path(FOLDER, "siglip2")), None, 64, SigLIP2.clean)
    assert [TokenPlayers(tokenizer, word).labels for word in CLASSES] == [(word,) for word in CLASSES]
    caption = TokenPlayers(tokenizer, "Yorkshire next to a hydrant")
    assert caption.labels == ("y", "orkshire", "next", "to", "a", "hyd", "rant")
    assert tokenizer.encode("Fish koala") == tokenizer.encode("fish koala")
    assert (tokenizer.encode("")[-1], tokenizer.pad_id) == (1, 0)
