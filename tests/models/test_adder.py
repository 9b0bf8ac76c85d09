import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metagame.attributions.gradients import IntegratedHessians
from metagame.contracts import WHOLE, Failure
from metagame.errors import UserError
from metagame.models.adder import UNKNOWN, VOCABULARY, Adder, AdderNet, Sum, encode
from scripts.train_adder import HELD_OUT_PER_A, NUMBERS, build_splits, train
from tests.tiny.jobs import ROOT

CHECKPOINT = ROOT / "data/tiny/adder"
LARGEST_TEST_MSE, LARGEST_EMPTY_OUTPUT = 0.05, 0.1


@pytest.fixture(scope="module")
def adder():
    return Adder(CHECKPOINT)


@torch.no_grad()
def mean_squared_error(net, split):
    return float((net(split.tokens) - split.targets).square().mean())


@torch.no_grad()
def empty_output(net):
    return float(net(encode([UNKNOWN] * 3)[None]))


def test_checkpoint_meets_the_bounds_and_its_card_tells_its_errors(adder):
    card = json.loads((CHECKPOINT / "card.json").read_text())
    _, validation, test = build_splits(card["seed"])
    found = {
        "parameters": sum(parameter.numel() for parameter in adder.net.parameters()),
        "test_mse": mean_squared_error(adder.net, test),
        "validation_mse": mean_squared_error(adder.net, validation),
        "output_when_all_is_masked": empty_output(adder.net),
    }
    assert found["parameters"] == 760
    assert found["test_mse"] < LARGEST_TEST_MSE
    assert abs(found["output_when_all_is_masked"]) < LARGEST_EMPTY_OUTPUT
    # The card is rounded to five digits and computed in float32.
    assert {name: card[name] for name in found} == pytest.approx(found, abs=2e-5)


def test_training_lowers_the_loss_is_reproducible_and_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    (one, card), (same, _) = (train(seed=5, epochs=4) for _ in range(2))
    assert card["training_loss"][-1] < 0.8 * card["training_loss"][0]
    assert all(map(torch.equal, one.state_dict().values(), same.state_dict().values()))
    assert torch.equal(torch.random.get_rng_state(), before)


def pairs(split):
    """(a, operator, b) of every sum with nothing masked."""
    sums = [[VOCABULARY[token] for token in row] for row in split.tokens.tolist()]
    return [(int(a), op, int(b)) for a, op, b, _ in sums if UNKNOWN not in (a, op, b)]


@pytest.mark.parametrize("seed", [0, 7])
def test_two_b_are_held_out_for_each_a_under_both_operators_and_all_other_sums_are_seen(seed):
    training, validation, test = build_splits(seed)
    held_out, seen = pairs(test), pairs(training) + pairs(validation)
    for op in "+-":
        partners = {a: {b for first, sign, b in held_out if (first, sign) == (a, op)} for a in NUMBERS}
        assert all(len(found) == HELD_OUT_PER_A == 2 for found in partners.values())
    assert len(held_out) == len(set(held_out)) == len(test.targets) == 2 * 2 * len(NUMBERS)
    assert not set(seen) & set(held_out)
    assert len(set(seen)) == len(seen) == 2 * len(NUMBERS) ** 2 - len(held_out)
    assert len(validation.targets) == round(0.1 * (len(training.targets) + len(validation.targets)))


def test_targets_are_the_sums_or_their_means_over_what_is_masked_everywhere_in_a_twentieth_of_the_set():
    splits = build_splits(0)
    for split in splits:
        for row, target in zip(split.tokens.tolist(), split.targets.tolist(), strict=True):
            a, op, b, equals = (VOCABULARY[token] for token in row)
            known_a, known_b = (0 if number == UNKNOWN else int(number) for number in (a, b))
            assert equals == "="
            assert target == known_a + {"+": 1, "-": -1, UNKNOWN: 0}[op] * known_b
    tokens = torch.cat([split.tokens for split in splits[:2]])
    share = (tokens == encode([UNKNOWN] * 3)).all(1).double().mean()
    assert float(share) == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize("example", ["3 - (-5)", "4 + (-4)", "-6 + 8"])
def test_example_is_added_and_its_integrated_hessians_are_symmetric_up_to_the_quadrature(adder, example):
    bound = adder.bind(Sum.parse(example))[WHOLE]
    assert float(bound.values(torch.ones(1, 3, dtype=torch.bool))) == pytest.approx(Sum.parse(example).value, abs=1)
    matrix = IntegratedHessians(12).explain(bound).meta.values
    assert np.abs(matrix - matrix.T).max() < 0.02 * np.abs(matrix).max()


def test_players_are_the_tokens_before_the_equals_sign_which_are_unknown_where_they_are_absent(adder):
    bound = adder.bind(Sum.parse("3 - (-5)"))[WHOLE]
    assert bound.players == bound.targets == ("3", "-", "-5")
    assert bound.context == ("=",)
    absent_b = float(bound.values(torch.tensor([[True, True, False]])))
    assert absent_b == pytest.approx(float(adder.net(encode(["3", "-", UNKNOWN])[None])), abs=1e-12)


def test_sums_are_prepared_together_and_what_keeps_one_from_it_is_its_own(adder):
    good, bad, other = adder.prepare([Sum.parse("1 + 2"), Sum("20 + 1", 20, "+", 1), Sum.parse("3 - (-5)")])
    assert isinstance(bad, Failure)
    assert isinstance(bad.error, KeyError)
    assert (good[WHOLE].players, other[WHOLE].players) == (("1", "+", "2"), ("3", "-", "-5"))


@pytest.mark.parametrize(
    ("text", "tokens", "value"),
    [
        ("3 - (-5)", ("3", "-", "-5"), 8),
        ("-6+8", ("-6", "+", "8"), 2),
        (" 4 + ( -4 ) ", ("4", "+", "-4"), 0),
        ("2--1", ("2", "-", "-1"), 3),
    ],
)
def test_sum_is_read(text, tokens, value):
    assert Sum.parse(text).tokens == tokens
    assert Sum.parse(text).value == value


@pytest.mark.parametrize("text", ["", "3", "3 * 4", "10 + 1", "1 - 12", "1 + 2 + 3", "1.5 + 2"])
def test_text_that_is_no_sum_is_refused(text):
    with pytest.raises(UserError, match=r"example .* is not a sum that the adder knows"):
        Sum.parse(text)


def test_checkpoint_that_is_no_adder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.checkpoint=.* contains no model\.safetensors.*train_adder"):
        Adder(tmp_path)
    missing = {"head.weight": torch.zeros(1, 8)}
    of_other_shape = AdderNet().state_dict() | {"embedding.weight": torch.zeros(5, 8)}
    for weights in (missing, of_other_shape):
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"model\.checkpoint=.* is not an adder"):
            Adder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"model\.checkpoint=.* is not an adder"):
        Adder(tmp_path)
