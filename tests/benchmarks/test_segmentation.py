from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5TokenizerFast

from metagame.attributions.concept_attention import ConceptAttention
from metagame.benchmarks.masks import OTHER, UNLABELLED
from metagame.benchmarks.segmentation import ABLATIONS, LEFT_OUT, Cell, Segmentation, one_token_names
from metagame.contracts import Explanation
from metagame.jobs.build import Job
from metagame.jobs.records import RecordStore, unpack
from metagame.jobs.run import run_job
from metagame.jobs.spec import job_folder
from metagame.models.concepts import ConceptSample
from tests.conftest import close
from tests.reference import segmentation as twin
from tests.tiny.segmentation import (
    BACKGROUND,
    CAR,
    CAT,
    COW,
    DOG,
    NAMES,
    SCENES,
    STRANGE,
    Knowing,
    Labelled,
    Memory,
    blank,
    pieces_tokenizer,
    refused,
    scene,
    segmentation_config,
    words_tokenizer,
    write_imagenet_seg,
    write_instances,
    write_panoptic,
    write_voc,
)

ONE, TWO, THREE = Labelled("a", scene(CAR)), Labelled("b", scene(DOG, COW)), Labelled("c", scene(CAT, CAR, DOG))
LIGHT, ZEBRA = (len(NAMES) + place for place in range(len(STRANGE)))


def benchmark(*labelled, names=(*NAMES, *STRANGE), **arguments):
    arguments = {"players": ["n6"], "side": 8} | arguments
    return Segmentation(Memory(labelled, names), words_tokenizer(), BACKGROUND, **arguments)


def asked(labelled, **arguments):
    """The questions about an image."""
    return benchmark(labelled, **arguments).samples()[0].questions()


def test_cells_are_all_combinations_and_named_by_players_and_ablation():
    found = benchmark(players=["n0", "d4"], ablations=["baseline", "prompt"]).cells
    assert found == [Cell("n0", "baseline"), Cell("n0", "prompt"), Cell("d4", "baseline"), Cell("d4", "prompt")]
    assert [cell.name for cell in found] == ["n0", "n0 prompt", "d4", "d4 prompt"]


def test_a_sample_is_what_models_of_concepts_take():
    (sample,) = benchmark(THREE).samples()
    assert isinstance(sample, ConceptSample)
    assert sample.id == "c"
    assert sample.image().size == (40, 24)
    assert np.array_equal(sample.truth(), THREE.labels)


def test_the_question_has_the_images_classes_first_in_the_vocabularys_order_and_the_background():
    (question,) = asked(THREE).values()
    assert question.players[:3] == ("car", "cat", "dog")
    assert question.background == BACKGROUND
    assert (question.n_layers, question.prompt, question.cross_attention) == (10, "", True)


@pytest.mark.parametrize(
    ("size", "n_players"), [("n0", 2), ("n2", 2), ("n3", 3), ("n12", 12), ("d0", 2), ("d1", 3), ("d10", 12)]
)
def test_players_are_padded_to_exactly_the_number(size, n_players):
    (question,) = asked(TWO, players=[size]).values()
    assert len(question.players) == len(set(question.players)) == n_players
    assert question.players[:2] == ("cow", "dog")
    assert set(question.players) <= set(NAMES)


def test_distractors_are_classes_that_are_absent():
    (question,) = asked(THREE, players=["n12"]).values()
    assert sorted(question.players[3:]) == sorted(set(NAMES) - {"car", "cat", "dog"})


MANY_SIZES = benchmark(players=["n0", "n5", "n9", "n12", "d1", "d4", "d8"])


@given(image_id=st.text(max_size=12), places=st.sets(st.integers(0, 11), min_size=1, max_size=4))
def test_the_background_is_never_a_player_and_distractors_are_nested(image_id, places):
    questions = MANY_SIZES.questions(Labelled(image_id, scene(*sorted(places))))
    assert not any(set(question.players) & set(BACKGROUND) for question in questions.values())
    by_length = sorted((question.players for question in questions.values()), key=len)
    assert all(less == more[: len(less)] for less, more in pairwise(by_length))


