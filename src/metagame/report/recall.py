"""Recall@K of annotated pairs: the table of Figures 3 and 10, and their curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from metagame.benchmarks.distance_matched import FEWEST
from metagame.benchmarks.prompts import MATCHES, REVIEW, SHARES, pair_matrix, recalls_of_ranks
from metagame.contracts import WHOLE
from metagame.digests import digest
from metagame.jobs.records import Record
from metagame.report.drawing import Drawing
from metagame.report.groups import Group, by_setting
from metagame.report.maps import COLORS
from metagame.report.results import JobResult, failure_notes, setting_notes
from metagame.report.scores import DECIDED, Difference, decide, mean_cell, rounded_mean_cell
from metagame.report.table import Column, Table, plain

MEAN = Column("", "", "mean")
STYLES = ("-", "--", "-.", ":")
SHOWN = (1, 5, 10, 15)
"""Percentages with a column of their own."""
END_TOKEN_NOTES = {
    True: "The token that ends an answer counts as a generation step, as in the paper's code.",
    False: "The token that ends an answer is not a generation step; in the paper's code, it is (model.end_token=true).",
}
CLAIM = "Meta-AttnLRP recalls more of the annotated pairs than sums of AttnLRP (mean over K = 1 to 15 %)"
MATCHED_CLAIM = "beyond the paper: among pairs of the same distance, Meta-AttnLRP ranks annotated pairs above {rival}"
MEANING_CLAIM = (
    "beyond the paper: Meta-AttnLRP finds meaning, not adjacency: annotated pairs are in the upper half of the"
)
MEANING_CLAIM += " pairs of the same distance"
RECALL_CAPTION = (
    "How soon the strongest pairs of tokens find those that people annotated as interacting: the share of a prompt's"
    " annotated pairs among the K % of all directed pairs that a method ranks highest by size. Lines are means over"
    " prompts, bands are two standard errors; higher and further left is better. Methods that give each token one value"
    " rank a pair by the size of the sum of its two values. Proximity, which ranks pairs by their distance alone, is"
    " what closeness achieves, and Random what chance achieves, where they are shown."
)
OTHER_PLACES = (
    "Of such a pair, recall of non-neighbours has the place where each method itself ranks it best. Unordered recall,"
    " the same-distance control and percentiles have the two places that are closest to each other, the same for all"
    " methods. Where the best place counts, so does each place for the chance level."
)
REVIEWS = "Prompts are reviews of a small grammar, which says which pairs interact."
TINY_CHECKPOINT = "data/tiny/gemma3"
TINY_MODEL = (
    " The small model was trained on other reviews, half of them with words absent; it is one model, in its chat"
    " template or without."
)
RIVALS = {"attnlrp": "AttnLRP", "cp_lrp": "CP-LRP", "leave_one_out": "leave-one-out"}
MEASURES = {
    "percentile": "percentile at equal distance", "mean": "recall, mean of K = 1 to 15 %",
    "chance": "recall by chance", "unordered": "recall, unordered",
    "same_distance": "recall, same-distance control", "apart": "recall, non-neighbours",
}  # fmt: skip
"""Columns before those of single K."""


def recall_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x method; cells the mean recall over prompts, and how far a method agrees with leave-one-out."""
    columns = [Column("model", "model", "text"), Column("method", "method", "text")]
    columns += [Column(name, label, "mean") for name, label in MEASURES.items()]
    columns += [Column(f"kind_{kind}", f"percentile, {kind}", "mean") for kind in kinds_of(results)]
    columns += [Column(f"recall_{share}", f"recall, K = {share} %", "mean") for share in SHOWN]
    columns += [Column("loo", "rank correlation with LOO", "mean")]
    columns += [Column("n", "prompts", "count")]
    results = at_matches(results)
    return Table(
        title=f"{results[0].config.name}: recall of annotated pairs of tokens",
        scale=scale,
        columns=columns,
        rows=[_row(result, results) for result in results],
        published=[{} for _ in results],
        n_samples=max(len(result.done) for result in results),
        claims=_claims(results),
        notes=[
            "Percentile at equal distance: the share of a prompt's pairs of the same distance that score less than an"
            " annotated one, 0.5 by chance; it shows what a method finds beyond closeness. Pairs score max(|M_ij|,"
            " |M_ji|), or |R_i + R_j|.",
            "Recall: share of a prompt's pairs among the K largest of the n(n-1) directed entries by size, first-order"
            " methods by |R_a + R_b|; mean ± 2 standard errors over prompts. K = max(1, round(p n(n-1))), 0 for p = 0."
            " Entries that are equally large count for the pair.",
            "The chance level of recall differs between methods: with a matrix, the better of two directions counts;"
            " with a first-order method or a symmetric matrix, each pair takes two places. Unordered: among the"
            " n(n-1)/2 pairs. Same-distance control: recall of pairs that nobody annotated, at the distances of the"
            " annotated ones. Non-neighbours: recall of pairs that are two tokens apart or more.",
            "Rank correlation: Spearman's, of first-order attributions with leave-one-out's on the same prompt.",
            DECIDED,
            *setting_notes(results, "model.end_token", END_TOKEN_NOTES),
            *_match_notes(results),
            *_agreement_notes(results),
            *_annotation_notes(results, scale),
            *failure_notes(results),
        ],
    )


