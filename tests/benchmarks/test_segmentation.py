from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

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
    assert list(ABLATIONS) == ["baseline", "decoupled", "last_layers", "prompt"]


def test_the_question_has_the_images_classes_first_in_the_vocabularys_order_and_the_background():
    (question,) = asked(THREE).values()
    assert question.players[:3] == ("car", "cat", "dog")
    assert question.background == BACKGROUND
    assert (question.n_layers, question.prompt, question.cross_attention) == (10, "", True)


@pytest.mark.parametrize(("size", "n_players"), [("n0", 2), ("n2", 2), ("n3", 3), ("n12", 12), ("d0", 2), ("d10", 12)])
def test_players_are_padded_to_exactly_the_number_with_classes_that_are_absent(size, n_players):
    (question,) = asked(TWO, players=[size]).values()
    assert len(question.players) == len(set(question.players)) == n_players
    assert question.players[:2] == ("cow", "dog")
    assert set(question.players) <= set(NAMES)


MANY_SIZES = benchmark(players=["n0", "n5", "n9", "n12", "d1", "d4", "d8"])


@given(image_id=st.text(max_size=12), places=st.sets(st.integers(0, 11), min_size=1, max_size=4))
def test_distractors_are_drawn_from_the_absent_classes_in_their_order_by_pythons_generator(image_id, places):
    present = tuple(NAMES[place] for place in sorted(places))
    absent = [name for name in NAMES if name not in present]
    for size, question in MANY_SIZES.questions(Labelled(image_id, scene(*sorted(places)))).items():
        number = int(size[1:]) - (size[0] == "n" and size != "n0") * len(places)
        drawn = random.Random("distractor-" + image_id).sample(absent, number)
        assert question.players == (*present, *drawn)


def test_the_annotation_has_the_images_classes_and_where_they_are():
    (sample,) = benchmark(THREE).samples()
    annotation = sample.annotation()
    assert annotation.present == ("car", "cat", "dog")
    there = {name: annotation.mask == place for place, name in enumerate(annotation.present)}
    assert all(np.array_equal(there[NAMES[each]], THREE.labels == each) for each in (CAR, CAT, DOG))


def test_the_scores_of_an_image_are_shares_of_what_was_counted():
    single = {"correct": 3, "pixels": 4, "intersection": [2, 1], "union": [3, 2], "ap": 0.7}
    multi = {"correct": 0, "pixels": 0, "intersection": {"0": 1, "5": 0}, "union": {"0": 4, "5": 2}}
    multi["ap"] = {"0": 0.2, "5": 0.6}
    scores = {"n6": {"single": single, "multi": multi}, LEFT_OUT: []}
    assert benchmark(ONE).sample_scores(scores) == pytest.approx(
        {
            "n6 single: accuracy": 3 / 4, "n6 single: IoU": (2 / 3 + 1 / 2) / 2, "n6 single: AP": 0.7,
            "n6 multi: IoU": 1 / 8, "n6 multi: AP": 0.4,
        }
    )  # fmt: skip


def test_distractors_depend_on_the_images_id_alone():
    images = [Labelled(name, scene(CAR)) for name in ("x", "y", "z")]
    some = {each.id: each.questions() for each in benchmark(*images, players=["n12"]).samples()}
    others = [Labelled("w", scene(CAT)), *reversed(images)]
    again = {each.id: each.questions() for each in benchmark(*others, players=["n12"]).samples()}
    assert all(again[name] == some[name] for name in some)
    assert len({some[name]["n12"].players for name in some}) == 3


@pytest.mark.parametrize(
    ("image_id", "distractors"),
    [
        ("139", ("table", "bus", "cow", "dog")),
        ("000000000139", ("boat", "chair", "bike", "bird")),
        ("2007_000033", ("boat", "dog", "chair", "plane")),
    ],
)
def test_distractors_are_these_and_stay_the_same_in_later_versions(image_id, distractors):
    (question,) = asked(Labelled(image_id, scene(CAR)), players=["d4"]).values()
    assert question.players == ("car", *distractors)


def test_an_image_whose_number_of_classes_suits_no_cell_is_left_out_of_that_cell_only():
    sizes = ["n0", "n2", "n3", "d9", "d10"]
    found = benchmark(ONE, THREE, players=sizes, ablations=["baseline", "prompt"])
    assert list(found.samples()[0].questions()) == [cell.name for cell in found.cells]
    kept = ["n0", "n0 prompt", "n3", "n3 prompt", "d9", "d9 prompt"]
    assert list(found.samples()[1].questions()) == kept
    scores = scored(benchmark(THREE, players=sizes))
    assert list(scores) == ["n0", "n3", "d9", LEFT_OUT]
    assert scores[LEFT_OUT] == ["n2", "d10"]


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


