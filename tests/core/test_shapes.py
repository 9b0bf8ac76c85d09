"""Annotations of arrays are checked as the tests run; here, that those of each module are, by a wrong shape."""

import ast
import importlib
import inspect
import pkgutil
import typing
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import sympy
import torch
from beartype.roar import BeartypeCallHintParamViolation
from PIL import Image

import metagame
from metagame import concept, conditional, contracts, games, indices, kept_values, meta, population
from metagame.attributions import (
    alti_logit,
    attention_games,
    attention_rollout,
    attnlrp,
    concept_attention,
    exclip,
    fixlip,
    fixlip_banzhaf,
    fixlip_least_squares,
    fixlip_masks,
    fixlip_moments,
    generic_attention,
    grad_eclip,
    gradients,
    leave_one_out,
    mask_clip,
    patch_ig,
    shapley,
    symbolic,
    text_side,
    ttcav,
)
from metagame.benchmarks import (
    agreement,
    both_ways,
    coco,
    concept_scores,
    digit_scenes,
    distance_matched,
    faithfulness,
    imagenet_seg,
    masks,
    pair_deletion,
    pointing_game,
    prompts,
    segmentation,
    segmentation_metrics,
    textures,
    voc,
)
from metagame.bridges import black_box, sklearn
from metagame.bridges import captum as captum_bridge
from metagame.bridges import shap as shap_bridge
from metagame.bridges import transformers as pipeline_bridge
from metagame.errors import UserError
from metagame.estimators import (
    balance,
    boosting,
    coalition_sample,
    estimate,
    gaussian_process,
    least_squares,
    problem,
    shapiq_bridge,
    stacking,
    surrogates,
)
from metagame.jobs.spec import locate
from metagame.models import (
    adder,
    attended,
    classified,
    concept_stream,
    concepts,
    decoder_views,
    encoder_views,
    flux,
    image_classifier,
    language_model,
    masked,
    open_clip,
    pretrained,
    token_states,
    transformers_encoder,
    vision_language,
)
from metagame.plan import passes
from metagame.report import addition as addition_report
from metagame.report import both_ways as both_ways_report
from metagame.report import concepts as concepts_report
from metagame.report import illustration as illustration_report
from metagame.report import jackknife, lrp_loo, maps, results, token_pairs
from metagame.report import pointing_game as pointing_game_report
from metagame.report import ttcav as ttcav_report
from metagame.viewer import pack, views
from tests.conftest import unchecked
from tests.tiny.classifiers import bound_image, bound_text
from tests.tiny.functions import smooth_model
from tests.tiny.language import bound_of, build

exact, permutation, regression, trees = (  # functions of these names hide the modules
    importlib.import_module(f"metagame.estimators.{name}") for name in ("exact", "permutation", "regression", "trees")
)
RESULT = "the return value"


def an(*shape, kind=float):
    return np.zeros(shape, kind)


def a_tensor(*shape):
    return torch.zeros(shape)


def blank(kind: type, **attributes):
    """An instance that was never initialised."""
    instance = object.__new__(kind)
    vars(instance).update(attributes)
    return instance


class Patches(vision_language.ImageText):
    """An input whose image keeps vectors of patches, and that asks for maps of texts of a wrong shape."""

    n_players = 2

    def maps(self, method, coalitions, attribute, company):
        return attribute(a_tensor(3))


def of_patches():
    company = SimpleNamespace(keep=lambda key, make: a_tensor(1, 4, 3))
    model = SimpleNamespace(encoder_view=None)
    return blank(Patches, model=model, image=SimpleNamespace(company=lambda n_blocks: company))


def of_module():
    model = smooth_model(3)
    return masked.MaskedModel(model.f, model.x, model.baseline, torch.nn.Linear(1, 1))


def a_coalition_sample(n=2):
    return coalition_sample.draw_coalition_sample(n, 1 << n, endogenous=False, seed=0)


