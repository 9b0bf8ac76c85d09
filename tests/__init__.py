"""The tests; the annotations of metagame's arguments, results and fields, shapes included, are checked as they run."""

import ast
import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType
from typing import Any, ForwardRef, Self, get_args, get_type_hints

import beartype
import jaxtyping

_check = beartype.beartype(
    conf=beartype.BeartypeConf(
        is_pep484_tower=True,  # an int is a float
        hint_overrides=beartype.FrozenDict({Self: Any}),  # jaxtyping checks methods without their class
    )
)


def check(function: Callable) -> Callable:
    """The function with its annotations checked, except for those of a protocol that is not runtime_checkable.

    A protocol with properties is better not: ``isinstance`` calls them (before Python 3.12), and one may open a file.
    Aliases that name themselves are taken for Any, too: beartype looks for the name in another module.
    """
    hints = function.__annotations__
    function.__annotations__ = {name: Any if _is_unchecked(hint) else hint for name, hint in hints.items()}
    return _check(function)


def _is_unchecked(hint: Any) -> bool:
    bare = getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)
    return bare or isinstance(hint, ForwardRef) or any(map(_is_unchecked, get_args(hint)))


def checked(decorated: Any) -> Any:
    """A class or function as jaxtyping checks it; without arrays as beartype alone does, in a quarter of the time."""
    if not isinstance(decorated, type):
        hints = _hints(decorated)
        if hints is not None and not any(map(_has_arrays, hints.values())):
            return _without_arrays(decorated, hints)
    return jaxtyping.jaxtyped(typechecker=check)(decorated)


def _hints(function: Callable) -> dict[str, Any] | None:
    """Its annotations; None where one names what is defined elsewhere or further down."""
    try:
        return get_type_hints(function)
    except (NameError, AttributeError):
        return None


def _has_arrays(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_arrays, get_args(hint)))


def _without_arrays(function: Callable, hints: dict[str, Any]) -> Callable:
    texts, function.__annotations__ = function.__annotations__, hints
    typed = check(function)
    function.__annotations__ = texts

    @functools.wraps(function)
    def either(*arguments: Any, **named: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else typed)(*arguments, **named)

    return either


class CheckedFinder(MetaPathFinder):
    """Finds the modules of metagame for :class:`CheckedLoader`."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname.partition(".")[0] == "metagame" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


class CheckedLoader(SourceFileLoader):
    """Compiles a module with every class and function :func:`checked`; bytecode is left alone.

    jaxtyping's own hook looks for bytecode under other names while a module is executed, and so has all of torch
    compiled anew that the module imports.
    """

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                decorator = ast.copy_location(ast.parse("__import__('tests').checked", mode="eval").body, node)
                # of a dataclass what it makes is checked, of a function what other decorators are given
                node.decorator_list.insert(0 if isinstance(node, ast.ClassDef) else len(node.decorator_list), decorator)
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


# Here, since pytest imports this before conftest.py and the tests, and with them metagame.
sys.meta_path.insert(0, CheckedFinder())