def at_matches(results: Sequence[JobResult]) -> list[JobResult]:
    """The results, each pair ranked where ``match`` of :class:`metagame.benchmarks.prompts.Prompts` says.

    A pair of a prompt that no metagame has done stays where the method itself ranks it best.
    """
    return [_at_matches_of(result, _metagame_beside(result, results)) for result in results]


def _metagame_beside(result: JobResult, results: Sequence[JobResult]) -> JobResult | None:
    """The metagame at whose matches a method is ranked: itself or its own one, else Meta-AttnLRP, or the first by name.

    The order of the results does not matter.
    """
    if result.config.benchmark.get("match") != MATCHES[0]:
        return None
    if result.variant.meta:
        return result
    preferred = (result.variant.base, "attnlrp")

    def rank(metagame: JobResult) -> tuple[int, str, str]:
        base = metagame.variant.base
        place = preferred.index(base) if base in preferred else len(preferred)
        return place, base, digest(metagame.identity)

    return min(_metagames_beside(result, results), key=rank, default=None)


def _metagames_beside(result: JobResult, results: Sequence[JobResult]) -> list[JobResult]:
    return [other for other in results if other.variant.meta and other.setting == result.setting]


def _at_matches_of(result: JobResult, metagame: JobResult | None) -> JobResult:
    if metagame is None or metagame is result:
        return result
    known = {record.sample: record.scores.get("match_ranks", []) for record in metagame.done}
    return replace(result, records=[_at_best_of(record, known.get(record.sample, [])) for record in result.records])


def _at_best_of(record: Record, others: Sequence[Sequence[int]]) -> Record:
    """The record with each pair ranked at the match where another method has the best of its ranks."""
    if not others or record.status != "done":
        return record
    pairs = zip(record.scores["match_ranks"], others, strict=True)
    ranks = [own[int(np.argmin(theirs))] for own, theirs in pairs]
    scores = record.scores | recalls_of_ranks(ranks, record.scores["n_players"])
    if "chance_at_one" in scores:  # older records do not have it
        scores["chance"] = scores["chance_at_one"]
    return replace(record, scores=scores)


def _match_notes(results: Sequence[JobResult]) -> list[str]:
    """Where pairs that occur in several places are ranked, if there are such."""
    several = [
        result
        for result in results
        if any(len(matches) > 1 for record in result.done for matches in record.scores.get("match_ranks", ()))
    ]
    where: dict[str, list[str]] = {}
    for result in several:
        metagame = _metagame_beside(result, results)
        if metagame is None:
            text = "where the method itself ranks it best"
        elif len(_metagames_beside(result, results)) == 1:
            text = "where the metagame beside it ranks it best"
        else:
            text = f"where {metagame.label} ranks it best"
        where.setdefault(text, []).append(result.label)
    labels = {text: ", ".join(dict.fromkeys(own)) for text, own in sorted(where.items())}
    notes = [
        f"Recall at single K, and its mean: a pair that occurs in several places is ranked {text}: {names}."
        for text, names in labels.items()
    ]
    return [*notes, OTHER_PLACES] if notes else []


def recalls(result: JobResult, share: int) -> list[float]:
    """Recall at one K of all prompts that have pairs."""
    values = [record.scores[f"recall_{share}"] for record in result.done]
    return [value for value in values if value is not None]


def _row(result: JobResult, results: list[JobResult]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": result.model,
        "method": result.label,
        "n": len(result.done),
    }
    row |= {name: rounded_mean_cell(list(measure(result, name).values())) for name in MEASURES}
    row |= {f"kind_{kind}": rounded_mean_cell(percentiles_of_kind(result, kind)) for kind in kinds_of(results)}
    row |= {f"recall_{share}": rounded_mean_cell(recalls(result, share)) for share in SHOWN}
    return row | {"loo": rounded_mean_cell(_correlations(result, results))}


def measure(result: JobResult, name: str) -> dict[str, float]:
    """One of :data:`MEASURES` of each prompt that has it."""
    if name == "mean":
        return _mean_recalls(result)
    if name == "percentile":
        known = {record.sample: record.scores.get("percentiles", []) for record in result.done}
        found = {sample: [each for each in values if each is not None] for sample, values in known.items()}
        return {sample: float(np.mean(values)) for sample, values in found.items() if values}
    known = {record.sample: record.scores.get(name) for record in result.done}
    return {sample: value for sample, value in known.items() if value is not None}


