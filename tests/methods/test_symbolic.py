from functools import partial
from importlib.resources import files

import numpy as np
import pytest
import sympy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metagame.attributions import symbolic
from metagame.benchmarks.separation import Separation
from metagame.contracts import WHOLE
from metagame.errors import UserError
from metagame.estimators import exact, permutation
from metagame.estimators.configured import ConfiguredEstimator
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


def masked(f, features, coalition):
    return f.subs({x: 0 for player, x in enumerate(features) if player not in coalition})


def values_of(f, features):
    """f of every coalition, by row number, as exact expressions."""
    coalitions = sorted(reference.subsets(range(len(features))), key=reference.row)
    return np.array([masked(f, features, coalition) for coalition in coalitions], dtype=object)


def shapley_values(f, features):
    return list(reference.shapley(values_of(f, features), len(features)))


def by_monomial(share):
    """An attribution that gives feature i ``share(powers, i)`` of each monomial that has it."""

    def attribution(f, features):
        phi = [sympy.S.Zero] * len(features)
        for powers, coefficient in sympy.Poly(f, *features).terms():
            monomial = coefficient * sympy.prod(x**p for x, p in zip(features, powers, strict=True))
            for i in np.flatnonzero(powers):
                phi[i] += share(powers, i) * monomial
        return phi

    return attribution


def uniform_rule(association):
    """The share of a feature in a monomial: relevance walks down a tree of products, each of which halves it."""

    def share(powers, feature):
        leaves = [each for each, power in enumerate(powers) for _ in range(power)]
        tree = leaves[0] if association == "left" else leaves[-1]
        for leaf in leaves[1:] if association == "left" else leaves[-2::-1]:
            tree = (tree, leaf) if association == "left" else (leaf, tree)
        return of_node(tree, feature)

    def of_node(node, feature):
        return HALF * sum(of_node(part, feature) for part in node) if isinstance(node, tuple) else int(node == feature)

    return share


# The gradient of a monomial at alpha x is alpha^(degree-1) times that at x: integrated gradients divide by the degree.
TWINS = {
    "gradient_input": (symbolic.GradientInput(), by_monomial(lambda powers, i: powers[i])),
    "ig": (symbolic.IntegratedGradients(), by_monomial(lambda powers, i: sympy.Rational(powers[i], sum(powers)))),
    "shapley": (symbolic.ShapleyValue(), shapley_values),
    "leave_one_out": (symbolic.LeaveOneOut(), lambda f, features: [f - f.subs(x, 0) for x in features]),
    "attnlrp_left": (symbolic.AttnLRP("left"), by_monomial(uniform_rule("left"))),
    "attnlrp_right": (symbolic.AttnLRP("right"), by_monomial(uniform_rule("right"))),
}
each_first_order = pytest.mark.parametrize("name", TWINS)


def same(left, right):
    return sympy.expand(left - right) == 0


@each_first_order
@some_polynomials
@given(polynomial=polynomials())
def test_first_order_matches_its_definition_and_serial_applies_it_twice(name, polynomial):
    method, twin = TWINS[name]
    features = polynomial.features
    expected, found = twin(polynomial.expression, features), method.explain(polynomial)
    assert found.meta is None
    assert symbolic.kind(found) == method.kind == "First-Order"
    assert all(map(same, found.attribution, expected))
    serial = symbolic.Serial(method).explain(polynomial).meta.values
    for row, first in zip(serial, expected, strict=True):
        assert all(map(same, row, twin(first, features)))


@each_first_order
@some_polynomials
@given(polynomial=polynomials())
def test_meta_is_definition_2_on_the_whole_polynomial(name, polynomial):
    method, twin = TWINS[name]
    features = polynomial.features
    first = twin(polynomial.expression, features)
    table = np.stack([values_of(phi, features) for phi in first], axis=1)
    found = method.metagame().explain(polynomial)
    assert all(map(same, found.meta.values.flat, reference_meta.endogenous(table).flat))
    assert all(map(same, found.attribution, first))
    assert found.attribution is found.meta.first_order


@some_polynomials
@given(polynomial=polynomials())
def test_set_based_rows_match_their_definitions(polynomial):
    n = len(polynomial.features)
    values = values_of(polynomial.expression, polynomial.features)
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


@settings(max_examples=4)
@given(polynomial=polynomials())
def test_rows_decompose_the_first_order(polynomial):
    """Corollary 1 and Theorem 1: serial all of each pair, others half."""
    for row in METHODS.keys() - {"moebius", "shapley", "sop"}:
        found = METHODS[row].explain(polynomial)
        assert all(map(same, found.meta.values.sum(1), found.attribution))
        assert all(map(same, found.meta.residual, np.zeros(len(found.attribution), int)))
    found = symbolic.ShapleyTaylor().explain(polynomial)
    halves = HALF * (found.meta.values.sum(1) + found.meta.values.diagonal())
    assert all(map(same, halves, found.attribution))


def test_features_outside_a_term_are_dummies_in_it():
    others = " + ".join(f"x{i}" for i in range(3, 30))
    wide, narrow = (
        METHODS["meta_ig"].explain(Polynomial.parse(text)).meta.values for text in (f"x1*x2**2 + {others}", "x1*x2**2")
    )
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


@pytest.mark.parametrize("estimator", [exact, partial(exact, max_players=3)])
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
        ({"index": "ksv"}, "exists for order 1 only"),
    ],
    ids=["by name", "by function", "a budget", "order", "index"],
)
def test_estimate_of_what_is_derived_and_pairs_of_players_are_refused(settings, reason):
    with pytest.raises(UserError, match=rf"symbolic\.ShapleyValue {reason}"):
        symbolic.ShapleyValue().metagame(**settings)


def test_what_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"association='middle' must be left or right"):
        symbolic.AttnLRP("middle")
    with pytest.raises(UserError, match="has no metagame"):
        METHODS["sop"].metagame()
    term = "*".join(f"x{i}" for i in range(1, 14))
    with pytest.raises(UserError, match=r"benchmark\.function has the term .* of 13 features"):
        METHODS["meta_sv"].explain(Polynomial.parse(term))


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
