"""What a job is asked to do: the keys of its config, what of them its results depend on, and where its files lie."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from metagame.digests import digest
from metagame.errors import UserError

OUTPUTS = Path("outputs")
Node = Any
"""The open node of a plug-in: a ``_target_`` and its arguments."""

IDENTITY = {"identity": True}
"""Marks a key that the results of a job depend on."""

FAMILIES = {
    "attention": "attention weights, or logits of attention",
    "gradient": "gradients of the output",
    "lrp": "gradients by the rules of layer-wise relevance propagation",
    "position": "places in the text, without a model",
    "removal": "what the output loses without a player",
    "shapley": "Shapley values and other indices of games whose players are removed",
    "similarity": "how similar a patch's own features are to the text",
    "symbolic": "formulas of a polynomial",
    "random": "numbers drawn at random",
}
"""What a method's values are made from, by the word that ``attribution.family`` has for it."""


@dataclass
class AttributionKeys:
    """The keys of ``attribution``: a method, or several variants that share the work on a sample.

    Attributes:
        name: of the choice.
        label: what tables call the first-order method.
        family: groups methods in figures: one of :data:`FAMILIES`, or a word of one's own.
        base: name of the first-order method, the same for its metagame.
        meta: play the metagame of the method.
        order: of the metagame; 2 for pairs of players.
        index: of the pairs.
        method: what is built.
        variants: by name, each with the keys above; ``meta``, ``order``, ``index`` and ``method`` are theirs alone.
        pointing_game: sizes of the pointing game for this method, which its benchmark reads.
        for_scale: the scale that its values are for; None: they are the same at each.
    """

    name: str = field(default=MISSING, metadata=IDENTITY)
    label: str = MISSING
    family: str = "own"
    base: str = "${.name}"
    meta: bool = field(default=False, metadata=IDENTITY)
    order: int = field(default=1, metadata=IDENTITY)
    index: str | None = field(default=None, metadata=IDENTITY)
    method: Node = field(default=None, metadata=IDENTITY)
    variants: dict[str, Any] = field(default_factory=dict)
    pointing_game: dict[str, Any] = field(default_factory=dict)
    for_scale: str | None = None


@dataclass
class JobKeys:
    """The keys of a job's config, the only list of them; the nodes of plug-ins are open.

    Attributes:
        model, attribution, benchmark, estimator: the parts of a job.
        scale: ``tiny`` or ``paper``, with its settings.
        report: the functions that make the table and the figure.
        tracker: what follows the job.
        name: of the experiment.
        for_scale: the scale that the experiment's values are for; None: they are the same at each.
        seed: of the sampling.
        limit: only the first samples of the benchmark.
        shards, shard: into how many parts the samples are split, and which of them this process works on, from 0.
        fail_fast: stop at the first sample that fails.
        reuse: ``fresh``: samples whose code, weights or files have changed are computed again; ``stale``: they are
            kept, and the table says so.
        leave_out: combinations that the experiment leaves out of its grid, such as {model: x, attribution: [y, z]}.
        output_dir: of the table and the figure.
        jobs_dir: of the records; None: see :func:`jobs_folder`.
    """

    model: Node = field(default=MISSING, metadata=IDENTITY)
    attribution: AttributionKeys = field(default=MISSING, metadata=IDENTITY)
    benchmark: Node = field(default=MISSING, metadata=IDENTITY)
    estimator: Node = field(default=MISSING, metadata=IDENTITY)
    scale: Node = field(default=MISSING, metadata=IDENTITY)
    report: Node = MISSING
    tracker: Node = MISSING
    for_scale: str | None = None
    name: str = "adhoc"
    seed: int = field(default=0, metadata=IDENTITY)
    limit: int | None = None
    shards: int = 1
    shard: int | None = None
    fail_fast: bool = False
    reuse: str = "fresh"
    leave_out: list[Any] = field(default_factory=list)
    output_dir: str = f"{OUTPUTS}/${{scale.name}}/${{name}}"
    jobs_dir: str | None = None


