"""What a sample was computed from: where its code, its model's files or its own files change, it is computed again."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import sys

import pytest
import yaml

from metagame.experiments import finish
from metagame.jobs import fingerprint
from metagame.jobs.fingerprint import code_manifest, files_digest
from metagame.jobs.records import RecordStore
from metagame.jobs.run import run_job
from metagame.jobs.spec import targets
from metagame.report.results import OTHER_CODE
from tests.tiny.jobs import ROOT, Number, Numbers, Plain, job_config
from tests.tiny.runs import table

NUMBERS = itertools.count()

METHOD = '''"""A method of one's own."""

from tests.tiny.jobs import Share
from {helper} import FACTOR

Base = Share


class Own(Share):
    """FACTOR times the share."""

    def __init__(self):
        super().__init__(FACTOR * 1.0)
'''


class OwnModule:
    """A module of one's own that defines ``Own``, and one that it imports."""

    def __init__(self, folder, content=METHOD):
        number = next(NUMBERS)
        self.name, helper = f"own_{number}", f"helper_{number}"
        self.target = f"{self.name}.Own"
        self.paths = [folder / f"{name}.py" for name in (self.name, helper)]
        for path, text in zip(self.paths, (content.format(helper=helper), "FACTOR = 2.0\n"), strict=True):
            path.write_text(text)

    def edit(self, old, new):
        """Change a text in the module that has it, whose name is returned."""
        (path,) = [path for path in self.paths if old in path.read_text()]
        path.write_text(path.read_text().replace(old, new))
        self.forget()
        return path.stem

    def forget(self):
        """Forget what was imported, as a new process would."""
        importlib.invalidate_caches()
        fingerprint._found.cache_clear()
        for path in self.paths:
            sys.modules.pop(path.stem, None)


class OwnJob:
    """A job with a method of one's own."""

    def __init__(self, target, output_dir, caplog):
        self.target, self.output_dir, self.caplog = target, output_dir, caplog

    def config(self, **changes):
        return job_config(self.output_dir, attribution__method={"_target_": self.target}, **changes)

    def run(self, **changes):
        """Run it to its end; what it says to have changed."""
        self.caplog.clear()
        outcome = run_job(self.config(**changes))
        assert outcome.n_done == outcome.n_samples
        self.folder = outcome.folder
        said = [message for message in self.caplog.messages if "changed" in message]
        return [message.removeprefix(f"{self.folder.name}: ") for message in said]

    def samples(self):
        """The sample of each record, in the order in which they were written."""
        return [json.loads(line)["sample"] for line in (self.folder / "records.jsonl").read_text().splitlines()]

    def number(self):
        """The last one that was computed for sample 1."""
        store = RecordStore(self.folder)
        record = [record for record in store.read().values() if record.sample == "1"][-1]
        return store.load_arrays(record)["attribution"][0]

    def notes(self, **changes):
        """Those of its table."""
        assert finish([self.config(**changes)])
        return table(self.output_dir)["notes"]


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
def job(own, tmp_path, caplog):
    return OwnJob(own.target, tmp_path / "results", caplog)


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
def test_a_method_of_ones_own_that_changes_is_computed_again_and_named(own, job, edit):
    old, new, number = EDITS[edit]
    assert (job.run(), job.number()) == ([], 2.0)
    module = own.edit(old, new)
    assert job.run() == [f"the code ({module}) has changed: 3 samples are computed again."]
    assert (job.samples(), job.number()) == (["1", "2", "3"] * 2, number)


@pytest.mark.parametrize("edit", LAYOUT)
def test_comments_docstrings_and_layout_are_no_change(own, job, edit):
    job.run()
    own.edit(*LAYOUT[edit])
    assert (job.run(), len(job.samples())) == ([], 3)


def test_a_change_that_is_taken_back_needs_no_work(own, job):
    job.run()
    job.notes()
    first = (job.output_dir / "table.json").read_bytes()
    for _ in range(2):
        own.edit("* 1.0", "* 100.0")
        job.run()
        own.edit("* 100.0", "* 1.0")
        assert (job.run(), len(job.samples())) == ([], 6)
    job.notes()
    assert (job.output_dir / "table.json").read_bytes() == first


def test_the_module_that_is_named_differs_from_that_of_the_records_not_of_the_last_run(own, job):
    """A helper changes and changes back, with another sample asked for in between; then the method changes."""
    job.run()
    own.edit("2.0", "7.0")
    job.run(limit=1)
    own.edit("7.0", "2.0")
    own.edit("* 1.0", "* 100.0")
    (said,) = job.run(benchmark__values=[1, 2, 3])
    assert own.name in said


def test_stale_records_are_kept_where_asked_for_and_the_table_says_so(own, job):
    job.run()
    own.edit("* 1.0", "* 100.0")
    kept = "3 samples are kept (reuse=stale), and the table says so."
    assert job.run(reuse="stale") == [f"the code ({own.name}) has changed: {kept}"]
    assert (len(job.samples()), job.number()) == (3, 2.0)
    assert job.notes(reuse="stale") == [f"Share: 3 of 3 samples were {OTHER_CODE}"]
    job.run()
    assert (job.number(), job.notes()) == (200.0, [])


def test_a_stale_record_whose_arrays_are_gone_is_computed_by_todays_code(own, job):
    job.run()
    own.edit("* 1.0", "* 100.0")
    for path in (job.folder / "arrays").glob("*.npz"):
        path.unlink()
    job.run(reuse="stale")
    assert (job.number(), job.notes(reuse="stale")) == (200.0, [])


def test_a_table_names_the_rows_of_other_code_than_the_current_one_when_it_is_written(own, job):
    """Two jobs with a method of one's own beside one without it."""
    configs = [job.config(), job.config(attribution__label="Other", seed=1), job_config(job.output_dir, seed=2)]
    configs[2].attribution.label = "Shipped"

    def notes():
        assert finish(configs)
        return table(job.output_dir)["notes"]

    for cfg in configs:
        run_job(cfg)
    assert notes() == []
    own.edit("* 1.0", "* 100.0")
    assert notes() == [f"Share, Other: 3 of 3 samples each were {OTHER_CODE}"]
    run_job(configs[0])
    assert notes() == [f"Other: 3 of 3 samples were {OTHER_CODE}"]
    run_job(configs[1])
    assert notes() == []


@pytest.mark.parametrize("content", [None, "def"])
def test_a_table_says_nothing_of_code_that_is_not_found_or_cannot_be_read(own, job, content):
    job.run()
    own.paths[0].unlink()
    if content is not None:
        own.paths[0].write_text(content)
    own.forget()
    assert finish([job.config()], [job.folder.name])
    assert table(job.output_dir)["notes"] == []


def test_what_only_reports_read_is_no_change(own, job):
    reporting = OwnModule(own.paths[0].parent, "from metagame.report.table import Table\n\n\ndef own_table():\n    1\n")
    own.edit("import Share\n", "import Share\nimport metagame.report.table\nimport metagame.viewer.write\n")
    job.run()
    reporting.edit("    1", "    2")
    job.run(report__figure={"_target_": f"{reporting.name}.own_table"})
    assert len(job.samples()) == 3
    assert not [name for name in code_manifest([own.target]) if name.startswith(("metagame.report", "metagame.viewer"))]


ROOMS = ("jobs", "report", "viewer", "tracking", "cli")


@pytest.mark.parametrize("group", ["model", "attribution", "benchmark", "estimator"])
def test_of_what_is_shipped_the_code_counts_that_computes(group):
    contents = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / group).rglob("*.yaml")]
    for target in {target for content in contents for target in targets(content)}:
        names = set(code_manifest([target]))
        assert any(f"{target}.".startswith(f"{name}.") for name in names), target
        assert not [name for name in names if name.split(".")[1] in ROOMS]
        if group == "attribution" and "symbolic" not in target:
            assert names >= {"metagame.contracts", "metagame.meta", "metagame.games"}


FILES = {
    "mine/__init__.py": "",
    "mine/constants.py": "UNUSED = 1\n",
    "mine/methods/__init__.py": "from .shares import Own\n",
    "mine/methods/shares.py": """
import json
import metagame as mg
import numpy
from helpers.weights import FACTOR
from installed import ONE
from metagame import explain
from .. import constants
from ..deep.er import X


class Own:
    def explain(self, bound, progress=None):
        from .late import LATE

        return mg.concept_metagame
""",
    "mine/methods/late.py": "LATE = 1\n",
    "mine/deep/er.py": "X = 1\n",
    "mine/other.py": "Y = 1\n",
    "helpers/weights.py": "from . import deeper\nFACTOR = 1\n",
    "helpers/deeper.py": "X = 1\n",
    "site-packages/installed.py": "ONE = 1\n",
}
IMPORTED = {
    "mine.methods", "mine.methods.shares", "mine.methods.late", "mine.constants", "mine.deep.er", "helpers.weights",
    "helpers.deeper",
}  # fmt: skip


def test_of_ones_own_code_what_is_imported_in_any_way_counts_but_nothing_installed(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(tmp_path)
    fingerprint._found.cache_clear()
    before = code_manifest(["mine.methods.Own"])
    assert {name for name in before if not name.startswith("metagame.")} - {"mine"} == IMPORTED
    assert {"metagame.explainer", "metagame.concept", "metagame.attributions.method"} <= set(before)
    (tmp_path / "helpers/deeper.py").write_text("X = 10\n")
    after = code_manifest(["mine.methods.Own"])
    assert [name for name in before if after[name] != before[name]] == ["helpers.deeper"]
    assert "metagame.meta" in code_manifest(["metagame.meta_attributions"])
    assert "installed" in code_manifest(["installed.ONE"])
    fingerprint._found.cache_clear()


def test_what_a_locator_finds_is_a_target():
    assert list(targets([{"_target_": "hydra.utils.get_class", "path": "mine.methods.Own"}])) == ["mine.methods.Own"]


ANY_CODE = '''
def f(x, *, y=None, z: int = ...) -> None:
    """Text."""
    return [f"{x!r:>{y}} of 'it'" for x in (1.5, 2j, b"a", None) if not (yield)]
