"""What other libraries attribute, mask and predict is what ours do with the same numbers."""

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    LayerIntegratedGradients,
    NoiseTunnel,
    Saliency,
    ShapleyValues,
)
from PIL import Image
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from transformers import (
    ElectraConfig,
    ElectraForSequenceClassification,
    FillMaskPipeline,
    ImageClassificationPipeline,
    TextClassificationPipeline,
    ViTForImageClassification,
    ViTImageProcessor,
)

from metagame import GameError, UserError, explain, meta_attributions
from metagame.attributions.gradients import GradientInput
from metagame.attributions.leave_one_out import LeaveOneOut
from metagame.attributions.shapley import ShapleyValue
from metagame.bridges.black_box import black_box
from metagame.bridges.captum import of_captum, patch_mask
from metagame.bridges.shap import of_masker
from metagame.bridges.sklearn import of_estimator, of_training_set
from metagame.bridges.transformers import of_pipeline
from metagame.games import all_coalitions
from metagame.models.masked import MaskedModel
from tests.conftest import close, unchecked
from tests.reference.knn_shapley import knn_shapley
from tests.tiny import classifiers
from tests.tiny.jobs import ROOT

N = 4


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(N, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


@pytest.fixture(scope="module")
def points():
    generator = np.random.default_rng(0)
    return torch.tensor(generator.normal(size=(1, N))), torch.tensor(generator.normal(size=(1, N)))


def meta_of(method, model):
    return method.metagame().explain(model).meta.values


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(InputXGradient, GradientInput()), (FeatureAblation, LeaveOneOut()), (ShapleyValues, ShapleyValue())],
)
def test_methods_of_captum_have_the_metagame_of_ours(theirs, ours, net, points):
    x, baseline = points
    baseline = torch.zeros_like(x) if theirs is InputXGradient else baseline
    game = of_captum(theirs(net), x, baseline, target=1, players="abcd")
    phi = meta_attributions(game, endogenous=True)
    model = MaskedModel.of_function(lambda rows: net(rows)[:, 1], x[0], baseline[0])
    assert close(phi.values, meta_of(ours, model), 1e-6)  # captum adds Shapley values up in float32
    assert phi.targets == tuple("abcd")


@pytest.mark.parametrize(
    ("wrap", "settings"), [(lambda method: method, {}), (NoiseTunnel, {"nt_samples": 2, "stdevs": 0.0})]
)
def test_a_method_of_captum_even_if_wrapped_has_the_baseline_that_masks(wrap, settings, net, points):
    """IG is complete: it adds up to f_S - f(baseline) for each coalition."""
    x, baseline = points
    game = of_captum(wrap(IntegratedGradients(net)), x, baseline, target=0, n_steps=64, **settings)
    masked = torch.where(torch.tensor(all_coalitions(N)), x, baseline)
    gained = (net(masked) - net(baseline))[:, 0].detach().numpy()
    assert close(game(all_coalitions(N)).sum(1), gained, 1e-8)


@pytest.mark.parametrize("method", [FeatureAblation, ShapleyValues, InputXGradient])
def test_elements_may_share_a_player(method, net, points):
    x, _ = points
    mask = torch.tensor([[0, 0, 1, 1]])
    found = of_captum(method(net), x, feature_mask=mask, target=0)(all_coalitions(2))[-1]
    if method is InputXGradient:
        whole = InputXGradient(net).attribute(x, target=0)[0].detach()
        assert close(found, [whole[:2].sum(), whole[2:].sum()])
    else:
        pairs = MaskedModel(lambda rows: net(rows.flatten(1))[:, 0], x.reshape(2, 2), torch.zeros(2, 2).double())
        ours = LeaveOneOut() if method is FeatureAblation else ShapleyValue()
        assert close(found, ours.explain(pairs).attribution, 1e-6)


def test_several_inputs_are_masked_together(net, points):
    x, baseline = points

    def split(first, second):
        return net(torch.cat([first, second], 1))

    halves = (x[:, :1], x[:, 1:]), (baseline[:, :1], baseline[:, 1:])
    found = meta_attributions(of_captum(FeatureAblation(split), *halves, target=0), endogenous=True)
    whole = meta_attributions(of_captum(FeatureAblation(net), x, baseline, target=0), endogenous=True)
    assert close(found.values, whole.values)