def register() -> None:
    """Let ``configs/config.yaml`` find the schema."""
    ConfigStore.instance().store("job_keys", JobKeys)


@dataclass(frozen=True)
class Variant:
    """One method of a job, or its metagame.

    Attributes:
        name: as records have it; empty where the job has one.
        node: its keys, see :class:`AttributionKeys`.
    """

    name: str
    node: DictConfig

    @property
    def meta(self) -> bool:
        return bool(self.node.meta)

    @property
    def base(self) -> str:
        return self.node.base

    @property
    def family(self) -> str:
        return self.node.family

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        if not self.meta:
            return self.node.label
        return f"Meta-{self.node.label}" + (", pairs" if self.node.order == 2 else "")


def variants(cfg: DictConfig) -> list[Variant]:
    """The variants of a job's method, in order."""
    several = cfg.attribution.get("variants") or {}
    return [Variant(name, complete(node)) for name, node in several.items()] or [Variant("", complete(cfg.attribution))]


def complete(node: DictConfig) -> DictConfig:
    """The keys of an attribution with their defaults, which a composed config has already."""
    if OmegaConf.get_type(node) is AttributionKeys:
        return node
    return merged(_attribution_defaults(), plain(node))


@cache
def _attribution_defaults() -> DictConfig:
    return OmegaConf.structured(AttributionKeys)