def three_dimensional_imagenet_mask(monkeypatch):
    monkeypatch.setattr(imagenet_seg, "opened", lambda path: nullcontext({0: an(2, 2, 2)}))
    monkeypatch.setattr(imagenet_seg, "_cell", lambda *place: an(1, 1, kind=int))
    imagenet_seg.ImageNetSegImage.mask(SimpleNamespace(path=Path(), place=0, id="one", name="dog"), ["dog"])


def masks_of_other_players(monkeypatch):
    monkeypatch.setattr(fixlip_masks, "all_of_size", lambda n, size: an(1, n + 1, kind=bool))
    fixlip_masks.paired_masks(2, 4, seed=0)


def three_dimensional_voc_mask(monkeypatch):
    monkeypatch.setattr(voc, "read_labels", lambda *where: an(2, 2, kind=int))
    monkeypatch.setattr(voc, "class_indices", lambda *labels, **settings: an(2, 2, 2, kind=int))
    voc.VOCImage.mask(SimpleNamespace(mask_path=Path(), names={}), ["dog"])


def of_texts():
    """An input whose model keeps parts of texts of a wrong shape."""
    pieces = blank(vision_language.WordPlayers, labels=("one",), masked=lambda present: "one")
    model = SimpleNamespace(keep=lambda key, make: a_tensor(3))
    return blank(vision_language.ImageText, model=model, pieces=pieces)


def three_dimensional_coco_mask(monkeypatch):
    coco.InstanceImage.mask(SimpleNamespace(size=(2, 2, 2), instances=(), path=Path()), ["dog"])


def grey_processor(**given):
    return {"pixel_values": [a_tensor(1, 2, 2)]}


def a_pipeline():
    config = SimpleNamespace(label2id={"label": 0}, id2label={0: "label"})
    return SimpleNamespace(tokenizer=SimpleNamespace(mask_token="_"), model=SimpleNamespace(config=config))


def values_of_a_bridge(monkeypatch, module, bridge):
    """One coalition in place of a table of them."""
    monkeypatch.setattr(module, "black_box", lambda values, *_, **about: values(an(3, kind=bool)))
    return bridge()


