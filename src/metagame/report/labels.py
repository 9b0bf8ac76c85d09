"""What figures and tables call tokens."""

from __future__ import annotations


def told_apart(tokens: list[str]) -> list[str]:
    """Distinct names: tokens that occur again have their place, such as ``dog (2)``, counted from 1.

    All of them have it where such a name is that of another token.
    """
    numbered = [f"{token} ({place})" for place, token in enumerate(tokens, start=1)]
    names = [name if tokens.count(token) > 1 else token for token, name in zip(tokens, numbered, strict=True)]
    return names if len(set(names)) == len(names) else numbered