def test_distractors_depend_on_the_images_id_alone():
    images = [Labelled(name, scene(CAR)) for name in ("x", "y", "z")]
    some = {each.id: each.questions() for each in benchmark(*images, players=["n12"]).samples()}
    others = [Labelled("w", scene(CAT)), *reversed(images)]
    again = {each.id: each.questions() for each in benchmark(*others, players=["n12"]).samples()}
    assert all(again[name] == some[name] for name in some)
    assert len({some[name]["n12"].players for name in some}) == 3


def test_distractors_stay_the_same_in_later_versions():
    """Records of one version are resumed by another."""
    (question,) = asked(Labelled("000000000139", scene(CAR)), players=["d4"]).values()
    assert question.players == ("car", "bus", "cow", "cat", "boat")


def test_an_image_of_more_classes_than_players_is_left_out_of_that_cell_only():
    arguments = {"players": ["n0", "n2", "n3", "d10"], "ablations": ["baseline", "prompt"]}
    found = benchmark(ONE, THREE, **arguments)
    assert list(found.samples()[0].questions()) == [cell.name for cell in found.cells]
    assert list(found.samples()[1].questions()) == ["n0", "n0 prompt", "n3", "n3 prompt"]


@pytest.mark.parametrize(
    ("size", "left_out"), [("n2", True), ("n3", False), ("n0", False), ("d9", False), ("d10", True)]
)
def test_cells_that_leave_an_image_out_are_in_its_scores(size, left_out):
    found = benchmark(THREE, players=[size])
    scores = scored(found)
    assert scores[LEFT_OUT] == ([size] if left_out else [])
    assert (size in scores) == (not left_out)


@pytest.mark.parametrize(
    ("ablation", "changes"),
    [
        ("baseline", {}),
        ("decoupled", {"cross_attention": False}),
        ("last_layers", {"n_layers": 3}),
        ("prompt", {"prompt": "a car,a cat,a dog"}),
    ],
)
def test_an_ablation_changes_one_thing_about_the_question(ablation, changes):
    arguments = {"n_layers": 7, "fewer_layers": 3}
    (base,) = asked(THREE, **arguments).values()
    (question,) = asked(THREE, ablations=[ablation], **arguments).values()
    assert base.n_layers == 7
    assert question == replace(base, **changes)


def test_every_ablation_of_figure_13_is_there():
    assert list(ABLATIONS) == ["baseline", "decoupled", "last_layers", "prompt"]


def test_the_prompt_of_one_class_names_it_alone():
    assert asked(ONE, ablations=["prompt"])["n6 prompt"].prompt == "a car"


def test_classes_that_are_not_one_known_token_are_left_out_and_that_is_said(caplog):
    with caplog.at_level("INFO"):
        assert benchmark().vocabulary == NAMES
    (record,) = caplog.records
    text = "2 of 14 classes are not one T5 token: traffic light (traffic, light); zebra (<unk>)."
    assert (record.levelname, record.getMessage()) == ("INFO", text)


def test_pieces_of_words_count_as_tokens(caplog):
    names = ["car", "sofa", "dog", "é", "zebra"]
    with caplog.at_level("INFO"):
        assert one_token_names(names, pieces_tokenizer()) == ("car", "dog")
    assert "3 of 5 classes are not one T5 token: sofa (▁so, fa); é (▁, <unk>);" in caplog.text


def test_nothing_is_said_where_all_names_are_one_token(caplog):
    with caplog.at_level("INFO"):
        assert one_token_names(NAMES, words_tokenizer()) == NAMES
    assert caplog.records == []


@pytest.mark.parametrize("names", [STRANGE, ()])
def test_a_dataset_without_a_class_of_one_token_is_refused(names):
    with refused("no class name is one token of the T5 tokenizer: give benchmark.tokenizer that of the model"):
        benchmark(names=names)