CASES = {
    black_box: ("pixels", lambda _: black_box.black_box(np.sum, ["one"], pixels=an(2, 2))),
    captum_bridge: (
        "coalitions",
        lambda _: captum_bridge.of_captum(SimpleNamespace(attribute=lambda inputs: inputs), a_tensor(1, 2)).fn(
            an(3, kind=bool)
        ),
    ),
    shap_bridge: (
        "coalitions",
        lambda patch: values_of_a_bridge(patch, shap_bridge, lambda: shap_bridge.of_masker(len, len, 1, ["one"])),
    ),
    sklearn: (
        "coalitions",
        lambda patch: values_of_a_bridge(
            patch, sklearn, lambda: sklearn.of_estimator(None, [1.0], [[0.0]], predict=np.sum)
        ),
    ),
    pipeline_bridge: (
        "coalitions",
        lambda patch: values_of_a_bridge(
            patch, pipeline_bridge, lambda: pipeline_bridge._of_text(a_pipeline(), "one", "label", 1)
        ),
    ),
    agreement: ("relevance", lambda _: agreement.evidence_scores(an(2, 2), 0)),
    distance_matched: (
        RESULT,
        lambda patch: patch.setattr(np, "maximum", lambda *_: an(3)) or distance_matched.pair_scores(an(2, 2)),
    ),
    passes: (
        RESULT,
        lambda patch: (
            patch.setattr(np, "ones", lambda *_: an(2, kind=bool)) or passes.coalitions_asked(attnlrp.AttnLRP(), 2)
        ),
    ),
    kept_values: ("values", lambda _: kept_values.KeptValues(Path("x")).append(an(2, 2) > 0, an(2))),
    games: ("values", lambda _: games.AttributionGame.from_values(an(4))),
    indices: ("x", lambda _: indices._superset_sums(an(4), 1)),
    meta: ("first_order", lambda _: meta.MetaAttributions(an(2, 3), an(3))),
    conditional: ("covariance", lambda _: conditional._weights(an(3, 2), an(2), an(1, kind=int), 1.0)),
    population: ("given", lambda _: population._mean_of([an(2, 2)])),
    concept: ("background", lambda _: concept.concept_metagame(an(2, 4), an(1, 3))),
    contracts: ("attribution", lambda _: contracts.Explanation((), ("one",), attribution=an(1, 1))),
    estimate: ("empty", lambda _: estimate.Estimate(an(2, 3), an(2), an(3))),
    exact: ("values", lambda _: exact.endogenous_index(an(4))),
    permutation: ("chain", lambda _: permutation._by_player(an(1, 2, kind=int), an(1, 2, 3))),
    coalition_sample: (
        "shares",
        lambda _: coalition_sample.CoalitionSample(an(4, 2, kind=bool), an(3), an(4), paired=True),
    ),
    regression: ("values", lambda _: regression.fit(a_coalition_sample(), an(4))),
    balance: ("weights", lambda _: balance.balanced(an(4, 2, kind=bool), an(3), an(4, kind=bool), paired=False)),
    problem: (
        "values",
        lambda _: problem.Problem(
            an(1, kind=int),
            an(2, kind=int),
            an(3, kind=int),
            an(3, 2, kind=bool),
            an(3),
            *(an(1),) * 2,
            *(an(3),) * 2,
            odd=True,
        ),
    ),
    least_squares: ("residuals", lambda _: least_squares.sandwich(an(3, 2), an(2, 1), an(3))),
    boosting: ("values", lambda _: boosting.boost(an(3, 2, kind=bool), an(3), an(3, 1))),
    gaussian_process: ("gram", lambda _: gaussian_process.Process(an(3), [1.0])),
    surrogates: ("phi", lambda _: surrogates.Surrogate(an(3), an(1, 1))),
    stacking: ("left_out", lambda _: stacking.Ridge(an(3), an(1, 2))),
    shapiq_bridge: ("coalitions", lambda _: shapiq_bridge.with_bounds(an(3, kind=bool))),
    trees: (
        "values",
        lambda _: trees._boost_targets(None, a_coalition_sample(), an(4), False, 1, trees.banzhaf_leaf_weight),
    ),
    alti_logit: (
        "relevance",
        lambda _: alti_logit.LogitParts(a_tensor(1), a_tensor(1, 2), a_tensor(1, 2), a_tensor(1), a_tensor(3)),
    ),
    attention_games: ("present", lambda _: attention_games.Cls().shapley(a_tensor(2, 4, 3), a_tensor(2) > 0)),
    attention_rollout: (
        "coalitions",
        lambda _: attention_rollout.AttentionRollout().game(bound_text()).fn(an(3, kind=bool)),
    ),
    attnlrp: ("coalitions", lambda _: attnlrp.AttnLRP().game(of_module()).fn(an(3, kind=bool))),
    concept_attention: ("maps", lambda _: concept_attention._flat(an(4))),
    exclip: (RESULT, lambda _: exclip.ExCLIP().text_parts(of_texts())),
    text_side: ("embedding", lambda _: text_side.jacobian(a_tensor(3), a_tensor(1))),
    fixlip_banzhaf: ("masks", lambda _: fixlip_banzhaf.probabilities(an(2, kind=bool), 0.5)),
    patch_ig: ("parts", lambda _: patch_ig.patches(blank(vision_language.ImageText), a_tensor(3))),
    fixlip: ("masks", lambda _: fixlip.FIxLIP._image_embeddings(None, of_texts(), an(4, kind=bool), None)),
    fixlip_least_squares: (
        "weights",
        lambda _: fixlip_least_squares.Coalitions(*(an(2, 2, kind=bool),) * 2, *(an(2, kind=int),) * 2, an(3)),
    ),
    fixlip_masks: (RESULT, masks_of_other_players),
    fixlip_moments: ("matrix", lambda _: fixlip_moments._inverse(an(2, 3))),
    generic_attention: ("embeddings", lambda _: generic_attention.Trace([], a_tensor(3))),
    grad_eclip: ("weights", lambda _: grad_eclip.min_max(a_tensor(2))),
    gradients: ("coalitions", lambda _: gradients.GradientInput().game(smooth_model(3)).fn(an(3, kind=bool))),
    leave_one_out: ("coalitions", lambda _: leave_one_out.LeaveOneOut().game(smooth_model(3)).fn(an(3, kind=bool))),
    mask_clip: ("texts", lambda _: mask_clip.MaskCLIP().game(of_patches()).fn(an(1, 2, kind=bool))),
    shapley: ("values", lambda _: shapley.restricted_shapley(an(4, 1))),
    ttcav: ("attention", lambda _: ttcav.measure(an(2, 3, 4), an(2, 4), an(1, 4), an(1))),
    symbolic: (RESULT, lambda _: symbolic._vector(lambda feature: [feature] * 2, (sympy.Symbol("x1"),))),
    adder: ("embeddings", lambda _: adder.AdderNet().from_embeddings(a_tensor(1, 3, 8))),
    concept_stream: ("encodings", lambda _: concept_stream.ConceptSet(a_tensor(3))),
    concepts: ("background_logits", lambda _: concepts.ConceptLogits((), (), a_tensor(1, 2, 4), a_tensor(2, 1, 4))),
    flux: ("latents", lambda _: flux.Flux.inputs(None, a_tensor(2, 3, 4, 4), a_tensor(1, 2, 3))),
    language_model: ("inputs", lambda _: bound_of(build()).f(a_tensor(2))),
    attended: ("weights", lambda _: bound_text()._of_players(a_tensor(1, 6))),
    classified: ("coalitions", lambda _: bound_text().probabilities(an(4, kind=bool))),
    image_classifier: (
        "pixels",
        lambda _: image_classifier.ClassifiedImage(**vars(bound_image()) | {"pixels": a_tensor(3)}),
    ),
    decoder_views: ("gain", lambda _: decoder_views.Norm(torch.nn.Identity(), a_tensor(2, 3), None, 0.0, False)),
    masked: ("baseline", lambda _: masked.MaskedModel(torch.sum, a_tensor(3, 1), a_tensor(2, 1))),
    pretrained: (RESULT, lambda _: pretrained.processed(grey_processor, Image.new("RGB", (2, 2)))),
    open_clip: ("pixels", lambda _: open_clip.OpenCLIP.encode_images(None, a_tensor(1, 2, 2))),
    encoder_views: ("v", lambda _: encoder_views.attend(a_tensor(1, 1, 4), a_tensor(1, 3, 4), a_tensor(1, 2, 4), 2)),
    transformers_encoder: (
        "pixels",
        lambda _: transformers_encoder.TransformersEncoder.encode_images(None, a_tensor(1, 1, 2, 2)),
    ),
    vision_language: ("pixels", lambda _: vision_language.VisionLanguage.n_patches(None, a_tensor(1, 2, 2))),
    token_states: ("pixels", lambda _: token_states.TokenStates._forward(None, a_tensor(1, 2, 2), (1,))),
    both_ways: ("maps", lambda _: both_ways.mass(an(3))),
    coco: (RESULT, three_dimensional_coco_mask),
    concept_scores: ("brightness", lambda _: concept_scores.DrawnImage("one", an(16, 8))),
    textures: ("brightness", lambda _: textures.drawn(an(16, 8))),
    digit_scenes: ("masks", lambda _: digit_scenes.DigitScene(an(48, 48, 3), (1,), an(48, 48, kind=bool), "black")),
    faithfulness: ("values", lambda _: faithfulness.ranking(an(2, 2), ("a", "b"))),
    imagenet_seg: (RESULT, three_dimensional_imagenet_mask),
    masks: ("labels", lambda _: masks.class_indices(an(4, kind=int), {}, (), what="mask")),
    pair_deletion: ("matrix", lambda _: pair_deletion.pair_path(an(2, 3))),
    pointing_game: ("maps", lambda _: pointing_game.recognition(an(4))),
    prompts: ("matrix", lambda _: prompts.pair_ranks((), (), an(2, 3))),
    segmentation: (
        "maps",
        lambda _: segmentation.Segmentation._track_scores(None, ("dog",), an(4), an(2, 2, kind=int), ()),
    ),
    segmentation_metrics: ("own", lambda _: segmentation_metrics.single_scores(an(2, 2), an(3, 3, kind=bool), None)),
    voc: (RESULT, three_dimensional_voc_mask),
    addition_report: ("values", lambda _: addition_report.Panel(an(2), [], [])),
    concepts_report: ("values", lambda _: concepts_report._row("map", "dog", an(2))),
    illustration_report: ("single", lambda _: illustration_report.Illustrated("one", None, "", "", single=an(2, 2))),
    maps: ("values", lambda _: maps.on_grid(contracts.Explanation((), ()), an())),
    pointing_game_report: (
        "maps",
        lambda _: pointing_game_report.ShownScenes(blank(results.JobResult), [], {"one": {1: an(2, 2)}}),
    ),
    ttcav_report: ("scores", lambda _: ttcav_report.p_value(an(2, 2))),
    both_ways_report: ("values", lambda _: both_ways_report.Maps("", [], an(2, 2), "")),
    lrp_loo: ("other", lambda _: lrp_loo.pearson(an(2), an(3))),
    jackknife: ("without", lambda _: jackknife.JackknifeRatio(0.0, an(2, 2))),
    token_pairs: ("matrix", lambda _: token_pairs.Shown("", "", [], an(2, 3))),
    pack: ("mask", lambda _: pack.mask_uri(an(3))),
    views: ("attribution", lambda _: views.concept_view(contracts.Explanation((), ()), an(2, 2), (1, 1))),
}
"""For each module the argument, or field, that is given a wrong shape, and how."""


