"""The parts of a job, built from its config."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from metagame.attributions.method import Metagame
from metagame.contracts import (
    Benchmark,
    BoundInput,
    Explanation,
    Failure,
    Method,
    Model,
    ReadsAhead,
    Sample,
    Score,
)
from metagame.errors import UserError
from metagame.estimators.configured import ConfiguredEstimator
from metagame.extras import needed_by
from metagame.games import Progress
from metagame.jobs.accelerator import has_gpu
from metagame.jobs.arguments import check_arguments
from metagame.jobs.spec import OF_ESTIMATOR, Variant, locate, plain, target_and_arguments, targets, variants
from metagame.kept_values import KeptValues

log = logging.getLogger(__name__)

Part = TypeVar("Part")
TINY_DATA = "data/tiny"
"""Where the repository has the small models and data, from its own folder."""


@dataclass(frozen=True)
class Evaluation:
    """What a variant of a job's method made of one sample.

    Attributes:
        explanations: by question.
        scores: of the benchmark.
        pictures: of each question, where the model made one.
    """

    explanations: dict[str, Explanation]
    scores: dict[str, Score]
    pictures: dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """The parts of a job; of its method the variants by name."""

    model: Model[Sample, BoundInput]
    methods: dict[str, Method[BoundInput]]
    benchmark: Benchmark[Sample, BoundInput]

    @classmethod
    def build(cls, cfg: DictConfig) -> Job:
        """Instantiate the parts, the model last.

        Raises:
            UserError: there is no GPU where the scale needs one; ``attribution.meta`` is set on a method that has no
                metagame; a part refuses its arguments, or misses its data or a package.
        """
        _check_gpu(cfg)
        _check_tiny_data(cfg)
        benchmark: Benchmark[Sample, BoundInput] = build_part(cfg.benchmark, "benchmark")
        methods = {variant.name: build_method(variant, cfg) for variant in variants(cfg)}
        return cls(build_part(cfg.model, "model"), methods, benchmark)

    def read_ahead(self, samples: Sequence[Sample]) -> None:
        """Have the model begin to read samples that :meth:`prepare` will be asked for next."""
        if isinstance(self.model, ReadsAhead) and all(isinstance(each, self.model.sample_type) for each in samples):
            try:
                self.model.read_ahead(samples)
            except Exception:  # a user's model may meet anything, and samples are read in time without it
                log.debug("samples are not read ahead", exc_info=True)

    def prepare(self, samples: Sequence[Sample]) -> list[Mapping[str, BoundInput] | Failure]:
        """The questions of each sample, bound to the model, or what kept it from being prepared."""
        if not all(isinstance(sample, self.model.sample_type) for sample in samples):
            names = (
                f"model {_name(self.model)} does not explain samples of benchmark {_name(self.benchmark)}: choose"
                " another model or benchmark."
            )
            return [Failure(UserError(names))] * len(samples)
        try:
            prepared = self.model.prepare(samples)
        except Exception as error:  # of the batch as a whole, such as a device without memory
            return [Failure(error)] * len(samples)
        if len(prepared) != len(samples):
            names = f"model {_name(self.model)} prepared {len(prepared)} of {len(samples)} samples"
            return [Failure(UserError(f"{names}: its method prepare must return one result for each."))] * len(samples)
        return prepared

    def evaluate(
        self,
        variant: str,
        sample: Sample,
        inputs: Mapping[str, BoundInput],
        progress: Progress,
        kept: Mapping[str, KeptValues] | None = None,
    ) -> Evaluation:
        """Explain and score one sample by one variant; of its metagames values are kept, by question.

        Raises:
            UserError: the parts do not fit each other, the explanation or a score is not finite, or a score is nothing
                that a record can hold.
        """
        method = self.methods[variant]
        explanations = {}
        for question, bound in inputs.items():
            if not isinstance(bound, method.input_type):
                raise UserError(
                    f"attribution method {_name(method)} does not explain model {_name(self.model)}: choose another"
                    " method."
                )
            if isinstance(method, Metagame):
                explanation = method.explain(bound, progress, (kept or {}).get(question))
            else:
                explanation = method.explain(bound, progress)
            explanations[question] = replace(explanation, variant=variant)
        scores = self.benchmark.score(sample, inputs, explanations)
        checked = {name: _checked(score, name) for name, score in scores.items()}
        pictures = {question: bound.picture for question, bound in inputs.items()}
        return Evaluation(explanations, checked, {name: each for name, each in pictures.items() if each is not None})


def _checked(score: Score | np.generic, name: str) -> Score:
    """A score as plain numbers and texts.

    Raises:
        UserError: it is or holds NaN or inf, or something else than these, and lists and mappings of them.
    """
    value = score.item() if isinstance(score, np.generic) else score
    if isinstance(value, Mapping):
        return {key: _checked(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(each, name) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        raise UserError(f"score {name} is {value}: check the model and the method on this sample.")
    if not isinstance(value, float | int | str | None):
        raise UserError(
            f"score {name} is of type {type(value).__name__}: return a number, a text, or a list or mapping of these."
        )
    return value


def build_method(variant: Variant, cfg: DictConfig) -> Method[BoundInput]:
    """The method of a variant, or its metagame.

    Raises:
        UserError: it has no metagame, or of no such order; an order or index is set without ``meta``.
    """
    node = variant.node
    if node.method is None:
        raise UserError(f"attribution.method of {node.name} is missing: give its _target_.")
    method: Method[BoundInput] = _instantiated(
        node.method, f"attribution.variants.{variant.name}.method" if variant.name else "attribution.method"
    )
    if not variant.meta:
        if node.order != 1 or node.index is not None:
            raise UserError(
                "attribution.order and attribution.index apply only to metagames: set attribution.meta=true."
            )
        return method
    try:
        return method.metagame(build_estimator(cfg), node.order, node.index)
    except UserError as error:
        raise UserError(f"attribution={node.name} with attribution.meta=true: {error}") from error


def build_estimator(cfg: DictConfig) -> ConfiguredEstimator:
    """The estimator of a job's metagames, with its settings."""
    content = target_and_arguments(plain(cfg.estimator), OF_ESTIMATOR)
    budget, per_player = content.pop("budget", None), content.pop("budget_per_player", None)
    batch_size = cfg.estimator.get("batch_size")
    return ConfiguredEstimator(_instantiated(content, "estimator"), budget, cfg.seed, batch_size, per_player)


