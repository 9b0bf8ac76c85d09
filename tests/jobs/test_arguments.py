"""Settings whose type is not that of the argument that they become are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pytest
from omegaconf import OmegaConf

from metagame.jobs.arguments import argument_types, check_arguments, fits, in_words
from metagame.jobs.build import build_part
from metagame.jobs.spec import locate
from tests.tiny.vision_language import refused

if TYPE_CHECKING:
    from somewhere import Unknown


class Outer:
    def __init__(self, inner: Inner, steps: int | None, names: Sequence[str] = (), other: Unknown = None) -> None: ...

    @classmethod
    def load(cls, path: str, *, strict: bool) -> Outer: ...


@dataclass
class Inner:
    share: float = 0.5
    exact: bool = False


TARGET = f"{__name__}.Outer"
INNER = {"_target_": f"{__name__}.Inner"}


@pytest.mark.parametrize(
    ("hint", "good", "bad", "words"),
    [
        (bool, [True, False], ["no", 0, 1, None, "true"], "true or false"),
        (int, [0, -3], [True, 1.5, "3", None, [1]], "an integer"),
        (float, [0, 0.5], [False, "half", None], "a number"),
        (str, ["a", 3, 0.5], [True, None, ["a"], {}], "a text"),
        (int | None, [3, None], [True, "null"], "an integer or null"),
        (None | int, [3, None], [True, "null"], "an integer or null"),
        (Literal["one", "two"], ["one"], ["three", None], "one of one, two"),
        (Sequence[int], [[], [1, 2]], [[1, True], 3, "ab", [1, "b"]], "a list in which each is an integer"),
        (tuple[int, int], [[1, 2]], [3, "ab"], "a list in which each is an integer"),
        (list, [[1, "a"]], [3, "ab"], "a list"),
        (tuple[int, ...] | None, [[1, 2], None], [[True], 1], "a list in which each is an integer or null"),
        (Mapping[str, float], [{}, {"a": 1}], [[1], {"a": "b"}, 3], "a mapping"),
        (Outer, ["anything", 3, {}, None], [], "of type Outer"),
    ],
)
def test_a_value_fits_a_type_or_is_told_what_would(hint, good, bad, words):
    assert all(fits(value, hint) for value in good)
    assert not any(fits(value, hint) for value in bad)
    assert in_words(hint) == words


def test_types_are_those_of_the_signature_and_none_where_a_name_is_unknown_at_run_time():
    assert argument_types(Outer) == {"inner": Inner, "steps": int | None, "names": Sequence[str]}
    assert argument_types(Outer.load) == {"path": str, "strict": bool}
    assert argument_types(Inner) == {"share": float, "exact": bool}
    assert argument_types(len) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": True}, r"model\.steps=True must be an integer or null\."),
        ({"inner": INNER | {"exact": "no"}}, r"model\.inner\.exact='no' must be true or false\."),
        ({"names": "a"}, r"model\.names='a' must be a list in which each is a text\."),
        ({"steps": [INNER | {"share": "a"}]}, r"model\.steps=.* must be an integer or null\."),
        ({"other": [INNER, INNER | {"share": "a"}]}, r"model\.other\[1\]\.share='a' must be a number\."),
        ({"_target_": f"{TARGET}.load", "strict": 1}, r"model\.strict=1 must be true or false\."),
    ],
)
def test_a_setting_of_another_type_is_refused_wherever_it_stands(changes, message):
    with refused(message):
        check_arguments({"_target_": TARGET, "inner": INNER, "steps": 3, "names": ["a"]} | changes, "model.")


def test_a_part_of_a_job_is_checked_before_it_is_built():
    cfg = OmegaConf.create({"model": INNER | {"name": "m", "exact": "no"}})
    with refused(r"model\.exact='no' must be true or false\."):
        build_part(cfg.model, "model")


def test_a_target_is_found_in_a_module_that_nothing_has_imported(tmp_path, monkeypatch):
    (tmp_path / "package_of_ones_own").mkdir()
    (tmp_path / "package_of_ones_own" / "inner.py").write_text("class Own:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package_of_ones_own.inner.Own").__name__ == "Own"