def test_images_without_a_class_of_the_vocabulary_are_no_samples():
    images = [Labelled(str(place), scene(place)) for place in (LIGHT, CAR, ZEBRA, OTHER, UNLABELLED)]
    assert [sample.id for sample in benchmark(*images).samples()] == [str(CAR)]


def test_classes_outside_the_vocabulary_are_no_players_and_their_pixels_of_no_class():
    labelled = Labelled("x", scene(CAR, LIGHT, ZEBRA))
    (sample,) = benchmark(labelled, players=["n0"]).samples()
    assert sample.questions()["n0"].players == ("car",)
    assert np.array_equal(sample.truth(), np.where(np.isin(labelled.labels, (LIGHT, ZEBRA)), OTHER, labelled.labels))


@pytest.mark.parametrize("size", ["n", "x3", "n99", "n13", "d12", "20", "n-1", "n2.5", "N20", "", " n20", 20, None])
def test_sizes_that_are_none_are_refused(size):
    with refused("benchmark.players="):
        benchmark(players=["n0", size])


def test_more_players_than_classes_are_refused_with_how_many_there_are():
    with refused("benchmark.players='n13': there are only 12 classes of one T5 token"):
        benchmark(players=["n13"])


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("players", [], "such as n20"),
        ("ablations", [], "baseline, decoupled, last_layers, prompt"),
        ("ablations", ["baseline", "none"], "baseline, decoupled, last_layers, prompt"),
        ("tracks", [], "single, multi"),
        ("tracks", ["both"], "single, multi"),
        ("channels", "all", "present, players"),
        ("channels", "", "present, players"),
        ("channels", None, "present, players"),
    ],
)
def test_arguments_that_are_none_of_the_choices_are_refused(name, value, choices):
    with refused(rf"benchmark\.{name}.*{choices}"):
        benchmark(**{name: value})


def test_the_numbers_that_are_expected_are_not_talked_about(caplog):
    benchmark(ONE, TWO, expected={"images": 2, "single": 1}).samples()
    benchmark(ONE, TWO, expected=None).samples()
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ({"images": 1449, "single": 1}, "benchmark data: 3 images here, 1449 expected (benchmark.expected)."),
        ({"single": 927}, "benchmark data: 1 images with one class here, 927 expected (benchmark.expected)."),
    ],
)
def test_other_numbers_than_expected_are_told(caplog, expected, text):
    benchmark(ONE, TWO, THREE, expected=expected).samples()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [text]


def test_files_are_those_of_the_image_and_for_all_images_those_of_dataset_and_tokenizer(tmp_path):
    class Stored(Labelled):
        def files(self):
            return [tmp_path / "x.jpg", tmp_path / "x.png"]

    class Named(Memory):
        def files(self):
            return [tmp_path / "names.json"]

    words_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = T5TokenizerFast.from_pretrained(tmp_path / "tokenizer")
    found = Segmentation(Named([Stored("x", scene(CAR))]), tokenizer, BACKGROUND, ["n0"])
    (sample,) = found.samples()
    assert list(sample.files()) == [tmp_path / "x.jpg", tmp_path / "x.png"]
    assert set(found.files()) == {tmp_path / "names.json", *(tmp_path / "tokenizer").iterdir()}
    assert len(list(found.files())) > 2


def test_an_image_and_a_tokenizer_in_memory_have_no_files():
    found = benchmark(ONE)
    assert list(found.files()) == list(found.samples()[0].files()) == []


def test_images_whose_mask_cannot_be_read_stay_and_say_so_when_they_are_asked():
    broken = replace(ONE, id="broken", broken=True)
    samples = benchmark(ONE, broken, expected={"images": 2, "single": 1}).samples()
    assert [sample.id for sample in samples] == ["a", "broken"]
    with refused("mask broken cannot be decoded"):
        samples[1].questions()