def build_part(node: DictConfig, path: str = "") -> Any:
    """Instantiate the node of a model, benchmark, tracker or report, without those of its keys that are no arguments.

    Args:
        node: of the config.
        path: where it stands there, such as ``model``, for messages.

    Raises:
        UserError: as the node's target raised it, without Hydra's wrapping; or the target, maybe a function that is
            called later, does not take an argument of the node.
    """
    return _instantiated(target_and_arguments(plain(node)), path)


def check_report(cfg: DictConfig) -> None:
    """Build what is called after all work, which a misspelt argument would stop only then."""
    for part in ("table", "figure", "reproduction"):
        if node := cfg.report.get(part):
            build_part(OmegaConf.create(plain(node) | {"_partial_": True}), f"report.{part}")


def _instantiated(content: Any, path: str) -> Any:
    """What a node describes; ``path`` is where it stands in the config, if that is known."""
    content = plain(content) if isinstance(content, DictConfig) else content
    for target in targets(content):  # before Hydra, which would say it at length
        with needed_by(target):
            locate(target)
    check_arguments(content, path and f"{path}.")
    with _in_one_sentence(content.get("_target_")):
        built = instantiate(content)
        if isinstance(built, partial):
            inspect.signature(built.func).bind_partial(*built.args, **built.keywords)
    return built


@contextmanager
def _in_one_sentence(target: str | None) -> Generator[None, None, None]:
    """Within: what a part raises is raised as it is, and an argument that it does not take is named."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, TypeError) and "argument" in str(cause):
            raise UserError(f"{target}: {cause}; correct its config.") from error
        raise cause from cause.__cause__
    except TypeError as error:
        raise UserError(f"{target}: {error}; correct its config.") from error


def _check_gpu(cfg: DictConfig) -> None:
    undecided = "device" in cfg.model and cfg.model.device is None
    if undecided and cfg.scale.get("needs_gpu", False) and not has_gpu():
        raise UserError(
            f"scale={cfg.scale.name} needs a GPU, and none was found: run on a GPU node, or add model.device=cpu,"
            " which may be very slow."
        )


def _check_tiny_data(cfg: DictConfig) -> None:
    """Refuse what needs the small models and data where they are not."""
    if Path(TINY_DATA).is_dir():
        return
    for part in ("model", "benchmark"):
        found = re.search(rf"(?<![\w./-]){TINY_DATA}/[\w./-]+", OmegaConf.to_yaml(cfg[part], resolve=True))
        if found is not None:
            raise UserError(
                f"{part}={cfg[part].name} needs {found[0]}, which is not in this folder: {TINY_DATA} comes with"
                " the repository, not with the package, so run in a clone of the repository."
            )


def _name(part: Model | Method | Benchmark) -> str:
    return type(part).__name__
