"""The table of comprehensiveness and sufficiency."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from metagame.report.groups import by_setting
from metagame.report.published import published
from metagame.report.results import JobResult, failure_notes
from metagame.report.scores import Difference, decide, rounded_mean_cell
from metagame.report.table import Column, Table

COMPREHENSIVENESS, GAIN = "comprehensiveness", "gain"
SCORES = {
    COMPREHENSIVENESS: "comprehensiveness",
    "sufficiency": "sufficiency",
    GAIN: "comprehensiveness over random",
    "published_comprehensiveness": "comprehensiveness (0, 10, 20, 50 %)",
    "published_sufficiency": "sufficiency (0, 10, 20, 50 %)",
}
RANDOM = "Every first-order method has a higher comprehensiveness than a random ranking"


def faithfulness_table(results: list[JobResult], scale: str) -> Table:
    """Rows are model x method; means over samples, and the paired difference to a random ranking."""
    claims = published("faithfulness")["claims"]
    columns = [Column("model", "model", "text"), Column("method", "method", "text")]
    columns += [Column(key, label, "mean") for key, label in SCORES.items()]
    columns += [Column("f1", "F1 of the top 20 %", "number"), Column("n", "samples", "text")]
    random, rest = [result for result in results if result.uses("random_tokens")], []
    rest = [result for result in results if result not in random and not result.variant.meta]
    return Table(
        title=f"{results[0].config.name}: comprehensiveness and sufficiency",
        scale=scale,
        columns=columns,
        rows=[_row(result, random) for result in results],
        published=[_published(result, scale) for result in results],
        n_samples=max(len(result.done) for result in results),
        claims=[
            decide(RANDOM, _differences(rest, random)),
            decide(claims["gradient"], _between(results, "attention_game_cls", "pure_attention_cls"), "yes"),
            decide(claims["mutual"], _between(results, "attention_game_mutual", "attention_game_cls"), "yes, on IMDb"),
        ],
        notes=[
            "Probability of the explained label that is lost without the players that rank highest (comprehensiveness,"
            " higher is better), and with them alone (sufficiency, lower is better): mean ± 2 standard errors over"
            " samples.",
            *_bin_notes(results),
            "Comprehensiveness over random: less that of a random ranking, sample by sample.",
            "Metagames are ranked by the sums of their rows, which are the first-order attributions"
            " (efficiency): a metagame says which players change an attribution; it is not another attribution.",
            "F1: macro average over the labels, of what is predicted from the top 20 % of the players alone.",
            *([f"Published for SHAP: {published('faithfulness')['shap']}."] if _published_rows(results, scale) else []),
            *_cut_notes(results),
            "A claim is decided where the mean difference, sample by sample, is more than two standard errors.",
            *_comparison_notes(results, random),
            *failure_notes(results),
        ],
    )


def _row(result: JobResult, random: list[JobResult]) -> dict[str, Any]:
    cells = {key: rounded_mean_cell([record.scores[key] for record in result.done]) for key in SCORES if key != GAIN}
    gains = [each for other in random if other is not result for each in paired(result, other)]
    row: dict[str, Any] = {"model": result.model, "method": result.label, **cells, GAIN: rounded_mean_cell(gains)}
    return row | {"f1": _f1(result), "n": str(len(result.done))}


def paired(result: JobResult, other: JobResult) -> list[float]:
    """One job's comprehensiveness less another's of the same setting, on the samples that both have."""
    if result.setting != other.setting:
        return []
    known = {record.sample: record.scores[COMPREHENSIVENESS] for record in other.done}
    return [record.scores[COMPREHENSIVENESS] - known[record.sample] for record in result.done if record.sample in known]


def _differences(results: list[JobResult], others: list[JobResult]) -> list[Difference]:
    return [
        Difference(f"{result.label} - {other.label}, {result.model}", rounded_mean_cell(differences))
        for result in results
        for other in others
        if (differences := paired(result, other))
    ]


def _between(results: list[JobResult], first: str, second: str) -> list[Difference]:
    """Of the first-order method ``first`` and of ``second``."""
    found = ([result for result in results if result.uses(base)] for base in (first, second))
    return _differences(*found)


def _f1(result: JobResult) -> float | None:
    from sklearn.metrics import f1_score  # here, since importing it takes seconds

    scores = [record.scores for record in result.done]
    if not scores:
        return None
    return round(
        float(f1_score([each["label"] for each in scores], [each["kept"] for each in scores], average="macro")), 6
    )


def _published(result: JobResult, scale: str) -> dict[str, float]:
    theirs = published("faithfulness")
    select = OmegaConf.select
    is_theirs = (
        scale == "paper"
        and select(result.config, "model.checkpoint") == theirs["checkpoint"]
        and select(result.config, "benchmark.labelled.most") == theirs["most"]
        and not result.variant.meta
    )
    value = theirs["rows"].get(result.variant.base) if is_theirs else None
    return {} if value is None else {"published_comprehensiveness": value}


def _published_rows(results: list[JobResult], scale: str) -> bool:
    return any(_published(result, scale) for result in results)


def _bin_notes(results: list[JobResult]) -> list[str]:
    """What the first two columns add up, and the two behind them."""
    settings = {
        (tuple(result.config.benchmark.bins), result.config.benchmark.divisor or len(result.config.benchmark.bins) + 1)
        for result in results
    }
    own = [
        f"Bins: the top {', '.join(f'{share:g}' for share in bins)} % of the players, rounded up; sums are divided by"
        f" {divisor:g}."
        for bins, divisor in sorted(settings)
    ]
    return [*own, "Columns of 0, 10, 20, 50 %: the bins of arXiv 2508.08966, whose sums are divided by 5."]


def _cut_notes(results: list[JobResult]) -> list[str]:
    cut = {record.sample for result in results for record in result.done if record.scores["n_cut"]}
    return [f"Texts that were cut to the model's positions: {len(cut)}."] if cut else []


def _comparison_notes(results: list[JobResult], random: list[JobResult]) -> list[str]:
    """Which methods beat a random ranking by more than two standard errors, setting by setting."""
    notes = []
    for group in by_setting(results):
        own = [other for other in random if other.setting == group.results[0].setting]
        sides: dict[bool | None, list[str]] = {False: [], None: [], True: []}
        for result in group.results:
            if not result.variant.meta and not result.uses("random_tokens"):
                for difference in _differences([result], own):
                    sides[difference.holds].append(result.label)
        words = {False: "below a random ranking", None: "not decided", True: "above a random ranking"}
        said = [f"{words[holds]}: {', '.join(labels)}" for holds, labels in sides.items() if labels]
        notes += [f"{group.name}: {'; '.join(said)}."] if said else []
    return notes
