"""What figures and tables call tokens."""

from __future__ import annotations


def told_apart(tokens: list[str]) -> list[str]:
    """Tokens; those that occur again with their place, such as ``dog (2)``, counted from 1."""
    return [f"{token} ({place})" if tokens.count(token) > 1 else token for place, token in enumerate(tokens, start=1)]
