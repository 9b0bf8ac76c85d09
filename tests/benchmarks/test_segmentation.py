from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metagame.benchmarks.masks import OTHER, UNLABELLED
from metagame.benchmarks.segmentation import LEFT_OUT, Segmentation, one_token_names
from metagame.contracts import Explanation
from metagame.jobs.records import RecordStore, unpack
from metagame.jobs.run import run_job
from metagame.jobs.spec import job_folder
from tests.conftest import close
from tests.reference import segmentation as twin
from tests.tiny import segmentation as tiny
from tests.tiny.segmentation import BACKGROUND, CAR, CAT, COW, DOG, NAMES, STRANGE, Labelled, Memory, scene
from tests.tiny.vision_language import refused

ONE, TWO, THREE = Labelled("a", scene(CAR)), Labelled("b", scene(DOG, COW)), Labelled("c", scene(CAT, CAR, DOG))
LIGHT, ZEBRA = (len(NAMES) + place for place in range(len(STRANGE)))


def benchmark(*labelled, names=(*NAMES, *STRANGE), **arguments):
    arguments = {"players": ["n6"], "side": 8} | arguments
    return Segmentation(Memory(labelled, names), tiny.words_tokenizer(), BACKGROUND, **arguments)


def asked(labelled, **arguments):
    """The questions about an image."""
    return benchmark(labelled, **arguments).samples()[0].questions()


def test_every_size_is_asked_with_every_ablation_which_changes_one_thing_about_the_question():
    ablations = ["baseline", "decoupled", "last_layers", "prompt"]
    questions = asked(THREE, players=["n0", "d4"], ablations=ablations, n_layers=7, fewer_layers=3)
    changes = {
        "": {}, " decoupled": {"cross_attention": False}, " last_layers": {"n_layers": 3},
        " prompt": {"prompt": "a car,a cat,a dog"},
    }  # fmt: skip
    assert list(questions) == [size + ablation for size, ablation in product(("n0", "d4"), changes)]
    base = questions["d4"]
    assert (base.background, base.n_layers, base.prompt, base.cross_attention) == (BACKGROUND, 7, "", True)
    for ablation, change in changes.items():
        assert questions[f"d4{ablation}"] == replace(base, **change)
    assert asked(THREE)["n6"].n_layers == 10


MANY_SIZES = benchmark(players=["n0", "n5", "n9", "n12", "d0", "d1", "d4", "d8"])


@given(image_id=st.text(max_size=12), places=st.sets(st.integers(0, 11), min_size=1, max_size=4))
def test_players_are_the_images_classes_and_absent_ones_that_pythons_generator_draws_by_the_images_id(image_id, places):
    present = tuple(NAMES[place] for place in sorted(places))
    absent = [name for name in NAMES if name not in present]
    questions = MANY_SIZES.questions(Labelled(image_id, scene(*sorted(places, reverse=True))))
    assert len(questions) == 8
    for size, question in questions.items():
        number = int(size[1:]) - (size[0] == "n" and size != "n0") * len(places)
        drawn = random.Random("distractor-" + image_id).sample(absent, number)
        assert question.players == (*present, *drawn)


def test_an_image_whose_number_of_classes_suits_no_cell_is_left_out_of_that_cell_only():
    sizes = ["n0", "n2", "n3", "d9", "d10"]
    found = benchmark(ONE, THREE, players=sizes, ablations=["baseline", "prompt"])
    assert list(found.samples()[0].questions()) == [cell.name for cell in found.cells]
    kept = ["n0", "n0 prompt", "n3", "n3 prompt", "d9", "d9 prompt"]
    assert list(found.samples()[1].questions()) == kept


def test_the_annotation_has_the_images_classes_and_where_they_are():
    (sample,) = benchmark(THREE).samples()
    annotation = sample.annotation()
    assert annotation.present == ("car", "cat", "dog")
    for place, each in enumerate((CAR, CAT, DOG)):
        assert np.array_equal(annotation.mask == place, THREE.labels == each)


