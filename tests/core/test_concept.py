from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from metagame import UserError, concept, concept_metagame
from metagame.concept import _unit_interval_rule, exponential_sum
from tests.conftest import unchecked
from tests.reference.concept import by_definition, by_integrals, paper_procedure, two_products

TOLERANCE = 1e-9


def random_logits(n, n_background, n_patches=3, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    both = (2 * torch.rand(n + n_background, n_patches, generator=generator, dtype=torch.float64) - 1) * spread
    return both[:n], both[n:]


def with_lead(n_background, lead):
    """Of one concept before all others, or of the background where it is negative."""
    logits, background = random_logits(6, n_background)
    logits[2] += max(lead, 0)
    return logits, background - min(lead, 0)


@st.composite
def logits(draw, least, most):
    n, n_background = draw(st.integers(least, most)), draw(st.integers(0, 3))
    return random_logits(n, n_background, spread=draw(st.floats(0, 20)), seed=draw(st.integers(0, 999)))


def assert_near(found, expected, tolerance=TOLERANCE):
    """Of tensors, or tuples of them, with the same shapes and types."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@given(both=logits(1, 6))
@example(both=random_logits(1, 0))
@example(both=random_logits(6, 1, spread=0))
@example(both=with_lead(0, 20))
@example(both=with_lead(1, 40))
@example(both=with_lead(0, 80))
@example(both=with_lead(1, 80))
@example(both=with_lead(2, -200))
def test_both_outputs_match_their_definition(both):
    assert_near(concept_metagame(*both, directional=True), by_definition(*both))


@given(both=logits(1, 6))
def test_slow_procedures_agree_with_the_definition(both):
    expected = by_definition(*both)
    assert_near(paper_procedure(*both), expected[0], 1e-12)
    assert_near(two_products(*both), expected[0], 1e-12)
    assert_near(by_integrals(*both), expected, 1e-12)


@pytest.mark.parametrize(("n", "spread"), [(9, 20.0), (39, 3.0), (50, 12.0), (300, 3.0)])
def test_hundreds_of_concepts_match_both_integrals(n, spread):
    both = random_logits(n, 3, n_patches=2, spread=spread)
    assert_near(concept_metagame(*both, directional=True), by_integrals(*both))


@given(both=logits(1, 12))
@example(both=random_logits(30, 5))
def test_values_have_the_documented_sums_signs_and_ranges(both):
    diag, directional = concept_metagame(*both, directional=True)
    softmax = torch.cat(both).softmax(0)[: len(diag)]
    assert_near(directional.sum(1), softmax, len(diag) * TOLERANCE)
    # with all players t meets k others with probability 1/n for each k
    assert (diag >= softmax - TOLERANCE).all()
    assert diag.max() <= 1 + TOLERANCE
    own = directional.diagonal().T
    assert own.min() >= 0
    assert own.max() <= 1 + TOLERANCE
    assert (directional - torch.diag_embed(own.T).permute(1, 2, 0)).max() <= TOLERANCE


@given(both=logits(2, 8), seed=st.integers(0, 9))
def test_permuting_concepts_permutes_both_outputs(both, seed):
    order = torch.randperm(len(both[0]), generator=torch.Generator().manual_seed(seed))
    diag, directional = concept_metagame(*both, directional=True)
    permuted = concept_metagame(both[0][order], both[1], directional=True)
    assert_near(permuted, (diag[order], directional[order][:, order]))


def test_patches_of_any_number_and_spread_leave_each_other_as_they_are():
    logits, background = random_logits(20, 5, n_patches=500)
    logits[:, 17] *= 15
    together = concept_metagame(logits, background)[0]
    for patch in (17, 250):
        alone = concept_metagame(logits[:, [patch]], background[:, [patch]])[0]
        assert_near(together[:, [patch]], alone)


def test_directional_is_none_unless_asked_for_and_inputs_are_left_alone():
    both = random_logits(4, 1)
    before = [x.clone() for x in both]
    diag, directional = concept_metagame(*both)
    assert directional is None
    assert torch.equal(diag, concept_metagame(*both, directional=True)[0])
    assert all(torch.equal(x, y) for x, y in zip(both, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_logits_are_played_in_float64(dtype):
    both = [x.to(dtype) for x in random_logits(6, 2)]
    assert_near(concept_metagame(*both, directional=True), by_definition(*(x.double() for x in both)))


def test_float32_arithmetic_on_demand():
    both = random_logits(10, 2)
    found = concept_metagame(*both, directional=True, dtype=torch.float32)
    expected = concept_metagame(*both, directional=True)
    assert_near(found, tuple(x.float() for x in expected), 1e-5)


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x[:, ::-1],
        lambda x: x[:, ::-1].astype(np.longdouble),
        lambda x: x[:, ::-1].astype(x.dtype.newbyteorder()),
        lambda x: x[:, ::-1].astype(np.float32),
        lambda x: x[:, ::-1].tolist(),
    ],
    ids=["reversed", "longdouble", "byte order", "float32", "list"],
)
def test_arrays_of_any_layout_are_taken_and_numpy_comes_back(given):
    logits, background = (np.float32(x.numpy()).astype(float) for x in random_logits(5, 2))
    with unchecked():
        found = concept_metagame(given(logits), given(background), directional=True)
    expected = concept_metagame(torch.tensor(logits), torch.tensor(background), directional=True)
    for array, tensor in zip(found, expected, strict=True):
        assert isinstance(array, np.ndarray)
        assert_near(torch.tensor(array), tensor.flip(-1), 1e-12)


def test_inference_mode_of_the_caller_changes_nothing():
    expected = concept_metagame(*random_logits(5, 2), directional=True)
    with torch.inference_mode():
        found = concept_metagame(*random_logits(5, 2), directional=True)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("n", [1, 2, 36, 37, 38, 50, 300, 1000])
def test_the_rule_on_the_unit_interval_integrates_every_power(n):
    nodes, masses = _unit_interval_rule(n)
    errors = [abs(masses @ nodes**power - 1 / (power + 1)) for power in range(n)]
    assert max(errors) <= 1e-10
    assert len(nodes) <= (n + 1) // 2
    assert masses.min() > 0


@pytest.mark.parametrize("ratio", [1.0, 1.5, 50.0, 1e6, float(np.exp(40))])
def test_exponential_sum_keeps_its_bound_on_its_whole_range(ratio):
    rates, coefficients = exponential_sum(ratio)
    for a in np.array_split(np.exp(np.linspace(0, np.log(ratio), 50_001)), 50):
        assert np.abs(a * (np.exp(-np.outer(a, rates)) @ coefficients) - 1).max() <= 1e-10


@pytest.mark.parametrize("directional", [False, True])
def test_memory_bounds_what_is_computed_at_once_and_changes_no_value(directional, monkeypatch):
    both, sizes = random_logits(12, 2, n_patches=100), []
    expected = concept_metagame(*both, directional=directional)
    play = concept._play
    monkeypatch.setattr(concept, "_play", lambda *arguments: sizes.append(arguments[0].shape[1]) or play(*arguments))
    found = concept_metagame(*both, directional=directional, memory=200_000)
    assert 1 <= max(sizes) < 20
    assert sum(sizes) == 100
    assert_near(found[: 1 + directional], expected[: 1 + directional], 1e-14)
    with pytest.raises(UserError, match=r"memory=1000 is too small: a patch needs \d+ bytes on 1 threads\."):
        concept_metagame(*both, directional=directional, memory=1000)


@pytest.mark.parametrize("spread", [0.1, 5.0, 20.0])
def test_chunks_as_for_a_gpu_give_the_same(spread, monkeypatch):
    both = random_logits(7, 2, n_patches=30, spread=spread)
    expected = concept_metagame(*both, directional=True)
    room = concept._Room
    monkeypatch.setattr(concept, "_Room", lambda memory, itemsize, device: room(memory, itemsize, "cuda"))
    assert_near(concept_metagame(*both, directional=True), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spread", [3.0, 20.0])
def test_cuda_agrees_with_cpu(spread):
    both = random_logits(20, 5, n_patches=300, spread=spread)
    on_cuda = concept_metagame(*(x.cuda() for x in both), directional=True)
    assert all(x.is_cuda for x in on_cuda)
    assert_near(tuple(x.cpu() for x in on_cuda), concept_metagame(*both, directional=True))


@pytest.mark.parametrize(
    ("logits", "background", "message"),
    [
        (torch.zeros(3), torch.zeros(1, 3), "logits has shape"),
        (torch.zeros(0, 3), torch.zeros(1, 3), "logits has shape"),
        (torch.zeros(2, 3), torch.zeros(3), "background has shape"),
        (torch.zeros(2, 3), torch.zeros(1, 4), "background has shape"),
        (torch.zeros(2, 3).long(), torch.zeros(1, 3), "logits has dtype"),
        (torch.zeros(2, 3), torch.zeros(1, 3).long(), "background has dtype"),
        (torch.full((2, 3), torch.nan), torch.zeros(1, 3), "logits contains NaN or inf"),
        (torch.zeros(2, 3), torch.full((1, 3), torch.inf), "background contains NaN or inf"),
        (torch.zeros(2, 3).to_sparse(), None, r"logits is a sparse tensor: give logits.to_dense\(\)"),
    ],
)
def test_bad_input_is_named(logits, background, message):
    with unchecked(), pytest.raises(UserError, match=message):
        concept_metagame(logits, background)


def value_by_orders(logits, background, target):
    """The diagonal entry of one patch: the mean, over all orders in which concepts come, of its softmax as it does."""
    orders = list(permutations(range(len(logits))))
    places = [order.index(target) for order in orders]
    present = [torch.cat([logits[list(order[: at + 1])], background]) for order, at in zip(orders, places, strict=True)]
    return sum(each.softmax(0)[at] for each, at in zip(present, places, strict=True)) / len(orders)


@pytest.mark.parametrize("spread", [30, 705, 708.3, 900, 3000])
@pytest.mark.parametrize("n_background", [0, 2])
def test_logits_of_any_spread_have_exact_values(spread, n_background):
    draw = torch.randn(5 + n_background, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits, background = draw[:5] * spread, draw[5:] * spread - spread
    diag, pairs = concept_metagame(logits, background, directional=True)
    for target, patch in np.ndindex(5, 3):
        assert_near(diag[target, patch], value_by_orders(logits[:, patch], background[:, patch], target))
    assert_near(pairs.sum(1), torch.cat([logits, background]).softmax(0)[:5])


def test_weights_that_a_float_cannot_hold_share_what_is_left():
    logits, background = torch.tensor([[0.0], [0.0], [-5000.0]]), torch.tensor([[-5000.0]])
    diag, _ = concept_metagame(logits.double(), background.double())
    assert_near(diag[:, 0], torch.tensor([0.75, 0.75, 1 / 6], dtype=torch.float64))


@pytest.mark.parametrize("n_background", [0, 1])
def test_a_masked_concept_is_a_null_player(n_background):
    logits, background = random_logits(4, n_background, n_patches=6)
    logits[1, :3] = -torch.inf
    others = [0, 2, 3]
    diag, pairs = concept_metagame(logits, background, directional=True)
    without = concept_metagame(logits[others, :3], background[:, :3], directional=True)
    assert not diag[1, :3].any()
    assert not pairs[1, :, :3].any()
    assert not pairs[:, 1, :3].any()
    assert_near((diag[others, :3], pairs[others][:, others, :3]), without)
    assert_near(diag[:, 3:], concept_metagame(logits[:, 3:], background[:, 3:])[0])


def test_where_all_concepts_are_masked_values_are_zero():
    assert not concept_metagame(torch.full((2, 3), -torch.inf), None)[0].any()


@pytest.mark.parametrize("size", [1e4, 1e30, 1e300])
def test_logits_of_any_size_rank_the_concepts(size):
    """The largest present concept takes all: t wins where it comes before its k betters, with probability 1/(k + 1)."""
    logits = torch.tensor([[3.0], [1.0], [-2.0]], dtype=torch.float64) * size
    diag, pairs = concept_metagame(logits, None, directional=True)
    assert_near(diag[:, 0], torch.tensor([1, 1 / 2, 1 / 3], dtype=torch.float64))
    assert pairs[1, 0, 0].item() == pytest.approx(-1, abs=1e-9)
    drowned, _ = concept_metagame(logits, torch.zeros(1, 1).double() + 10 * size)
    assert drowned.max() < 1e-12


def test_no_background_has_three_spellings():
    logits, _ = random_logits(3, 0)
    missing = [concept_metagame(logits, each)[0] for each in (None, logits[:0], torch.full((2, 3), -torch.inf))]
    assert torch.equal(missing[0], missing[1])
    assert torch.equal(missing[0], missing[2])
