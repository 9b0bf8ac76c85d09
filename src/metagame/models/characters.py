"""Which players the tokens of a text make, and what they are called."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the bytes of a part of a character to."""


def token_players(
    ids: Sequence[int], may_play: Sequence[bool], decode: Callable[[list[int]], str], *, whole_characters: bool
) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    """The player of each token, None where it plays no part, and the label of each player.

    White space is no player. Tokens that spell a character only together, as those of a tokenizer whose tokens are
    bytes, have that character as their label; so has a character that cannot be seen its code point, as ``U+200D``.

    Args:
        ids: of all tokens of a text, in order.
        may_play: whether a token is part of the text, and no special one.
        decode: the text that tokens spell.
        whole_characters: whether such tokens are one player together; each is one by itself where not.
    """
    owners: list[int | None] = [None] * len(ids)
    labels: list[str] = []
    for start, stop, text in _spelled(ids, decode):
        label = _visible(text.strip())
        players = [place for place in range(start, stop) if may_play[place]]
        if not label or not players:
            continue
        for place in players:
            if place == players[0] or not whole_characters:
                labels.append(label)
            owners[place] = len(labels) - 1
    return tuple(owners), tuple(labels)


def _spelled(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[tuple[int, int, str]]:
    """Start, stop and text of the least runs of tokens that spell whole characters."""
    runs = []
    start = 0
    while start < len(ids):
        stop, text = start + 1, decode([ids[start]])
        while UNFINISHED in text and stop < len(ids) and UNFINISHED in decode([ids[stop]]):
            stop += 1
            text = decode(list(ids[start:stop]))
        runs.append((start, stop, text))
        start = stop
    return runs


def _visible(text: str) -> str:
    """The text, or its code points where nothing of it can be seen by itself: joiners, marks, variation selectors."""
    if all(unicodedata.category(letter)[0] in "CM" for letter in text):
        return " ".join(f"U+{ord(letter):04X}" for letter in text)
    return text