def test_the_scores_of_an_image_are_shares_of_what_was_counted():
    single = {"correct": 3, "pixels": 4, "intersection": [2, 1], "union": [3, 2], "ap": 0.7}
    multi = {"correct": 0, "pixels": 0, "intersection": {"0": 1, "5": 0}, "union": {"0": 4, "5": 2}}
    multi["ap"] = {"0": 0.2, "5": 0.6}
    scores = {"n6": {"single": single, "multi": multi}, LEFT_OUT: []}
    shares = {
        "n6 single: accuracy": 3 / 4, "n6 single: IoU": (2 / 3 + 1 / 2) / 2, "n6 single: AP": 0.7,
        "n6 multi: IoU": 1 / 8, "n6 multi: AP": 0.4,
    }  # fmt: skip
    assert benchmark(ONE).sample_scores(scores) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("names", "tokenizer", "kept", "said"),
    [
        (
            (*NAMES, *STRANGE),
            tiny.words_tokenizer(),
            NAMES,
            ["2 of 14", "traffic light (traffic, light); zebra (<unk>)"],
        ),
        (("car", "sofa", "é"), tiny.pieces_tokenizer(), ("car",), ["2 of 3", "sofa (▁so, fa); é (▁, <unk>)."]),
        (NAMES, tiny.words_tokenizer(), NAMES, []),
    ],
    ids=["words", "pieces of words", "nothing to say"],
)
def test_classes_that_are_not_one_known_token_are_left_out_and_that_is_said(caplog, names, tokenizer, kept, said):
    with caplog.at_level("INFO"):
        assert one_token_names(names, tokenizer) == kept
    assert len(caplog.messages) == bool(said)
    assert all(words in caplog.text for words in said)


def test_classes_outside_the_vocabulary_make_no_samples_are_no_players_and_their_pixels_of_no_class():
    alone = [Labelled(str(place), scene(place)) for place in (LIGHT, ZEBRA, OTHER, UNLABELLED)]
    beside = Labelled("x", scene(CAR, LIGHT, ZEBRA))
    (sample,) = benchmark(*alone, beside, players=["n0"]).samples()
    assert sample.questions()["n0"].players == ("car",)
    assert np.array_equal(sample.truth(), np.where(np.isin(beside.labels, (LIGHT, ZEBRA)), OTHER, beside.labels))


