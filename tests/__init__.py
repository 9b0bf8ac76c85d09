"""The tests; the annotations of metagame's arguments, results and fields, shapes included, are checked as they run."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType
from typing import Any, ForwardRef, Self, get_args

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


class CheckedFinder(MetaPathFinder):
    """Finds what jaxtyping's hook finds, for a loader that leaves bytecode alone.

    jaxtyping's own looks for bytecode under other names while a module is executed, and so has all of torch compiled
    anew that the module imports.
    """

    def __init__(self, hook: MetaPathFinder) -> None:
        self.hook = hook

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = self.hook.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = CheckedLoader(spec.loader)
        return spec


class CheckedLoader(SourceFileLoader):
    """Compiles a module as jaxtyping's loader does."""

    def __init__(self, loader: SourceFileLoader) -> None:
        super().__init__(loader.name, loader.path)
        self.loader = loader

    def get_code(self, fullname: str) -> CodeType:
        return self.loader.source_to_code(self.get_data(self.path), self.path)


# Here, since pytest imports this before conftest.py and the tests, and with them metagame.
jaxtyping.install_import_hook("metagame", "tests.check")
sys.meta_path[0] = CheckedFinder(sys.meta_path[0])
