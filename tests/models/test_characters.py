"""Tokens that are bytes: together they are characters, which are what plays and what is shown."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagame.attributions.attnlrp import AttnLRP
from metagame.attributions.gradients import GradientInput
from metagame.benchmarks.prompts import annotated_prompts
from metagame.games import all_coalitions
from metagame.models.characters import token_players
from metagame.models.prompt_tokens import tokenize_prompt
from metagame.models.vision_language import Text, TokenPlayers
from tests.models.test_prompt_tokens import tokenizer_of
from tests.tiny.language import ANSWER, adapter, build_net, float64_throughout

WORDS = st.lists(st.sampled_from(["a", "dog", "é", "e\u0301", "漢字", "😀", "👩\u200d🔬", "عربي", "\u00a0", "\u2028"]))


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


@pytest.mark.parametrize("kind", ["byte-level", "gemma"])
def test_the_papers_prompts_have_the_tokens_as_players_either_way(kind):
    for prompt in annotated_prompts():
        text = prompt.text.replace("\N{MINUS SIGN}", "-")  # a token of Gemma 3's own, which these lack
        whole, each = (
            tokenize_prompt(tokenizer_of(kind), text, chat=False, whole_characters=flag) for flag in (True, False)
        )
        assert whole == each
        assert whole.players == tuple(range(len(whole.labels)))


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