@pytest.mark.parametrize(
    ("names", "tokenizer", "kept", "said"),
    [
        (
            (*NAMES, *STRANGE), words_tokenizer(), NAMES,
            "segmentation: 2 of 14 classes are left out, because their names are not a single T5 token: "
            "traffic light (traffic, light); zebra (<unk>).",
        ),
        (
            ("car", "sofa", "dog", "é"), pieces_tokenizer(), ("car", "dog"),
            "segmentation: 2 of 4 classes are left out, because their names are not a single T5 token: "
            "sofa (▁so, fa); é (▁, <unk>).",
        ),
        (NAMES, words_tokenizer(), NAMES, None),
    ],
    ids=["words", "pieces of words", "nothing to say"],
)  # fmt: skip
def test_classes_that_are_not_one_known_token_are_left_out_and_that_is_said(caplog, names, tokenizer, kept, said):
    with caplog.at_level("INFO"):
        assert one_token_names(names, tokenizer) == kept
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("INFO", said)] * bool(said)


@pytest.mark.parametrize("names", [STRANGE, ()])
def test_a_dataset_without_a_class_of_one_token_is_refused(names):
    with refused("no class name is a single T5 token: set benchmark.tokenizer"):
        benchmark(names=names)


def test_images_without_a_class_of_the_vocabulary_are_no_samples():
    images = [Labelled(str(place), scene(place)) for place in (LIGHT, CAR, ZEBRA, OTHER, UNLABELLED)]
    assert [sample.id for sample in benchmark(*images).samples()] == [str(CAR)]


def test_classes_outside_the_vocabulary_are_no_players_and_their_pixels_of_no_class():
    labelled = Labelled("x", scene(CAR, LIGHT, ZEBRA))
    (sample,) = benchmark(labelled, players=["n0"]).samples()
    assert sample.questions()["n0"].players == ("car",)
    assert np.array_equal(sample.truth(), np.where(np.isin(labelled.labels, (LIGHT, ZEBRA)), OTHER, labelled.labels))


@pytest.mark.parametrize("size", ["n", "x3", "20", "n-1", "n2.5", "N20", " n20", "n00", "d01", 20, None])
def test_sizes_that_are_none_are_refused(size):
    with refused("benchmark.players=.* give sizes such as n20, d10 or n0"):
        benchmark(players=["n0", size])


@pytest.mark.parametrize(
    "repeated",
    [{"players": ["n2", "n0", "n2"]}, {"ablations": ["baseline", "baseline"]}, {"tracks": ["single", "single"]}],
)
def test_repeated_sizes_ablations_and_tracks_are_refused(repeated):
    with refused(f"benchmark.{next(iter(repeated))} contains '.*' several times: give each once"):
        benchmark(**repeated)


@pytest.mark.parametrize("size", ["n13", "d12"])
def test_more_players_than_classes_are_refused_with_how_many_there_are(size):
    with refused(f"benchmark.players='{size}' is too large, because only 12 classes are one T5 token"):
        benchmark(players=[size])


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("players", [], "such as n20"),
        ("ablations", [], "baseline, decoupled, last_layers, prompt"),
        ("ablations", ["baseline", "none"], "baseline, decoupled, last_layers, prompt"),
        ("tracks", [], "single, multi"),
        ("tracks", ["both"], "single, multi"),
        ("full_classes", "half", "skipped, counted"),
        ("channels", "all", "present, players"),
        ("channels", None, "present, players"),
        ("side", 0, "must be a positive integer"),
        ("n_layers", 0, "must be a positive integer"),
        ("n_maps", -1, "must not be negative"),
    ],
)
def test_arguments_that_are_none_of_the_choices_are_refused(name, value, choices):
    with refused(rf"benchmark\.{name}.*{choices}"):
        benchmark(**{name: value})


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        ({"images": 3, "single": 1}, []),
        (None, []),
        (
            {"images": 1449, "single": 1},
            ["The data of the benchmark have 3 images, but 1449 were expected (benchmark.expected)."],
        ),
        (
            {"single": 927},
            ["The data of the benchmark have 1 images with one class, but 927 were expected (benchmark.expected)."],
        ),
    ],
)
def test_other_numbers_than_expected_are_told(caplog, expected, told):
    benchmark(ONE, TWO, THREE, expected=expected).samples()
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == told


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
    in_memory = benchmark(ONE)
    assert list(in_memory.files()) == list(in_memory.samples()[0].files()) == []


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


@pytest.mark.parametrize(("labelled", "grid"), [(ONE, 1), (TWO, 4), (THREE, 8), (ONE, 16)])
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
    assert close(list(scores["multi"].pop("ap").values()), list(multi.pop("ap").values()), 1e-6)
    assert scores["multi"] == multi
    assert ("single" in scores) == (len(present) == 1)
    if "single" in scores:
        single = twin.single(heat[CAR], truth == CAR, truth != UNLABELLED)
        assert close(scores["single"].pop("ap"), single.pop("ap"), 1e-6)
        assert scores["single"] == single


