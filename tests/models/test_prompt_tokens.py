"""Prompts as tokens: which of them play, and what plays where several are one character."""

import json
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from metagame.attributions.attnlrp import AttnLRP
from metagame.attributions.gradients import GradientInput
from metagame.games import all_coalitions
from metagame.models.characters import token_players
from metagame.models.prompt_tokens import absent_token_id, special_ids, tokenize_prompt
from metagame.models.vision_language import Text, TokenPlayers
from scripts.train_language import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from tests.tiny.language import ANSWER, adapter, build_net, float64_throughout
from tests.tiny.vision_language import refused

NAMES = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SENTENCES = ["the food was good", "the soup was not good", "a user and a model", "unhappily it rained"] * 4
# as ChatML: white space around the prompt stays
UNTRIMMED = (
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
each_tokenizer = pytest.mark.parametrize("kind", ["words", "byte-level", "metaspace", "gemma"])


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


def test_players_are_the_words_of_the_prompt_in_the_template_or_behind_a_start_token():
    chat, raw = (tokenize_prompt(build_tokenizer(), "The food was good", chat=chat) for chat in (True, False))
    assert chat.labels == raw.labels == ("the", "food", "was", "good")
    assert (chat.positions, raw.positions, raw.turn_end) == ((4, 5, 6, 7), (1, 2, 3, 4), None)


@each_tokenizer
def test_ids_are_those_that_the_tokenizer_itself_gives(kind):
    tokenizer = tokenizer_of(kind)
    text = "the unhappily model\nwas good"
    raw, chat = (tokenize_prompt(tokenizer, text, chat) for chat in (False, True))
    messages = [{"role": "user", "content": text}]
    assert raw.ids == tuple(tokenizer(text)["input_ids"])
    assert chat.ids == tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


@each_tokenizer
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "raw"])
def test_words_of_the_template_play_where_they_stand_in_the_prompt(kind, chat):
    tokenizer = tokenizer_of(kind)
    prompt = tokenize_prompt(tokenizer, "user model user", chat)
    assert "".join(prompt.labels) == "usermodeluser"
    before = tokenizer.decode(prompt.ids[: prompt.positions[0]])
    behind = tokenizer.decode(prompt.ids[prompt.positions[-1] + 1 :])
    assert (before.count("user"), before.count("model")) == (int(chat), 0)
    assert (behind.count("user"), behind.count("model")) == (0, int(chat))


@pytest.mark.parametrize(
    ("kind", "chat", "between"),
    [
        ("words", True, "\n\n"),
        ("byte-level", False, "\n\n"),
        ("metaspace", True, " <end_of_turn> "),
        ("gemma", False, " <bos> "),
        ("gemma", True, " <pad> "),
        ("words", False, " <unk> "),
    ],
)
def test_line_breaks_and_special_tokens_that_are_typed_are_no_players(kind, chat, between):
    tokenizer = tokenizer_of(kind)
    prompt = tokenize_prompt(tokenizer, f"the food{between}was good", chat)
    played = [prompt.ids[place] for place in prompt.positions]
    assert prompt.labels == tuple(tokenizer.decode([token]).strip() for token in played)
    assert "".join(prompt.labels) == "thefoodwasgood"
    within = prompt.ids[prompt.positions[0] : prompt.positions[-1]]
    assert len(played) < len(within) + 1
    assert between.isspace() or tokenizer.convert_tokens_to_ids(between.strip()) in within


@each_tokenizer
@pytest.mark.parametrize("text", ["  the food was good", "\n\nthe food was good \n"])
def test_white_space_around_the_prompt_does_not_play_whether_the_template_trims_it_or_not(kind, text):
    trimming, keeping = (tokenizer_of(kind, template) for template in (CHAT_TEMPLATE, UNTRIMMED))
    assert tokenize_prompt(trimming, text, True) == tokenize_prompt(trimming, "the food was good", True)
    assert "".join(tokenize_prompt(keeping, text, True).labels) == "thefoodwasgood"


