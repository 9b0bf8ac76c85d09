"""What a sample's numbers were computed from: code, weights and files, each as a hash that changes with it."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import EllipsisType, FunctionType

import metagame
from metagame.digests import digest, file_digest, folder_digest
from metagame.errors import UserError

PACKAGE = __name__.partition(".")[0]
OUTSIDE = tuple(f"{PACKAGE}.{room}" for room in ("jobs", "report", "viewer", "tracking", "fetch", "cli"))
"""Rooms that no number of a record comes from."""
INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of installed packages."""


@dataclass(frozen=True)
class Provenance:
    """What a record was computed from.

    Attributes:
        code: digest of the code, see :func:`code_manifest`.
        weights: the model's revision.
        files: digest of the files that the sample, and all samples of its benchmark, are read from.
    """

    code: str
    weights: str
    files: str

    def differences(self, other: Provenance) -> list[str]:
        """Names of what is not the same."""
        return [name for name, value in vars(self).items() if value != getattr(other, name)]


def code_manifest(targets: Iterable[str]) -> dict[str, str]:
    """A hash of each module that computes, by its name: what ``_target_`` names, and what that imports, in turn.

    Within this package its own imports are followed, without the rooms :data:`OUTSIDE` and without its ``__init__``,
    which only names again what is elsewhere. From a module of one's own, every import is followed that is neither in
    the standard library nor an installed package, unless the target itself is in that package. A hash is over the
    syntax tree, so that comments, docstrings and layout do not count.
    """
    seen: dict[str, str] = {}
    waiting = sorted({module for target in targets if (module := _module_of(target)) is not None})
    roots = {PACKAGE, *map(_root, waiting)}
    folders = {path.parent for module in waiting if (path := _source(module)) is not None}
    while waiting:
        module = waiting.pop()
        path = _source(module)
        if module in seen or path is None or module == PACKAGE or _is_outside(module):
            continue
        seen[module], imported = _hash_and_imports(path, module, path.stat().st_mtime_ns)
        is_own = _root(module) != PACKAGE
        waiting += [
            name
            for name in imported
            if (source := _source(name)) is not None
            and (_root(name) in roots or source.parent in folders or (is_own and not _is_installed(source)))
        ]
    return dict(sorted(seen.items()))


def files_digest(paths: Iterable[Path]) -> str:
    """A digest of the content of files and folders, in any order; what is absent or cannot be read counts as such."""
    return digest(sorted({(path.name, _content(path)) for path in paths}))


def _content(path: Path) -> str:
    try:
        if path.is_dir():
            return folder_digest(path)
        return file_digest(path) if path.exists() else "absent"
    except (UserError, OSError):  # whoever needs it says so
        return "unreadable"


def _is_outside(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in OUTSIDE)


def _root(module: str) -> str:
    return module.partition(".")[0]


def _is_installed(path: Path) -> bool:
    """Whether a source file belongs to an installed package, or to Python."""
    return not INSTALLED.isdisjoint(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib"))


@cache
def _offered() -> dict[str, str]:
    """The module of each function and class that the package's ``__init__`` names again."""
    here = {name: value.__module__ for name, value in vars(metagame).items() if isinstance(value, type | FunctionType)}
    return {f"{PACKAGE}.{name}": module for name, module in (here | metagame.LAZY).items()}


def _module_of(target: str) -> str | None:
    """The longest module that the dotted path begins with; None where it has no source."""
    parts = _offered().get(target, target).split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if _source(name) is not None), None)


def _source(module: str) -> Path | None:
    """The file of a module, found without running any; None if it has no source file."""
    origin, _ = _found(module)
    return Path(origin) if origin is not None and origin.endswith(".py") else None


@cache
def _found(module: str) -> tuple[str | None, tuple[str, ...] | None]:
    """Of a module its file, and of a package the folders of its modules."""
    parent, _, leaf = module.rpartition(".")
    places = _found(parent)[1] if parent else tuple(sys.path)
    if places is None:
        return None, None
    spec = PathFinder.find_spec(leaf, list(places))
    if spec is None:
        spec = _editable(module)
    if spec is None:
        return None, None
    folders = spec.submodule_search_locations
    return spec.origin, None if folders is None else tuple(folders)


def _editable(module: str) -> ModuleSpec | None:
    """Of a module that only an editable install's own finder knows, and of one that is loaded already."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        return loaded.__spec__
    return find_spec(module) if "." not in module else None


@cache
def _hash_and_imports(path: Path, module: str, changed: int) -> tuple[str, tuple[str, ...]]:
    """The hash of a module and what it imports; ``changed`` tells versions of its file apart."""
    tree = ast.parse(path.read_bytes())
    imported = tuple(_imports(tree, module if path.name == "__init__.py" else module.rpartition(".")[0]))
    return _hash_without_docstrings(tree), imported


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Every module that a file may import, also within functions; names that are no modules have no source."""
    called = {PACKAGE}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            called |= {alias.asname for alias in node.names if alias.name == PACKAGE and alias.asname is not None}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{above}.{base}".rstrip(".")
            yield base
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from (_offered().get(name, name) for name in names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in called:
            name = f"{PACKAGE}.{node.attr}"
            yield _offered().get(name, name)


def _hash_without_docstrings(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.JoinedStr):  # Python 3.12 may add an empty part
            node.values = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
    return digest(_plain(tree))


def _plain(node: ast.AST | list | str | complex | bytes | EllipsisType | None) -> list | str:
    """A syntax tree as lists of texts, the same in each version of Python: ``ast.dump`` is not."""
    if isinstance(node, ast.AST):
        given = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *([name, _plain(value)] for name, value in given)]
    return [_plain(each) for each in node] if isinstance(node, list) else repr(node)
