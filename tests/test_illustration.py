from __future__ import annotations

import io
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hydra import compose
from omegaconf import OmegaConf
from PIL import Image

from metagame.benchmarks.digits import Digits
from metagame.benchmarks.illustration import CAPTION, PART, Illustration
from metagame.games import GameError
from metagame.images import composite, square
from metagame.jobs import job_folder, run_job
from metagame.models.revision import file_revision
from metagame.models.vision_language import Sample
from metagame.records import Record, RecordStore
from metagame.report.illustration import MOST_PAIRS, illustration_figure, illustration_table
from metagame.report.results import JobResult
from metagame.report.table import write_table
from metagame.sweep import finish
from tests.conftest import close
from tests.jobs_fixtures import shipped_configs


def illustration(image, caption, parts=(), side=448, more=()):
    """The benchmark with one example, and ``more``."""
    return Illustration([{"image": image, "caption": caption, "parts": parts}, *more], side=side)


def id_of(image, caption):
    """What the sample of an image file with this caption is called."""
    return f"{Path(image).name} ({file_revision(Path(image))[:8]}): {caption}"


class Words:
    """A tokenizer of words between two special tokens; ``ing`` is a token of its own."""

    context = 20
    pad_id = 0

    def split(self, text):
        pieces = [piece for word in text.lower().split() for piece in self._pieces(word)]
        return [(1, True, "<s>"), *((ord(piece[0]), False, piece) for piece in pieces), (2, True, "</s>")]

    def encode(self, text):
        return tuple(number for number, _, _ in self.split(text))

    @staticmethod
    def _pieces(word):
        return [word[:-3], "ing"] if word.endswith("ing") else [word]


@pytest.fixture
def picture(tmp_path):
    """Path of a picture of a three and a seven above a zero and a five."""
    path = tmp_path / "picture.png"
    composite([Digits().image(label, 0) for label in (3, 7, 0, 5)], 32).save(path)
    return str(path)


@pytest.fixture
def wide_picture(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(path)
    return str(path)


def only(illustration):
    (sample,) = illustration.samples()
    return sample


def labels(sample):
    return {name: each.labels for name, each in sample.players(Words()).items()}


@pytest.mark.parametrize("caption", ["", "  ", "\n", None, 7, ["a", "dog"]])
def test_a_caption_that_is_no_text_is_refused(picture, caption):
    with pytest.raises(GameError, match=r"benchmark\.caption=.*: give a text\."):
        illustration(picture, caption)


def test_an_absent_image_is_refused_when_it_is_opened(tmp_path):
    sample = only(illustration(str(tmp_path / "absent.png"), "a dog"))
    with pytest.raises(GameError, match=r"absent\.png does not exist: give the path of an image file\."):
        sample.image()


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(GameError, match="cannot be decoded"):
        only(illustration(str(tmp_path), "a dog")).image()


def test_further_examples_are_checked_as_the_first_one(picture):
    with pytest.raises(GameError, match="give a text"):
        illustration(picture, "a dog", more=[{"image": picture, "caption": ""}])


def test_an_own_image_and_caption_stand_in_place_of_all_examples(picture, wide_picture):
    examples = [{"image": picture, "caption": "a dog", "parts": ["dog"]}, {"image": picture, "caption": "a cat"}]
    sample = only(Illustration(examples, image=wide_picture, caption="a hot dog"))
    assert sample.id == id_of(wide_picture, "a hot dog")
    assert list(labels(sample)) == [CAPTION, "part: dog"]
    assert only(Illustration(examples, caption="a bird")).id == id_of(picture, "a bird")
    assert list(labels(only(Illustration(examples, parts=["a"])))) == [CAPTION, "part: a"]


def test_another_picture_in_the_same_place_is_another_sample(picture, wide_picture):
    before = only(illustration(picture, "a dog")).id
    Path(picture).write_bytes(Path(wide_picture).read_bytes())
    assert only(illustration(picture, "a dog")).id != before


def test_a_photograph_is_shown_as_its_camera_was_held(tmp_path):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    image = Image.fromarray(np.add.outer(np.arange(40) * 2, np.arange(90)).astype(np.uint8)).convert("RGB")
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)
    upright = image.rotate(-90, expand=True)
    shown = np.asarray(only(illustration(str(path), "a dog", side=40)).image(), float)
    expected = np.asarray(square(upright, 40), float)
    assert np.abs(shown - expected).mean() < 3
    assert np.abs(shown - np.asarray(square(image, 40), float)).mean() > 10


