import json
from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from metagame.models.prompt_tokens import absent_token_id, special_ids, tokenize_prompt
from scripts.train_language import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from tests.tiny.vision_language import refused

NAMES = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SENTENCES = ["the food was good", "the soup was not good", "a user and a model", "unhappily it rained"] * 4
# as ChatML: white space around the prompt stays
UNTRIMMED = (
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TOKENIZERS = ("words", "byte-level", "metaspace", "gemma")
each_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)
chat_or_not = pytest.mark.parametrize("chat", [True, False], ids=["chat", "raw"])


@cache
def trained(kind):
    """Pieces of words learned from a few sentences: as bytes, after SentencePiece, or as Gemma has them."""
    tokenizer = Tokenizer(BPE(unk_token=None if kind == "byte-level" else "<unk>"))
    alphabet = []
    if kind == "byte-level":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + 70,
        special_tokens=list(NAMES),
        initial_alphabet=[*alphabet, "\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind == "gemma":
        learned = json.loads(tokenizer.to_str())["model"]
        for byte in range(256):
            learned["vocab"].setdefault(f"<0x{byte:02X}>", len(learned["vocab"]))
        merges = [tuple(merge) for merge in learned["merges"]]
        tokenizer.model = BPE(learned["vocab"], merges, unk_token="<unk>", byte_fallback=True)
    tokenizer.decoder = {
        "byte-level": decoders.ByteLevel(),
        "metaspace": decoders.Metaspace(prepend_scheme="always"),
        "gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    }[kind]
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return tokenizer.to_str()


def tokenizer_of(kind="words", chat_template=CHAT_TEMPLATE):
    if kind == "words":
        tokenizer = build_tokenizer()
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(trained(kind)), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
            unk_token="<unk>", additional_special_tokens=["<start_of_turn>", "<end_of_turn>"], add_prefix_space=True,
        )  # fmt: skip
    tokenizer.chat_template = chat_template
    return tokenizer


def bare(**named):
    """A tokenizer of few words with no special tokens but those named."""
    vocabulary = {token: place for place, token in enumerate(["one", "two", "<mask>", "<unk>", "<pad>"])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary)), **named)


def pieces(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(list(ids))


def test_players_are_the_words_of_the_prompt_in_the_template():
    prompt = tokenize_prompt(build_tokenizer(), "The food was good", chat=True)
    assert pieces(build_tokenizer(), prompt.ids) == [
        *("<bos>", "<start_of_turn>", "user", "\n", "the", "food", "was", "good", "<end_of_turn>", "\n"),
        *("<start_of_turn>", "model", "\n"),
    ]
    assert prompt.positions == (4, 5, 6, 7)
    assert prompt.labels == ("the", "food", "was", "good")


def test_raw_prompt_has_a_start_token_and_no_template():
    prompt = tokenize_prompt(build_tokenizer(), "the food was good", chat=False)
    assert pieces(build_tokenizer(), prompt.ids) == ["<bos>", "the", "food", "was", "good"]
    assert prompt.positions == (1, 2, 3, 4)
    assert prompt.turn_end is None


@each_tokenizer
def test_ids_are_those_that_the_tokenizer_itself_gives(kind):
    tokenizer = tokenizer_of(kind)
    text = "the unhappily model\nwas good"
    raw, chat = (tokenize_prompt(tokenizer, text, chat) for chat in (False, True))
    messages = [{"role": "user", "content": text}]
    assert raw.ids == tuple(tokenizer(text)["input_ids"])
    assert chat.ids == tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


@each_tokenizer
@chat_or_not
def test_words_of_the_template_play_where_they_stand_in_the_prompt(kind, chat):
    tokenizer = tokenizer_of(kind)
    prompt = tokenize_prompt(tokenizer, "user model user", chat)
    assert "".join(prompt.labels) == "usermodeluser"
    before = tokenizer.decode(prompt.ids[: prompt.positions[0]])
    behind = tokenizer.decode(prompt.ids[prompt.positions[-1] + 1 :])
    assert (before.count("user"), before.count("model")) == (int(chat), 0)
    assert (behind.count("user"), behind.count("model")) == (0, int(chat))


@each_tokenizer
@chat_or_not
@pytest.mark.parametrize("between", ["\n\n", " <end_of_turn> ", " <bos> ", " <pad> ", " <unk> "])
def test_line_breaks_and_special_tokens_that_are_typed_are_no_players(kind, chat, between):
    tokenizer = tokenizer_of(kind)
    prompt = tokenize_prompt(tokenizer, f"the food{between}was good", chat)
    played = [prompt.ids[place] for place in prompt.positions]
    assert prompt.labels == tuple(tokenizer.decode([token]).strip() for token in played)
    assert "".join(prompt.labels) == "thefoodwasgood"
    within = prompt.ids[prompt.positions[0] : prompt.positions[-1]]
    assert len(played) < len(within) + 1
    assert between.isspace() or tokenizer.convert_tokens_to_ids(between.strip()) in within


def test_unknown_words_are_no_players():
    prompt = tokenize_prompt(build_tokenizer(), "the quokka was good", True)
    assert prompt.labels == ("the", "was", "good")
    assert VOCABULARY["<unk>"] in prompt.ids


@each_tokenizer
@pytest.mark.parametrize("text", ["  the food was good", "\n\nthe food was good \n"])
def test_white_space_around_the_prompt_does_not_play_whether_the_template_trims_it_or_not(kind, text):
    trimming, keeping = (tokenizer_of(kind, template) for template in (CHAT_TEMPLATE, UNTRIMMED))
    assert tokenize_prompt(trimming, text, True) == tokenize_prompt(trimming, "the food was good", True)
    assert "".join(tokenize_prompt(keeping, text, True).labels) == "thefoodwasgood"


@pytest.mark.parametrize("text", ["0 1", "1 0 1", "0 0"])
def test_prompts_of_digits_are_found_in_a_template_of_digits(text):
    tokenizer = tokenizer_of("byte-level", "1 0 {{ messages[0]['content'] }} 1 0")
    prompt = tokenize_prompt(tokenizer, text, chat=True)
    before = tokenizer("1 0", add_special_tokens=False)["input_ids"]
    assert prompt.labels == tuple(text.split())
    assert prompt.ids[: len(before)] == tuple(before)
    assert min(prompt.positions) >= len(before)


def test_template_settings_reach_the_template():
    template = "{% if polite %}<start_of_turn>{% endif %}{{ messages[0]['content'] }}<end_of_turn>"
    tokenizer = tokenizer_of(chat_template=template)
    plain, polite = (tokenize_prompt(tokenizer, "the food", True, given) for given in (None, {"polite": True}))
    assert pieces(tokenizer, plain.ids) == ["the", "food", "<end_of_turn>"]
    assert pieces(tokenizer, polite.ids) == ["<start_of_turn>", "the", "food", "<end_of_turn>"]
    assert (plain.positions, polite.positions) == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, "<end_of_turn>"),
        (UNTRIMMED, "<end_of_turn>"),
        ("{{ messages[0]['content'] }}", None),
        ("{{ messages[0]['content'] }} was good", None),
        ("<start_of_turn>{{ messages[0]['content'] }} : <end_of_turn>", None),
        ("{{ messages[0]['content'] }} <start_of_turn>", "<start_of_turn>"),
    ],
)
def test_turn_end_is_the_special_token_right_behind_the_prompt(template, expected):
    turn_end = tokenize_prompt(tokenizer_of(chat_template=template), "the <end_of_turn> food", chat=True).turn_end
    assert turn_end == (VOCABULARY[expected] if expected else None)