def kinds_of(results: Sequence[JobResult]) -> list[str]:
    """The kinds of pairs that the prompts have, in order."""
    return list(
        dict.fromkeys(kind for each in results for record in each.done for kind in record.scores.get("kinds", ()))
    )


def percentiles_of_kind(result: JobResult, kind: str) -> list[float]:
    """Percentile at equal distance, the mean over the pairs of a kind of each prompt that has such pairs."""
    found = []
    for record in result.done:
        kinds = record.scores.get("kinds", ())
        pairs = zip(kinds, record.scores["percentiles"] if kinds else (), strict=True)
        if values := [value for own, value in pairs if own == kind and value is not None]:
            found.append(float(np.mean(values)))
    return found


def _agreement_notes(results: Sequence[JobResult]) -> list[str]:
    """How far metagames that differ in their seed alone agree on the sizes of the entries."""
    notes = []
    metas = [result for result in results if result.variant.meta]
    for one, other in combinations(metas, 2):
        if {**one.identity, "seed": None} == {**other.identity, "seed": None}:
            cell = rounded_mean_cell(list(_agreement(one, other).values()))
            if cell is not None:
                notes.append(
                    f"{one.label}, {one.model}: rank correlation of |M| off the diagonal between seed"
                    f" {one.config.seed} and {other.config.seed}: {plain(MEAN, cell)}, over {cell['n']} prompts."
                )
    return notes


def _agreement(one: JobResult, other: JobResult) -> dict[str, float]:
    """Spearman's correlation of the sizes of two metagames' entries on each prompt that both have."""
    known = {record.sample: record for record in other.done}
    sizes = {
        record.sample: (_sizes(one, record), _sizes(other, known[record.sample]))
        for record in one.done
        if record.sample in known
    }
    varied = {sample: pair for sample, pair in sizes.items() if all(np.ptp(each) > 0 for each in pair)}
    return {sample: float(spearmanr(*pair).statistic) for sample, pair in varied.items()}


def _sizes(result: JobResult, record: Record) -> np.ndarray:
    matrix = pair_matrix(result.explanations(record)[WHOLE])
    return np.abs(matrix)[~np.eye(len(matrix), dtype=bool)]


def _mean_recalls(result: JobResult) -> dict[str, float]:
    """The mean over K = 1 to 15 % of each prompt that has pairs."""
    records = [record for record in result.done if record.scores["recall_1"] is not None]
    return {
        record.sample: float(np.mean([record.scores[f"recall_{share}"] for share in SHARES if share > 0]))
        for record in records
    }


def _correlations(result: JobResult, results: list[JobResult]) -> list[float]:
    """Rank correlation with leave-one-out on each prompt that both have; none for second-order methods."""
    references = [other for other in results if other.uses("leave_one_out") and other.setting == result.setting]
    if not references or result.uses("leave_one_out"):
        return []
    known = {record.sample: record for record in references[0].done}
    found = []
    for record in (record for record in result.done if record.sample in known):
        explanation = result.explanations(record)[WHOLE]
        if explanation.meta is not None:
            continue
        own = explanation.attribution
        other = references[0].explanations(known[record.sample])[WHOLE].attribution
        if own is not None and other is not None and np.ptp(own) > 0 and np.ptp(other) > 0:
            found.append(float(spearmanr(own, other).statistic))
    return found


def _claims(results: Sequence[JobResult]) -> list[dict[str, Any]]:
    """The paper's claim, and those at equal distance, by differences on the prompts that both have."""
    metas = [result for result in results if result.uses("attnlrp", meta=True)]
    beside = {
        base: [
            (meta, other) for meta in metas for other in results if other.uses(base) and other.setting == meta.setting
        ]
        for base in RIVALS
    }
    claims = [decide(CLAIM, [_gain(*pair, "mean") for pair in beside["attnlrp"]])] if beside["attnlrp"] else []
    for base, rival in RIVALS.items():
        if beside[base]:
            differences = [_gain(*pair, "percentile") for pair in beside[base]]
            claims.append(decide(MATCHED_CLAIM.format(rival=rival), differences))
    over_half = [_over_half(meta) for meta in metas]
    return [*claims, decide(MEANING_CLAIM, over_half)] if over_half else claims


def _gain(meta: JobResult, other: JobResult, name: str) -> Difference:
    ours, theirs = measure(meta, name), measure(other, name)
    gains = [value - theirs[sample] for sample, value in ours.items() if sample in theirs]
    return Difference(f"{meta.label} - {other.label}, {meta.model}", rounded_mean_cell(gains))


