"""A prompt as tokens: which of them play, and what stands in for an absent one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from metagame.errors import UserError
from metagame.models.characters import token_players


@dataclass(frozen=True)
class PromptTokens:
    """What a language model is given.

    Attributes:
        ids: of all tokens, the template's and special ones included.
        positions: in ``ids`` of what plays: tokens of the prompt that are neither special nor white space.
        players: which player the token at each position is, or is part of.
        labels: the players' pieces of the text.
        turn_end: the special token that the template puts behind the prompt; None without one.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    players: tuple[int, ...]
    labels: tuple[str, ...]
    turn_end: int | None = None


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    chat: bool,
    template_settings: Mapping[str, Any] | None = None,
    *,
    whole_characters: bool = True,
) -> PromptTokens:
    """The prompt in the tokenizer's chat template, or alone.

    Players are found by where they stand: the template is what does not change with the prompt. A word that is unknown
    to the tokenizer is a special token, and as good as absent.

    Differs from the paper's text: tokens that are bytes of one character are one player, unless ``whole_characters`` is
    False; its prompts have none in Gemma 3's tokens.

    Args:
        tokenizer: a fast one, since places in the text are needed.
        text: of the prompt.
        chat: whether to use the chat template, with a generation prompt.
        template_settings: what the template is given beside the prompt.
        whole_characters: whether tokens that spell a character only together are one player.

    Raises:
        UserError: the tokenizer is not fast, has no chat template, or fewer than two players are left.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not report the positions of its tokens: use a fast tokenizer (tokenizer.json)."
        )
    if chat:
        rendered, start, stop = _render(tokenizer, text, template_settings or {})
    else:
        rendered, start, stop = text, 0, len(text)
    encoded = tokenizer(rendered, add_special_tokens=not chat, return_offsets_mapping=True, verbose=False)
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    special = special_ids(tokenizer)
    may_play = [
        token not in special and max(left, start) < min(right, stop)
        for token, (left, right) in zip(ids, places, strict=True)
    ]
    owners, labels = token_players(ids, may_play, partial(_decode, tokenizer), whole_characters=whole_characters)
    if len(labels) < 2:
        raise UserError(
            f"the prompt {text!r} has fewer than two tokens that can be players ({len(labels)}): give more words (words"
            " that the tokenizer does not know do not count)."
        )
    behind = [token for token, (left, _) in zip(ids, places, strict=True) if chat and left >= stop]
    turn_end = behind[0] if behind and behind[0] in special else None
    positions, players = zip(*((at, owner) for at, owner in enumerate(owners) if owner is not None), strict=True)
    return PromptTokens(tuple(ids), positions, players, labels, turn_end)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all tokens that the tokenizer calls special, named ones or not."""
    added = {token for token, content in tokenizer.added_tokens_decoder.items() if content.special}
    return added | set(tokenizer.all_special_ids)


def absent_token_id(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> int:
    """The token that stands in for an absent one: the one named, or the tokenizer's mask, unk or pad token.

    Raises:
        UserError: the tokenizer does not have such a token.
    """
    if name is not None:
        token = tokenizer.get_vocab().get(name)
        if token is None:
            raise UserError(
                f"model.absent_token={name!r} is not a token of the tokenizer: spell it as the tokenizer does."
            )
        return token
    for token in (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id):
        if token is not None:
            return token
    raise UserError(
        "the tokenizer has no mask, unk or pad token to stand for absent tokens: choose one with model.absent_token."
    )


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the tokenizer has no chat template."""
    if tokenizer.chat_template is None:
        raise UserError(
            "model.chat=true needs a tokenizer with a chat template, but this one has none: set model.chat=false."
        )


def _render(tokenizer: PreTrainedTokenizerBase, text: str, settings: Mapping[str, Any]) -> tuple[str, int, int]:
    """The prompt in the chat template, and where in it the prompt starts and stops."""
    require_template(tokenizer)

    fixed: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    if fixed.keys() & settings.keys():
        raise UserError(f"model.template_settings cannot set {' or '.join(fixed)}, which are fixed: leave them out.")

    def render(content: str) -> str:
        try:
            return str(tokenizer.apply_chat_template([{"role": "user", "content": content}], **fixed, **settings))
        except Exception as error:  # whatever a template raises
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"the tokenizer's chat template refuses the prompt ({reason}): change model.template_settings, or set"
                " model.chat=false."
            ) from error

    one, other, rendered = render("0"), render("1"), render(text)
    if one == other:
        raise UserError(
            "the tokenizer's chat template does not render a prompt that is a plain text: set model.chat=false."
        )
    return rendered, _first_difference(one, other), len(rendered) - _first_difference(one[::-1], other[::-1])


def _first_difference(one: str, other: str) -> int:
    return next(place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
