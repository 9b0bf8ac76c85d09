import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metagame.attributions.attnlrp import AttnLRP
from metagame.attributions.gradients import IntegratedGradients, IntegratedHessians
from metagame.attributions.shapley import ShapleyInteractions, ShapleyValue
from metagame.contracts import WHOLE
from metagame.errors import UserError
from metagame.models.adder import UNKNOWN, VOCABULARY, Adder, AdderNet, Sum, encode
from scripts.train_adder import HELD_OUT_PER_A, NUMBERS, build_splits, train

CHECKPOINT = Path(__file__).parents[2] / "data/tiny/adder"
EXAMPLES = ["3 - (-5)", "7 - (-5)", "4 + (-4)", "-6 + 8"]
LARGEST_TEST_MSE, LARGEST_EMPTY_OUTPUT = 0.05, 0.1
each_example = pytest.mark.parametrize("example", EXAMPLES)


@pytest.fixture(scope="module")
def adder():
    return Adder(CHECKPOINT)


@torch.no_grad()
def mean_squared_error(net, split):
    return float((net(split.tokens) - split.targets).square().mean())


@torch.no_grad()
def empty_output(net):
    return float(net(encode([UNKNOWN] * 3)[None]))


def test_the_adder_has_760_parameters():
    assert sum(parameter.numel() for parameter in AdderNet().parameters()) == 760


def test_checkpoint_adds_held_out_sums(adder):
    seed = json.loads((CHECKPOINT / "card.json").read_text())["seed"]
    _, _, test = build_splits(seed)
    assert mean_squared_error(adder.net, test) < LARGEST_TEST_MSE


def test_checkpoint_gives_nothing_when_all_is_masked(adder):
    assert abs(empty_output(adder.net)) < LARGEST_EMPTY_OUTPUT