def test_a_mask_of_another_size_than_its_image_is_told():
    class Turned(Labelled):
        def image(self):
            return super().image().transpose(2)

    (sample,) = benchmark(Turned("x", scene(CAR))).samples()
    with refused("the mask of x has 40 x 24 pixels, its image 24 x 40: get both again"):
        sample.image()


def random_maps(players, side, seed=0):
    """Maps of so many players, then of the background."""
    return np.random.default_rng(seed).random((players + len(BACKGROUND), side, side))


def scored(found, maps=None):
    """The scores of the only image by given maps, random ones of their own in each cell by default."""
    (sample,) = found.samples()
    questions = sample.questions()
    inputs = {cell: blank(each) for cell, each in questions.items()}
    explanations = {
        cell: explained(bound, random_maps(len(bound.players), 4, seed) if maps is None else maps)
        for seed, (cell, bound) in enumerate(inputs.items())
    }
    return found.score(sample, inputs, explanations)


def explained(bound, maps):
    return Explanation(bound.players, bound.targets, maps.shape[1:], attribution=maps.reshape(-1))


@pytest.mark.parametrize("grid", [1, 4, 8, 16])
@pytest.mark.parametrize("labelled", [ONE, TWO, THREE])
def test_scores_are_the_twins_on_maps_and_masks_of_the_same_side(labelled, grid):
    found = benchmark(labelled, players=["n5"])
    maps = random_maps(5, grid, seed=grid)
    scores = scored(found, maps)["n5"]
    present = found.present(labelled)
    truth = twin.resized(labelled.labels, 8)
    enlarged = [twin.resized(each.astype(np.float32), 8) for each in maps]
    heat = {NAMES.index(name): each for name, each in zip(present, enlarged, strict=False)}
    background = enlarged[5:]
    multi = twin.multi(heat, background, truth)
    assert {name: scores["multi"][name] for name in ("correct", "pixels", "intersection", "union")} == {
        name: multi[name] for name in ("correct", "pixels", "intersection", "union")
    }
    assert close(list(scores["multi"]["ap"].values()), list(multi["ap"].values()), 1e-6)
    assert ("single" in scores) == (len(present) == 1)
    if "single" in scores:
        single = twin.single(heat[CAR], truth == CAR, truth != UNLABELLED)
        assert close(scores["single"].pop("ap"), single.pop("ap"), 1e-6)
        assert scores["single"] == single


@pytest.mark.parametrize("tracks", [["single"], ["multi"], ["single", "multi"], ["multi", "single"]])
def test_only_the_tracks_asked_for_are_scored(tracks):
    scores = scored(benchmark(ONE, tracks=tracks))
    assert set(scores["n6"]) == set(tracks)
    assert set(scored(benchmark(TWO, tracks=tracks))["n6"]) == set(tracks) - {"single"}


def test_a_class_outside_the_vocabulary_beside_one_of_it_leaves_an_image_single():
    labelled = Labelled("x", scene(CAR, LIGHT))
    assert "single" in scored(benchmark(labelled))["n6"]


def constant_maps(*values, background=(0.5, 0.1), side=4):
    return np.broadcast_to(np.array([*values, *background])[:, None, None], (len(values) + 2, side, side))


@pytest.mark.parametrize(("channels", "right"), [("present", True), ("players", False)])
def test_distractors_compete_only_where_all_players_do(channels, right):
    found = benchmark(ONE, players=["n3"], channels=channels)
    multi = scored(found, constant_maps(0.6, 0.9, 0.7))["n3"]["multi"]
    winner = asked(ONE, players=["n3"])["n3"].players[0 if right else 1]
    assert multi["pixels"] > 0
    assert multi["correct"] == multi["pixels"] * right
    assert [NAMES[int(each)] for each, count in multi["union"].items() if count == 56] == [winner]


def test_the_background_competes_with_the_classes():
    found = benchmark(ONE, players=["n3"])
    assert scored(found, constant_maps(0.4, 0.9, 0.7))["n3"]["multi"]["correct"] == 0
    assert scored(found, constant_maps(0.5, 0.9, 0.7))["n3"]["multi"]["correct"] > 0


