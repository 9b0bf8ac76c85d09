"""The table of comprehensiveness and sufficiency: means, paired differences, published values and claims."""

from __future__ import annotations

import pytest

from metagame.report.faithfulness import faithfulness_table
from tests.tiny.reports import Made, made_up, only, stub_config

CHECKPOINT = "textattack/bert-base-uncased-SST-2"


def job(folder, attribution, values, n_cut=0, checkpoint=CHECKPOINT, most=15):
    """A job whose samples have these values of comprehensiveness, and the right label from the top players."""
    base = attribution.removeprefix("meta_")
    labelled = {"_target_": "somewhere", "most": most}
    cfg = stub_config(
        folder,
        model={"checkpoint": checkpoint, "label": "BERT"},
        attribution={"name": attribution, "label": base.upper(), "base": base, "meta": base != attribution},
        benchmark={"name": "faithfulness", "bins": [1, 5, 10, 20, 50], "divisor": None, "labelled": labelled},
    )
    names = ("comprehensiveness", "sufficiency", "published_comprehensiveness", "published_sufficiency")
    made = {
        f"s{number}": Made(dict.fromkeys(names, value) | {"label": number % 2, "kept": number % 2, "n_cut": n_cut})
        for number, value in enumerate(values)
    }
    return only(made_up(cfg, made))


@pytest.fixture
def jobs(tmp_path):
    values = {
        "random_tokens": (0.1, 0.2, 0.1, 0.2),
        "pure_attention_cls": (0.1, 0.2, 0.2, 0.1),
        "attention_game_cls": (0.5, 0.6, 0.5, 0.6),
        "meta_attention_game_cls": (0.5, 0.6, 0.5, 0.6),
        "attention_game_mutual": (0.3, 0.4, 0.3, 0.4),
    }
    return [job(tmp_path, *each) for each in values.items()]


def test_rows_have_means_and_the_paired_difference_to_a_random_ranking(jobs):
    table = faithfulness_table(jobs, "tiny")
    assert table.rows[0]["gain"] is None
    assert table.rows[2]["comprehensiveness"]["mean"] == 0.55
    assert (table.rows[2]["gain"]["mean"], table.rows[2]["gain"]["two_se"]) == (0.4, 0.0)
    assert [row["f1"] for row in table.rows] == [1.0] * 5
    assert not any(table.published)


def test_claims_are_decided_by_paired_differences(jobs):
    table = faithfulness_table(jobs, "tiny")
    assert [claim["holds"] for claim in table.claims] == [None, True, False]
    notes = " ".join(table.notes)
    assert "not decided: PURE_ATTENTION_CLS; above a random ranking: ATTENTION_GAME_CLS, ATTENTION_GAME_MUTUAL" in notes
    assert "Bins: the top 1, 5, 10, 20, 50 % of the players, rounded up; sums are divided by 6" in notes
    assert [claim["holds"] for claim in faithfulness_table(jobs[:1], "tiny").claims] == [None] * 3


def test_published_values_stand_beside_the_same_model_and_lengths_at_paper_scale_alone(jobs, tmp_path):
    table = faithfulness_table(jobs, "paper")
    assert [each.get("published_comprehensiveness") for each in table.published] == [None, None, 0.21, None, None]
    assert any("Published for SHAP: 0.22" in note for note in table.notes)
    other = [job(tmp_path / "other", "attention_game_cls", (0.5, 0.6), checkpoint="mine")]
    assert not any(faithfulness_table(other, "paper").published)


def test_texts_that_were_cut_are_told(tmp_path):
    table = faithfulness_table([job(tmp_path, "ig", (0.5, 0.6), n_cut=3)], "paper")
    assert "Texts that were cut to the model's positions: 2." in table.notes