REFUSED = [
    *(({"names": names}, "no class name is a single T5 token: set benchmark.tokenizer") for names in (STRANGE, ())),
    *(
        ({"players": ["n0", size]}, "benchmark.players=.* give sizes such as n20, d10 or n0")
        for size in ("n", "x3", "20", "n-1", "n2.5", "N20", " n20", "n00", "d01", 20, None)
    ),
    ({"players": ["n2", "n0", "n2"]}, "benchmark.players contains 'n2' several times: give each once"),
    ({"ablations": ["baseline", "baseline"]}, "benchmark.ablations contains 'baseline' several times"),
    ({"tracks": ["single", "single"]}, "benchmark.tracks contains 'single' several times"),
    ({"players": ["n13"]}, "benchmark.players='n13' is too large, because only 12 classes are one T5 token"),
    ({"players": ["d12"]}, "benchmark.players='d12' is too large, because only 12 classes are one T5 token"),
    ({"players": []}, "benchmark.players is empty: give sizes such as n20"),
    ({"ablations": []}, "benchmark.ablations.*baseline, decoupled, last_layers, prompt"),
    ({"ablations": ["baseline", "none"]}, "benchmark.ablations.*baseline, decoupled, last_layers, prompt"),
    ({"tracks": ["both"]}, "benchmark.tracks.*single, multi"),
    ({"full_classes": "half"}, "benchmark.full_classes.*skipped, counted"),
    ({"channels": "all"}, "benchmark.channels.*present, players"),
    ({"side": 0}, "benchmark.side=0 must be a positive integer"),
    ({"n_layers": 0}, "benchmark.n_layers=0 must be a positive integer"),
    ({"n_maps": -1}, "benchmark.n_maps=-1 must not be negative"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED, ids=lambda each: str(each) if isinstance(each, dict) else "")
def test_what_is_asked_for_but_cannot_be_is_refused(arguments, reason):
    with refused(reason):
        benchmark(**arguments)


def test_two_images_of_one_id_are_refused():
    with refused("the benchmark has two images with the id 'a'"):
        benchmark(ONE, TWO, ONE).samples()


def test_other_numbers_than_expected_are_told(caplog):
    for expected in (None, {"images": 3, "single": 1}, {"images": 1449, "single": 1}, {"single": 927}):
        benchmark(ONE, TWO, THREE, expected=expected).samples()
    told = [record.getMessage() for record in caplog.records if record.levelname != "INFO"]
    assert [message.split(" (")[0] for message in told] == [
        "The data of the benchmark have 3 images, but 1449 were expected",
        "The data of the benchmark have 1 images with one class, but 927 were expected",
    ]


def random_maps(players, side, seed=0):
    """Maps of so many players, then of the background."""
    return np.random.default_rng(seed).random((players + len(BACKGROUND), side, side))


def scored(found, maps=None):
    """The scores of the only image by given maps, random ones of their own in each cell by default."""
    (sample,) = found.samples()
    inputs = {cell: tiny.blank(question) for cell, question in sample.questions().items()}
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
    expected = {"multi": twin.multi(heat, enlarged[5:], truth)}
    if len(present) == 1:
        expected["single"] = twin.single(heat[CAR], truth == CAR, truth != UNLABELLED)
    assert scores.keys() == expected.keys()
    for track, counts in expected.items():
        ours, theirs = (each.pop("ap") for each in (scores[track], counts))
        if track == "multi":
            ours, theirs = (list(each.values()) for each in (ours, theirs))
        assert close(ours, theirs, 1e-6)
        assert scores[track] == counts


@pytest.mark.parametrize("tracks", [["single"], ["multi"], ["multi", "single"]])
def test_only_the_tracks_asked_for_are_scored(tracks):
    for labelled, single in ((ONE, True), (TWO, False), (Labelled("x", scene(CAR, LIGHT)), True)):
        assert set(scored(benchmark(labelled, tracks=tracks))["n6"]) == set(tracks) - (set() if single else {"single"})


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


def test_errors_of_the_metagame_do_not_rank_pixels_and_maps_need_not_be_squares():
    exact = constant_maps(*[1.0] * 6, background=[0.0, 0.0])
    computed = exact.copy()
    computed[:6] -= np.random.default_rng(0).uniform(0, 1e-9, (6, 4, 4))
    assert scored(benchmark(ONE), exact) == scored(benchmark(ONE), computed)
    maps = random_maps(6, 4)
    assert scored(benchmark(ONE), np.repeat(maps, 2, axis=2)) == scored(benchmark(ONE), maps)


@pytest.mark.parametrize("changes", [{"attribution": None}, {"grid": None, "attribution": np.zeros(8)}], ids=" ".join)
def test_a_method_without_maps_is_refused(changes):
    found = benchmark(ONE)
    (sample,) = found.samples()
    bound = tiny.blank(sample.questions()["n6"])
    with refused("segmentation needs a map of each concept: choose attribution=concept_attention"):
        found.score(sample, {"n6": bound}, {"n6": replace(explained(bound, random_maps(6, 4)), **changes)})


def some_images():
    """The first one is no sample, the crowded one suits no cell, and the last one is broken."""
    nothing, crowded = Labelled("nothing", scene(LIGHT)), Labelled("d", scene(*range(7)))
    return Memory([nothing, ONE, TWO, crowded, replace(THREE, broken=True)])


def test_a_job_keeps_the_first_maps_and_scores_all_images_that_do_not_fail_perfect_maps_perfectly(tmp_path):
    cells = {"benchmark__n_maps": 1, "benchmark__players": ["n1", "n5"]}
    cfg = tiny.segmentation_config(tmp_path, {"_target_": f"{__name__}.some_images"}, **cells)
    outcome, store = run_job(cfg), RecordStore(job_folder(cfg))
    assert (outcome.n_samples, set(outcome.errors)) == (4, {"mask c cannot be decoded: get the file again."})
    records = [record for record in store.read().values() if record.status == "done"]
    for variant in tiny.VARIANTS:
        found = {record.sample: record for record in records if record.variant == variant}
        assert {sample for sample, record in found.items() if record.arrays} == {"a"}
        kept = unpack(found["a"], store.load_arrays(found["a"]))
        assert {cell: len(each.attribution) for cell, each in kept.items()} == {"n1": 3 * 64, "n5": 7 * 64}
        left_out = {sample: record.scores[LEFT_OUT] for sample, record in found.items()}
        assert left_out == {"a": [], "b": ["n1"], "d": ["n1", "n5"]}
        single = [found["a"].scores[cell]["single"] for cell in ("n1", "n5")]
        multi = [found[sample].scores["n5"]["multi"] for sample in "ab"]
        for pooled in (twin.pooled_single(single), twin.pooled_multi(multi)):
            assert close([pooled["acc"], pooled["miou"], pooled["map"]], 1.0)
