"""Tables and figure of sentences with known evidence."""

import pytest

from metagame.contracts import WHOLE
from metagame.report.evidence import evidence_figure, evidence_table, pairs_table
from tests.tiny.reports import Made, made_up, only, stub_config, tokens_explained


def sentence(attractors, rank=None, skipped=None, **others):
    common = {"attractors": attractors, "margin": 1.0 - attractors, "skipped": skipped}
    return common | ({} if skipped else {"reciprocal_rank": rank, "mass": rank, "top_1": 1.0, "top_2": 1.0}) | others


def job(folder, attribution, *scores):
    base = attribution.removeprefix("meta_")
    cfg = stub_config(
        folder,
        model={"name": "gemma", "label": "Gemma", "checkpoint": "gemma"},
        attribution={"name": attribution, "label": base, "family": "lrp", "base": base, "meta": base != attribution},
        benchmark={"name": "agreement"},
    )
    made = [Made(each, {WHOLE: tokens_explained(("a", "b"), [1, 2])}) for each in scores]
    return only(made_up(cfg, {f"s{number}": each for number, each in enumerate(made)}))


def test_mrr_is_by_the_number_of_attractors_and_compared_with_closeness_where_there_are_some(tmp_path):
    skipped = sentence(1, skipped="passer-by")
    found = job(tmp_path, "attnlrp", sentence(0, 0.5), sentence(1, 1.0), sentence(1, 0.8), skipped)
    recency = job(tmp_path, "recency", sentence(0, 1.0), sentence(1, 0.25), sentence(1, 0.25), skipped)
    table = evidence_table([found, recency], "tiny")
    row = table.rows[0]
    assert row["reciprocal_rank"]["mean"] == pytest.approx(2.3 / 3, abs=1e-6)
    assert (row["of_0"]["mean"], row["of_1"]["mean"], row["n"]) == (0.5, 0.9, "3")
    assert [claim["holds"] for claim in table.claims] == [True]
    assert "+0.650" in table.claims[0]["difference"]
    notes = " ".join(table.notes)
    assert "1 sentences are skipped, because their subject is several tokens: passer-by" in notes
    assert "1 of 1 with 0 attractors, 0 of 3 with 1 attractor" in notes
    axes = evidence_figure([found, recency]).axes[0]
    assert [container.get_label() for container in axes.containers] == ["attnlrp", "recency"]


def test_pairs_are_summed_and_the_sign_of_their_influence_is_a_claim(tmp_path):
    none = {"on_subject": None, "by_subject": None}
    rows = [
        sentence(0, 1.0, **none),
        sentence(1, 1.0, on_subject=-1.0, by_subject=-2.0),
        sentence(2, 1.0, on_subject=-1.2, by_subject=2.0),
        sentence(1, 1.0, **none, split_attractors=["passers-by"]),
    ]
    first_order = [sentence(record["attractors"], 1.0) for record in rows]
    table = pairs_table([job(tmp_path, "attnlrp", *first_order), job(tmp_path, "meta_attnlrp", *rows)], "tiny")
    assert [row["attractors"] for row in table.rows] == ["any", "1", "2"]
    assert table.rows[0]["on"]["mean"] == pytest.approx(-1.1)
    assert table.rows[0]["more"]["mean"] == pytest.approx(0.9)
    assert [claim["holds"] for claim in table.claims] == [True, None]
    notes = " ".join(table.notes)
    assert "1 sentences have no influence between subject and attractors, because an attractor is several" in notes