def _over_half(meta: JobResult) -> Difference:
    gains = [value - 0.5 for value in measure(meta, "percentile").values()]
    return Difference(f"{meta.label} - 0.5, {meta.model}", rounded_mean_cell(gains))


def _annotation_notes(results: list[JobResult], scale: str) -> list[str]:
    """How many pairs there are, and which are no two tokens of the prompt."""
    notes = []
    if all(_are_reviews(result) for result in results):
        notes.append(REVIEWS + (TINY_MODEL if scale == "tiny" and all(map(_is_tiny_gemma, results)) else ""))
    for group in by_setting(results):
        records = {record.sample: record for result in group.results for record in result.done}
        unmatched = {name: record.scores["unmatched"] for name, record in records.items() if record.scores["unmatched"]}
        count = sum(len(record.scores["ranks"]) for record in records.values())
        text = "; ".join(f"{sample}: {', '.join(pairs)}" for sample, pairs in unmatched.items())
        left_out = f"; left out, because they are not two tokens of their prompt: {text}" if unmatched else ""
        notes.append(f"{group.name}: {count} pairs in {len(records)} prompts{left_out}.")
        ambiguous = {name: record.scores.get("ambiguous") for name, record in records.items()}
        if text := "; ".join(f"{sample}: {', '.join(pairs)}" for sample, pairs in ambiguous.items() if pairs):
            notes.append(
                f"{group.name}: several occurrences are equally close; the first is compared at equal distance: {text}."
            )
        notes += _count_notes(group)
    return notes


def _count_notes(group: Group) -> list[str]:
    """On how many prompts the measures rest, where these are fewer than have been done."""
    result = max(group.results, key=lambda each: len(each.done))
    n, over = len(result.done), {name: len(measure(result, name)) for name in ("mean", "percentile", "apart")}
    if min(over.values()) == n:
        return []
    return [
        f"{group.name}: of {n} prompts, recall is over the {over['mean']} with a pair that is found, the percentile"
        f" over the {over['percentile']} with one at whose distance there are {FEWEST} pairs, and recall of"
        f" non-neighbours over {over['apart']}."
    ]


def _are_reviews(result: JobResult) -> bool:
    """Whether the prompts are those of the grammar, and not one's own."""
    return all(name.startswith(REVIEW) for name in result.sample_ids)


def _is_tiny_gemma(result: JobResult) -> bool:
    return result.config.model.get("checkpoint") == TINY_CHECKPOINT


def recall_figure(results: list[JobResult]) -> Drawing | None:
    """A panel for each model (Figure 10), and for each seed and benchmark; None where no prompt has pairs."""
    results = at_matches(results)
    groups = [group for group in by_setting(results) if any(map(_has_curve, group.results))]
    if not groups:
        return None
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    width = 0.6 + 3.2 * columns
    figure = Figure(figsize=(width, 0.7 + 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(groups) :]:
        axes.set_axis_off()
    styles = curve_styles([result for group in groups for result in group.results])
    handles = {}
    for axes, group in zip(grid.flat, groups, strict=False):
        draw_recall(axes, group.results, styles)
        axes.set_title(group.name, fontsize=10)
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    for axes in grid[:, 0]:
        axes.set_ylabel("recall of annotated pairs")
    for axes in grid[-1]:
        axes.set_xlabel("K, % of all directed pairs")
    place = {"loc": "outside lower center", "ncols": int(width / 1.5), "frameon": False, "fontsize": 9}
    figure.legend(list(handles.values()), list(handles), **place)
    return Drawing.single(figure, RECALL_CAPTION)


def curve_styles(results: Sequence[JobResult]) -> dict[str, tuple[str, str]]:
    """Colour and kind of line by label, the same in all panels of a figure."""
    labels = dict.fromkeys(result.label for result in results if _has_curve(result))
    return dict(zip(labels, zip(cycle(COLORS), cycle(STYLES), strict=False), strict=False))


def draw_recall(axes: Axes, results: Sequence[JobResult], styles: dict[str, tuple[str, str]]) -> None:
    """Mean recall over K of each method, with a band of two standard errors over prompts."""
    drawn = list(filter(_has_curve, results))
    for result in drawn:
        color, style = styles[result.label]
        cells = [mean_cell(recalls(result, share)) for share in SHARES]
        mean = np.array([cell["mean"] for cell in cells])
        spread = np.array([cell["two_se"] or 0.0 for cell in cells])
        axes.plot(SHARES, mean, color=color, linestyle=style, linewidth=2, label=result.label)
        axes.fill_between(
            SHARES, mean - spread, mean + spread, color=color, alpha=min(0.15, 0.5 / len(drawn)), linewidth=0
        )
    axes.set_xlim(SHARES[0], SHARES[-1])
    axes.set_xticks(SHARES[::5])
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)


def _has_curve(result: JobResult) -> bool:
    return bool(recalls(result, 0))