def plain(node: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """A node as a dictionary, its interpolations replaced by their values unless ``resolve`` is False."""
    return cast("dict[str, Any]", OmegaConf.to_container(node, resolve=resolve))


def merged(cfg: DictConfig, changes: dict[str, Any]) -> DictConfig:
    """A copy of a config with other values."""
    return cast("DictConfig", OmegaConf.merge(cfg, changes))


def job_identity(cfg: DictConfig) -> dict[str, Any]:
    """What the results depend on, of the keys that the schema marks and the arguments that classes do not exclude."""
    several = variants(cfg)
    identity: dict[str, Any] = {
        "model": _identity_of_target(cfg.model),
        "benchmark": _identity_of_target(cfg.benchmark),
        "attribution": {variant.name: _identity_of_variant(variant) for variant in several},
        "seed": cfg.seed,
        "scale": cfg.scale.name,
    }
    if any(variant.meta for variant in several):
        identity["estimator"] = _identity_of_target(cfg.estimator, OF_ESTIMATOR)
    return identity


def _identity_of_variant(variant: Variant) -> dict[str, Any]:
    marked = [each.name for each in fields(AttributionKeys) if each.metadata == IDENTITY and each.name != "method"]
    return {key: variant.node[key] for key in marked} | {"method": _identity_of_target(variant.node.method)}


OF_NODE = ("name", "label", "for_scale")
"""Keys of the node of a model or benchmark that are not arguments, unless its target has parameters of these names."""
OF_ESTIMATOR = ("name", "batch_size")
"""Likewise of an estimator; its ``budget`` is an argument of each call."""

PARTS = ("model", "attribution", "benchmark", "estimator", "scale")
"""What an entry of ``leave_out`` can name."""


def _identity_of_target(node: DictConfig, others: Sequence[str] = OF_NODE) -> dict[str, Any]:
    """The name of a part and the arguments of its target, those of targets within it too."""
    if not isinstance(node, DictConfig):
        return {"value": node}
    content = plain(node)
    name = {"name": content["name"]} if "name" in content else {}
    return name | _without_runtime(target_and_arguments(content, others))


def target_and_arguments(content: Mapping[str, Any], others: Sequence[str] = OF_NODE) -> dict[str, Any]:
    """A node without those of the keys ``others`` that are no parameters of its target."""
    named = parameters(content["_target_"]) if "_target_" in content else frozenset()
    return {key: value for key, value in content.items() if key not in others or key in named}


def _without_runtime(node: Any) -> Any:
    """A node without the arguments that its targets declare not to change results."""
    if isinstance(node, list):
        return [_without_runtime(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    dropped = declared(node["_target_"], "runtime_arguments") if "_target_" in node else frozenset()
    return {key: _without_runtime(value) for key, value in node.items() if key not in dropped}


def parameters(target: str) -> frozenset[str]:
    """Names of the parameters of a class or function; none of one that is not there, which building it tells of."""
    try:
        return frozenset(inspect.signature(locate(target)).parameters)
    except UserError:
        return frozenset()


def declared(target: str, name: str) -> frozenset[str]:
    """The arguments that a target declares under a name, such as ``runtime_arguments``; a classmethod's class does.

    None of a target that is not there, which building it tells of.
    """
    try:
        found = locate(target)
    except UserError:
        return frozenset()
    owner = found.__self__ if inspect.ismethod(found) else found
    places = owner.__mro__ if isinstance(owner, type) else (owner,)
    return next((frozenset(vars(place)[name]) for place in places if name in vars(place)), frozenset())


LOCATORS = ("hydra.utils.get_class", "hydra.utils.get_method", "hydra.utils.get_object")


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a node, and what ``hydra.utils.get_method`` and its like are to find."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        found = node.get("path") if target in LOCATORS else target
        yield from [found] if isinstance(found, str) else []
        yield from (target for value in node.values() for target in targets(value))
    elif isinstance(node, list):
        yield from (target for value in node for target in targets(value))


def locate(target: str) -> Any:
    """What a ``_target_`` names.

    Raises:
        UserError: there is no such thing.
    """
    try:
        return _resolved(target)
    except Exception as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"_target_: {target} cannot be imported ({reason}); correct its config.") from error


def _resolved(target: str) -> Any:
    """As Hydra finds it: what a package has under a name comes before its module of that name."""
    root, *parts = target.split(".")
    found, path = import_module(root), root
    for part in parts:
        path = f"{path}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            found = import_module(path)
    return found


def job_name(cfg: DictConfig) -> str:
    """The name of a job's folder: its parts, and a hash of what its results depend on."""
    names = "-".join(cfg[part].name for part in ("model", "attribution", "benchmark"))
    return f"{names}-{digest(job_identity(cfg))[:8]}"


def job_folder(cfg: DictConfig) -> Path:
    """Where the job keeps its records, whichever experiment asks for it, all shards together."""
    return jobs_folder(cfg) / job_name(cfg)


def configs_folder() -> Path:
    """The folder of the shipped configs: a wheel has a copy in the package, a clone has it beside ``src``."""
    copy = Path(__file__).parents[1] / "configs"
    return copy if copy.is_dir() else Path(__file__).parents[3] / "configs"


def jobs_folder(cfg: DictConfig) -> Path:
    """Where jobs are kept: ``jobs_dir``, or ``outputs/<scale>/jobs``, which all experiments of a scale share.

    Results with an ``output_dir`` of one's own have their jobs in its folder ``jobs``.
    """
    if cfg.jobs_dir is not None:
        return Path(cfg.jobs_dir)
    own = Path(cfg.output_dir)
    shared = OUTPUTS / cfg.scale.name
    return (shared if own == shared / cfg.name else own) / "jobs"


def asked_path(cfg: DictConfig, name: str | None = None) -> Path:
    """Where an experiment keeps what it asked of a job (with this ``name``, where it is known): config and samples."""
    return Path(cfg.output_dir) / "samples" / f"{name or job_name(cfg)}.json"


def is_left_out(cfg: DictConfig) -> bool:
    """Whether the experiment leaves this combination out of its grid: an entry of ``leave_out`` names all its parts."""
    return any(
        all(cfg[part].name in listed(names) for part, names in entry.items())
        for entry in cfg.leave_out
        if is_combination(entry)
    )


def is_combination(entry: Any) -> bool:
    """Whether an entry of ``leave_out`` names parts of a job."""
    return OmegaConf.is_dict(entry) and bool(entry) and {*entry} <= {*PARTS}


def listed(value: Any) -> Sequence[Any]:
    """A config's list, or its single value as one."""
    return value if OmegaConf.is_list(value) else [value]