@pytest.mark.parametrize("text", ["1 0 1", "0 0"])
def test_prompts_of_digits_are_found_in_a_template_of_digits(text):
    tokenizer = tokenizer_of("byte-level", "1 0 {{ messages[0]['content'] }} 1 0")
    prompt = tokenize_prompt(tokenizer, text, chat=True)
    before = tokenizer("1 0", add_special_tokens=False)["input_ids"]
    assert prompt.labels == tuple(text.split())
    assert prompt.ids[: len(before)] == tuple(before)
    assert min(prompt.positions) >= len(before)


def test_template_settings_reach_the_template():
    template = "{% if polite %}<start_of_turn>{% endif %}{{ messages[0]['content'] }}<end_of_turn>"
    tokenizer, net = tokenizer_of(chat_template=template), build_net()
    models = (adapter(net, tokenizer, template_settings=given) for given in (None, {"polite": True}))
    plain, polite = (model.tokenize("the food") for model in models)
    assert pieces(tokenizer, plain.ids) == ["the", "food", "<end_of_turn>"]
    assert pieces(tokenizer, polite.ids) == ["<start_of_turn>", "the", "food", "<end_of_turn>"]
    assert (plain.positions, polite.positions) == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, "<end_of_turn>"),
        (UNTRIMMED, "<end_of_turn>"),
        ("{{ messages[0]['content'] }} was good", None),
        ("<start_of_turn>{{ messages[0]['content'] }} : <end_of_turn>", None),
        ("{{ messages[0]['content'] }} <start_of_turn>", "<start_of_turn>"),
    ],
)
def test_turn_end_is_the_special_token_right_behind_the_prompt(template, expected):
    turn_end = tokenize_prompt(tokenizer_of(chat_template=template), "the <end_of_turn> food", chat=True).turn_end
    assert turn_end == (VOCABULARY[expected] if expected else None)


REFUSING = "{{ raise_exception('System role not supported.') }}" + CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("tokenizer", "text", "reason"),
    [
        (tokenizer_of(chat_template=REFUSING), "the food", r"the prompt \(System role not supported\): change"),
        (tokenizer_of(chat_template=None), "the food", r"model\.chat=true needs .*template.*set model\.chat=false"),
        (ByT5Tokenizer(), "the food", "use a fast tokenizer"),
        (build_tokenizer(), " \n", r"fewer than two tokens that can be players \(0\)"),
        (build_tokenizer(), "quokka <bos> food", r"fewer than two tokens that can be players \(1\)"),
    ],
)
def test_a_prompt_or_tokenizer_that_does_not_do_is_refused(tokenizer, text, reason):
    with refused(reason):
        tokenize_prompt(tokenizer, text, chat=True)


def test_special_tokens_are_those_with_and_without_a_name():
    assert special_ids(build_tokenizer()) == {VOCABULARY[name] for name in NAMES}


def test_absent_token_is_mask_before_unk_before_pad_or_one_that_is_named():
    assert absent_token_id(bare(pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")) == 2
    assert absent_token_id(bare(pad_token="<pad>", unk_token="<unk>")) == 3
    assert absent_token_id(bare(pad_token="<pad>")) == 4
    assert absent_token_id(bare(mask_token="<mask>"), "two") == 1
    assert absent_token_id(bare(unk_token="one", pad_token="<pad>")) == 0
    assert absent_token_id(bare(), "one") == 0
    with refused(r"model\.absent_token='quokka' is not a token"):
        absent_token_id(bare(unk_token="<unk>"), "quokka")
    with refused(r"choose one with model\.absent_token"):
        absent_token_id(bare())


class Pieces:
    """A tokenizer whose tokens are these bytes, between a start and an end token."""

    pad_id = 0

    def encode(self, text):
        return tuple(range(len(self.pieces)))

    def __init__(self, pieces):
        self.pieces = [b"<", *pieces, b">"]
        self.context = 100

    def split(self, text):
        last = len(self.pieces) - 1
        return [(place, place in (0, last)) for place in range(last + 1)]

    def decode(self, ids):
        return b"".join(self.pieces[place] for place in ids).decode("utf-8", errors="replace")


WORDS = st.lists(st.sampled_from(["a", "dog", "é", "e\u0301", "漢字", "😀", "👩\u200d🔬", "عربي", "\u00a0", "\u2028"]))


@given(WORDS, st.data())
def test_players_spell_the_text_wherever_its_bytes_are_cut(words, data):
    text = " ".join(words)
    content = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(content) - 1)))))
    pieces = Pieces([content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)])
    ids, may_play = range(len(pieces.pieces)), [not special for _, special in pieces.split("")]
    owners, labels = token_players(ids, may_play, pieces.decode, whole_characters=True)
    shown = "".join(chr(int(label[2:], 16)) if label.startswith("U+") else label for label in labels)
    assert "".join(shown.split()) == "".join(text.split())
    assert not any(label != label.strip() or not label or "\ufffd" in label for label in labels)
    played = [owner for owner in owners if owner is not None]
    assert sorted(set(played)) == list(range(len(labels)))
    assert played == sorted(played)
    alone, repeated = token_players(ids, may_play, pieces.decode, whole_characters=False)
    assert [owner is None for owner in alone] == [owner is None for owner in owners]
    assert repeated == tuple(labels[owner] for owner in played)


