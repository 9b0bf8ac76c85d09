"""What all adapters and their inputs have in common."""

import inspect

import pytest
import torch

from metagame.contracts import Model, Sample
from metagame.models.adder import Adder, Sum
from metagame.models.clip import CLIP
from metagame.models.concepts import PaintedImage
from metagame.models.flux import Flux
from metagame.models.language_model import LanguageModel
from metagame.models.masked import MaskedModel
from metagame.models.open_clip import OpenCLIP
from metagame.models.polynomial import Polynomial, PolynomialModel
from metagame.models.siglip2 import SigLIP2
from tests.tiny.flux import Photo, ask
from tests.tiny.language import Asked
from tests.tiny.vision_language import refused, scene

SAMPLES = {
    Adder: [Sum.parse("3 - (-5)")],
    PolynomialModel: [Polynomial.parse("x1*x2 + x10")],
    LanguageModel: [Asked()],
    CLIP: [scene()],
    OpenCLIP: [scene()],
    SigLIP2: [scene()],
    Flux: [Photo(), PaintedImage("painting", "a cat", 0, {"all": ask()})],
}


@pytest.mark.parametrize("adapter", SAMPLES)
def test_an_adapter_takes_its_own_samples_alone_which_have_all_parts_of_the_contract(adapter):
    assert Model in adapter.__mro__
    for other, samples in SAMPLES.items():
        fitting = adapter.sample_type is other.sample_type
        assert [isinstance(sample, adapter.sample_type) for sample in samples] == [fitting] * len(samples)
    for sample in SAMPLES[adapter]:
        assert Sample in type(sample).__mro__
        assert sample.files() == ()
        assert sample.keeps_arrays() == (adapter is not PolynomialModel)
    described = {LanguageModel: ["the service and the soup"], Flux: [None, "a cat"]}.get(adapter, [None])
    assert [sample.description() for sample in SAMPLES[adapter]] == described


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        *((encoder, {"device", "batch_size"}) for encoder in (CLIP, OpenCLIP, SigLIP2)),
        (LanguageModel, {"device", "tokens_per_batch"}),
        (Flux, {"device", "offload"}),
    ],
)
def test_arguments_that_change_no_result_are_declared(adapter, expected):
    assert adapter.runtime_arguments == expected
    parameters = inspect.signature(adapter.load).parameters
    assert expected <= parameters.keys()
    assert not [each for each in parameters.values() if each.kind is inspect.Parameter.VAR_KEYWORD]


def test_features_of_a_function_have_numbers_for_names_or_those_that_are_given():
    bound = MaskedModel.of_function(lambda x: x.sum(1), torch.ones(3))
    assert bound.players == bound.targets == ("x1", "x2", "x3")
    assert (bound.grid, bound.picture, bound.context) == (None, None, ())
    x = torch.ones(2, 1)
    bound = MaskedModel(lambda inputs: inputs.sum((1, 2)), x, 0 * x, names=("a", "b"), context=("=",))
    assert bound.players == bound.targets == ("a", "b")
    with refused("names=.'a',. must have one name for each of the 2 features"):
        MaskedModel(lambda inputs: inputs.sum((1, 2)), x, 0 * x, names=("a",))