@pytest.mark.parametrize("parts", ["dog", [7]])
def test_parts_that_are_no_list_of_texts_are_refused(picture, parts):
    with pytest.raises(GameError, match=r"benchmark\.parts=.*: give a list of texts"):
        illustration(picture, "a dog", parts)


def test_a_sample_is_an_image_with_its_caption(picture):
    sample = only(illustration(picture, "a dog", side=64))
    assert isinstance(sample, Sample)
    assert (sample.id, sample.caption) == (id_of(picture, "a dog"), "a dog")
    with Image.open(picture) as stored:
        assert np.array_equal(np.asarray(sample.image()), np.asarray(stored))


@pytest.mark.parametrize("side", [16, 40, 64])
def test_the_image_is_cut_to_a_square(wide_picture, side):
    image = only(illustration(wide_picture, "a dog", side=side)).image()
    assert (image.size, image.mode) == ((side, side), "RGB")


def test_players_are_the_tokens_of_the_caption_and_of_its_parts(picture):
    sample = only(illustration(picture, "a dog eating a hot dog", ["hot dog", "eating"]))
    assert labels(sample) == {
        CAPTION: ("a", "dog", "eat", "ing", "a", "hot", "dog"),
        "part: hot dog": ("hot", "dog"),
        "part: eating": ("eat", "ing"),
    }


def test_an_absent_token_is_dropped_and_special_tokens_stay(picture):
    players = only(illustration(picture, "black cat")).players(Words())[CAPTION]
    assert players.dropped([False, True]).ids == (1, ord("c"), 2)
    assert players.dropped([False, False]).ids == (1, 2)


@pytest.mark.parametrize("part", ["cat", "a cat", "do", "dog,"])
def test_parts_with_words_that_the_caption_has_not_are_left_out(picture, part):
    assert list(labels(only(illustration(picture, "a dog", [part, "dog"])))) == [CAPTION, "part: dog"]


def test_parts_are_found_in_any_order_and_case_and_once(picture):
    sample = only(illustration(picture, "A black Dog", ["dog black", "black", "dog black"]))
    assert list(labels(sample)) == [CAPTION, "part: dog black", "part: black"]


def test_empty_parts_are_dropped_without_a_word(picture, caplog):
    with caplog.at_level("INFO"):
        sample = only(illustration(picture, "a dog", ["", "dog", "  ", "\n"]))
    assert list(labels(sample)) == [CAPTION, "part: dog"]
    assert caplog.text == ""


def test_a_part_may_have_the_name_of_the_caption(picture):
    sample = only(illustration(picture, "a caption here", ["caption"]))
    assert labels(sample) == {CAPTION: ("a", "caption", "here"), "part: caption": ("caption",)}


def test_further_examples_are_further_samples(picture, wide_picture):
    more = [{"image": wide_picture, "caption": "a cat", "parts": ["cat"]}]
    first, second = illustration(picture, "a dog", side=32, more=more).samples()
    assert (first.id, second.id) == (id_of(picture, "a dog"), id_of(wide_picture, "a cat"))
    assert (first.caption, second.caption) == ("a dog", "a cat")
    assert second.image().size == (32, 32)
    assert list(labels(second)) == [CAPTION, "part: cat"]


def test_two_pictures_with_one_caption_are_two_samples(picture, wide_picture):
    samples = illustration(picture, "a dog", more=[{"image": wide_picture, "caption": "a dog"}]).samples()
    assert [sample.id for sample in samples] == [id_of(picture, "a dog"), id_of(wide_picture, "a dog")]


def test_one_picture_with_two_captions_is_two_samples(picture):
    samples = illustration(picture, "a dog", more=[{"image": picture, "caption": "a cat"}]).samples()
    assert [sample.id for sample in samples] == [id_of(picture, "a dog"), id_of(picture, "a cat")]