def modules() -> list[ModuleType]:
    """All modules of the package."""
    found = pkgutil.walk_packages(metagame.__path__, "metagame.")
    return [importlib.import_module(each.name) for each in found]


def is_array_type(value) -> bool:
    return inspect.isclass(value) and (
        value.__module__.startswith("jaxtyping") or issubclass(value, jaxtyping.AbstractArray)
    )


def annotations(module: ModuleType) -> list[tuple[int, str]]:
    """Line and text of each annotation of an argument, a result or a variable."""
    found = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return [(each.lineno, ast.unparse(each)) for each in found if each is not None]


def of_arrays(module: ModuleType) -> list[tuple[int, str]]:
    """Those with jaxtyping's types, or with what the module calls one of them."""
    names = {name for name, value in vars(module).items() if is_array_type(value)}
    return [
        (line, text)
        for line, text in annotations(module)
        if any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(ast.parse(text)))
    ]


def test_each_module_with_array_annotations_has_a_case():
    assert {each.__name__ for each in modules() if of_arrays(each)} == {each.__name__ for each in CASES}


@pytest.mark.parametrize("module", CASES, ids=lambda each: each.__name__)
def test_a_wrong_shape_is_noticed(module, monkeypatch):
    place, give = CASES[module]
    named = "checking the return value of" if place is RESULT else f"typechecking parameter '{place}'"
    with pytest.raises(jaxtyping.TypeCheckError, match=named) as caught:
        give(monkeypatch)
    assert f"of {module.__name__}." in str(caught.value)


def test_a_wrong_type_of_a_function_without_arrays_is_noticed():
    with pytest.raises(BeartypeCallHintParamViolation, match="3"):
        locate(3)
    with unchecked(), pytest.raises(UserError, match="cannot be imported"):
        locate(3)


@pytest.mark.parametrize("module", CASES, ids=lambda each: each.__name__)
def test_an_array_annotation_has_a_meaning_when_the_code_runs(module):
    """jaxtyping takes what it cannot evaluate for Any, and says nothing."""
    for line, text in of_arrays(module):
        holder = SimpleNamespace(__annotations__={"value": text})
        try:
            typing.get_type_hints(holder, vars(module))
        except Exception as error:
            pytest.fail(f"{module.__name__}:{line}: {text}: {error}")
