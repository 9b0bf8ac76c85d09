"""What is told in one sentence: what is wrong, in which argument or file, and what to do about it."""

from __future__ import annotations


class UserError(ValueError):
    """An argument, config value or file that cannot be used; the message names it and the remedy."""


class GameError(UserError):
    """A game, or a question about one, that has no answer."""


class RecordError(UserError):
    """A file of results that cannot be read or written; the message names the file and the remedy."""