def test_two_examples_with_one_image_and_caption_are_refused(picture):
    same = {"image": picture, "caption": "a dog", "parts": ["dog"]}
    with pytest.raises(GameError, match=r"benchmark\.examples: two have the same image and caption"):
        illustration(picture, "a dog", more=[same])


def test_the_scores_are_the_tokens(picture):
    benchmark = illustration(picture, "a dog", ["dog"])
    sample = only(benchmark)
    explicand = {name: type("Explicand", (), {"players": each}) for name, each in sample.players(Words()).items()}
    scores = benchmark.score(sample, explicand, {})
    assert scores == {"tokens of caption": ["a", "dog"], "tokens of part: dog": ["dog"]}
    json.dumps(scores)


def illustrate(output_dir, image, *overrides, caption="three seven"):
    """Run the job on the embedded CLIP and write its report; its config and outcome."""
    parts = ["model=clip_vitb16", "attribution=meta_grad_eclip", "benchmark=illustration", "benchmark.side=64"]
    chosen = [f"benchmark.image={image}", f"benchmark.caption={caption}", f"output_dir={output_dir}"]
    with shipped_configs():
        cfg = compose("config", overrides=[*parts, *chosen, *overrides])
        outcome = run_job(cfg)
        finish([cfg])
    return cfg, outcome


def stored(cfg):
    """The job's only record, and its arrays."""
    store = RecordStore(job_folder(cfg))
    (record,) = store.read().values()
    return record, store.load_arrays(record)


@pytest.mark.slow
def test_a_caption_is_explained_token_by_token(picture, tmp_path):
    cfg, outcome = illustrate(tmp_path, picture, "benchmark.parts=[seven]")
    record, arrays = stored(cfg)
    assert (outcome.n_done, outcome.errors) == (1, ())
    assert record.scores == {"tokens of caption": ["three", "seven"], "tokens of part: seven": ["seven"]}
    assert {name: array.shape for name, array in arrays.items() if "standard_error" not in name} == {
        "caption.first_order": (64,), "caption.matrix": (64, 2), "caption.empty": (64,),
        "part: seven.first_order": (64,), "part: seven.matrix": (64, 1), "part: seven.empty": (64,),
    }  # fmt: skip
    for name in ("caption", "part: seven"):
        gain = arrays[f"{name}.first_order"] - arrays[f"{name}.empty"]
        assert close(arrays[f"{name}.matrix"].sum(1), gain, 1e-5 * np.abs(gain).max())
    assert np.abs(arrays["caption.matrix"]).max() > 0
    assert {path.name for path in tmp_path.glob("*.*")} >= {"table.json", "figure.png", "figure.pdf"}


@pytest.mark.slow
def test_pairs_of_tokens_and_tokens_together_are_the_map_of_the_caption(picture, tmp_path):
    cfg, _ = illustrate(tmp_path, picture, "attribution=meta_grad_eclip_pairs", caption="three seven zero")
    _, arrays = stored(cfg)
    pairs = arrays["caption.pairs"]
    assert pairs.shape == (64, 3, 3)
    assert np.array_equal(pairs, pairs.transpose(0, 2, 1))
    single, joint = (
        np.einsum("pii->p", pairs),
        sum(pairs[:, i, j] for i, j in combinations(range(3), 2)),
    )
    gain = arrays["caption.first_order"] - arrays["caption.empty"]
    assert close(single + joint, gain, 1e-5 * np.abs(gain).max())