def test_a_map_of_a_layer_is_attributed_by_patches():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(1, 2, 4, stride=4).double()
    cnn = torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 2).double())
    x = torch.rand(1, 1, 8, 8).double()
    mask = patch_mask(x, (2, 2))
    assert mask[0, 0, ::4, ::4].tolist() == [[0, 1], [2, 3]]
    settings = {"feature_mask": mask, "reduce": lambda maps: maps.flatten(1), "targets": ["image"], "grid": (2, 2)}
    phi = meta_attributions(of_captum(LayerGradCam(cnn, layer), x, target=1, **settings), endogenous=False)
    assert phi.grid == (2, 2)
    assert close(phi.first_order, LayerGradCam(cnn, layer).attribute(x, target=1).detach().flatten())
    with pytest.raises(GameError, match=r"LayerGradCam returned shapes \(1, 1, 2, 2\), not those .*: give reduce="):
        of_captum(LayerGradCam(cnn, layer), x, feature_mask=mask, target=1).grand()


def test_token_ids_are_masked_before_their_embeddings_are_attributed():
    torch.manual_seed(0)
    embed = torch.nn.Embedding(9, 3)
    model = torch.nn.Sequential(embed, torch.nn.Flatten(), torch.nn.Tanh(), torch.nn.Linear(12, 2)).double()
    ids = torch.tensor([[3, 5, 7, 2]])
    method = LayerIntegratedGradients(model, embed)
    game = of_captum(method, ids, 1, target=0, reduce=lambda found: found.sum(-1), players="abcd")
    phi = meta_attributions(game, endogenous=True)
    assert close(phi.residual, 0, 1e-6)
    assert close(phi.first_order, method.attribute(ids, baselines=torch.ones_like(ids), target=0).sum(-1)[0].detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": np.zeros((1, N))}, r"inputs has a ndarray: give a tensor \(1, ...\)"),
        ({"inputs": torch.tensor(1.0)}, r"inputs has shape \(\): give a batch of one"),
        ({"inputs": torch.zeros(2, N)}, r"inputs has shape \(2, 4\): give a batch of one"),
        ({"baselines": torch.zeros(3)}, "baselines does not fit the inputs"),
        ({"feature_mask": torch.tensor([[0, 2, 2, 2]])}, r"feature_mask has the numbers \[0, 2\]: number the players"),
        ({"feature_mask": torch.tensor([[0, 0.5, 1, 1]])}, r"feature_mask has the numbers \[0.0, 0.5, 1.0\]"),
        (
            {"inputs": torch.zeros(1, N, dtype=int), "baselines": 0.5},
            r"fractions, but the inputs are of type torch\.int",
        ),
        ({"players": ["a"]}, "players has 1 names for 4 players"),
    ],
)
def test_inputs_of_captum_that_do_not_fit_are_refused(arguments, message, net):
    with unchecked(), pytest.raises(GameError, match=message):
        of_captum(Saliency(net), **({"inputs": torch.zeros(1, N).double()} | arguments))


class Masker:
    """In the manner of shap: absent features come from the rows of a background."""

    def __init__(self, background):
        self.background = background
        self.shape = background.shape

    def __call__(self, mask, x):
        return (np.where(mask, x, self.background),)


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(60, N))
    return rows, (rows[:, 0] * rows[:, 1] + rows[:, 2] > 0).astype(int)


@pytest.fixture(scope="module")
def forest(table):
    return RandomForestClassifier(5, random_state=0).fit(*table)


def test_maskers_and_estimators_impute_as_a_background_does(table, forest):
    rows, _ = table

    def predict(data):
        return forest.predict_proba(data)[:, 1]

    model = MaskedModel.of_function(lambda inputs: torch.tensor(predict(inputs.numpy())), rows[0], rows[1:8])
    estimated = of_estimator(forest, rows[0], rows[1:8], output=1, names="abcd")
    masked = of_masker(predict, Masker(rows[1:8]), rows[0])
    of_unknown_size = of_masker(predict, Masker(rows[1:8]).__call__, rows[0], "abcd")
    for bridged in (estimated, masked, of_unknown_size):
        assert close(meta_of(LeaveOneOut(), bridged), meta_of(LeaveOneOut(), model))
    assert estimated.players == of_unknown_size.players == tuple("abcd")
    assert masked.players == ("x1", "x2", "x3", "x4")
    assert explain(estimated, method="sv").output == "1"


