import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
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


SOME_BACKGROUND = st.integers(0, 3)


@st.composite
def logits(draw, n, n_background=SOME_BACKGROUND):
    spread, seed = draw(st.floats(0, 20)), draw(st.integers(0, 999))
    return random_logits(draw(n), draw(n_background), spread=spread, seed=seed)


def largest_difference(left, right):
    return float((left - right).abs().max())


@given(both=logits(st.integers(1, 6)))
def test_both_outputs_match_their_definition(both):
    diag, directional = concept_metagame(*both, directional=True)
    expected_diag, expected_directional = by_definition(*both)
    assert largest_difference(diag, expected_diag) <= TOLERANCE
    assert largest_difference(directional, expected_directional) <= TOLERANCE


@settings(max_examples=12)
@given(both=logits(st.integers(7, 14)))
def test_diagonal_matches_enumeration(both):
    assert largest_difference(concept_metagame(*both)[0], two_products(*both)) <= TOLERANCE


@pytest.mark.parametrize("procedure", [paper_procedure, two_products])
@given(both=logits(st.integers(1, 6)))
def test_slow_procedures_agree_with_the_definition(procedure, both):
    assert largest_difference(procedure(*both), by_definition(*both)[0]) <= 1e-12


@pytest.mark.parametrize("n_background", [0, 2])
def test_one_concept_has_its_softmax(n_background):
    logits, background = random_logits(1, n_background)
    diag, directional = concept_metagame(logits, background, directional=True)
    softmax = torch.cat([logits, background]).softmax(0)[:1]
    assert largest_difference(diag, softmax) <= TOLERANCE
    assert largest_difference(directional[0], softmax) <= TOLERANCE


def test_equal_logits_give_equal_values():
    n = 8
    diag, directional = concept_metagame(torch.zeros(n, 2).double(), torch.zeros(1, 2).double(), directional=True)
    # nu_t of a coalition of k concepts is 1/(1 + k), every k comes with probability 1/n.
    assert largest_difference(diag, torch.full_like(diag, sum(1 / (1 + k) for k in range(1, n + 1)) / n)) <= TOLERANCE
    off_diagonal = directional[~torch.eye(n, dtype=torch.bool)]
    assert largest_difference(off_diagonal, torch.full_like(off_diagonal, (1 / (n + 1) - 1 / 2) / (n - 1))) <= TOLERANCE


@pytest.mark.parametrize("lead", [20.0, 40.0, 80.0])
@pytest.mark.parametrize("n_background", [0, 1])
def test_concept_that_drowns_all_others(lead, n_background):
    logits, background = random_logits(6, n_background)
    logits[2] += lead
    diag, directional = concept_metagame(logits, background, directional=True)
    expected_diag, expected_directional = by_definition(logits, background)
    assert largest_difference(diag, expected_diag) <= TOLERANCE
    assert largest_difference(directional, expected_directional) <= TOLERANCE


def test_background_that_drowns_all_concepts():
    logits, background = random_logits(6, 2)
    background += 200
    diag, directional = concept_metagame(logits, background, directional=True)
    assert float(diag.max()) <= TOLERANCE
    assert float(directional.abs().max()) <= TOLERANCE


@given(both=logits(st.integers(1, 12), n_background=st.just(0)))
def test_without_background_the_game_is_the_limit_of_a_vanishing_one(both):
    logits, background = both
    faint = torch.full((1, logits.shape[1]), -60.0, dtype=torch.float64)
    without, with_faint = (concept_metagame(logits, rest, directional=True) for rest in (background, faint))
    assert largest_difference(without[0], with_faint[0]) <= TOLERANCE
    assert largest_difference(without[1], with_faint[1]) <= TOLERANCE


def test_patch_of_extreme_spread_leaves_the_others_accurate():
    logits, background = random_logits(10, 2, n_patches=40)
    logits[:, 17] *= 15
    assert largest_difference(concept_metagame(logits, background)[0], two_products(logits, background)) <= TOLERANCE


@given(both=logits(st.integers(1, 12)))
def test_rows_of_directional_sum_to_the_softmax(both):
    logits, background = both
    _, directional = concept_metagame(logits, background, directional=True)
    assert largest_difference(directional.sum(1), torch.cat(both).softmax(0)[: len(logits)]) <= 12 * TOLERANCE