@pytest.mark.parametrize("kind", TOKENIZERS[1:])
def test_a_word_in_pieces_is_as_many_players(kind):
    tokenizer = tokenizer_of(kind)
    prompt = tokenize_prompt(tokenizer, "the foodiest food", chat=False)
    assert len(prompt.labels) > 3
    assert "".join(prompt.labels) == "thefoodiestfood"
    assert any(piece[0] in "Ġ▁" for piece in pieces(tokenizer, prompt.ids))
    assert all(label == label.strip() for label in prompt.labels)


def test_what_a_template_refuses_is_told_with_its_reason():
    template = "{{ raise_exception('System role not supported.') }}" + CHAT_TEMPLATE
    with refused(r"chat template refuses the prompt \(System role not supported\): change model\.template_set"):
        tokenize_prompt(tokenizer_of(chat_template=template), "the food was good", chat=True)


def test_a_chat_without_template_is_refused():
    with refused(r"model\.chat=true needs a tokenizer with a chat template.*set model\.chat=false"):
        tokenize_prompt(tokenizer_of(chat_template=None), "the food was good", chat=True)


@chat_or_not
def test_a_tokenizer_that_does_not_know_places_is_refused(chat):
    with refused("use a fast tokenizer"):
        tokenize_prompt(ByT5Tokenizer(), "the food was good", chat)


@chat_or_not
@pytest.mark.parametrize(("text", "count"), [("", 0), (" \n", 0), ("food", 1), ("quokka <bos> food", 1)])
def test_fewer_than_two_players_are_refused(text, count, chat):
    with refused(rf"fewer than two tokens that can be players \({count}\)"):
        tokenize_prompt(build_tokenizer(), text, chat)


def test_special_tokens_are_those_with_and_without_a_name():
    assert special_ids(build_tokenizer()) == {VOCABULARY[name] for name in NAMES}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"mask_token": "<mask>", "unk_token": "<unk>", "pad_token": "<pad>"}, "<mask>"),
        ({"unk_token": "<unk>", "pad_token": "<pad>"}, "<unk>"),
        ({"pad_token": "<pad>"}, "<pad>"),
    ],
    ids=["mask", "unk", "pad"],
)
def test_absent_token_is_mask_before_unk_before_pad(named, expected):
    tokenizer = bare(**named)
    assert absent_token_id(tokenizer) == tokenizer.get_vocab()[expected]
    assert absent_token_id(tokenizer, "two") == 1


def test_absent_token_with_id_0_is_one():
    assert absent_token_id(bare(unk_token="one", pad_token="<pad>")) == 0
    assert absent_token_id(bare(), "one") == 0


def test_absent_token_that_the_tokenizer_lacks_is_refused():
    with refused(r"model\.absent_token='quokka' is not a token"):
        absent_token_id(bare(unk_token="<unk>"), "quokka")
    with refused(r"choose one with model\.absent_token"):
        absent_token_id(bare())