def test_maskers_of_shap_itself():
    shap = pytest.importorskip("shap")
    x, background = np.arange(1.0, 4.0), np.zeros((2, 3))
    model = of_masker(lambda rows: rows[:, 0] * rows[:, 1] + rows[:, 2], shap.maskers.Independent(background), x)
    assert close(meta_of(ShapleyValue(), model), [[0, 1, 0], [1, 0, 0], [0, 0, 3]])
    text = of_masker(
        lambda texts: np.array([len(each.replace("...", "").split()) for each in texts], float),
        shap.maskers.Text(r"\W+"),
        "not bad",
    )
    assert close(ShapleyValue().explain(text).attribution, [1, 1])


def test_a_frame_with_columns_of_any_type_is_imputed():
    frame = pd.DataFrame({"color": ["red", "blue", "red", "blue"], "size": [1.0, 2.0, 3.0, 4.0]})
    encoder = make_column_transformer((OneHotEncoder(), ["color"]), remainder="passthrough")
    fitted = make_pipeline(encoder, LinearRegression()).fit(frame, [1.0, 4.0, 3.0, 6.0])
    model = of_estimator(fitted, frame.iloc[0], frame.iloc[1:])
    whole = fitted.predict(frame)
    assert model.players == ("color", "size")
    assert close(model.values(all_coalitions(2)[[3, 0]]), [whole[0], whole[1:].mean()])


def test_of_a_classifier_the_predicted_class_is_explained(table):
    rows, classes = table
    fitted = LogisticRegression().fit(rows, np.array(["no", "yes"])[classes])
    model = of_estimator(fitted, rows[0], rows)
    assert model.answer == fitted.predict(rows[:1])[0]
    assert close(model.values(np.ones((1, N), bool)), fitted.predict_proba(rows[:1]).max())
    machine = SVC().fit(rows, classes)
    by_function = of_estimator(machine, rows[0], rows[:3], predict=machine.decision_function)
    assert close(by_function.values(np.ones((1, N), bool)), machine.decision_function(rows[:1]))


FRAME = pd.DataFrame({"size": [1, 2], "color": pd.Categorical(["red", "blue"])})


@pytest.mark.parametrize(
    ("x", "background", "settings", "message"),
    [
        ([0.5, 1.0], np.array([[1, 2]]), {}, "x has 0.5, which the type of background would turn into 0"),
        ([np.nan, 1.0], np.array([[1, 2]]), {}, "x does not have the types of background"),
        (["long", "b"], np.array([["a", "b"]]), {}, "x has 'long', which the type of background would turn into 'l'"),
        ([0.5, "red"], FRAME, {}, "x has 0.5, which"),
        ([1, "green"], FRAME, {}, "x has 'green', which the type of background would turn into nan"),
        (FRAME.iloc[0][["color", "size"]], FRAME, {}, r"columns \['color', 'size'\], but background has \['size'"),
        ([1, 2, 3], np.array([[1, 2]]), {}, r"x has 3 features, but background has shape \(1, 2\)"),
        ([1, 2], np.array([[1, 2]]), {"names": ["both"]}, "names has 1 names for 2 features"),
        ([1, 2], np.array([[1, 2]]), {"output": 1}, "output=1 would change nothing beside predict="),
    ],
)
def test_rows_that_the_background_would_change_are_refused(x, background, settings, message):
    with pytest.raises(UserError, match=message):
        of_estimator(LinearRegression(), x, background, predict=len, **settings)


def test_rows_may_have_missing_values_and_less_precision():
    values = of_estimator(LinearRegression(), [0.1, np.nan], np.ones((1, 2), "f4"), predict=lambda rows: rows[:, 0])
    assert close(values.values(np.ones((1, 2), bool)), [np.float32(0.1)])


TEXT = "the service was never rude"


@pytest.fixture(scope="module")
def reader():
    adapter = classifiers.text_classifier()
    size = {"vocab_size": len(adapter.tokenizer), "hidden_size": 8, "embedding_size": 8, "intermediate_size": 8}
    torch.manual_seed(0)
    config = ElectraConfig(num_hidden_layers=1, num_attention_heads=2, num_labels=3, **size)
    model = ElectraForSequenceClassification(config).eval()
    return TextClassificationPipeline(model=model, tokenizer=adapter.tokenizer, device="cpu")