@given(both=logits(st.integers(1, 12)))
def test_values_have_the_documented_signs_and_ranges(both):
    diag, directional = concept_metagame(*both, directional=True)
    own = directional.diagonal().T
    others = directional - torch.diag_embed(directional.diagonal()).permute(1, 2, 0)
    assert float(diag.min()) >= -TOLERANCE
    assert float(diag.max()) <= 1 + TOLERANCE
    assert float(others.max()) <= TOLERANCE
    assert float(own.min()) >= 0
    assert float(own.max()) <= 1 + TOLERANCE


@given(both=logits(st.integers(1, 8)), shift=st.floats(-300, 300))
def test_adding_a_constant_to_all_logits_of_a_patch_changes_nothing(both, shift):
    moved = concept_metagame(*(x + shift for x in both))[0]
    # Adding rounds the logits to 300 * 2^-52.
    assert largest_difference(moved, concept_metagame(*both)[0]) <= TOLERANCE


@given(both=logits(st.integers(2, 8)), seed=st.integers(0, 9))
def test_permuting_concepts_permutes_both_outputs(both, seed):
    order = torch.randperm(len(both[0]), generator=torch.Generator().manual_seed(seed))
    diag, directional = concept_metagame(*both, directional=True)
    permuted_diag, permuted = concept_metagame(both[0][order], both[1], directional=True)
    assert largest_difference(permuted_diag, diag[order]) <= TOLERANCE
    assert largest_difference(permuted, directional[order][:, order]) <= TOLERANCE


def test_directional_is_none_unless_asked_for():
    both = random_logits(4, 1)
    diag, directional = concept_metagame(*both)
    assert directional is None
    assert torch.equal(diag, concept_metagame(*both, directional=True)[0])


