"""What a sample was computed from: where its code, its model's files or its own files change, it is computed again."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import os
import shutil
import sys

import pytest
import yaml
from hydra import compose
from PIL import Image

from metagame.experiments import finish
from metagame.jobs import fingerprint
from metagame.jobs.build import Job
from metagame.jobs.fingerprint import code_manifest, files_digest
from metagame.jobs.records import RecordStore
from metagame.jobs.run import run_job
from metagame.jobs.spec import job_folder, targets
from tests.tiny.jobs import ROOT, Number, Numbers, Plain, job_config, shipped_configs
from tests.tiny.runs import n_by_an_earlier_run, run, table

NUMBERS = itertools.count()

METHOD = '''"""A method of one's own."""

from tests.tiny.jobs import Share
from {helper} import FACTOR


class Own(Share):
    """FACTOR times the share."""

    def __init__(self):
        super().__init__(FACTOR * 1.0)
'''


class OwnModule:
    """A module of one's own that defines ``Own``, and one that it imports."""

    def __init__(self, folder, content=METHOD):
        number = next(NUMBERS)
        self.name, self.helper = f"own_{number}", f"helper_{number}"
        self.path, self.helper_path = folder / f"{self.name}.py", folder / f"{self.helper}.py"
        self.path.write_text(content.format(helper=self.helper))
        self.helper_path.write_text("FACTOR = 2.0\n")
        self.target = f"{self.name}.Own"

    def edit(self, old, new, path=None):
        """Change a text, and forget what was imported, as a new process would."""
        path = path or self.path
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))
        self.forget()

    def forget(self):
        importlib.invalidate_caches()
        fingerprint._found.cache_clear()
        for name in (self.name, self.helper):
            sys.modules.pop(name, None)


@pytest.fixture
def own(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its time has too few digits to see an edit
    module = OwnModule(folder)
    yield module
    module.forget()


def own_config(module, tmp_path, **changes):
    return job_config(tmp_path / "results", attribution__method={"_target_": module.target}, **changes)


def lines(cfg):
    """All records of a job, in the order in which they were written."""
    return [json.loads(line) for line in (job_folder(cfg) / "records.jsonl").read_text().splitlines()]


def first_attribution(cfg):
    """The last number that was computed for sample 1."""
    store = RecordStore(job_folder(cfg))
    record = [record for record in store.read().values() if record.sample == "1"][-1]
    return float(store.load_arrays(record)["attribution"][0])


# Code


EDITS = {
    "a formula": ("FACTOR * 1.0", "FACTOR * 100.0", 200.0),
    "a formula that gives the same": ("FACTOR * 1.0", "1.0 * FACTOR", 2.0),
    "a base class": ("(Share)", "(Base)", 2.0),
}
LAYOUT = {
    "a comment": ("class Own", "# shares\nclass Own"),
    "a docstring": ('"""FACTOR times the share."""', '"""As much as is fair."""'),
    "the module's docstring": ('"""A method of one\'s own."""\n\n', ""),
    "lines and spaces": ("FACTOR * 1.0", "\n            FACTOR*1.0,\n        "),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_method_of_ones_own_that_changes_is_computed_again_and_named(tmp_path, own, caplog, edit):
    old, new, expected = EDITS[edit]
    own.edit("import Share\n", "import Share\n\nBase = Share\n")
    cfg = own_config(own, tmp_path)
    run_job(cfg)
    assert first_attribution(cfg) == 2.0
    own.edit(old, new)
    outcome = run_job(cfg)
    assert [line["sample"] for line in lines(cfg)] == ["1", "2", "3"] * 2
    assert first_attribution(cfg) == expected
    assert outcome.n_done == 3
    said = [record.message for record in caplog.records if "changed" in record.message]
    assert said == [f"{outcome.folder.name}: the code ({own.name}) has changed: 3 samples are computed again."]


@pytest.mark.parametrize("edit", LAYOUT)
def test_comments_docstrings_and_layout_are_no_change(tmp_path, own, caplog, edit):
    cfg = own_config(own, tmp_path)
    run_job(cfg)
    own.edit(*LAYOUT[edit])
    assert run_job(cfg).n_done == 3
    assert len(lines(cfg)) == 3
    assert "changed" not in caplog.text


def test_a_module_that_the_method_imports_counts_as_well(tmp_path, own, caplog):
    cfg = own_config(own, tmp_path)
    run_job(cfg)
    own.edit("2.0", "7.0", own.helper_path)
    run_job(cfg)
    assert first_attribution(cfg) == 7.0
    assert f"the code ({own.helper}) has changed: 3 samples are computed again." in caplog.text


def test_a_change_that_is_taken_back_needs_no_work(tmp_path, own, caplog):
    cfg = own_config(own, tmp_path)
    run_job(cfg)
    assert finish([cfg])
    first = (tmp_path / "results" / "table.json").read_bytes()
    for _ in range(2):
        own.edit("* 1.0", "* 100.0")
        run_job(cfg)
        own.edit("* 100.0", "* 1.0")
        caplog.clear()
        assert run_job(cfg).n_done == 3
        assert "changed" not in caplog.text
        assert len(lines(cfg)) == 6
    assert finish([cfg])
    assert (tmp_path / "results" / "table.json").read_bytes() == first


def test_the_module_that_is_named_differs_from_that_of_the_records_not_of_the_last_run(tmp_path, own, caplog):
    """A helper changes and changes back, with another sample asked for in between; then the method changes."""
    cfg = own_config(own, tmp_path)
    run_job(cfg)
    own.edit("2.0", "7.0", own.helper_path)
    run_job(own_config(own, tmp_path, limit=1))
    own.edit("7.0", "2.0", own.helper_path)
    own.edit("* 1.0", "* 100.0")
    caplog.clear()
    run_job(own_config(own, tmp_path, benchmark__values=[1, 2, 3]))
    (said,) = [record.message for record in caplog.records if "changed" in record.message]
    assert own.name in said


def test_stale_records_are_kept_where_asked_for_and_the_table_says_so(tmp_path, own, caplog):
    cfg, stale = own_config(own, tmp_path), own_config(own, tmp_path, reuse="stale")
    run_job(cfg)
    own.edit("* 1.0", "* 100.0")
    assert run_job(stale).n_done == 3
    assert len(lines(cfg)) == 3
    assert f"the code ({own.name}) has changed: 3 samples are kept (reuse=stale), and the table says so" in caplog.text
    assert finish([stale])
    notes = table(tmp_path / "results")["notes"]
    assert notes == ["Share: 3 of 3 samples are of other code, weights or files than today's (reuse=stale)."]
    run_job(cfg)
    assert finish([cfg])
    assert (first_attribution(cfg), table(tmp_path / "results")["notes"]) == (200.0, [])


def test_a_stale_record_whose_arrays_are_gone_is_computed_by_todays_code(tmp_path, own):
    cfg, stale = own_config(own, tmp_path), own_config(own, tmp_path, reuse="stale")
    run_job(cfg)
    own.edit("* 1.0", "* 100.0")
    for path in (job_folder(cfg) / "arrays").glob("*.npz"):
        path.unlink()
    assert run_job(stale).n_done == 3
    assert finish([stale])
    assert (first_attribution(cfg), table(tmp_path / "results")["notes"]) == (200.0, [])


def test_what_only_reports_read_is_no_change(tmp_path, own):
    reporting = OwnModule(own.path.parent, "from metagame.report.table import Table\n\n\ndef own_table():\n    pass\n")
    own.edit("import Share\n", "import Share\nimport metagame.report.table\nimport metagame.viewer.write\n")
    cfg = own_config(own, tmp_path)
    run_job(cfg)
    reporting.edit("pass", "return 1")
    cfg.report.figure = {"_target_": f"{reporting.name}.own_table"}
    run_job(cfg)
    assert len(lines(cfg)) == 3
    assert not [name for name in code_manifest([own.target]) if name.startswith(("metagame.report", "metagame.viewer"))]


ROOMS = ("jobs", "report", "viewer", "tracking", "cli")


@pytest.mark.parametrize("group", ["model", "attribution", "benchmark", "estimator"])
def test_of_what_is_shipped_the_code_counts_that_computes(group):
    shipped = {target for path in (ROOT / "configs" / group).rglob("*.yaml")
               for target in targets(yaml.safe_load(path.read_text()))}  # fmt: skip
    for target in shipped:
        names = set(code_manifest([target]))
        assert any(f"{target}.".startswith(f"{name}.") for name in names), target
        assert not [name for name in names if name.split(".")[1] in ROOMS]
        if group == "attribution" and "symbolic" not in target:
            assert names >= {"metagame.contracts", "metagame.meta", "metagame.games"}


PACKAGE = {
    "mine/__init__.py": "",
    "mine/constants.py": "UNUSED = 1\n",
    "mine/methods/__init__.py": "from .shares import Own\n",
    "mine/methods/shares.py": "from tests.tiny.jobs import Share\nfrom .. import constants\n"
    "from ..deep.er import X\n\n\nclass Own(Share):\n    def explain(self, bound, progress=None):\n"
    "        from .late import LATE\n",
    "mine/methods/late.py": "import json\nLATE = 1\n",
    "mine/deep/er.py": "X = 1\n",
    "mine/other.py": "Y = 1\n",
}


def test_of_a_package_what_is_imported_counts_relative_late_or_by_another_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    fingerprint._found.cache_clear()
    for name, content in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    own = {name for name in code_manifest(["mine.methods.Own"]) if name.split(".")[0] == "mine"}
    assert own >= {"mine.methods", "mine.methods.shares", "mine.methods.late", "mine.constants", "mine.deep.er"}
    assert "mine.other" not in own
    fingerprint._found.cache_clear()


ANY_CODE = '''
def f(x, *, y=None, z: int = ...) -> None:
    """Text."""
    return [f"{x!r:>{y}} of 'it'" for x in (1.5, 2j, b"a", None) if not (yield)]