'''


def test_the_hash_of_code_is_the_same_in_every_python():
    found = fingerprint._hash_without_docstrings(ast.parse(ANY_CODE))
    assert found == "2e6388f07787d4fc"
    assert fingerprint._hash_without_docstrings(ast.parse(ANY_CODE.replace("y=None", "y=1"))) != found


# Files and weights


def test_the_digest_of_files_depends_on_their_names_and_content_and_on_those_in_a_folder(tmp_path, monkeypatch):
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "folder/c"
    c.parent.mkdir()
    for path, content in ((a, "1"), (b, "2"), (c, "3")):
        path.write_text(content)
    digests = [files_digest(each) for each in ([], [a], [b], [a, b], [a, b, c.parent], [a, tmp_path / "absent"])]
    assert files_digest([b, a]) == files_digest([a, b, a]) == digests[3]
    a.write_text("one")
    digests += [files_digest([a]), files_digest([a, b])]
    c.write_text("three")
    digests.append(files_digest([a, b, c.parent]))

    def fail(path):
        raise PermissionError

    monkeypatch.setattr(fingerprint, "file_digest", fail)
    digests += [files_digest([a])]
    assert len(set(digests)) == len(digests)


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
    tmp_path, job, monkeypatch
):
    monkeypatch.setattr(FiledNumbers, "folder", tmp_path)
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
        said = job.run(benchmark___target_=f"{__name__}.FiledNumbers")
        computed += expected
        assert job.samples() == computed
        changed = [f"the samples' files have changed: {len(expected)} samples are computed again."]
        assert said == (changed if number and expected else [])


def test_new_weights_are_new_samples_and_causes_that_come_together_are_told_in_one_line(own, job, monkeypatch):
    job.run()
    monkeypatch.setattr(Plain, "revision", "second")
    assert job.run() == ["the model's files have changed: 3 samples are computed again."]
    assert job.samples() == ["1", "2", "3"] * 2
    monkeypatch.setattr(Plain, "revision", "third")
    own.edit("* 1.0", "* 100.0")
    causes = f"the code ({own.name}) and the model's files have changed"
    assert job.run() == [f"{causes}: 3 samples are computed again."]
