"""One call from a checkpoint, or a model, to the meta-attributions of one input."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CLIPModel,
    CLIPVisionModel,
    ElectraConfig,
    ElectraModel,
)

from metagame import UserError, explain, load_model
from metagame.attributions.attnlrp import AttnLRP
from metagame.attributions.grad_eclip import GradECLIP
from metagame.attributions.gradients import IntegratedGradients
from metagame.benchmarks.prompts import AnnotatedPrompt
from metagame.contracts import WHOLE
from metagame.jobs.spec import configs_folder, register
from metagame.models.flux import Flux
from metagame.models.masked import MaskedModel
from tests.conftest import unchecked
from tests.tiny import flux
from tests.tiny.jobs import ROOT
from tests.tiny.vision_language import Scene, prepare_one

TINY = ROOT / "data/tiny"
PROMPT, CAPTION = "the service was never rude .", "two six"
PICTURE = TINY / "images/two_six.png"


@pytest.fixture(scope="module")
def language_model():
    return load_model(TINY / "gemma3", max_new_tokens=4)


@pytest.fixture(scope="module")
def clip():
    return load_model(TINY / "clip")


@pytest.fixture(scope="module")
def painter():
    return flux.build()


@pytest.fixture(scope="module")
def function():
    return MaskedModel.of_function(lambda x: x[:, 0] * x[:, 1] + x[:, 2], [1.0, 2.0, 3.0])


def test_a_prompt_is_explained_as_by_the_adapter_and_the_method(language_model):
    phi = explain(language_model, PROMPT)
    bound = language_model.bind(AnnotatedPrompt("own", PROMPT))[WHOLE]
    expected = AttnLRP().metagame().explain(bound).meta
    assert np.allclose(phi.values, expected.values, atol=1e-6)
    assert (phi.players, phi.method, phi.output) == (expected.players, "AttnLRP", bound.answer)
    assert phi.players[3] == "never"


def test_threads_that_explain_side_by_side_get_what_each_gets_alone(language_model):
    methods = ("attnlrp", "cp_lrp", "gradient_input") * 2
    alone = {name: explain(language_model, PROMPT, method=name, budget=16).values for name in set(methods)}
    with ThreadPoolExecutor(len(methods)) as executor:
        found = executor.map(lambda name: explain(language_model, PROMPT, method=name, budget=16).values, methods)
        assert all(np.array_equal(values, alone[name]) for name, values in zip(methods, found, strict=True))


def test_a_caption_is_explained_as_by_the_adapter_and_the_method(clip):
    phi = explain(clip, CAPTION, PICTURE, estimator="exact")
    with Image.open(PICTURE) as image:
        picture = image.convert("RGB")
    for given in (picture, np.asarray(picture), str(PICTURE)):
        assert np.array_equal(explain(clip, CAPTION, given, estimator="exact").values, phi.values)
    assert (phi.players, phi.targets, phi.grid, phi.method) == (("two", "six"), ("image",), (4, 4), "Grad-ECLIP")
    assert np.array_equal(phi.picture, np.asarray(picture))
    assert phi.residual == pytest.approx(0)


@pytest.mark.parametrize(
    ("folder", "method", "name"),
    [
        ("clip", "exclip", "exCLIP"),
        ("clip", "mask_clip", "MaskCLIP"),
        ("clip", GradECLIP("native"), "GradECLIP"),
        ("siglip2_p8", None, "Grad-ESigLIP"),
    ],
)
def test_methods_are_named_with_the_settings_of_their_files_or_given_or_those_of_the_model(folder, method, name):
    phi = explain(TINY / folder, CAPTION, PICTURE, method)
    assert (phi.method, phi.players) == (name, ("two", "six"))


def test_words_are_the_targets_of_a_method_of_the_text_encoder_whose_players_are_patches(clip):
    phi = explain(clip, "two", PICTURE, "mask_clip_text", estimator="permutation", budget=40)
    assert (phi.values.shape, phi.targets, phi.grid, phi.method) == ((1, 16), ("two",), None, "MaskCLIP of words")
    assert phi.players[:2] == ("row 0, column 0", "row 0, column 1")
    assert phi.residual == pytest.approx(0)


def test_an_order_and_an_index_are_played(clip):
    phi = explain(clip, CAPTION, PICTURE, "mask_clip", order=2, index="ksv", estimator="exact")
    assert (phi.values.shape, phi.index) == ((16, 2, 2), "ksv")


def test_classifiers_are_explained_by_their_label():
    phi = explain(TINY / "bert", PROMPT, explained_label=1, method="leave_one_out")
    assert (phi.players[3], phi.endogenous, phi.output) == ("never", True, load_model(TINY / "bert").labels[1])
    net = AutoModelForSequenceClassification.from_pretrained(TINY / "bert", attn_implementation="eager")
    again = explain(net, PROMPT, explained_label=1, method="leave_one_out")
    assert np.allclose(again.values, phi.values, atol=1e-5)


@pytest.mark.parametrize("settings", [{"seed": 1}, {"budget": 40}, {"estimator": "permutation"}])
def test_a_closed_form_takes_no_settings_of_an_estimator(settings):
    reader = load_model(TINY / "bert")
    with pytest.raises(UserError, match="without playing a metagame: leave out estimator, budget"):
        explain(reader, PROMPT, method="meta_attention_game_mutual_proxy", **settings)


def test_patches_of_a_classified_image_play():
    model = load_model(TINY / "vit")
    phi = explain(model, image=PICTURE, budget=150)
    assert phi.values.shape == (phi.grid[0] * phi.grid[1],) * 2
    assert phi.output in model.labels
    with pytest.raises(UserError, match="a classifier of images is explained with image=: leave out text="):
        explain(model, "a text", PICTURE)


def test_concepts_of_a_picture_play_and_are_the_targets(painter):
    phi = explain(painter, image=PICTURE, concepts=flux.PLAYERS, background=flux.BACKGROUND)
    assert phi.players == phi.targets == flux.PLAYERS
    assert phi.values.shape == (len(flux.PLAYERS) * phi.grid[0] ** 2, len(flux.PLAYERS))
    axes = phi.plot()
    assert axes.get_title() == "ConceptAttention"
    plt.close(axes.figure)
    painted = explain(painter, "one", concepts=flux.PLAYERS)
    assert painted.picture.shape == (flux.SIDE, flux.SIDE, 3)


def test_a_pipeline_is_known_by_its_folder(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text("{}")
    made = object.__new__(Flux)
    monkeypatch.setattr(Flux, "load", lambda checkpoint, **settings: vars(made).update(settings) or made)
    assert load_model(tmp_path, text_length=8) is made
    assert (made.text_length, made.revision) == (8, None)


def test_models_of_transformers_are_explained_as_their_checkpoints(clip, language_model):
    net = AutoModelForCausalLM.from_pretrained(TINY / "gemma3")
    assert np.allclose(
        explain(net, PROMPT, method="gradient_input", max_new_tokens=4).values,
        explain(language_model, PROMPT, method="gradient_input").values,
        atol=1e-6,
    )
    net = CLIPModel.from_pretrained(TINY / "clip")
    values = explain(clip, CAPTION, PICTURE).values
    assert np.array_equal(explain(net, CAPTION, PICTURE).values, values)


def test_a_bound_input_is_explained_alone(function, clip):
    phi = explain(function, method=IntegratedGradients(steps=8))
    assert np.allclose(phi.values, IntegratedGradients(steps=8).metagame().explain(function).meta.values)
    assert explain(function).method == "LOO"
    image = prepare_one(clip, Scene("own", Image.open(PICTURE), {"": ("two", "six")}))
    assert explain(next(iter(image.values()))).players == ("two", "six")


def test_ig_with_too_few_steps_is_told_of(caplog):
    steep = MaskedModel.of_function(lambda x: torch.sigmoid(40 * (x.sum(1) - 0.3)), [1.0, 1.0])
    explain(steep, method=IntegratedGradients(400))
    assert not caplog.messages
    phi = explain(steep, method=IntegratedGradients(3))
    (told,) = caplog.messages
    assert told.startswith(f"IG with 3 steps sums to {phi.first_order.sum():.3g}, but f(x) - f(baseline) is 1:")


def test_a_program_of_hydra_may_explain(function):
    register()
    with initialize_config_dir(str(configs_folder()), version_base="1.3"):
        explain(function)
        assert compose("config").name == "adhoc"
    with initialize_config_dir(str(configs_folder()), version_base="1.3"):
        pass


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("language_model", {}, "nothing to explain: give text= to a language model, text= or image= to a"),
        ("language_model", {"text": " "}, "text=' ' must be one text .* use load_model"),
        ("language_model", {"text": PROMPT, "image": PICTURE}, "of texts is explained with text=: leave out image="),
        ("language_model", {"text": PROMPT, "method": "attnlpr"}, "'attnlpr' is unknown: choose one of .*attnlrp"),
        ("language_model", {"text": PROMPT, "method": "mask_clip"}, "does not explain a language model: choose"),
        ("language_model", {"text": PROMPT, "method": GradECLIP()}, "GradECLIP does not explain a language model"),
        ("language_model", {"text": PROMPT, "method": "random_pairs", "seed": 1}, "leave out estimator, .* seed"),
        ("language_model", {"text": PROMPT, "method": ""}, "method='' is unknown"),
        ("language_model", {"text": PROMPT, "method": ["ig"]}, r"method=\['ig'\] is unknown"),
        ("language_model", {"text": PROMPT, "method": AttnLRP}, "method is the class AttnLRP: give an instance"),
        ("language_model", {"text": PROMPT, "estimator": ""}, "estimator='' is unknown"),
        ("language_model", {"text": PROMPT, "order": 99}, "order=99 exceeds the number of players .*, 5: choose"),
        ("language_model", {"text": PROMPT, "order": "2"}, "order='2' must be a positive integer"),
        ("language_model", {"text": PROMPT, "dtype": "float32"}, "dtype would change nothing"),
        ("language_model", {"text": "not \ud800 bad"}, r"'not \\ud800 bad' contains a lone surrogate at position 4"),
        (TINY / "gemma3", {"text": PROMPT, "device": "nonsense"}, r"device='nonsense' is not available here \("),
        pytest.param(
            *(TINY / "gemma3", {"text": PROMPT, "device": "cuda"}, r"device='cuda' is not available here \("),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        ("clip", {"text": CAPTION}, "explained with text= and image=: give image="),
        ("clip", {"image": PICTURE, "concepts": ["a"]}, "give text=, and leave out concepts="),
        ("clip", {"text": CAPTION, "image": "nowhere.png"}, "image nowhere.png does not exist"),
        ("clip", {"text": CAPTION, "image": np.zeros((2, 2))}, r"array of float64 with shape \(2, 2\): give uint8"),
        ("clip", {"text": CAPTION, "image": 5}, "image is of type int: give a path"),
        ("clip", {"text": CAPTION, "image": PICTURE, "order": 3}, "order=3 exceeds the number of players .*, 2"),
        ("clip", {"text": CAPTION, "image": PICTURE, "method": "ig"}, "one of exclip, fixlip, .*, mask_clip"),
        ("clip", {"text": CAPTION, "image": PICTURE, "method": "mask_siglip"}, "for a CLIP choose .*mask_clip"),
        ("painter", {"concepts": ["one"]}, "FLUX is explained with concepts= and image=: give image="),
        ("painter", {"concepts": ["one", 2]}, "concepts has 2, which is no text"),
        ("painter", {"concepts": ["one", "\udfff"]}, "concepts=.* contains a lone surrogate at position 0"),
        ("painter", {"image": PICTURE, "concepts": "cat"}, r"concepts='cat' is one text: give a list, such as \['cat'"),
        ("painter", {"text": "one"}, "FLUX is explained with concepts= and text=: give concepts="),
        ("function", {"text": PROMPT}, "bound to its model is explained with nothing else: leave out text="),
        ("function", {"device": "cpu"}, "device would change nothing, as the input is already bound"),
        ("function", {"method": "sv", "seed": 1, "budget": 2}, "budget=2 is too small"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(model, arguments, message, request):
    with unchecked(), pytest.raises(UserError, match=message):
        explain(request.getfixturevalue(model) if isinstance(model, str) else model, **arguments)


def test_a_model_that_is_not_shipped_is_refused_in_one_sentence(tmp_path):
    electra = ElectraConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    electra.save_pretrained(tmp_path)
    for model, message in (
        (tmp_path, "architecture 'electra', .* a model of bert, .* see metagame"),
        (ElectraModel(electra), "an? ElectraModel has the architecture 'electra'"),
        (CLIPVisionModel.from_pretrained(TINY / "clip"), "a CLIPVisionModel has the architecture 'clip_vision_model'"),
        (torch.nn.Linear(1, 1), "model is of type Linear: give a folder"),
        (TINY / "adder", r"not a checkpoint of transformers .* such as metagame\.models\.adder\.Adder"),
        (TINY / "open_clip", r"such as metagame\.models\.open_clip\.OpenCLIP\.load\('local-dir:"),
        (Path("no where"), r"model\.checkpoint='no where' is neither a local folder nor a Hub name"),
        (Path("data/tiny/nothing"), r"model\.checkpoint='data/tiny/nothing' is neither a local folder nor a Hub name"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processor": 3}, "processor applies only to"),
        ({"colour": "red"}, r"settings do not fit this model \(.* argument 'colour'\): it takes .*device"),
    ],
)
def test_settings_that_do_not_fit_a_model_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        load_model(TINY / "clip", **settings)


def test_settings_that_are_given_are_those_that_count(clip):
    native, shipped = (explain(clip, CAPTION, PICTURE, method).values for method in (GradECLIP("native"), "grad_eclip"))
    assert np.abs(native - shipped).max() > 1e-3
