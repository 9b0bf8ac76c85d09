"""Annotations are checked as the tests run: those of arrays in all modules, and their shapes with them."""

import ast
import importlib
import inspect
import pkgutil
import typing
from types import FunctionType, ModuleType, SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import sympy
import torch
from beartype.roar import BeartypeCallHintParamViolation

import metagame
from metagame import concept, contracts, games
from metagame.attributions import leave_one_out, symbolic
from metagame.errors import UserError
from metagame.estimators import estimate
from metagame.jobs.spec import locate
from metagame.models import adder
from tests.conftest import unchecked
from tests.tiny.functions import smooth_model

MODULES = [importlib.import_module(each.name) for each in pkgutil.walk_packages(metagame.__path__, "metagame.")]
RESULT = "the return value"


@pytest.mark.parametrize(
    ("module", "place", "give"),
    [
        (games, "values", lambda: games.AttributionGame.from_values(np.zeros(4))),
        (concept, "background", lambda: concept.concept_metagame(np.zeros((2, 4)), np.zeros((1, 3)))),
        (estimate, "empty", lambda: estimate.Estimate(np.zeros((2, 3)), np.zeros(2), np.zeros(3))),
        (contracts, "attribution", lambda: contracts.Explanation((), ("one",), attribution=np.zeros((1, 1)))),
        (adder, "embeddings", lambda: adder.AdderNet().from_embeddings(torch.zeros(1, 3, 8))),
        (leave_one_out, "coalitions", lambda: leave_one_out.LeaveOneOut().game(smooth_model(3)).fn(np.zeros(3, bool))),
        (symbolic, RESULT, lambda: symbolic._vector(lambda feature: [feature] * 2, (sympy.Symbol("x1"),))),
    ],
    ids=["argument", "two arguments", "field", "optional field", "tensor", "function in a function", "result"],
)
def test_a_wrong_shape_is_noticed(module, place, give):
    named = "checking the return value of" if place is RESULT else f"typechecking parameter '{place}'"
    with pytest.raises(jaxtyping.TypeCheckError, match=named) as caught:
        give()
    assert f"of {module.__name__}." in str(caught.value)


def test_a_wrong_type_of_a_function_without_arrays_is_noticed():
    with pytest.raises(BeartypeCallHintParamViolation, match="3"):
        locate(3)
    with unchecked(), pytest.raises(UserError, match="cannot be imported"):
        locate(3)


def is_array_type(value) -> bool:
    return inspect.isclass(value) and (
        value.__module__.startswith("jaxtyping") or issubclass(value, jaxtyping.AbstractArray)
    )


def has_arrays(annotation: str, module: ModuleType) -> bool:
    """Whether it has one of jaxtyping's types, or what the module calls one of them."""
    names = {name for name, value in vars(module).items() if is_array_type(value)}
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(ast.parse(annotation)))


def annotations(module: ModuleType) -> list[tuple[int, str]]:
    """Line and text of each annotation of an argument, a result or a variable."""
    found = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return [(each.lineno, ast.unparse(each)) for each in found if each is not None]


def given_arrays(module: ModuleType) -> list[FunctionType]:
    """Functions and methods of the module that have arrays among their arguments."""
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    methods = [value for kind in own if inspect.isclass(kind) for value in vars(kind).values()]
    return [
        function
        for function in filter(inspect.isfunction, own + methods)
        if any(isinstance(hint, str) and has_arrays(hint, module) for hint in hints_of_arguments(function))
    ]


def hints_of_arguments(function: FunctionType) -> list:
    return [each.annotation for each in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("module", filter(given_arrays, MODULES), ids=lambda each: each.__name__)
def test_all_functions_of_arrays_are_checked(module):
    """jaxtyping looks at their shapes, beartype alone at arrays that a function among the arguments is given."""
    for function in given_arrays(module):
        arguments = inspect.signature(function).parameters.values()
        named = {each.name: object() for each in arguments if each.kind is each.KEYWORD_ONLY}
        others = [object() for each in arguments if each.kind is each.POSITIONAL_OR_KEYWORD]
        with pytest.raises((jaxtyping.TypeCheckError, BeartypeCallHintParamViolation)):
            function(*others, **named)


def test_array_annotations_have_a_meaning_when_the_code_runs():
    """jaxtyping takes what it cannot evaluate for Any, and says nothing."""
    for module in MODULES:
        for line, text in annotations(module):
            holder = SimpleNamespace(__annotations__={"value": text} if has_arrays(text, module) else {})
            try:
                typing.get_type_hints(holder, vars(module))
            except Exception as error:
                pytest.fail(f"{module.__name__}:{line}: {text}: {error}")
