from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest
import sympy
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metagame.attributions import gradients, method, shapley, symbolic
from metagame.benchmarks.separation import Separation
from metagame.games import GameError
from metagame.models.masked import MaskedModel
from metagame.models.polynomial import Polynomial, PolynomialModel
from tests.reference import indices as reference
from tests.reference import meta as reference_meta

TABLE_1 = yaml.safe_load(files("metagame.report.published").joinpath("table1.yaml").read_text())
METHODS = {
    "serial_sv": symbolic.Serial(symbolic.shapley_value),
    "ih": symbolic.Serial(symbolic.integrated_gradients),
    "moebius": symbolic.MoebiusTransform(),
    "shapley": symbolic.ShapleyTaylor(),
    "sop": symbolic.SumOfPowers(),
    "meta_gi": symbolic.Meta(symbolic.gradient_input),
    "meta_ig": symbolic.Meta(symbolic.integrated_gradients),
    "meta_sv": symbolic.Meta(symbolic.shapley_value),
}
HALF = sympy.Rational(1, 2)


@pytest.mark.parametrize("row", TABLE_1["rows"])
def test_row_of_table_1_is_the_published_one(row):
    benchmark = Separation(TABLE_1["function"])
    (sample,) = benchmark.samples()
    explicand = PolynomialModel().prepare(sample)
    found = benchmark.score(sample, explicand, METHODS[row].explain(explicand))["entries"]
    names = {name: sympy.sympify(text) for name, text in TABLE_1["abbreviations"].items()}
    published = {name: value for name, value in TABLE_1["rows"][row].items() if name not in ("type", "method")}
    assert found.keys() == published.keys()
    for name, text in published.items():
        assert sympy.expand(sympy.sympify(found[name]) - sympy.sympify(text, locals=names)) == 0, name


@st.composite
def polynomials(draw, largest_power=3):
    """Up to 3 terms in up to 3 features, as text."""
    terms = []
    for _ in range(draw(st.integers(1, 3))):
        coefficient = draw(st.sampled_from(["2", "-3", "1/2", "0.25"]))
        powers = [draw(st.integers(0, largest_power)) for _ in range(3)]
        terms.append("*".join([coefficient, *(f"x{i}**{power}" for i, power in enumerate(powers, start=1) if power)]))
    return Polynomial.parse(f"x1*x2 + {' + '.join(terms)}")


def present(features, coalition):
    return [features[player] for player in coalition]


def masked(f, features, coalition):
    return f.subs({x: 0 for x in features if x not in present(features, coalition)})


def by_coalition(f, features, quantity):
    """``quantity`` of every coalition, by row number, as exact expressions."""
    rows = {reference.row(s): quantity(masked(f, features, s), s) for s in reference.subsets(range(len(features)))}
    return np.array([rows[number] for number in range(len(rows))], dtype=object)


def shapley_values(f, features):
    return list(reference.shapley(by_coalition(f, features, lambda value, s: value), len(features)))


def by_monomial(share):
    """An attribution that gives feature i ``share(power of i, degree)`` of each monomial."""

    def attribution(f, features):
        polynomial = sympy.Poly(f, *features)
        monomials = [
            (powers, c * sympy.prod(x**p for x, p in zip(features, powers, strict=True)))
            for powers, c in polynomial.terms()
        ]
        return [
            sum(share(powers[i], sum(powers)) * m for powers, m in monomials if powers[i]) for i in range(len(features))
        ]

    return attribution


# The gradient of a monomial at alpha x is alpha^(degree-1) times that at x: integrated gradients divide by the degree.
TWINS = {
    "gradient_input": by_monomial(lambda power, degree: power),
    "integrated_gradients": by_monomial(lambda power, degree: sympy.Rational(power, degree)),
    "shapley_value": shapley_values,
}


def same(left, right):
    return sympy.expand(left - right) == 0


@pytest.mark.parametrize("name", TWINS)
@given(polynomial=polynomials())
def test_first_order_matches_its_definition(name, polynomial):
    features = polynomial.features
    expected = TWINS[name](polynomial.expression, features)
    attribution = getattr(symbolic, name)
    assert all(
        same(attribution(polynomial.expression, x, features), e) for x, e in zip(features, expected, strict=True)
    )


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=12)
@given(polynomial=polynomials())
def test_meta_is_definition_2_on_the_whole_polynomial(name, polynomial):
    f, features = polynomial.expression, polynomial.features
    first = TWINS[name](f, features)
    table = np.array([[masked(phi, features, s) for phi in first] for s in rows_in_order(len(features))], dtype=object)
    expected = reference_meta.endogenous(table)
    found = symbolic.Meta(getattr(symbolic, name)).explain(polynomial)
    for i, j in np.ndindex(expected.shape):
        entry = found.individual[features[i]] if i == j else found.directed[features[j], features[i]]
        assert same(entry, expected[i, j])
    assert all(same(found.first_order[x], phi) for x, phi in zip(features, first, strict=True))