def test_words_of_a_pipeline_are_masked(reader):
    model = of_pipeline(reader, TEXT, "LABEL_2")
    found = model.values(np.array([[True] * 5, [True, False, True, True, False]]))
    mask = reader.tokenizer.mask_token
    for value, text in zip(found, (TEXT, f"the {mask} was never {mask}"), strict=True):
        with torch.no_grad():
            expected = reader.model(**reader.tokenizer(text, return_tensors="pt")).logits[0, 2]
        assert close(value, expected, 1e-5)
    phi = explain(of_pipeline(reader, TEXT))
    assert (phi.players, phi.endogenous) == (tuple(TEXT.split()), True)
    assert phi.output == reader(TEXT)[0]["label"]


def test_patches_of_a_pipeline_are_blanked():
    net = ViTForImageClassification.from_pretrained(ROOT / "data/tiny/vit").eval()
    processor = ViTImageProcessor.from_pretrained(ROOT / "data/tiny/vit")
    seer = ImageClassificationPipeline(model=net, image_processor=processor, device="cpu")
    with Image.open(ROOT / "data/tiny/images/two_six.png") as file:
        image = file.convert("RGB")
    model = of_pipeline(seer, image, grid=(2, 2))
    phi = explain(model, method="sv")
    assert (phi.grid, phi.values.shape) == ((2, 2), (4, 4))
    assert np.array_equal(phi.picture, np.asarray(image))
    pixels = np.array(image)
    pixels[: len(pixels) // 2, : pixels.shape[1] // 2] = np.asarray(image).mean((0, 1)).round()
    with torch.no_grad():
        logits = net(**processor(Image.fromarray(pixels), return_tensors="pt")).logits[0]
    assert close(model.values(np.array([[False, True, True, True]])), logits[net.config.label2id[phi.output]], 1e-4)
    with pytest.raises(UserError, match=r"grid=\(999, 1\) does not fit"):
        of_pipeline(seer, image, grid=(999, 1))
    with pytest.raises(UserError, match=r"16 features, too many .*: choose method leave_one_out"):
        explain(of_pipeline(seer, ROOT / "data/tiny/images/two_six.png"), method="sv")
    with pytest.raises(UserError, match="image nowhere does not exist"):
        of_pipeline(seer, "nowhere")
    with unchecked(), pytest.raises(UserError, match="content is of type int: give a path or a PIL image"):
        of_pipeline(seer, 5)


@pytest.mark.parametrize("new", [SVC(), LinearRegression(), make_pipeline(StandardScaler(), LinearRegression())])
def test_an_estimator_that_is_not_fitted_is_refused(new, table):
    with pytest.raises(UserError, match="is not fitted: call its fit method first"):
        of_estimator(new, table[0][0], table[0])


@pytest.mark.parametrize(
    ("estimator", "learned", "output", "message"),
    [
        (RandomForestClassifier(2), "classes", 7, "output=7 is not a class of RandomForestClassifier"),
        (RandomForestClassifier(2), "signs", None, "RandomForestClassifier predicts several labels: give predict="),
        (SVC(), "classes", None, "SVC has no predict_proba"),
        (LinearRegression(), "rows", 4, "output=4 is not an output of .*: choose one from 0 to 3"),
        (LinearRegression(), "classes", 0, "output=0 is not an output of .*: leave it out"),
        (LinearRegression(), "rows", None, r"returned shape \(\d+, 4\) for \d+ rows: choose one output="),
    ],
)
def test_outputs_that_an_estimator_does_not_have_are_refused(estimator, learned, output, message, table):
    rows, classes = table
    estimator.fit(rows, {"classes": classes, "signs": rows > 0, "rows": rows}[learned])
    with pytest.raises(UserError, match=message):
        explain(of_estimator(estimator, rows[0], rows, output=output))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: black_box(len, []), "names is empty"),
        (lambda: meta_of(GradientInput(), black_box(lambda c: c.sum(1), "ab")), "has no gradients: choose .* sv"),
        (lambda: explain(black_box(lambda c: c, "ab")), r"returned shape \(\d, 2\) for \d coalitions"),
        (lambda: patch_mask(torch.zeros(1, 1, 8, 8), (9, 1)), r"grid=\(9, 1\) does not fit 8 x 8 pixels"),
        (lambda: of_masker(len, lambda mask, x: x, np.ones(N)), "does not say how many players .*: give names"),
        (lambda: of_masker(len, Masker(np.ones((2, N))), np.ones(N), ["all"]), "names has 1 names for 4 players"),
        (
            lambda: explain(of_masker(np.array, Masker(np.ones((9, N))), np.ones(N))),
            r"shape \(9, 4\): return one number",
        ),
        (lambda: of_pipeline(object.__new__(FillMaskPipeline), TEXT), "FillMaskPipeline is not supported"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(make, message):
    with unchecked(), pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((TEXT, "LABEL_9"), "'LABEL_9' is unknown to this pipeline: choose one of"),
        ((" ",), "content=' ' must be a text"),
    ],
)
def test_texts_that_a_pipeline_does_not_fit_are_refused(given, message, reader):
    with pytest.raises(UserError, match=message):
        of_pipeline(reader, *given)