'''


def test_the_hash_of_code_is_the_same_in_every_python():
    found = fingerprint._hash_without_docstrings(ast.parse(ANY_CODE))
    assert found == "2e6388f07787d4fc"
    assert fingerprint._hash_without_docstrings(ast.parse(ANY_CODE.replace("y=None", "y=1"))) != found


def test_what_a_locator_finds_counts(own):
    node = {"_target_": "hydra.utils.get_class", "path": own.target}
    assert list(targets([node])) == [own.target]


def test_a_module_beside_run_py_is_seen_when_it_changes(tmp_path):
    """The README's method, not known to git, in real runs."""
    own = OwnModule(tmp_path, METHOD_OF_THE_ADDER)
    job = ("model=adder", "benchmark=addition", "attribution=sv", f"attribution.method._target_={own.target}")
    where = {"output_dir": tmp_path / "results", "path": [tmp_path]}
    status, errors = run(*job, "limit=1", "report.figure=null", **where)
    assert status == 0, errors
    (first,) = table(tmp_path / "results")["rows"]
    status, errors = run(*job, "limit=1", "report.figure=null", **where)
    assert (status, n_by_an_earlier_run(errors)) == (0, 1)
    own.edit("FACTOR = 1", "FACTOR = 100")
    status, errors = run(*job, "limit=1", "report.figure=null", **where)
    assert (status, n_by_an_earlier_run(errors)) == (0, 0)
    assert errors.count("the code (") == 1
    assert f"the code ({own.name}) has changed: 1 samples are computed again." in errors
    (second,) = table(tmp_path / "results")["rows"]
    assert second["phi_a"] == pytest.approx(100 * first["phi_a"])


METHOD_OF_THE_ADDER = """
from metagame.attributions.shapley import ShapleyValue
from metagame.games import AttributionGame


class Own(ShapleyValue):
    def game(self, bound):
        FACTOR = 1
        played = super().game(bound)
        return AttributionGame(lambda coalitions: FACTOR * played.fn(coalitions), played.n_players)
"""


# Files


def test_the_digest_of_files_depends_on_their_names_and_content_and_on_those_in_a_folder(tmp_path):
    for name, content in {"a": "1", "b": "2", "folder/c": "3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    a, b, folder = tmp_path / "a", tmp_path / "b", tmp_path / "folder"
    digests = [files_digest(each) for each in ([], [a], [b], [a, b], [a, b, folder], [a, tmp_path / "absent"])]
    assert files_digest([b, a]) == files_digest([a, b, a]) == digests[3]
    a.write_text("one")
    digests += [files_digest([a]), files_digest([a, b])]
    (folder / "c").write_text("three")
    digests.append(files_digest([a, b, folder]))
    assert len(set(digests)) == len(digests)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_counts_as_such(tmp_path):
    path = tmp_path / "a"
    path.write_text("1")
    readable = files_digest([path])
    path.chmod(0)
    assert files_digest([path]) not in (readable, files_digest([tmp_path / "b"]))


class Filed(Number):
    """A number whose value is in a file."""

    def files(self):
        return (FiledNumbers.folder / f"{self.id}.txt",)


class FiledNumbers(Numbers):
    folder = None

    def samples(self):
        return [Filed(str(value), float((self.folder / f"{value}.txt").read_text())) for value in self.values]

    def files(self):
        return (self.folder / "scale.txt",)


def test_a_sample_whose_file_changes_is_computed_again_alone_and_all_where_a_common_file_does(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(FiledNumbers, "folder", tmp_path)
    for name in ("1", "2", "3", "scale"):
        (tmp_path / f"{name}.txt").write_text("5")
    cfg = job_config(tmp_path / "results", benchmark___target_="tests.jobs.test_fingerprint.FiledNumbers")
    run_job(cfg)
    (tmp_path / "2.txt").write_text("6")
    run_job(cfg)
    assert [line["sample"] for line in lines(cfg)] == ["1", "2", "3", "2"]
    assert "the samples' files have changed: 1 samples are computed again." in caplog.text
    (tmp_path / "scale.txt").write_text("6")
    run_job(cfg)
    assert [line["sample"] for line in lines(cfg)[4:]] == ["1", "2", "3"]
    assert "the samples' files have changed: 3 samples are computed again." in caplog.text
    (tmp_path / "scale.txt").write_text("5")
    (tmp_path / "2.txt").write_text("5")
    caplog.clear()
    run_job(cfg)
    assert len(lines(cfg)) == 7
    assert "changed" not in caplog.text


def test_causes_that_come_together_are_told_in_one_line(tmp_path, own, monkeypatch, caplog):
    cfg = own_config(own, tmp_path)
    run_job(cfg)
    monkeypatch.setattr(Plain, "revision", "second")
    own.edit("* 1.0", "* 100.0")
    run_job(cfg)
    (said,) = [record.message for record in caplog.records if "changed" in record.message]
    assert said.endswith(f"the code ({own.name}) and the model's files have changed: 3 samples are computed again.")


def test_new_weights_are_new_samples(tmp_path, monkeypatch, caplog):
    cfg = job_config(tmp_path)
    run_job(cfg)
    monkeypatch.setattr(Plain, "revision", "second")
    run_job(cfg)
    assert [line["sample"] for line in lines(cfg)] == ["1", "2", "3"] * 2
    assert "the model's files have changed: 3 samples are computed again." in caplog.text


# What is shipped, a job of each family


def copied(folder, name):
    """A copy of the model's or benchmark's folder under data/tiny that may be changed."""
    return shutil.copytree(ROOT / "data/tiny" / name, folder / name)


def grids(folder):
    """The first grid of the first pointing game, as scripts.prepare_pointing_game leaves it."""
    cfg = compose("config", overrides=["benchmark=pointing_game", "model=clip_vitb16"])
    (game, *_), path = cfg.benchmark.games, folder / "grids"
    sample = next(each for each in Job.build(compose_clip()).benchmark.samples() if each.game == game)
    (path / game).mkdir(parents=True)
    sample.image().save(path / game / f"{sample.k:02d}.png")
    return path


def compose_clip(*more):
    return compose("config", overrides=["model=clip_vitb16", "attribution=mask_clip", "benchmark=pointing_game", *more])


def mirrored(path):
    """Replace a picture or a mask by its mirror image, palette and all."""
    with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)


def spaced(path):
    """The same values in another file."""
    path.write_text(path.read_text() + "\n")


FAMILIES = {
    "polynomial": lambda folder: ([], {}),
    "adder": lambda folder: (
        ["model=adder", "attribution=sv", "benchmark=addition", f"model.checkpoint={copied(folder, 'adder')}"],
        {"weights": (folder / "adder/card.json", spaced)},
    ),
    "pointing game": lambda folder: (
        [
            "model=clip_vitb16", "attribution=mask_clip", "benchmark=pointing_game",
            f"model.checkpoint={copied(folder, 'clip')}",
            "benchmark/scenes=paper", f"benchmark.scenes.root={grids(folder)}",
        ],
        {
            "weights": (folder / "clip/config.json", spaced),
            "files": (next((folder / "grids").rglob("*.png")), mirrored),
        },
    ),
    "illustration": lambda folder: (
        [
            "model=clip_vitb16", "attribution=mask_clip", "benchmark=illustration",
            f"model.checkpoint={copied(folder, 'clip')}", f"benchmark.image={copied(folder, 'images')}/two_six.png",
            "benchmark.caption=two six",
        ],
        {
            "weights": (folder / "clip/preprocessor_config.json", spaced),
            "files": (folder / "images/two_six.png", mirrored),
        },
    ),
    "prompts": lambda folder: (
        [
            "model=gemma3_1b_it", "attribution=gradient_input", "benchmark=prompts",
            f"model.checkpoint={copied(folder, 'gemma3')}",
        ],
        {"weights": (folder / "gemma3/generation_config.json", spaced)},
    ),
    "segmentation": lambda folder: (
        [
            "model=flux_schnell", "attribution=concept_pair", "benchmark=voc",
            f"model.checkpoint={copied(folder, 'flux')}", f"benchmark.data.root={copied(folder, 'voc')}",
        ],
        {
            "weights": (folder / "flux/transformer/config.json", spaced),
            "files": (folder / "voc/SegmentationClass/2026_000000.png", mirrored),
        },
    ),
}  # fmt: skip
SAID = {"weights": "the model's files have changed", "files": "the samples' files have changed"}

FAMILY_METHOD = """
from {base} import {name}


class Own({name}):
    pass
"""


def with_own_method(cfg, folder):
    """Replace the method of a job, or of its first variant, by a class of one's own that does the same."""
    node = next(iter(cfg.attribution.variants.values())) if cfg.attribution.variants else cfg.attribution
    base, _, name = node.method["_target_"].rpartition(".")
    module = OwnModule(folder, FAMILY_METHOD.format(base=base, name=name))
    node.method["_target_"] = module.target
    return module


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_job_of_each_family_sees_its_code_its_models_files_and_its_samples_files(
    tmp_path, monkeypatch, caplog, family
):
    """One change at a time; each is taken back, and then the first records count again."""
    monkeypatch.syspath_prepend(tmp_path)
    with shipped_configs():
        overrides, changes = FAMILIES[family](tmp_path)
        cfg = compose("config", overrides=[*overrides, "limit=1", f"output_dir={tmp_path}/results"])
        module = with_own_method(cfg, tmp_path)
        assert run_job(cfg).errors == ()
        n_variants = len(lines(cfg))
        first = {line["variant"]: line["scores"] for line in lines(cfg)}
        changes["code"] = (module.path, lambda path: module.edit("pass", "extra = 1"))
        said = SAID | {"code": f"the code ({module.name}) has changed"}
        for number, (cause, (path, change)) in enumerate(changes.items(), start=2):
            before = path.read_bytes()
            change(path)
            caplog.clear()
            outcome = run_job(cfg)
            assert (outcome.n_done, outcome.errors) == (1, ())
            assert len(lines(cfg)) == number * n_variants
            told = [record.message for record in caplog.records if "changed" in record.message]
            line = f"{outcome.folder.name}: {said[cause]}: 1 samples are computed again."
            assert told == ([] if family == "illustration" and cause == "files" else [line])  # its id tells it
            scores = {line["variant"]: line["scores"] for line in lines(cfg)[-n_variants:]}
            assert (scores == first) == (cause != "files" or family == "illustration")
            path.write_bytes(before)
            module.forget()
        caplog.clear()
        run_job(cfg)
        assert len(lines(cfg)) == (1 + len(changes)) * n_variants
        assert "changed" not in caplog.text