@pytest.mark.parametrize("kind", ["byte-level", "gemma"])
@pytest.mark.parametrize(
    ("text", "labels", "counts"),
    [
        ("the 😀 é", ("the", "😀", "é"), (1, 4, 2)),
        ("a 漢字 b", ("a", "漢", "字", "b"), (1, 3, 3, 1)),
        ("a 😀😀 b", ("a", "😀", "😀", "b"), (1, 4, 4, 1)),
        ("👩\u200d🔬 a", ("👩", "U+200D", "🔬", "a"), (4, 3, 4, 1)),
        ("a\u00a0b\u2028a", ("a", "b", "a"), (1, 1, 1)),
        ("a \ufffd b", ("a", "\ufffd", "b"), (1, 3, 1)),
    ],
)
def test_bytes_of_a_character_are_one_player_or_each_is_one_by_its_name(kind, text, labels, counts):
    whole = tokenize_prompt(tokenizer_of(kind), text, chat=False)
    assert whole.labels == labels
    assert tuple(map(whole.players.count, range(len(labels)))) == counts
    each = tokenize_prompt(tokenizer_of(kind), text, chat=False, whole_characters=False)
    assert each.labels == tuple(label for label, count in zip(labels, counts, strict=True) for _ in range(count))
    assert each.positions == whole.positions


def test_white_space_and_special_tokens_stay_and_a_characters_bytes_go_together():
    players = TokenPlayers(Pieces([b"a", b" ", b"\xe6\xbc", b"\xa2", b" b"]), "a 漢 b")
    assert players.labels == ("a", "漢", "b")
    assert players.dropped([True, False, True]).ids == (0, 1, 2, 5, 6)
    assert players.masked([False, True, False]) == Text(tuple(range(7)), (True, False, True, True, True, False, True))


@pytest.mark.parametrize("method", [GradientInput(), AttnLRP()], ids=lambda method: type(method).__name__)
def test_a_player_of_several_tokens_is_absent_and_attributed_as_a_whole(method):
    """f_S is that of the prompt with all of its tokens replaced, its attribution the sum of theirs."""
    tokenizer = tokenizer_of("byte-level")
    net = build_net(dtype=torch.float64, vocab_size=len(tokenizer))
    whole, each = (adapter(net, tokenizer, chat=False, whole_characters=flag) for flag in (True, False))
    prompt = whole.tokenize("a é dog 漢")
    assert len(set(prompt.players)) < len(prompt.players)
    with float64_throughout():
        joint, apart = (model.bind_answer(model.tokenize("a é dog 漢"), ANSWER) for model in (whole, each))
        coalitions = all_coalitions(joint.n_players)
        spread = coalitions[:, list(prompt.players)]
        torch.testing.assert_close(joint.values(coalitions), apart.values(spread))
        found = torch.as_tensor(method.game(joint)(coalitions))
        tokens = torch.as_tensor(method.game(apart)(spread))
    summed = torch.zeros_like(found).index_add(1, torch.tensor(prompt.players), tokens)
    torch.testing.assert_close(found, summed)
