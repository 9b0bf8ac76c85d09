from functools import partial
from importlib.resources import files

import numpy as np
import pytest
import sympy
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metagame.attributions import gradients, leave_one_out, shapley, symbolic
from metagame.benchmarks.separation import Separation
from metagame.contracts import WHOLE
from metagame.errors import UserError
from metagame.estimators import exact, permutation
from metagame.estimators.configured import ConfiguredEstimator
from metagame.models.masked import MaskedModel
from metagame.models.polynomial import Polynomial, PolynomialModel
from tests.reference import indices as reference
from tests.reference import meta as reference_meta

TABLE_1 = yaml.safe_load(files("metagame.report.published").joinpath("table1.yaml").read_text())
METHODS = {
    "serial_sv": symbolic.Serial(symbolic.ShapleyValue()),
    "ih": symbolic.Serial(symbolic.IntegratedGradients()),
    "moebius": symbolic.MoebiusTransform(),
    "shapley": symbolic.ShapleyTaylor(),
    "sop": symbolic.SumOfPowers(),
    "meta_gi": symbolic.GradientInput().metagame(),
    "meta_ig": symbolic.IntegratedGradients().metagame(),
    "meta_sv": symbolic.ShapleyValue().metagame(),
    "meta_leave_one_out": symbolic.LeaveOneOut().metagame(),
    "meta_attnlrp_left": symbolic.AttnLRP("left").metagame(),
    "meta_attnlrp_right": symbolic.AttnLRP("right").metagame(),
}
some_polynomials = settings(max_examples=6)
HALF = sympy.Rational(1, 2)


@pytest.mark.parametrize("row", TABLE_1["rows"])
def test_row_of_table_1_is_the_published_one(row):
    benchmark = Separation(TABLE_1["function"])
    (sample,) = benchmark.samples()
    (bound,) = PolynomialModel().prepare([sample])
    explanation = METHODS[row].explain(bound[WHOLE])
    found = benchmark.score(sample, bound, {WHOLE: explanation})["entries"]
    names = {name: sympy.sympify(text) for name, text in TABLE_1["abbreviations"].items()}
    published = {name: value for name, value in TABLE_1["rows"][row].items() if name not in ("type", "method")}
    assert symbolic.kind(explanation) == METHODS[row].kind == TABLE_1["rows"][row]["type"]
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
    "GradientInput": by_monomial(lambda power, degree: power),
    "IntegratedGradients": by_monomial(lambda power, degree: sympy.Rational(power, degree)),
    "ShapleyValue": shapley_values,
    "LeaveOneOut": lambda f, features: [f - f.subs(x, 0) for x in features],
}


def first_order(name):
    return getattr(symbolic, name)()


def uniform_rule(powers, association):
    """The share of each feature in a monomial: relevance walks down a tree of products, each of which halves it."""
    leaves = [feature for feature, power in enumerate(powers) for _ in range(power)]
    tree = leaves[0] if association == "left" else leaves[-1]
    for leaf in leaves[1:] if association == "left" else leaves[-2::-1]:
        tree = (tree, leaf) if association == "left" else (leaf, tree)
    shares = [sympy.S.Zero] * len(powers)

    def walk(node, relevance):
        if isinstance(node, int):
            shares[node] += relevance
        else:
            for part in node:
                walk(part, relevance / 2)

    walk(tree, sympy.S.One)
    return shares


