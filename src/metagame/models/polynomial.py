"""Polynomials as models: what Table 1 explains."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import sympy
from sympy import Expr, Symbol

from metagame.contracts import WHOLE, BoundInput, Failure, Model, Sample, prepare_each
from metagame.errors import UserError

LARGEST_POWER = 100


@dataclass(frozen=True)
class Polynomial(Sample, BoundInput):
    """A sample of Table 1, and its own input: a polynomial with zero baseline.

    Attributes:
        id: the expanded polynomial as text.
        expression: expanded.
        features: its variables, in natural order (x2 before x10).
    """

    id: str
    expression: Expr
    features: tuple[Symbol, ...]

    @classmethod
    def parse(cls, text: str) -> Polynomial:
        """Read numbers, names, ``+ - * / **`` and brackets; no code is run.

        Raises:
            UserError: the text is not a polynomial with at least one variable.
        """
        expression = sympy.expand(parse_expression(str(text)))
        features = tuple(sorted(expression.free_symbols, key=_natural_order))
        if not features:
            raise UserError(f"benchmark.function={text!r} has no features: name them x1, x2, ...")
        return cls(str(expression), expression, features)

    @property
    def players(self) -> tuple[str, ...]:
        return tuple(x.name for x in self.features)

    @property
    def targets(self) -> tuple[str, ...]:
        return self.players

    def keeps_arrays(self) -> bool:
        return False  # attributions are expressions, and stand among the scores

    def terms(self) -> list[tuple[Expr, tuple[Symbol, ...]]]:
        """The monomials with their coefficients, each with the features in it."""
        terms = sympy.Add.make_args(self.expression)
        return [(term, tuple(x for x in self.features if term.has(x))) for term in terms]


class PolynomialModel(Model[Polynomial, Polynomial]):
    """Adapter of polynomials: a polynomial is its own model, and absent features are set to zero."""

    sample_type = Polynomial
    revision = "symbolic"
    device = "cpu"

    def prepare(self, samples: Sequence[Polynomial]) -> list[Mapping[str, Polynomial] | Failure]:
        return prepare_each(lambda sample: {WHOLE: sample}, samples)


def parse_expression(text: str) -> Expr:
    """The polynomial of ``text``, not expanded; every name in it is a feature, none a constant or a function.

    Raises:
        UserError: the text is not a polynomial.
    """
    remedy = "use numbers, names such as x1, + - * and ** with whole powers, for example '(x1+x2)**2*x3'"
    try:
        return _convert(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = str(error) if type(error) is ValueError else "it cannot be read"
        raise UserError(f"benchmark.function={text!r} is not a polynomial ({reason}): {remedy}.") from error


def _convert(node: ast.expr) -> Expr:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _rational(number)
        case ast.Name(id=name):
            return Symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_convert(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _convert(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _convert(left) + _convert(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _convert(left) - _convert(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _convert(left) * _convert(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _convert(left) / _divisor(_convert(right))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _convert(left) ** _power(_convert(right))
    raise ValueError(f"'{ast.unparse(node)}' is not allowed")


def _rational(number: float) -> Expr:
    if not isfinite(number):
        raise ValueError(f"number '{number}' is not finite")
    return sympy.Rational(str(number))


def _divisor(divisor: Expr) -> Expr:
    if not divisor.is_number or divisor == 0:
        raise ValueError(f"division by '{divisor}'")
    return divisor


def _power(power: Expr) -> Expr:
    if not (power.is_Integer and 0 <= power <= LARGEST_POWER):
        raise ValueError(f"power '{power}' is not an integer from 0 to {LARGEST_POWER}")
    return power


def _natural_order(symbol: Symbol) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"\d+|\D+", symbol.name)]
