"""Concepts in folders of one's own and drawn ones: what is set against what, and a whole run of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from metagame.benchmarks import concept_scores
from metagame.benchmarks.concept_scores import RANDOM, ConceptBenchmark, image_folders, textured_digits
from metagame.benchmarks.textures import DEPENDENT, TEXTURES, ground
from metagame.contracts import WHOLE, Explanation
from metagame.errors import UserError
from metagame.experiments import finish
from metagame.jobs.run import run_job
from tests.experiments.running import job_configs
from tests.tiny.jobs import shipped_configs

COUNTS = {"striped": 12, "dotted": 11, "plain": 10, "zigzagged": 9}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Concepts, of which one has too few images, and two classes."""
    root = tmp_path_factory.mktemp("concepts")
    rng = np.random.default_rng(0)
    for kind, counts in {"concepts": COUNTS, "classes": {"3": 4, "4": 3}}.items():
        for name, count in counts.items():
            (root / kind / name).mkdir(parents=True)
            for k in range(count):
                image = concept_scores.drawn(ground("plain" if name not in TEXTURES else name, 1.0, rng))
                image.save(root / kind / name / f"{k:02d}.png")
    (root / "concepts" / "striped" / "licence.txt").write_text("free")
    return root


def of_folders(folders, **settings):
    samples = image_folders(str(folders / "concepts"), str(folders / "classes"), **settings)
    return {sample.id: sample for sample in samples}


def test_each_concept_is_set_against_the_others_that_are_large_enough(folders):
    found = of_folders(folders)
    assert list(found) == ["dotted", "plain", "striped", "zigzagged", RANDOM]
    assert (len(found["striped"].examples), len(found["striped"].others)) == (12, 21)
    assert (len(found[RANDOM].examples), found[RANDOM].others) == (33, ())
    assert {image.path.parent.name for image in found["striped"].others} == {"dotted", "plain"}
    assert len(found["plain"].files()) == 33 + 7
    assert found["plain"].depending is None


def test_named_concepts_and_the_first_images_of_each_are_taken(folders):
    found = of_folders(folders, names=["plain", "striped"], most_examples=10, most_images=2)
    assert {name: len(sample.examples) for name, sample in found.items()} == {"plain": 10, "striped": 10, RANDOM: 20}
    assert [image.path.name for image in found["plain"].classes["4"]] == ["00.png", "01.png"]


def test_images_that_do_not_suffice_and_a_concept_called_as_the_baseline_are_refused(folders):
    with pytest.raises(UserError, match="has no sub-folder chequered"):
        of_folders(folders, names=["striped", "chequered"])
    with pytest.raises(UserError, match="1 of 2 concepts have 10 images or more"):
        of_folders(folders, names=["striped", "zigzagged"])
    with pytest.raises(UserError, match=r"set benchmark\.concept_images\.root to a folder"):
        image_folders("nowhere", str(folders / "classes"))
    (sample, *_) = textured_digits([3], 10, 2)
    with pytest.raises(UserError, match="cannot be called random"):
        concept_scores.relative_concepts({RANDOM: sample.examples, "striped": sample.examples}, {})
    with pytest.raises(UserError, match="class zebra has no images"):
        concept_scores.relative_concepts({"one": sample.examples, "other": sample.examples}, {"zebra": []})


def test_textures_differ_in_nothing_but_their_pattern():
    own = np.array(list(TEXTURES.values())).reshape(3, -1)
    assert own.mean(1).tolist() == [1, 1, 1]
    assert own.var(1).tolist() == [1, 1, 0]
    assert np.corrcoef(own[:2])[0, 1] == 0


def test_the_class_that_depends_on_a_texture_is_on_it_and_others_are_on_all():
    samples = textured_digits(classes=[2, 3], per_concept=10, per_class=6)
    assert [sample.id for sample in samples] == [*TEXTURES, RANDOM]
    assert DEPENDENT == {3: "striped"}
    assert [sample.depending for sample in samples] == [("3",), (), (), ()]
    corners = [image.brightness[:4, :4] for image in samples[0].classes["3"]]  # no stroke gets there
    striped = [corner[:2].mean() - corner[2:].mean() for corner in corners]
    assert min(striped) > 0.05
    assert len({image.id for image in samples[3].examples}) == 30
    assert textured_digits([2], 10, 6)[1].examples[0].brightness == pytest.approx(samples[1].examples[0].brightness)


def test_a_run_at_paper_scale_goes_on_without_the_concept_that_is_too_small(folders, tmp_path):
    with shipped_configs():
        (cfg,) = configs = job_configs(
            "ttcav", "scale=paper", "model.checkpoint=data/tiny/vit_textures", "model.revision=null",
            "model.device=cpu", f"benchmark.concept_images.root={folders / 'concepts'}",
            f"benchmark.concept_images.classes={folders / 'classes'}", "benchmark.concept_images.names=null",
            "attribution.method.layers=[2]", "attribution.method.repeats=2", f"output_dir={tmp_path / 'out'}",
        )  # fmt: skip
        outcome = run_job(cfg)
        finish(configs)
    assert (outcome.n_done, outcome.n_failed) == (4, 1)
    assert outcome.errors == ("concept zigzagged has 9 images and needs 10: add images to it, or leave it out.",)
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(table["rows"]) == 2 * 4
    assert any("zigzagged failed: concept zigzagged has 9 images" in note for note in table["notes"])


def test_scores_are_of_one_method_and_the_page_lists_the_mean_of_each_class():
    benchmark = ConceptBenchmark(textured_digits([3], 10, 2))
    with pytest.raises(UserError, match="choose attribution=ttcav"):
        benchmark.score(benchmark.samples()[0], {}, {WHOLE: Explanation(("striped",), ("3",))})
    scores = {"classes": ["3", "4"], "scores": [[[0.0, 1.0], [1.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]]}
    assert benchmark.sample_scores(scores) == {"score of class 3": 0.75, "score of class 4": 0.5}