def rows_in_order(n):
    return sorted(reference.subsets(range(n)), key=reference.row)


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=12)
@given(polynomial=polynomials())
def test_serial_applies_the_attribution_twice(name, polynomial):
    features = polynomial.features
    found = symbolic.Serial(getattr(symbolic, name)).explain(polynomial)
    for i, first in zip(features, TWINS[name](polynomial.expression, features), strict=True):
        for j, second in zip(features, TWINS[name](first, features), strict=True):
            assert same(found.individual[i] if i == j else found.directed[j, i], second)


@settings(max_examples=12)
@given(polynomial=polynomials())
def test_set_based_rows_match_their_definitions(polynomial):
    features, n = polynomial.features, len(polynomial.features)
    values = by_coalition(polynomial.expression, features, lambda value, s: value)
    transform, taylor = reference.moebius(values, n), reference.stii(values, n)
    moebius = symbolic.MoebiusTransform().explain(polynomial)
    interactions = symbolic.ShapleyTaylor().explain(polynomial)
    for i in range(n):
        assert same(moebius.individual[features[i]], transform[1 << i])
        assert same(interactions.individual[features[i]], taylor[i, i])
    for i, j in combinations(range(n), 2):
        assert same(moebius.pairs[features[i], features[j]], transform[1 << i | 1 << j])
        assert same(interactions.pairs[features[i], features[j]], taylor[i, j])


@settings(max_examples=12)
@given(polynomial=polynomials())
def test_pairs_are_both_directions_of_the_metagame(polynomial):
    """Theorem 2."""
    for pairwise, attribution in (
        (symbolic.ShapleyTaylor(), symbolic.shapley_value),
        (symbolic.SumOfPowers(), symbolic.integrated_gradients),
    ):
        pairs, meta = pairwise.explain(polynomial).pairs, symbolic.Meta(attribution).explain(polynomial)
        assert pairs
        assert all(same(value, meta.directed[i, j] + meta.directed[j, i]) for (i, j), value in pairs.items())


@pytest.mark.parametrize("row", ["serial_sv", "ih", "meta_gi", "meta_ig", "meta_sv"])
@settings(max_examples=12)
@given(polynomial=polynomials())
def test_rows_sum_to_the_first_order(row, polynomial):
    """Corollary 1 and Theorem 1 (serial, no 1/2)."""
    found = METHODS[row].explain(polynomial)
    for i in polynomial.features:
        others = sum(value for (_, target), value in found.directed.items() if target == i)
        assert same(found.individual[i] + others, found.first_order[i])


@given(polynomial=polynomials())
def test_stii_decomposes_the_shapley_value_with_half_of_each_pair(polynomial):
    found = symbolic.ShapleyTaylor().explain(polynomial)
    for i in polynomial.features:
        halves = sum(HALF * value for pair, value in found.pairs.items() if i in pair)
        assert same(found.individual[i] + halves, found.first_order[i])


def test_sop_does_not_decompose_integrated_gradients_with_half_of_each_pair():
    found = symbolic.SumOfPowers().explain(Polynomial.parse("x1*x2**2"))
    x1, x2 = found.individual
    assert not same(found.individual[x1] + HALF * found.pairs[x1, x2], found.first_order[x1])


def as_model(polynomial, point):
    f = sympy.lambdify(polynomial.features, polynomial.expression, "math")
    x = torch.tensor(point[: len(polynomial.features)], dtype=torch.float64)
    return MaskedModel.of_function(lambda inputs: f(*inputs.unbind(1)), x)


def evaluate(expression, polynomial, point):
    return float(expression.subs(dict(zip(polynomial.features, point, strict=False))))


def evaluate_matrix(explanation, polynomial, point):
    features = polynomial.features
    entries = explanation.directed | {(i, i): value for i, value in explanation.individual.items()}
    return np.array([[evaluate(entries[j, i], polynomial, point) for j in features] for i in features])