@pytest.mark.slow
def test_a_first_order_method_has_a_map_of_the_caption_and_of_each_part(picture, tmp_path):
    cfg, _ = illustrate(tmp_path, picture, "attribution=grad_eclip", "benchmark.parts=[seven]")
    assert list(stored(cfg)[1]) == ["caption.first_order", "part: seven.first_order"]
    assert (tmp_path / "figure.png").exists()


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_and_a_caption_that_is_too_long_are_recorded_as_failed(picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(Path(picture).read_bytes()[:100])
    cfg, outcome = illustrate(tmp_path / "broken", tmp_path / "broken.png")
    assert outcome.errors == (f"image {tmp_path / 'broken.png'} cannot be decoded: replace the file.",)
    assert stored(cfg)[0].status == "failed"
    _, outcome = illustrate(tmp_path / "long", picture, "attribution=grad_eclip", caption="one two " * 4)
    assert outcome.n_failed == 1
    assert outcome.errors[0].endswith("shorten it.")


LABELS = {"first": "X", "meta": "Meta-X", "pairs": "Meta-X, pairs"}
CAPTIONS = ("black dog next to a yellow hydrant", "a cat")
PARTS = (["black dog", "hydrant"], [])


@pytest.fixture
def jobs(picture, wide_picture, tmp_path):
    """First-order, meta and pairs jobs of two captions, with random maps."""
    return [synthetic(tmp_path, kind, picture, wide_picture) for kind in ("first", "meta", "pairs")]


def ids(pictures, captions):
    """Of the samples with these pictures and captions."""
    return [id_of(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]


def synthetic(tmp_path, kind, *pictures, captions=CAPTIONS, parts=PARTS, done=(0, 1), failed=()):
    rng = np.random.default_rng(len(kind))
    examples = [
        {"image": image, "caption": caption, "parts": part}
        for image, caption, part in zip(pictures, captions, parts, strict=True)
    ]
    config = OmegaConf.create(
        {
            "name": "figure2",
            "model": {"name": "m", "label": "Model"},
            "attribution": {"name": kind, "label": LABELS[kind], "meta": kind != "first"},
            "benchmark": {"name": "illustration", "_target_": "metagame.benchmarks.illustration.Illustration"}
            | {"examples": examples, "side": 32, "scales": {}},
        }
    )
    store, records = RecordStore(tmp_path / kind), []
    for place in done:
        tokens = captions[place].split()
        questions = {CAPTION: tokens} | {f"{PART}{part}": part.split() for part in parts[place]}
        n = len(tokens)
        symmetric = rng.normal(size=(16, n, n))
        arrays = {
            "first": {f"{name}.first_order": rng.normal(size=16) for name in questions},
            "meta": {"caption.first_order": rng.normal(size=16), "caption.matrix": rng.normal(size=(16, n))},
            "pairs": {"caption.pairs": symmetric + symmetric.transpose(0, 2, 1)},
        }[kind]
        scores = {f"tokens of {name}": pieces for name, pieces in questions.items()}
        records.append(Record(f"k{place}", ids(pictures, captions)[place], "done", scores, arrays=list(arrays)))
        store.append(records[-1], arrays)
    records += [Record(f"k{place}", ids(pictures, captions)[place], "failed", error="no memory") for place in failed]
    return JobResult(config, tmp_path / kind, ids(pictures, captions), records)


def maps_of(job, place):
    (arrays,) = [job.arrays(record) for record in job.done if record.sample == job.sample_ids[place]]
    return arrays


def strongest(pairs):
    found = combinations(range(pairs.shape[1]), 2)
    return sorted(found, key=lambda pair: -np.abs(pairs[:, pair[0], pair[1]]).sum())[:MOST_PAIRS]


def test_the_table_has_a_row_for_each_token_and_for_the_strongest_pairs(jobs):
    table = illustration_table(jobs, "tiny")
    expected = []
    for place, caption in enumerate(CAPTIONS):
        tokens, matrix, pairs = caption.split(), maps_of(jobs[1], place)["caption.matrix"], maps_of(jobs[2], place)
        expected += [(caption, token, values) for token, values in zip(tokens, matrix.T, strict=True)]
        pairs = pairs["caption.pairs"]
        expected += [(caption, f"{tokens[i]} + {tokens[j]}", pairs[:, i, j]) for i, j in strongest(pairs)]
    assert [(row["caption"], row["players"]) for row in table.rows] == [each[:2] for each in expected]
    for row, (_, _, values) in zip(table.rows, expected, strict=True):
        assert close(row["total"], values.sum(), 1e-6)
        assert close(row["largest"], values[np.abs(values).argmax()], 1e-6)
    assert table.n_samples == 2


def test_two_pictures_with_one_caption_have_their_own_maps_in_the_table(picture, wide_picture, tmp_path):
    job = synthetic(tmp_path, "meta", picture, wide_picture, captions=["a cat", "a cat"], parts=[[], []])
    expected = np.concatenate([maps_of(job, place)["caption.matrix"].sum(0) for place in range(2)])
    rows = illustration_table([job], "tiny").rows
    assert [(row["caption"], row["players"]) for row in rows] == [("a cat", "a"), ("a cat", "cat")] * 2
    assert close(np.array([row["total"] for row in rows]), expected, 1e-6)


def drawn(figure):
    """Draw it coarsely: what cannot be drawn raises."""
    figure.savefig(io.BytesIO(), dpi=20, format="png")


def panels(figure):
    """Title by panel, of the axes that show a picture; the colour bars do not."""
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_the_figure_has_panels_of_parts_tokens_and_the_strongest_pairs(jobs):
    figure = illustration_figure(jobs)
    drawn(figure)
    tokens, pairs = CAPTIONS[0].split(), maps_of(jobs[2], 0)["caption.pairs"]
    joint = [f"{tokens[i]} + {tokens[j]}" for i, j in strongest(pairs)]
    expected = ["", "whole caption", "black dog", "hydrant", *tokens, *joint]
    expected += ["", "whole caption", "a", "cat", "a + cat"]
    assert sorted(panels(figure)) == sorted(expected)


def test_a_part_that_reads_as_the_title_of_the_caption_does_not_replace_its_map(picture, wide_picture, tmp_path):
    chosen = {"captions": ["the whole caption", "a cat"], "parts": [["whole caption"], []]}
    figure = illustration_figure([synthetic(tmp_path, "first", picture, wide_picture, **chosen)])
    assert len([title for title in panels(figure) if title]) == 3  # two captions and a part


def test_the_figure_labels_lines_by_token(jobs):
    labels = [[text.get_text() for text in axes.texts] for axes in illustration_figure(jobs).axes if axes.lines]
    assert labels == [caption.split() for caption in CAPTIONS]


def test_the_figure_says_caption_and_model(jobs):
    figure = illustration_figure(jobs)
    headings = [part.get_suptitle() for part in figure.subfigs]
    assert all(caption in heading for caption, heading in zip(CAPTIONS, headings, strict=True))
    assert all("Model" in heading for heading in headings)


@pytest.mark.parametrize("shown", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_a_report_of_some_of_the_jobs_has_what_they_computed(jobs, tmp_path, shown):
    chosen = [jobs[place] for place in shown]
    table = illustration_table(chosen, "tiny")
    write_table(table, tmp_path)
    drawn(illustration_figure(chosen))
    assert any("+" in row["players"] for row in table.rows) is (2 in shown)
    assert any(row["players"] == "dog" for row in table.rows) is (1 in shown)


def test_a_failed_sample_is_named_and_the_others_are_drawn(picture, wide_picture, tmp_path):
    chosen = [
        synthetic(tmp_path, "first", picture, wide_picture),
        synthetic(tmp_path, "meta", picture, wide_picture, done=[1], failed=[0]),
    ]
    table = illustration_table(chosen, "tiny")
    drawn(illustration_figure(chosen))
    assert [row["players"] for row in table.rows] == ["a", "cat"]
    assert table.n_samples == illustration_table(chosen[::-1], "tiny").n_samples == 2
    assert f"Meta-X: sample {id_of(picture, CAPTIONS[0])} failed: no memory" in table.notes


@pytest.mark.parametrize("done", [[0], [1]])
def test_a_sample_that_no_job_finished_is_not_counted_and_does_not_stop_the_figure(
    picture, wide_picture, tmp_path, done
):
    chosen = [synthetic(tmp_path, kind, picture, wide_picture, done=done) for kind in ("first", "meta")]
    drawn(illustration_figure(chosen))
    table = illustration_table(chosen, "tiny")
    assert {row["caption"] for row in table.rows} == {CAPTIONS[done[0]]}
    assert table.n_samples == 1