def test_numpy_in_numpy_out():
    both = random_logits(5, 2)
    from_numpy = concept_metagame(*(x.numpy() for x in both), directional=True)
    from_torch = concept_metagame(*both, directional=True)
    assert all(isinstance(x, np.ndarray) for x in from_numpy)
    assert all(np.array_equal(x, y.numpy()) for x, y in zip(from_numpy, from_torch, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_logits_are_played_in_float64(dtype):
    both = [x.to(dtype) for x in random_logits(6, 2)]
    diag, directional = concept_metagame(*both, directional=True)
    expected_diag, expected_directional = by_definition(*(x.double() for x in both))
    assert diag.dtype == directional.dtype == torch.float64
    assert largest_difference(diag, expected_diag) <= TOLERANCE
    assert largest_difference(directional, expected_directional) <= TOLERANCE


def test_float32_numpy_is_played_in_float64():
    logits, background = (x.numpy().astype(np.float32) for x in random_logits(6, 2))
    diag, _ = concept_metagame(logits, background)
    expected = by_definition(torch.tensor(logits).double(), torch.tensor(background).double())[0]
    assert diag.dtype == np.float64
    assert np.abs(diag - expected.numpy()).max() <= TOLERANCE


def test_float32_arithmetic_on_demand():
    both = random_logits(10, 2)
    diag, directional = concept_metagame(*both, directional=True, dtype=torch.float32)
    exact = concept_metagame(*both, directional=True)
    assert diag.dtype == torch.float32
    assert largest_difference(diag.double(), exact[0]) <= 1e-5
    assert largest_difference(directional.double(), exact[1]) <= 1e-5


def test_inference_mode_of_the_caller_changes_nothing():
    expected = concept_metagame(*random_logits(5, 2), directional=True)
    with torch.inference_mode():
        found = concept_metagame(*random_logits(5, 2), directional=True)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_byte_order_changes_nothing_and_sparse_tensors_are_refused():
    logits, background = (x.numpy() for x in random_logits(5, 2))
    swapped = logits.astype(logits.dtype.newbyteorder())
    assert np.array_equal(concept_metagame(swapped, background)[0], concept_metagame(logits, background)[0])
    with pytest.raises(UserError, match=r"logits is a sparse tensor: give logits.to_dense\(\)"):
        concept_metagame(torch.from_numpy(logits).to_sparse())


def test_inputs_are_left_alone():
    both = random_logits(4, 1)
    before = [x.clone() for x in both]
    concept_metagame(*both, directional=True)
    assert all(torch.equal(x, y) for x, y in zip(both, before, strict=True))


def test_patches_are_independent_of_how_many_there_are():
    both = random_logits(20, 5, n_patches=500)
    together = concept_metagame(*both)[0]
    alone = concept_metagame(*(x[:, 250:251] for x in both))[0]
    assert largest_difference(together[:, 250:251], alone) <= TOLERANCE


@pytest.mark.parametrize(("n", "spread"), [(5, 3.0), (39, 3.0), (50, 12.0), (300, 3.0)])
def test_hundreds_of_concepts_match_both_integrals(n, spread):
    logits, background = random_logits(n, 3, n_patches=2, spread=spread)
    diag, directional = concept_metagame(logits, background, directional=True)
    expected_diag, expected_directional = by_integrals(logits, background)
    assert largest_difference(diag, expected_diag) <= TOLERANCE
    assert largest_difference(directional, expected_directional) <= TOLERANCE


@given(both=logits(st.integers(1, 6)))
def test_integrals_agree_with_the_definition(both):
    for found, expected in zip(by_integrals(*both), by_definition(*both), strict=True):
        assert largest_difference(found, expected) <= 1e-12


@pytest.mark.parametrize("n", [1, 2, 36, 37, 38, 50, 300, 1000])
def test_the_rule_on_the_unit_interval_integrates_every_power(n):
    nodes, masses = _unit_interval_rule(n)
    errors = [abs(masses @ nodes**power - 1 / (power + 1)) for power in range(n)]
    assert max(errors) <= 1e-10
    assert len(nodes) <= (n + 1) // 2
    assert masses.min() > 0


@pytest.mark.parametrize("directional", [False, True])
def test_memory_bounds_what_is_computed_at_once_and_changes_no_value(directional, monkeypatch):
    both, sizes = random_logits(12, 2, n_patches=100), []
    expected = concept_metagame(*both, directional=directional)
    play = concept._play
    monkeypatch.setattr(concept, "_play", lambda *arguments: sizes.append(arguments[0].shape[1]) or play(*arguments))
    found = concept_metagame(*both, directional=directional, memory=200_000)
    assert 1 <= max(sizes) < 20
    assert sum(sizes) == 100
    assert largest_difference(found[0], expected[0]) <= 1e-14
    assert not directional or largest_difference(found[1], expected[1]) <= 1e-14
    with pytest.raises(UserError, match=r"memory=1000 is too small: a patch needs \d+ bytes on 1 threads\."):
        concept_metagame(*both, directional=directional, memory=1000)


def test_thirty_concepts_need_no_enumeration():
    logits, background = random_logits(30, 5, n_patches=4)
    diag, directional = concept_metagame(logits, background, directional=True)
    softmax = torch.cat([logits, background]).softmax(0)[:30]
    assert largest_difference(directional.sum(1), softmax) <= 30 * TOLERANCE
    # The diagonal plays all players: t meets k others with probability 1/n for each k, at least its softmax.
    assert (diag >= softmax - TOLERANCE).all()


@pytest.mark.parametrize("ratio", [1.0, 1.5, 50.0, 1e6, float(np.exp(40))])
def test_exponential_sum_keeps_its_bound_on_its_whole_range(ratio):
    rates, coefficients = exponential_sum(ratio)
    worst = 0.0
    for a in np.array_split(np.exp(np.linspace(0, np.log(ratio), 50_001)), 50):
        worst = max(worst, np.abs(a * (np.exp(-np.outer(a, rates)) @ coefficients) - 1).max())
    assert worst <= 1e-10


@pytest.mark.parametrize("spread", [0.1, 5.0, 20.0])
def test_chunks_as_for_a_gpu_give_the_same(spread, monkeypatch):
    both = random_logits(7, 2, n_patches=30, spread=spread)
    expected = concept_metagame(*both, directional=True)
    room = concept._Room
    monkeypatch.setattr(concept, "_Room", lambda memory, itemsize, device: room(memory, itemsize, "cuda"))
    found = concept_metagame(*both, directional=True)
    assert all(largest_difference(x, y) <= TOLERANCE for x, y in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spread", [3.0, 20.0])
def test_cuda_agrees_with_cpu(spread):
    both = random_logits(20, 5, n_patches=300, spread=spread)
    on_cpu = concept_metagame(*both, directional=True)
    on_cuda = concept_metagame(*(x.cuda() for x in both), directional=True)
    assert all(x.is_cuda for x in on_cuda)
    assert all(largest_difference(x.cpu(), y) <= TOLERANCE for x, y in zip(on_cuda, on_cpu, strict=True))


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
    ],
)
def test_bad_input_is_named(logits, background, message):
    with unchecked(), pytest.raises(UserError, match=message):
        concept_metagame(logits, background)


def value_by_logarithms(logits, background, target):
    """The diagonal entry of one patch from the definition, each softmax shifted by its own largest logit."""
    others, total = [k for k in range(len(logits)) if k != target], 0.0
    for size in range(len(logits)):
        for coalition in combinations(others, size):
            present = [*(logits[k] for k in (*coalition, target)), *background]
            weights = [math.exp(each - max(present)) for each in present]
            total += weights[size] / sum(weights) / (len(logits) * math.comb(len(logits) - 1, size))
    return total


@pytest.mark.parametrize("spread", [30, 300, 705, 708.3, 900, 3000])
@pytest.mark.parametrize("n_background", [0, 2])
def test_logits_of_any_spread_have_exact_values(spread, n_background):
    draw = torch.randn(5 + n_background, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits, background = draw[:5] * spread, draw[5:] * spread - spread
    diag, pairs = concept_metagame(logits, background, directional=True)
    for patch in range(3):
        for target in range(5):
            expected = value_by_logarithms(logits[:, patch].tolist(), background[:, patch].tolist(), target)
            assert diag[target, patch].item() == pytest.approx(expected, abs=1e-9)
    shares = torch.cat([logits, background]).softmax(0)[:5]
    torch.testing.assert_close(pairs.sum(1), shares, rtol=0, atol=1e-9)


def test_weights_that_a_float_cannot_hold_share_what_is_left():
    logits, background = torch.tensor([[0.0], [0.0], [-5000.0]]), torch.tensor([[-5000.0]])
    diag, _ = concept_metagame(logits.double(), background.double())
    torch.testing.assert_close(diag[:, 0], torch.tensor([0.75, 0.75, 1 / 6], dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_background", [0, 1])
def test_a_masked_concept_is_a_null_player(n_background):
    draw = torch.randn(4 + n_background, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits, background = draw[:4], draw[4:]
    logits[1, :3] = -torch.inf
    diag, pairs = concept_metagame(logits, background, directional=True)
    others = [0, 2, 3]
    diag_without, pairs_without = concept_metagame(logits[others], background, directional=True)
    assert not diag[1, :3].any()
    assert not pairs[1, :, :3].any()
    assert not pairs[:, 1, :3].any()
    torch.testing.assert_close(diag[others, :3], diag_without[:, :3], rtol=0, atol=1e-9)
    torch.testing.assert_close(pairs[others][:, others, :3], pairs_without[..., :3], rtol=0, atol=1e-9)
    torch.testing.assert_close(diag[:, 3:], concept_metagame(logits[:, 3:], background[:, 3:])[0], rtol=0, atol=1e-9)
    assert not concept_metagame(torch.full((2, 3), -torch.inf), None)[0].any()


def test_no_background_has_three_spellings():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    missing = [concept_metagame(logits, each)[0] for each in (None, logits[:0], torch.full((2, 5), -torch.inf))]
    assert torch.equal(missing[0], missing[1])
    assert torch.equal(missing[0], missing[2])


@pytest.mark.parametrize("size", [1e4, 1e30, 1e300])
def test_logits_of_any_size_rank_the_concepts(size):
    """The largest present concept takes all: t wins where it comes before its k betters, with probability 1/(k + 1)."""
    logits = torch.tensor([[3.0], [1.0], [-2.0]], dtype=torch.float64) * size
    diag, pairs = concept_metagame(logits, None, directional=True)
    torch.testing.assert_close(diag[:, 0], torch.tensor([1, 1 / 2, 1 / 3], dtype=torch.float64), rtol=0, atol=1e-9)
    assert pairs[1, 0, 0].item() == pytest.approx(-1, abs=1e-9)
    drowned, _ = concept_metagame(logits, torch.zeros(1, 1).double() + 10 * size)
    assert drowned.max() < 1e-12


@pytest.mark.parametrize(
    "given",
    [lambda x: x[:, ::-1], lambda x: x[:, ::-1].astype(np.longdouble), lambda x: x[:, ::-1].tolist()],
    ids=["reversed", "longdouble", "list"],
)
def test_arrays_of_any_layout_are_taken(given):
    logits = np.random.default_rng(0).normal(size=(3, 4))
    with unchecked():
        found, _ = concept_metagame(given(logits), given(logits[:1]))
    assert np.allclose(found, concept_metagame(logits, logits[:1])[0][:, ::-1], rtol=0, atol=1e-12)