def test_every_cell_has_scores_of_its_own():
    scores = scored(benchmark(TWO, players=["n0", "n4"], ablations=["baseline", "decoupled"]))
    assert list(scores) == ["n0", "n0 decoupled", "n4", "n4 decoupled", LEFT_OUT]
    assert scores["n4"] != scores["n4 decoupled"]


def test_an_image_whose_class_vanishes_when_it_is_resized_is_scored():
    labels = scene(OTHER, rim=False)
    labels[0, 0] = CAR
    scores = scored(benchmark(Labelled("x", labels)))["n6"]
    assert (scores["single"]["pixels"], scores["single"]["intersection"][1]) == (64, 0)
    assert scores["single"]["union"] == [64, 64 - scores["single"]["correct"]]
    assert (scores["multi"]["pixels"], scores["multi"]["ap"]) == (0, {})


def test_an_image_whose_labelled_pixels_vanish_counts_nothing():
    labels = np.full((24, 40), UNLABELLED)
    labels[0, 0] = CAR
    scores = scored(benchmark(Labelled("x", labels)))["n6"]
    assert "single" not in scores
    assert scores["multi"]["pixels"] == 0


def test_errors_of_the_metagame_do_not_rank_pixels():
    rng = np.random.default_rng(0)
    exact = constant_maps(*[1.0] * 6, background=[0.0, 0.0])
    computed = exact.copy()
    computed[:6] -= rng.uniform(0, 1e-9, (6, 4, 4))
    assert scored(benchmark(ONE), exact) == scored(benchmark(ONE), computed)


def test_maps_need_not_be_squares():
    maps = random_maps(6, 4)
    wide = np.repeat(maps, 2, axis=2)
    assert wide.shape == (8, 4, 8)
    assert scored(benchmark(ONE), wide) == scored(benchmark(ONE), maps)


@pytest.mark.parametrize("changes", [{"attribution": None}, {"grid": None, "attribution": np.zeros(8)}], ids=" ".join)
def test_a_method_without_maps_is_refused(changes):
    found = benchmark(ONE)
    (sample,) = found.samples()
    (question,) = sample.questions().values()
    bound = blank(question)
    whole = explained(bound, random_maps(6, 4))
    with refused("segmentation needs a map of each concept: choose attribution=concept_attention"):
        found.score(sample, {"n6": bound}, {"n6": replace(whole, **changes)})


@pytest.mark.parametrize(("n_maps", "kept"), [(0, []), (2, ["a", "c"]), (9, ["a", "c", "b"])])
def test_maps_are_kept_of_the_first_images_only(n_maps, kept):
    nothing = Labelled("nothing", scene(LIGHT))
    samples = benchmark(ONE, nothing, THREE, TWO, n_maps=n_maps).samples()
    assert [sample.id for sample in samples if sample.keeps_arrays()] == kept


def evaluated(found, change=lambda inputs: inputs):
    """What a job makes of the only image by ConceptAttention."""
    job = Job(Knowing(), {"": ConceptAttention()}, found)
    (sample,) = found.samples()
    (inputs,) = job.prepare([sample])
    return job.evaluate("", sample, change(inputs), lambda *_: None)


def test_an_image_that_all_cells_leave_out_has_a_record_that_says_so():
    evaluation = evaluated(benchmark(THREE, players=["n1", "n2"]))
    assert evaluation.explanations == {}
    assert evaluation.scores == {LEFT_OUT: ["n1", "n2"]}


def job(tmp_path, root=None, target=None, **changes):
    data = {"_target_": target, "root": str(root)} if target else {"_target_": f"{__name__}.some_images"}
    return segmentation_config(tmp_path / "out", data, **changes)


def some_images():
    return Memory([ONE, TWO, replace(THREE, broken=True), replace(ONE, id="d")])


def records(cfg, variant="mean_first"):
    """Of one variant, by sample."""
    found = RecordStore(job_folder(cfg)).read().values()
    return {record.sample: record for record in found if record.variant == variant}