POINTS = np.random.default_rng(0)
X, X_TEST = POINTS.normal(size=(9, 2)), POINTS.normal(size=(6, 2))
Y, Y_TEST = POINTS.integers(3, size=9), POINTS.integers(3, size=6)


class Neighbours(ClassifierMixin, BaseEstimator):
    """Of the k nearest points, or all where there are fewer, the share of k that has the right class."""

    def __init__(self, k=3):
        self.k = k

    def fit(self, x, y):
        self.x_, self.y_ = x, y
        return self

    def utilities(self, x, y):
        distances = np.linalg.norm(self.x_ - x[:, None], axis=-1)
        nearest = np.argsort(distances, axis=1)[:, : self.k]
        return (self.y_[nearest] == y[:, None]).sum(1) / self.k


def coefficients(fitted):
    return [*fitted.coef_, fitted.intercept_]


@pytest.mark.parametrize("k", [1, 3, 9])
def test_data_values_of_nearest_neighbours_are_those_of_the_closed_form(k):
    """Jia et al., 2019, Theorem 1."""
    game = of_training_set(Neighbours(k), X, Y, lambda fitted: fitted.utilities(X_TEST, Y_TEST), np.zeros(6))
    phi = meta_attributions(game, endogenous=False)
    assert close(phi.values, [knn_shapley(X, Y, x, y, k) for x, y in zip(X_TEST, Y_TEST, strict=True)])
    assert phi.players == tuple(map(str, range(9)))


def test_the_values_of_points_add_up_to_what_training_changes():
    frame = pd.DataFrame(X[:6], columns=["a", "b"], index=[f"row {n}" for n in range(6)])
    y = X[:6] @ [1.0, 2.0] + 3
    game = of_training_set(LinearRegression(), frame, y, coefficients, [0, 0, 0], targets=["a", "b", "intercept"])
    phi = meta_attributions(game, endogenous=False)
    assert close(phi.values.sum(1), [1, 2, 3])
    assert (phi.players[0], phi.targets) == ("row 0", ("a", "b", "intercept"))


def test_a_classifier_of_one_class_is_untrained_where_it_cannot_be_fitted():
    game = of_training_set(LogisticRegression(), X[:3], [0, 0, 1], lambda fitted: fitted.score(X, Y), 0.25)
    several = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    assert close(game(several)[:2], 0.25)
    assert game(several)[2] == LogisticRegression().fit(X[:3], [0, 0, 1]).score(X, Y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, Y[:3], [0, 0, 0]), "y has shape .3,. for 9 points"),
        ((X, Y, 0.0), "attribute= gives 3 targets, but untrained= has 1"),
        ((csr_array(X), Y, [0, 0, 0]), r"x is a sparse matrix: give x.toarray\(\)"),
        ((X * np.nan, Y, [0, 0, 0]), "LinearRegression cannot be fitted to . points .Input X contains NaN"),
    ],
)
def test_training_sets_that_do_not_fit_are_refused(given, message):
    x, y, untrained = given
    with pytest.raises(UserError, match=message):
        meta_attributions(of_training_set(LinearRegression(), x, y, coefficients, untrained), endogenous=False)
