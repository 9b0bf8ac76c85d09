"""Whether the settings of a node have the types of the arguments that they become."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from metagame.errors import UserError
from metagame.jobs.spec import locate

WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", NoneType: "null"}
LISTS = (Sequence, Collection, Iterable, list, tuple, set, frozenset)
MAPPINGS = (Mapping, dict)


def check_arguments(node: Any, path: str = "") -> None:
    """Refuse settings that are of another type than their argument, in this node and in those within.

    What Hydra does not know is a text to it, such as ``no``, and Python takes every text for true, and true for 1.

    Args:
        node: plain values; those with a ``_target_`` are checked.
        path: what stands before a setting's name in the config, such as ``model.``.

    Raises:
        UserError: there is such a setting.
    """
    if isinstance(node, list):
        for place, value in enumerate(node):
            check_arguments(value, f"{path.removesuffix('.')}[{place}].")
    elif isinstance(node, Mapping):
        types = argument_types(locate(node["_target_"])) if isinstance(node.get("_target_"), str) else {}
        for name, value in node.items():
            if name in types and not fits(value, types[name]):
                raise UserError(f"{path}{name}={value!r} must be {in_words(types[name])}.")
            check_arguments(value, f"{path}{name}.")


def argument_types(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotated types of a target's arguments, as far as they can be found."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    names = getattr(function, "__globals__", {})
    try:
        given = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of what is written in C
        return {}
    found = {name: _evaluated(each.annotation, names) for name, each in given.items()}
    return {name: hint for name, hint in found.items() if hint is not None}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return None
    if not isinstance(annotation, str):
        return NoneType if annotation is None else annotation
    try:
        return eval(annotation, names)  # noqa: S307 - as typing.get_type_hints does, which stops at the first unknown name
    except Exception:  # a name that is imported for the type checker alone
        return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can be an argument of this type; True of types that a config does not hold as such."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, inner = get_origin(hint) or hint, [each for each in get_args(hint) if each is not Ellipsis]
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin in LISTS:
        return isinstance(value, list | tuple) and all(fits(each, inner[0]) for each in value if len(inner) == 1)
    if origin in MAPPINGS:
        return isinstance(value, Mapping) and all(fits(each, inner[1]) for each in value.values() if len(inner) == 2)
    return _is_scalar(value, origin)


def _is_scalar(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str:  # Hydra reads the text 123 as a number
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    return value is None if kind is NoneType else True


def in_words(hint: Any) -> str:
    """What values of a type are called in a message."""
    return " or ".join(dict.fromkeys(_words(hint)))


def _words(hint: Any) -> Iterator[str]:
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        for each in sorted(inner, key=lambda each: each is NoneType):
            yield from _words(each)
    elif origin is Literal:
        yield f"one of {', '.join(map(str, inner))}"
    elif origin in LISTS:
        yield "a list" + (f" in which each is {in_words(inner[0])}" if inner and inner[0] in WORDS else "")
    else:
        yield "a mapping" if origin in MAPPINGS else WORDS.get(origin, f"of type {getattr(origin, '__name__', origin)}")