def test_a_job_keeps_the_maps_of_the_first_images_and_the_scores_of_all(tmp_path):
    cfg = job(tmp_path, benchmark__n_maps=1, benchmark__players=["n0", "n4"])
    run_job(cfg)
    found = records(cfg)
    explanations = unpack(found["a"], RecordStore(job_folder(cfg)).load_arrays(found["a"]))
    assert list(explanations) == ["n0", "n4"]
    assert [each.attribution.shape for each in explanations.values()] == [((1 + 2) * 64,), ((4 + 2) * 64,)]
    assert found["b"].arrays == []
    assert list(found["a"].scores) == list(found["b"].scores) == ["n0", "n4", LEFT_OUT]


def test_a_job_records_the_image_that_fails_and_goes_on(tmp_path):
    cfg = job(tmp_path, benchmark__n_maps=1)
    outcome = run_job(cfg)
    assert (outcome.n_done, outcome.errors) == (3, ("mask c cannot be decoded: get the file again.",))
    assert {name: record.status for name, record in records(cfg).items()} == {
        "a": "done", "b": "done", "c": "failed", "d": "done",
    }  # fmt: skip
    assert [name for name, record in records(cfg).items() if record.arrays] == ["a"]


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("benchmark__expected", {"images": 7}, True),
        ("benchmark__for_scale", "tiny", True),
        ("benchmark__all_players", ["n0", "d1"], True),
        ("benchmark__players", ["n0"], False),
        ("benchmark__channels", "players", False),
        ("benchmark__n_maps", 3, False),
        ("benchmark__side", 9, False),
    ],
)
def test_results_are_found_again_whatever_numbers_are_expected(tmp_path, key, value, same):
    assert (job_folder(job(tmp_path, **{key: value})) == job_folder(job(tmp_path))) == same


FORMATS = {
    "voc": (write_voc, {"_target_": "metagame.benchmarks.voc.VOC", "names": list(NAMES)}),
    "coco": (write_panoptic, {"_target_": "metagame.benchmarks.coco.COCOPanoptic"}),
    "coco instances": (write_instances, {"_target_": "metagame.benchmarks.coco.COCOInstances"}),
    "imagenet_seg": (write_imagenet_seg, {"_target_": "metagame.benchmarks.imagenet_seg.ImageNetSeg"}),
}


@pytest.fixture(scope="module", params=FORMATS)
def perfect(request, tmp_path_factory):
    """Records of all images of a dataset on disk, by a model that knows the masks; the dataset's name."""
    folder = tmp_path_factory.mktemp("perfect")
    write, data = FORMATS[request.param]
    cfg = segmentation_config(folder / "out", data | {"root": str(write(folder / "data"))})
    outcome = run_job(cfg)
    assert outcome.errors == ()
    return cfg, request.param


@pytest.mark.parametrize("variant", ["concept_attention", "mean_first", "meta_concept_attention", "meta_per_layer"])
@pytest.mark.parametrize("cell", ["n0", "n5"])
def test_perfect_maps_have_perfect_scores_in_both_tracks_of_every_dataset(perfect, cell, variant):
    cfg, name = perfect
    counts = [record.scores[cell] for record in records(cfg, variant).values()]
    single = [each["single"] for each in counts if "single" in each]
    assert len(single) == 3
    assert len(counts) == (3 if name == "imagenet_seg" else len(SCENES))
    for pooled in (twin.pooled_single(single), twin.pooled_multi([each["multi"] for each in counts])):
        assert close([pooled["acc"], pooled["miou"], pooled["map"]], 1.0)


def test_maps_of_the_wrong_class_have_no_score():
    def swap(inputs):
        return {"n0": replace(inputs["n0"], player_logits=inputs["n0"].player_logits.flip(1))}

    pooled = twin.pooled_multi([evaluated(benchmark(TWO, players=["n0"]), swap).scores["n0"]["multi"]])
    assert (pooled["acc"], pooled["miou"]) == (0, 0)
