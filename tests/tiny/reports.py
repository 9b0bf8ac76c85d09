"""Jobs whose records are written by the tests of a table or a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from metagame.contracts import Explanation
from metagame.jobs.records import Record, RecordStore, pack
from metagame.jobs.spec import complete, job_folder, job_identity, variants
from metagame.meta import MetaAttributions
from metagame.report.drawing import Drawing
from metagame.report.results import JobResult
from metagame.report.table import Column, Table

FAMILIES = {"leave_one_out": "removal", "random_pairs": "random"}
"""Of methods that are not of LRP."""
CONCEPT_METHODS = {
    "concept_attention": {
        "name": "concept_attention", "label": "ConceptAttention", "base": "concept_attention",
        "method": {"mean_first": False},
    },
    "mean_first": {
        "name": "concept_mean_first", "label": "ConceptAttention, mean first", "base": "concept_mean_first",
        "method": {"mean_first": True},
    },
    "meta_concept_attention": {
        "name": "meta_concept_attention", "label": "ConceptAttention", "base": "concept_attention", "meta": True,
        "method": {"mean_first": True},
    },
    "meta_per_layer": {
        "name": "meta_per_layer", "label": "ConceptAttention, each layer", "base": "concept_attention", "meta": True,
        "method": {"mean_first": False},
    },
}  # fmt: skip
"""The shipped configs of ConceptAttention and its metagame, in either order of softmax and mean over layers."""

TABLE = Table(
    title="A table",
    scale="tiny",
    columns=[
        Column("method", "method", "text"),
        Column("phi_1", "phi_1", "expression"),
        Column("effect", "a→b", "number"),
        Column("accuracy", "accuracy", "mean"),
        Column("matches", "matches", "flag"),
    ],
    rows=[
        {"method": "SV", "phi_1": "x1*x2**2/2", "effect": 0.25}
        | {"accuracy": {"mean": 0.5, "two_se": 0.125, "n": 16}, "matches": True},
        {"method": "IG", "phi_1": None, "effect": None, "accuracy": None, "matches": False},
        {"method": "GI"},
    ],
    published=[{"phi_1": "I/2", "effect": 0.2, "accuracy": 0.4}, {}, {}],
    n_samples=16,
    claims=[{"claim": f"claim {holds}", "holds": holds} for holds in (True, False, None)],
    notes=["a→b: influence of a on b."],
)
"""With a column of each type, and cells that are not known."""


@dataclass(frozen=True)
class Made:
    """What a variant made of a sample."""

    scores: dict = field(default_factory=dict)
    explanations: Mapping[str, Explanation] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)


def stub_config(output_dir, *, model=None, attribution=None, benchmark=None, **changes) -> DictConfig:
    """The config of a job that is never run; ``changes`` by dotted key with ``__`` for the dot."""
    config = OmegaConf.create(
        {
            "name": "stub",
            "model": {"name": "model", "label": "Model"} | (model or {}),
            "attribution": {"name": "method", "label": "Method", "method": {}} | (attribution or {}),
            "benchmark": {"name": "benchmark"} | (benchmark or {}),
            "estimator": {"name": "exact"},
            "seed": 0,
            "limit": None,
            "scale": {"name": "tiny"},
            "output_dir": str(output_dir),
            "jobs_dir": None,
        }
    )
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, merge=False, force_add=True)
    config.attribution = complete(config.attribution)  # once, rather than each time that its variants are looked at
    return config


def made_up(
    cfg: DictConfig,
    made: Mapping[str, Mapping[str, Made]] | Mapping[str, Made],
    failed: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> list[JobResult]:
    """The variants of a job whose arrays lie in its folder.

    Args:
        cfg: of the job.
        made: of each variant by sample; of a job with one variant by sample alone.
        failed: ids of samples that every variant failed on, for want of memory.
        missing: ids of samples that were asked and have no record.
    """
    store, records = RecordStore(job_folder(cfg)), []
    for variant in variants(cfg):
        for sample, each in (made[variant.name] if variant.name else made).items():
            labels, arrays = pack(each.explanations, each.pictures)
            about = {"variant": variant.name, "scores": each.scores, "labels": labels, "arrays": list(arrays)}
            records.append(Record(f"{sample} {variant.name}".replace("/", "_"), sample, "done", **about))
            if arrays:
                store.append(records[-1], arrays)
        for sample in failed:
            error = f"no memory for {sample}"
            records.append(Record(f"{sample} {variant.name}", sample, "failed", variant.name, error=error))
    return with_records(cfg, records, missing, store.folder)


def job_of(folder, attribution: str, made: Sequence[Made], *, method=None, label=None, **changes) -> JobResult:
    """The job of a method, or of its metagame ``meta_METHOD``, with a sample ``s0``, ``s1``, ... for each of ``made``.

    ``METHOD@CHOICE`` is another choice of the same method; ``changes`` as of :func:`stub_config`.
    """
    base = attribution.removeprefix("meta_").partition("@")[0]
    about = {"base": base, "label": label or base.upper(), "family": FAMILIES.get(base, "lrp")}
    about |= {"name": attribution, "meta": attribution.startswith("meta_"), "method": method or {}}
    samples = {f"s{number}": each for number, each in enumerate(made)}
    return only(made_up(stub_config(folder, attribution=about, **changes), samples))


def with_records(
    cfg: DictConfig, records: Sequence[Record], missing: Sequence[str] = (), folder: Path = Path("unused")
) -> list[JobResult]:
    """The variants of a job with these records, whose arrays lie in the folder.

    Args:
        cfg: of the job.
        records: of all variants.
        missing: ids of samples that were asked and have no record.
        folder: of the job.
    """
    results = []
    for variant in variants(cfg):
        own = [record for record in records if record.variant == variant.name]
        ids = [record.sample for record in own] + list(missing)
        results.append(JobResult(cfg, variant, folder, job_identity(cfg), ids, own, 0, variant.label))
    return results


def only(results: Sequence[JobResult]) -> JobResult:
    """The variant of a job that has one."""
    (result,) = results
    return result


def column_keys(table: Table) -> list[str]:
    return [column.key for column in table.columns]


def holds(table: Table) -> list[bool | None]:
    """What the claims of a table are answered with."""
    return [claim["holds"] for claim in table.claims]


def noted(table: Table, text: str) -> list[str]:
    """The notes of a table with this text."""
    return [note for note in table.notes if text in note]


def drawn(figure: Figure) -> Figure:
    """The figure, once it is laid out: what cannot be drawn raises."""
    figure.draw_without_rendering()
    return figure


def panels(figure: Figure) -> list[Axes]:
    """The axes that show a picture or a matrix; colour bars do not."""
    return [axes for axes in figure.axes if axes.images]


def figure_of(draw: Callable[..., Drawing | None]) -> Callable[..., Figure | None]:
    """The same, but returns the only figure of the drawing, which must have a caption."""

    def figure(*args, **kwargs) -> Figure | None:
        drawing = draw(*args, **kwargs)
        if drawing is None:
            return None
        assert drawing.caption
        return drawing.figures[""]

    return figure


def tokens_explained(players: Sequence[str], attribution=None, values=None) -> Explanation:
    """An explanation whose targets are its players."""
    names = tuple(players)
    meta = None if values is None else MetaAttributions(np.asarray(values, float), players=names, targets=names)
    attribution = None if attribution is None else np.asarray(attribution, float)
    return Explanation(names, names, attribution=attribution, meta=meta)


def two_errors(without) -> np.ndarray:
    """Two standard errors of the jackknife, from what is found without each image, a row each."""
    without = np.asarray(without)
    n = len(without)
    return 2 * np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
