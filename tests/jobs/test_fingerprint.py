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
from metagame.report.results import OTHER_CODE
from tests.tiny.jobs import ROOT, Number, Numbers, Plain, job_config, shipped_configs
from tests.tiny.runs import table

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


@pytest.fixture
def run(tmp_path, own, caplog):
    """Run a job with the own method: its outcome, and what it says to have changed, without the job's name."""

    def run_own(**changes):
        caplog.clear()
        outcome = run_job(own_config(own, tmp_path, **changes))
        said = [record.message for record in caplog.records if "changed" in record.message]
        return outcome, [line.removeprefix(f"{outcome.folder.name}: ") for line in said]

    return run_own


def own_config(module, tmp_path, **changes):
    return job_config(tmp_path / "results", attribution__method={"_target_": module.target}, **changes)


def lines(folder):
    """All records of a job, in the order in which they were written."""
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def samples(folder):
    return [line["sample"] for line in lines(folder)]


def first_attribution(folder):
    """The last number that was computed for sample 1."""
    store = RecordStore(folder)
    record = [record for record in store.read().values() if record.sample == "1"][-1]
    return float(store.load_arrays(record)["attribution"][0])


# Code


EDITS = {
    "a formula": ("FACTOR * 1.0", "FACTOR * 100.0", 200.0),
    "a formula that gives the same": ("FACTOR * 1.0", "1.0 * FACTOR", 2.0),
    "a base class": ("(Share)", "(Base)", 2.0),
    "a module that it imports": ("2.0", "7.0", 7.0),
}
LAYOUT = {
    "a comment": ("class Own", "# shares\nclass Own"),
    "a docstring": ('"""FACTOR times the share."""', '"""As much as is fair."""'),
    "the module's docstring": ('"""A method of one\'s own."""\n\n', ""),
    "lines and spaces": ("FACTOR * 1.0", "\n            FACTOR*1.0,\n        "),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_method_of_ones_own_that_changes_is_computed_again_and_named(own, run, edit):
    old, new, expected = EDITS[edit]
    own.edit("import Share\n", "import Share\n\nBase = Share\n")
    folder = run()[0].folder
    assert first_attribution(folder) == 2.0
    path = own.helper_path if "imports" in edit else own.path
    own.edit(old, new, path)
    outcome, said = run()
    assert samples(folder) == ["1", "2", "3"] * 2
    assert (outcome.n_done, first_attribution(folder)) == (3, expected)
    assert said == [f"the code ({path.stem}) has changed: 3 samples are computed again."]


@pytest.mark.parametrize("edit", LAYOUT)
def test_comments_docstrings_and_layout_are_no_change(own, run, edit):
    run()
    own.edit(*LAYOUT[edit])
    outcome, said = run()
    assert (outcome.n_done, said, len(lines(outcome.folder))) == (3, [], 3)


def test_a_change_that_is_taken_back_needs_no_work(tmp_path, own, run):
    run()
    assert finish([own_config(own, tmp_path)])
    first = (tmp_path / "results" / "table.json").read_bytes()
    for _ in range(2):
        own.edit("* 1.0", "* 100.0")
        run()
        own.edit("* 100.0", "* 1.0")
        outcome, said = run()
        assert (outcome.n_done, said, len(lines(outcome.folder))) == (3, [], 6)
    assert finish([own_config(own, tmp_path)])
    assert (tmp_path / "results" / "table.json").read_bytes() == first


def test_the_module_that_is_named_differs_from_that_of_the_records_not_of_the_last_run(own, run):
    """A helper changes and changes back, with another sample asked for in between; then the method changes."""
    run()
    own.edit("2.0", "7.0", own.helper_path)
    run(limit=1)
    own.edit("7.0", "2.0", own.helper_path)
    own.edit("* 1.0", "* 100.0")
    _, (said,) = run(benchmark__values=[1, 2, 3])
    assert own.name in said


def test_stale_records_are_kept_where_asked_for_and_the_table_says_so(tmp_path, own, run):
    folder = run()[0].folder
    own.edit("* 1.0", "* 100.0")
    outcome, said = run(reuse="stale")
    assert (outcome.n_done, len(lines(folder))) == (3, 3)
    kept = "3 samples are kept (reuse=stale), and the table says so."
    assert said == [f"the code ({own.name}) has changed: {kept}"]
    assert finish([own_config(own, tmp_path, reuse="stale")])
    assert table(tmp_path / "results")["notes"] == [f"Share: 3 of 3 samples were {OTHER_CODE}"]
    run()
    assert finish([own_config(own, tmp_path)])
    assert (first_attribution(folder), table(tmp_path / "results")["notes"]) == (200.0, [])


@pytest.mark.parametrize("rerun", [[], [0], [0, 1]])
def test_a_table_names_the_rows_of_other_code_than_the_current_one_when_it_is_written(tmp_path, own, rerun):
    """Two jobs with a method of one's own beside one without it, of which some are run again after an edit."""
    changes = [{}, {"attribution__label": "Other", "seed": 1}]
    configs = [*(own_config(own, tmp_path, **each) for each in changes), job_config(tmp_path / "results", seed=2)]
    configs[2].attribution.label = "Shipped"
    for cfg in configs:
        run_job(cfg)
    assert finish(configs)
    assert table(tmp_path / "results")["notes"] == []
    own.edit("* 1.0", "* 100.0")
    for place in rerun:
        run_job(configs[place])
    assert finish(configs)
    notes = [["Share, Other: 3 of 3 samples each"], ["Other: 3 of 3 samples"], []][len(rerun)]
    assert table(tmp_path / "results")["notes"] == [f"{note} were {OTHER_CODE}" for note in notes]


@pytest.mark.parametrize("content", [None, "def"])
def test_a_table_says_nothing_of_code_that_is_not_found_or_cannot_be_read(tmp_path, own, content):
    cfg = own_config(own, tmp_path)
    folder = run_job(cfg).folder
    own.path.unlink()
    if content is not None:
        own.path.write_text(content)
    own.forget()
    assert finish([cfg], [folder.name])
    assert table(tmp_path / "results")["notes"] == []


def test_a_stale_record_whose_arrays_are_gone_is_computed_by_todays_code(tmp_path, own, run):
    folder = run()[0].folder
    own.edit("* 1.0", "* 100.0")
    for path in (folder / "arrays").glob("*.npz"):
        path.unlink()
    assert run(reuse="stale")[0].n_done == 3
    assert finish([own_config(own, tmp_path, reuse="stale")])
    assert (first_attribution(folder), table(tmp_path / "results")["notes"]) == (200.0, [])


def test_what_only_reports_read_is_no_change(own, run):
    reporting = OwnModule(own.path.parent, "from metagame.report.table import Table\n\n\ndef own_table():\n    pass\n")
    own.edit("import Share\n", "import Share\nimport metagame.report.table\nimport metagame.viewer.write\n")
    run()
    reporting.edit("pass", "return 1")
    outcome, _ = run(report__figure={"_target_": f"{reporting.name}.own_table"})
    assert len(lines(outcome.folder)) == 3
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


def test_of_a_package_what_is_imported_counts_relative_late_or_by_another_name_and_what_a_locator_finds(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    fingerprint._found.cache_clear()
    for name, content in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    own = {name for name in code_manifest(["mine.methods.Own"]) if name.split(".")[0] == "mine"}
    assert own >= {"mine.methods", "mine.methods.shares", "mine.methods.late", "mine.constants", "mine.deep.er"}
    assert "mine.other" not in own
    assert list(targets([{"_target_": "hydra.utils.get_class", "path": "mine.methods.Own"}])) == ["mine.methods.Own"]
    fingerprint._found.cache_clear()


BESIDE = {
    "mine/own.py": "import json\nimport metagame as mg\nimport numpy\nfrom helpers.weights import FACTOR\n"
    "from installed import ONE\nfrom metagame import explain\n\n\ndef own():\n    return mg.concept_metagame\n",
    "helpers/weights.py": "from . import deeper\nFACTOR = 1\n",
    "helpers/deeper.py": "X = 1\n",
    "site-packages/installed.py": "ONE = 1\n",
}


def test_of_ones_own_code_what_lies_beside_counts_and_names_of_the_package_but_nothing_installed(tmp_path, monkeypatch):
    for name, content in BESIDE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(tmp_path)
    fingerprint._found.cache_clear()
    before = code_manifest(["mine.own.own"])
    assert {"metagame.explainer", "metagame.concept", "metagame.attributions.method"} <= set(before)
    assert {name for name in before if not name.startswith("metagame.")} == {
        "mine.own", "helpers.weights", "helpers.deeper",
    }  # fmt: skip
    (tmp_path / "helpers/deeper.py").write_text("X = 10\n")
    changed = dict(set(code_manifest(["mine.own.own"]).items()) - set(before.items()))
    assert list(changed) == ["helpers.deeper"]
    assert "metagame.meta" in code_manifest(["metagame.meta_attributions"])
    assert "installed" in code_manifest(["installed.ONE"])
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
    tmp_path, run, monkeypatch
):
    monkeypatch.setattr(FiledNumbers, "folder", tmp_path)
    filed = {"benchmark___target_": "tests.jobs.test_fingerprint.FiledNumbers"}
    steps = [
        ({"1": "5", "2": "5", "3": "5", "scale": "5"}, ["1", "2", "3"]),
        ({"2": "6"}, ["2"]),
        ({"scale": "6"}, ["1", "2", "3"]),
        ({"2": "5", "scale": "5"}, []),
    ]
    computed = []
    for number, (written, expected) in enumerate(steps):
        for name, content in written.items():
            (tmp_path / f"{name}.txt").write_text(content)
        outcome, said = run(**filed)
        computed += expected
        assert samples(outcome.folder) == computed
        changed = [f"the samples' files have changed: {len(expected)} samples are computed again."]
        assert said == (changed if number and expected else [])


def test_new_weights_are_new_samples_and_causes_that_come_together_are_told_in_one_line(own, run, monkeypatch):
    folder = run()[0].folder
    monkeypatch.setattr(Plain, "revision", "second")
    assert run()[1] == ["the model's files have changed: 3 samples are computed again."]
    assert samples(folder) == ["1", "2", "3"] * 2
    monkeypatch.setattr(Plain, "revision", "third")
    own.edit("* 1.0", "* 100.0")
    causes = f"the code ({own.name}) and the model's files have changed"
    assert run()[1] == [f"{causes}: 3 samples are computed again."]


# What is shipped

OWN_MASK_CLIP = """
from metagame.attributions.mask_clip import MaskCLIP


class Own(MaskCLIP):
    pass
"""


@pytest.mark.slow
def test_a_shipped_job_sees_its_code_its_models_files_and_its_samples_files(tmp_path, monkeypatch, caplog):
    """One change at a time; each is taken back, and then the first records count again."""
    monkeypatch.syspath_prepend(tmp_path)
    clip, module = tmp_path / "clip", OwnModule(tmp_path, OWN_MASK_CLIP)
    shutil.copytree(ROOT / "data/tiny/clip", clip)
    parts = ["model=clip_vitb16", "attribution=mask_clip", "benchmark=pointing_game", f"model.checkpoint={clip}"]
    with shipped_configs():
        cfg = compose("config", overrides=parts)
        sample = next(each for each in Job.build(cfg).benchmark.samples() if each.game == cfg.benchmark.games[0])
        picture = (
            tmp_path / "grids/jpeg" / sample.game / f"{sample.k:02d}.png"
        )  # as scripts.prepare_pointing_game leaves it
        picture.parent.mkdir(parents=True)
        sample.image().save(picture)
        more = ["benchmark/scenes=paper", f"benchmark.scenes.root={tmp_path}/grids", "limit=1"]
        cfg = compose("config", overrides=[*parts, *more, f"output_dir={tmp_path}/results"])
    cfg.attribution.method["_target_"] = module.target
    folder, first = run_job(cfg).folder, lines(job_folder(cfg))[0]["scores"]
    changes = [
        ("the model's files have changed", clip / "config.json", lambda path: path.write_text(path.read_text() + "\n")),
        ("the samples' files have changed", picture, lambda path: mirrored(Image.open(path)).save(path)),
        (f"the code ({module.name}) has changed", module.path, lambda path: module.edit("pass", "extra = 1")),
    ]
    for number, (cause, path, change) in enumerate(changes, start=2):
        before = path.read_bytes()
        change(path)
        caplog.clear()
        outcome = run_job(cfg)
        assert (outcome.n_done, outcome.errors, len(lines(folder))) == (1, (), number)
        told = [record.message for record in caplog.records if "changed" in record.message]
        assert told == [f"{folder.name}: {cause}: 1 samples are computed again."]
        assert (lines(folder)[-1]["scores"] == first) == (path != picture)
        path.write_bytes(before)
        module.forget()
    caplog.clear()
    run_job(cfg)
    assert len(lines(folder)) == 4
    assert "changed" not in caplog.text


def mirrored(image):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