def test_card_tells_the_errors_of_the_checkpoint(adder):
    card = json.loads((CHECKPOINT / "card.json").read_text())
    _, validation, test = build_splits(card["seed"])
    # The card is rounded to five digits and computed in float32.
    assert card["parameters"] == 760
    assert card["test_mse"] == pytest.approx(mean_squared_error(adder.net, test), abs=2e-5)
    assert card["validation_mse"] == pytest.approx(mean_squared_error(adder.net, validation), abs=2e-5)
    assert card["output_when_all_is_masked"] == pytest.approx(empty_output(adder.net), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_training_from_scratch_meets_the_same_bounds(seed):
    net, card = train(seed, epochs=300)
    _, _, test = build_splits(seed)
    assert mean_squared_error(net, test) < LARGEST_TEST_MSE
    assert abs(empty_output(net)) < LARGEST_EMPTY_OUTPUT
    assert card["test_mse"] < LARGEST_TEST_MSE


def test_few_epochs_lower_the_loss():
    _, card = train(seed=3, epochs=4)
    assert card["training_loss"][-1] < 0.8 * card["training_loss"][0]


def test_training_is_reproducible_and_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    weights = [train(seed=5, epochs=1)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert torch.equal(torch.random.get_rng_state(), before)


def pairs(split):
    """(a, operator, b) of every sum with nothing masked."""
    sums = [[VOCABULARY[token] for token in row] for row in split.tokens.tolist()]
    return [(int(a), op, int(b)) for a, op, b, _ in sums if UNKNOWN not in (a, op, b)]


@pytest.mark.parametrize("seed", [0, 7])
def test_two_b_are_held_out_for_each_a_under_both_operators(seed):
    _, _, test = build_splits(seed)
    held_out = pairs(test)
    for op in "+-":
        partners = {a: {b for first, sign, b in held_out if (first, sign) == (a, op)} for a in NUMBERS}
        assert all(len(found) == HELD_OUT_PER_A == 2 for found in partners.values())
    assert len(held_out) == len(set(held_out)) == len(test.targets) == 2 * 2 * len(NUMBERS)


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_do_not_overlap_and_cover_all_sums(seed):
    training, validation, test = build_splits(seed)
    seen = pairs(training) + pairs(validation)
    assert not set(seen) & set(pairs(test))
    assert len(set(seen)) == len(seen)
    assert len(seen) + len(test.targets) == 2 * len(NUMBERS) ** 2
    assert len(validation.targets) == round(0.1 * (len(training.targets) + len(validation.targets)))


def test_targets_are_the_sums_or_their_means_over_what_is_masked():
    for split in build_splits(0):
        for row, target in zip(split.tokens.tolist(), split.targets.tolist(), strict=True):
            a, op, b, equals = (VOCABULARY[token] for token in row)
            known_a, known_b = (0 if number == UNKNOWN else int(number) for number in (a, b))
            assert equals == "="
            assert target == known_a + {"+": 1, "-": -1, UNKNOWN: 0}[op] * known_b


def test_masked_everywhere_is_a_twentieth_of_the_set():
    training, validation, _ = build_splits(0)
    tokens = torch.cat([training.tokens, validation.tokens])
    share = (tokens == encode([UNKNOWN] * 3)).all(1).double().mean()
    assert float(share) == pytest.approx(0.05, abs=0.001)


@each_example
def test_example_is_added(adder, example):
    bound = adder.bind(Sum.parse(example))[WHOLE]
    assert float(bound.values(torch.ones(1, 3, dtype=torch.bool))) == pytest.approx(Sum.parse(example).value, abs=1)


def test_masked_player_is_the_unknown_token(adder):
    bound = adder.bind(Sum.parse("3 - (-5)"))[WHOLE]
    absent_b = float(bound.values(torch.tensor([[True, True, False]])))
    assert absent_b == pytest.approx(float(adder.net(encode(["3", "-", UNKNOWN])[None])), abs=1e-12)


def test_players_are_the_tokens_before_the_equals_sign(adder):
    bound = adder.bind(Sum.parse("3 - (-5)"))[WHOLE]
    assert bound.players == bound.targets == ("3", "-", "-5")
    assert bound.context == ("=",)
    assert (bound.grid, bound.picture) == (None, None)


def test_sums_are_prepared_together(adder):
    samples = [Sum.parse(text) for text in ("1 + 2", "3 - (-5)")]
    assert [each[WHOLE].players for each in adder.prepare(samples)] == [("1", "+", "2"), ("3", "-", "-5")]
    assert all(isinstance(each, Adder.sample_type) for each in samples)


@each_example
@pytest.mark.parametrize("method", [ShapleyValue(), IntegratedGradients(16), AttnLRP()], ids=lambda m: type(m).__name__)
def test_rows_of_the_metagame_sum_to_the_first_order(adder, example, method):
    bound = adder.bind(Sum.parse(example))[WHOLE]
    found = method.metagame().explain(bound)
    first = method.explain(bound).attribution
    assert np.allclose(found.meta.values.sum(1), first, rtol=0, atol=1e-10)
    assert np.array_equal(found.attribution, first)


@each_example
def test_stii_is_both_directions_of_the_shapley_metagame(adder, example):
    bound = adder.bind(Sum.parse(example))[WHOLE]
    methods = (ShapleyValue().metagame(), ShapleyInteractions("stii"))
    meta, stii = (method.explain(bound).meta.values for method in methods)
    both = meta + meta.T - np.diag(np.diag(meta))
    assert np.allclose(stii, both, rtol=0, atol=1e-10)


@each_example
def test_integrated_hessians_are_symmetric_up_to_the_quadrature(adder, example):
    matrix = IntegratedHessians(12).explain(adder.bind(Sum.parse(example))[WHOLE]).meta.values
    assert np.abs(matrix - matrix.T).max() < 0.02 * np.abs(matrix).max()


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


@pytest.mark.parametrize("text", ["", "3", "3 * 4", "10 + 1", "1 - 12", "a + b", "1 + 2 + 3", "1.5 + 2"])
def test_text_that_is_no_sum_is_refused(text):
    with pytest.raises(UserError, match=r"example .* is no sum of the adder"):
        Sum.parse(text)


def test_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.checkpoint=.* holds no model\.safetensors.*train_adder"):
        Adder(tmp_path)


@pytest.mark.parametrize(
    "weights",
    [{"head.weight": torch.zeros(1, 8)}, {**AdderNet().state_dict(), "embedding.weight": torch.zeros(5, 8)}],
    ids=["missing weights", "other shape"],
)
def test_checkpoint_of_another_architecture_is_refused(tmp_path, weights):
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.checkpoint=.* is no adder"):
        Adder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_corrupt_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.checkpoint="):
        Adder(tmp_path)