@pytest.mark.parametrize("association", ["left", "right"])
@some_polynomials
@given(powers=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_uniform_rule_halves_relevance_at_each_product(association, powers):
    polynomial = Polynomial.parse("-3*" + "*".join(f"x{i}**{power}" for i, power in enumerate(powers, start=1)))
    found = symbolic.AttnLRP(association).explain(polynomial).attribution
    expected = [share * polynomial.expression for share in uniform_rule(powers, association)]
    assert all(map(same, found, expected))


def test_another_association_is_refused():
    with pytest.raises(UserError, match=r"association='middle' must be left or right"):
        symbolic.AttnLRP("middle")


def same(left, right):
    return sympy.expand(left - right) == 0


each_first_order = pytest.mark.parametrize("name", TWINS)


@each_first_order
@some_polynomials
@given(polynomial=polynomials())
def test_first_order_matches_its_definition_and_serial_applies_it_twice(name, polynomial):
    f, features = polynomial.expression, polynomial.features
    expected, method = TWINS[name](f, features), first_order(name)
    found = method.explain(polynomial)
    assert found.meta is None
    assert symbolic.kind(found) == method.kind == "First-Order"
    assert all(map(same, found.attribution, expected))
    assert all(same(method.attribute(f, x, features), phi) for x, phi in zip(features, expected, strict=True))
    serial = symbolic.Serial(first_order(name)).explain(polynomial).meta.values
    for row, first in zip(serial, expected, strict=True):
        assert all(map(same, row, TWINS[name](first, features)))


@each_first_order
@some_polynomials
@given(polynomial=polynomials())
def test_meta_is_definition_2_on_the_whole_polynomial(name, polynomial):
    f, features = polynomial.expression, polynomial.features
    first = TWINS[name](f, features)
    coalitions = sorted(reference.subsets(range(len(features))), key=reference.row)
    table = np.array([[masked(phi, features, s) for phi in first] for s in coalitions], dtype=object)
    found = first_order(name).metagame().explain(polynomial)
    assert all(map(same, found.meta.values.flat, reference_meta.endogenous(table).flat))
    assert all(map(same, found.attribution, first))
    assert found.attribution is found.meta.first_order


@some_polynomials
@given(polynomial=polynomials())
def test_set_based_rows_match_their_definitions(polynomial):
    n = len(polynomial.features)
    values = by_coalition(polynomial.expression, polynomial.features, lambda value, s: value)
    transform, taylor = reference.moebius(values, n), reference.stii(values, n)
    moebius = symbolic.MoebiusTransform().explain(polynomial).meta.values
    interactions = symbolic.ShapleyTaylor().explain(polynomial).meta.values
    for i, j in np.ndindex(n, n):
        assert same(moebius[i, j], transform[1 << i | 1 << j])
        assert same(interactions[i, j], taylor[i, j])


@some_polynomials
@given(polynomial=polynomials())
def test_pairs_are_both_directions_of_the_metagame(polynomial):
    """Theorem 2."""
    for pairwise, directional in (("shapley", "meta_sv"), ("sop", "meta_ig")):
        pairs, meta = (METHODS[row].explain(polynomial).meta.values for row in (pairwise, directional))
        for i, j in np.ndindex(pairs.shape):
            assert same(pairs[i, j], meta[i, i] if i == j else meta[i, j] + meta[j, i])


def with_halves(pairs):
    """For each feature what it has alone, and half of each of its pairs."""
    return HALF * (pairs.sum(1) + pairs.diagonal())


@settings(max_examples=4)
@given(polynomial=polynomials())
def test_rows_decompose_the_first_order(polynomial):
    """Corollary 1 and Theorem 1: serial all of each pair, others half."""
    for row in METHODS.keys() - {"moebius", "shapley", "sop"}:
        found = METHODS[row].explain(polynomial)
        assert all(map(same, found.meta.values.sum(1), found.attribution))
        assert all(map(same, found.meta.residual, np.zeros(len(found.attribution), int)))
    found = symbolic.ShapleyTaylor().explain(polynomial)
    assert all(map(same, with_halves(found.meta.values), found.attribution))


def test_sop_does_not_decompose_integrated_gradients_with_half_of_each_pair():
    found = symbolic.SumOfPowers().explain(Polynomial.parse("x1*x2**2"))
    assert not same(with_halves(found.meta.values)[0], found.attribution[0])


def as_model(polynomial, point):
    f = sympy.lambdify(polynomial.features, polynomial.expression, "math")
    x = torch.tensor(point[: len(polynomial.features)], dtype=torch.float64)
    return MaskedModel.of_function(lambda inputs: f(*inputs.unbind(1)), x)


def evaluate(expressions, polynomial, point):
    """Numbers in the place of expressions."""
    values = dict(zip(polynomial.features, point, strict=False))
    return np.array([float(each.subs(values)) for each in expressions.flat]).reshape(expressions.shape)


# Midpoints of s steps miss an integral over the path by O(1/s^2): largest for powers 3, 3, 3 on all features.
PATH_TOLERANCE = 8e-3


@pytest.mark.parametrize(
    ("row", "numeric", "tolerance"),
    [
        ("meta_gi", gradients.GradientInput().metagame(), 1e-10),
        ("meta_ig", gradients.IntegratedGradients(100).metagame(), PATH_TOLERANCE),
        ("meta_sv", shapley.ShapleyValue().metagame(), 1e-10),
        ("meta_leave_one_out", leave_one_out.LeaveOneOut().metagame(), 1e-10),
        ("serial_sv", shapley.SerialShapleyValue(), 1e-10),
        ("ih", gradients.IntegratedHessians(100), PATH_TOLERANCE),
    ],
)
@some_polynomials
@given(polynomial=polynomials(), point=st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_symbolic_method_agrees_with_the_numeric_one(row, numeric, tolerance, polynomial, point):
    derived, found = METHODS[row].explain(polynomial), numeric.explain(as_model(polynomial, point))
    assert found.meta.values == pytest.approx(evaluate(derived.meta.values, polynomial, point), abs=tolerance)
    assert symbolic.kind(found) == symbolic.kind(derived)
    if found.attribution is not None:
        assert found.attribution == pytest.approx(evaluate(derived.attribution, polynomial, point), abs=tolerance)


def test_integrated_hessians_converge_to_the_symbolic_ones():
    polynomial, point = Polynomial.parse("x1 + x1*x2**2 + x1**2*x2*x3"), [0.9, -1.3, 0.7]
    derived = evaluate(METHODS["ih"].explain(polynomial).meta.values, polynomial, point)
    errors = [
        np.abs(gradients.IntegratedHessians(steps).explain(as_model(polynomial, point)).meta.values - derived).max()
        for steps in (20, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_features_outside_a_term_are_dummies_in_it():
    few, many = (
        Polynomial.parse("x1*x2**2"),
        Polynomial.parse(f"x1*x2**2 + {' + '.join(f'x{i}' for i in range(3, 30))}"),
    )
    wide, narrow = (METHODS["meta_ig"].explain(each).meta.values for each in (many, few))
    assert wide.shape == (29, 29)
    assert (wide[:2, :2] == narrow).all()
    assert not wide[2:, :2].any()
    assert not wide[:2, 2:].any()


@pytest.mark.parametrize("row", METHODS)
def test_explanation_has_an_expression_for_every_feature_and_pair(row):
    seen = []
    polynomial = Polynomial.parse("x10*x2**2 - 3 + y")
    found = METHODS[row].explain(polynomial, lambda done, total: seen.append((done, total)))
    assert found.players == found.targets == found.meta.players == found.meta.targets == ("x2", "x10", "y")
    assert found.attribution.shape == (3,)
    assert found.meta.values.shape == (3, 3)
    assert all(isinstance(each, sympy.Expr) for each in (*found.attribution, *found.meta.values.flat))
    assert found.meta.directed == (found.meta.index not in ("moebius", "stii", "sop"))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("estimator", ["exact", exact, partial(exact, max_players=3)])
def test_exact_estimator_is_the_closed_form(estimator):
    found = symbolic.GradientInput().metagame(ConfiguredEstimator(estimator)).explain(Polynomial.parse("x1*x2"))
    assert symbolic.kind(found) == "Directional"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"estimator": ConfiguredEstimator("trees")}, "is computed in closed form"),
        ({"estimator": ConfiguredEstimator(permutation)}, "is computed in closed form"),
        ({"estimator": ConfiguredEstimator(budget=10)}, "is computed in closed form"),
        ({"order": 2}, "exists for order 1 only"),
        ({"order": 2, "index": "ksv"}, "exists for order 1 only"),
        ({"index": "ksv"}, "exists for order 1 only"),
    ],
    ids=["by name", "by function", "a budget", "order", "index of pairs", "index"],
)
def test_estimate_of_what_is_derived_and_pairs_of_players_are_refused(settings, reason):
    with pytest.raises(UserError, match=rf"symbolic\.ShapleyValue {reason}"):
        symbolic.ShapleyValue().metagame(**settings)


@pytest.mark.parametrize("row", METHODS)
def test_method_of_second_order_has_no_metagame(row):
    with pytest.raises(UserError, match="has no metagame"):
        METHODS[row].metagame()


def test_term_of_too_many_features_is_refused():
    term = "*".join(f"x{i}" for i in range(1, 14))
    with pytest.raises(UserError, match=r"benchmark\.function has the term .* of 13 features"):
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
        "sin(x1)", "1/x1", "x1**x2", "", "3", "x1 - x1", "x1 +", "__import__('os')", "x1^2", "x1**0.5", "x1**-1",
        "x1**101", "x1/0", "x1.real", "True*x1", "2j*x1", "1e400*x1", "x1 if x2 else x3",
    ],
)  # fmt: skip
def test_text_that_is_no_polynomial_is_refused(text):
    with pytest.raises(UserError, match=r"benchmark\.function="):
        Polynomial.parse(text)