@pytest.mark.parametrize("tracks", [["single"], ["multi"], ["multi", "single"]])
def test_only_the_tracks_asked_for_are_scored(tracks):
    scores = scored(benchmark(ONE, tracks=tracks))
    assert set(scores["n6"]) == set(tracks)
    assert set(scored(benchmark(TWO, tracks=tracks))["n6"]) == set(tracks) - {"single"}
    assert set(scored(benchmark(Labelled("x", scene(CAR, LIGHT)), tracks=tracks))["n6"]) == set(tracks)


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
    assert scored(benchmark(ONE), np.repeat(maps, 2, axis=2)) == scored(benchmark(ONE), maps)


@pytest.mark.parametrize("changes", [{"attribution": None}, {"grid": None, "attribution": np.zeros(8)}], ids=" ".join)
def test_a_method_without_maps_is_refused(changes):
    found = benchmark(ONE)
    (sample,) = found.samples()
    (question,) = sample.questions().values()
    bound = blank(question)
    whole = explained(bound, random_maps(6, 4))
    with refused("segmentation needs a map of each concept: choose attribution=concept_attention"):
        found.score(sample, {"n6": bound}, {"n6": replace(whole, **changes)})


def test_maps_are_kept_of_the_first_images_only():
    samples = benchmark(ONE, Labelled("nothing", scene(LIGHT)), THREE, TWO, n_maps=2).samples()
    assert [sample.id for sample in samples if sample.keeps_arrays()] == ["a", "c"]


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


def some_images():
    return Memory([ONE, TWO, replace(THREE, broken=True), replace(ONE, id="d")])


def records(cfg, variant="mean_first"):
    """Of one variant, by sample."""
    found = RecordStore(job_folder(cfg)).read().values()
    return {record.sample: record for record in found if record.variant == variant}


def test_a_job_keeps_the_maps_of_the_first_images_and_the_scores_of_all_that_do_not_fail(tmp_path):
    cfg = segmentation_config(
        tmp_path, {"_target_": f"{__name__}.some_images"}, benchmark__n_maps=1, benchmark__players=["n0", "n4"]
    )
    cfg.attribution.variants = {"mean_first": cfg.attribution.variants.mean_first}
    outcome = run_job(cfg)
    found = records(cfg)
    explanations = unpack(found["a"], RecordStore(job_folder(cfg)).load_arrays(found["a"]))
    assert list(explanations) == ["n0", "n4"]
    assert [len(each.attribution) for each in explanations.values()] == [(1 + 2) * 64, (4 + 2) * 64]
    assert [name for name, record in found.items() if record.arrays] == ["a"]
    assert (outcome.n_done, outcome.errors) == (3, ("mask c cannot be decoded: get the file again.",))
    done = {name: list(record.scores) for name, record in found.items() if record.status == "done"}
    assert done == {name: ["n0", "n4", LEFT_OUT] for name in "abd"}


VARIANTS = ("concept_attention", "mean_first", "meta_concept_attention", "meta_per_layer")
DATASETS = {
    "voc": (write_voc, {"_target_": "metagame.benchmarks.voc.VOC", "names": list(NAMES)}, VARIANTS),
    "coco": (write_panoptic, {"_target_": "metagame.benchmarks.coco.COCOPanoptic"}, VARIANTS[:1]),
    "instances": (write_instances, {"_target_": "metagame.benchmarks.coco.COCOInstances"}, VARIANTS[1:2]),
    "imagenet_seg": (write_imagenet_seg, {"_target_": "metagame.benchmarks.imagenet_seg.ImageNetSeg"}, VARIANTS[2:3]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_perfect_maps_have_perfect_scores_in_both_tracks_of_every_dataset_by_every_variant(tmp_path, name):
    write, data, variants = DATASETS[name]
    cfg = segmentation_config(tmp_path / "out", data | {"root": str(write(tmp_path / "data"))})
    cfg.attribution.variants = {variant: cfg.attribution.variants[variant] for variant in variants}
    assert run_job(cfg).errors == ()
    for variant, cell in product(variants, ("n0", "n5")):
        counts = [record.scores[cell] for record in records(cfg, variant).values()]
        single = [each["single"] for each in counts if "single" in each]
        assert (len(single), len(counts)) == (3, 3 if name == "imagenet_seg" else len(SCENES))
        for pooled in (twin.pooled_single(single), twin.pooled_multi([each["multi"] for each in counts])):
            assert close([pooled["acc"], pooled["miou"], pooled["map"]], 1.0)


def test_maps_of_the_wrong_class_have_no_score():
    def swap(inputs):
        return {"n0": replace(inputs["n0"], player_logits=inputs["n0"].player_logits.flip(1))}

    pooled = twin.pooled_multi([evaluated(benchmark(TWO, players=["n0"]), swap).scores["n0"]["multi"]])
    assert (pooled["acc"], pooled["miou"]) == (0, 0)