POINTS = st.lists(st.floats(-1, 1), min_size=3, max_size=3)
# Midpoints of s steps miss an integral over the path by O(1/s^2): largest for powers 3, 3, 3 on all features.
PATH_TOLERANCE = 2e-3


@pytest.mark.parametrize(
    ("name", "numeric", "tolerance"),
    [
        ("gradient_input", gradients.GradientInput(), 1e-10),
        ("integrated_gradients", gradients.IntegratedGradients(200), PATH_TOLERANCE),
        ("shapley_value", shapley.ShapleyValue(), 1e-10),
    ],
)
@given(polynomial=polynomials(), point=POINTS)
def test_symbolic_meta_agrees_with_the_numeric_method(name, numeric, tolerance, polynomial, point):
    exact = symbolic.Meta(getattr(symbolic, name)).explain(polynomial)
    found = method.Meta(numeric).explain(as_model(polynomial, point))
    first = [evaluate(exact.first_order[i], polynomial, point) for i in polynomial.features]
    assert found.first_order == pytest.approx(first, abs=tolerance)
    assert found.matrix == pytest.approx(evaluate_matrix(exact, polynomial, point), abs=tolerance)


@pytest.mark.parametrize(
    ("row", "numeric", "tolerance"),
    [
        ("serial_sv", shapley.SerialShapleyValue(), 1e-10),
        ("ih", gradients.IntegratedHessians(200), PATH_TOLERANCE),
    ],
)
@settings(max_examples=15)
@given(polynomial=polynomials(), point=POINTS)
def test_symbolic_serial_method_agrees_with_the_numeric_one(row, numeric, tolerance, polynomial, point):
    matrix = numeric.explain(as_model(polynomial, point)).matrix
    exact = evaluate_matrix(METHODS[row].explain(polynomial), polynomial, point)
    assert matrix == pytest.approx(exact, abs=tolerance)


def test_integrated_hessians_converge_to_the_symbolic_ones():
    polynomial, point = Polynomial.parse("x1 + x1*x2**2 + x1**2*x2*x3"), [0.9, -1.3, 0.7]
    exact = evaluate_matrix(METHODS["ih"].explain(polynomial), polynomial, point)
    errors = [
        np.abs(gradients.IntegratedHessians(steps).explain(as_model(polynomial, point)).matrix - exact).max()
        for steps in (20, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_features_outside_a_term_are_dummies_in_it():
    few, many = (
        Polynomial.parse("x1*x2**2"),
        Polynomial.parse(f"x1*x2**2 + {' + '.join(f'x{i}' for i in range(3, 30))}"),
    )
    x1, x2 = few.features
    assert METHODS["meta_ig"].explain(many).directed[x1, x2] == METHODS["meta_ig"].explain(few).directed[x1, x2]


def test_term_of_too_many_features_is_refused():
    term = "*".join(f"x{i}" for i in range(1, 14))
    with pytest.raises(GameError, match=r"benchmark\.function has the term .* of 13 features"):
        METHODS["meta_sv"].explain(Polynomial.parse(term))


def test_features_are_in_natural_order():
    names = [x.name for x in Polynomial.parse("x10 + x2*x1 + y1 + x1").features]
    assert names == ["x1", "x2", "x10", "y1"]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("(x1 + x2)**2", "x1**2 + 2*x1*x2 + x2**2"),
        ("-x1/2 + 0.1*x2", "x2/10 - x1/2"),
        ("pi*e + I*x1", "e*pi + I*x1"),
        ("+x1**0 * x2", "x2"),
    ],
)
def test_text_is_read_as_a_polynomial(text, expanded):
    names = {name: sympy.Symbol(name) for name in ("pi", "e", "I")}
    expected = sympy.sympify(expanded, locals=names, rational=True)
    assert same(Polynomial.parse(text).expression, expected)


@pytest.mark.parametrize(
    "text",
    [
        "sin(x1)",
        "1/x1",
        "x1**x2",
        "",
        "3",
        "x1 - x1",
        "x1 +",
        "__import__('os')",
        "x1^2",
        "x1**0.5",
        "x1**-1",
        "x1**101",
        "x1/0",
        "x1.real",
        "True*x1",
        "2j*x1",
        "1e400*x1",
        "x1 if x2 else x3",
    ],
)
def test_text_that_is_no_polynomial_is_refused(text):
    with pytest.raises(GameError, match=r"benchmark\.function="):
        Polynomial.parse(text)
